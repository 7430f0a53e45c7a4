"""Sixty architectures, as they are certified and served, against themselves as Keras runs them."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from macer_tf import networks
from macer_tf.inference import InferenceGraph
from macer_tf.layers import FusedBatchNormalization
from macer_tf.probing import probe

SHAPE = (8, 8, 3)
BN = layers.BatchNormalization


def conv(x, filters=4, **options):
    return layers.Conv2D(filters, 3, padding="same", **options)(x)


def block(x, filters=4, **options):
    return layers.ReLU()(BN()(conv(x, filters, **options)))


def pre_activation(x, add):
    h = conv(x)
    for _ in range(2):
        branch = conv(ops.relu(BN()(h)))
        h = add(h, conv(ops.relu(BN()(branch))))
    return BN()(h)


def nested(x):
    inner = keras.Sequential([keras.Input(SHAPE), layers.Conv2D(4, 3), BN(), layers.ReLU()])
    outer = keras.Sequential([keras.Input(SHAPE), inner, layers.Conv2D(4, 3), BN()])
    return BN()(outer(x))


def nested_functional(x):
    inputs = keras.Input(SHAPE)
    inner = keras.Model(inputs, BN()(inputs + conv(inputs, 3)))
    return block(inner(x)) + conv(inner(x / 2))


def shared_convolution(x):
    shared = layers.Conv2D(3, 3, padding="same")
    return BN()(shared(BN()(shared(x))))


def shared_norm(x):
    shared = BN()
    return shared(conv(x)) + shared(conv(x))


def convolution_used_twice(x):
    y = conv(x)
    return BN()(y) * ops.sigmoid(y)


def squeeze_and_excite(x):
    y = block(x)
    gate = layers.Dense(4, activation="sigmoid")(layers.GlobalAveragePooling2D()(y))
    return y * ops.reshape(gate, (-1, 1, 1, 4))


def dense_block(x):
    for _ in range(3):
        x = layers.Concatenate()([x, conv(ops.relu(BN()(x)))])
    return BN()(x)


def inception(x):
    return BN()(layers.Concatenate()([block(x), BN()(layers.Conv2D(3, 1)(x)), layers.MaxPooling2D(3, 1, "same")(x)]))


def frozen(x):
    y = layers.Conv2D(4, 3, trainable=False)(x)
    return BN(trainable=False)(y)


def attention(x):
    y = layers.Reshape((64, 4))(block(x))
    return layers.LayerNormalization()(y + layers.MultiHeadAttention(2, 4)(y, y))


def along_rows(x):
    return BN()(layers.Conv1D(4, 3)(layers.Reshape((16, 12))(x)))


class Own(layers.Layer):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = layers.Conv2D(4, 3), BN()

    def call(self, x, training=False):
        return self.norm(self.conv(x), training=training)


BODIES = {
    "convolution, norm": block,
    "no bias": lambda x: block(x, use_bias=False),
    "strides": lambda x: block(x, strides=2),
    "dilated": lambda x: block(x, dilation_rate=2),
    "grouped": lambda x: BN()(layers.Conv2D(6, 3, groups=3)(x)),
    "activation in the convolution": lambda x: BN()(conv(x, activation="relu")),
    "activation between": lambda x: BN()(layers.ELU()(conv(x))),
    "depthwise": lambda x: BN()(layers.DepthwiseConv2D(3, depth_multiplier=2)(x)),
    "separable": lambda x: BN()(layers.SeparableConv2D(4, 3)(x)),
    "transposed": lambda x: BN()(layers.Conv2DTranspose(4, 3, strides=2)(x)),
    "along rows": along_rows,
    "dense": lambda x: BN()(layers.Dense(6)(layers.Flatten()(x))),
    "dense along channels": lambda x: BN()(layers.Dense(6)(x)),
    "no centre": lambda x: BN(center=False)(conv(x)),
    "no scale": lambda x: BN(scale=False)(conv(x)),
    "neither": lambda x: BN(scale=False, center=False)(conv(x)),
    "axis 3": lambda x: BN(axis=3)(conv(x)),
    "axis 1": lambda x: BN(axis=1)(conv(x)),
    "axis 2 of as many": lambda x: BN(axis=2)(conv(x, 8)),
    "epsilon": lambda x: BN(epsilon=0.5)(conv(x)),
    "renormalised": lambda x: BN(renorm=True)(conv(x)),
    "fused": lambda x: FusedBatchNormalization()(conv(x)),
    "two norms": lambda x: BN()(BN()(conv(x))),
    "norm first": lambda x: conv(BN()(x)),
    "norm behind +": lambda x: BN()(conv(x) + conv(x)),
    "norm behind scaling": lambda x: conv(BN()((x - 0.5) / 0.25)),
    "norm behind relu": lambda x: BN()(ops.relu(conv(x))),
    "norm behind a reshape": lambda x: BN()(ops.reshape(conv(x), (-1, 4, 4, 16))),
    "norm behind a split": lambda x: BN()(ops.split(conv(x, 8), 2, axis=-1)[1]),
    "norm behind a slice": lambda x: BN()(conv(x)[:, 1:, :-1]),
    "norm behind a clip": lambda x: BN()(ops.clip(conv(x), -1, 1)),
    "norm behind a matmul": lambda x: BN()(ops.matmul(conv(x), np.ones((4, 4), np.float32))),
    "norm behind a padding": lambda x: BN()(ops.pad(conv(x), ((0, 0), (1, 1), (1, 1), (0, 0)))),
    "norm behind a Lambda": lambda x: BN()(layers.Lambda(lambda y: y * 2)(conv(x))),
    "norm before an operation": lambda x: ops.gelu(BN()(conv(x))),
    "pre-activation with +": lambda x: pre_activation(x, lambda a, b: a + b),
    "pre-activation with ops.add": lambda x: pre_activation(x, ops.add),
    "pre-activation with Add": lambda x: pre_activation(x, lambda a, b: layers.Add()([a, b])),
    "nested": nested,
    "nested functional": nested_functional,
    "shared convolution": shared_convolution,
    "shared norm": shared_norm,
    "convolution used twice": convolution_used_twice,
    "squeeze and excite": squeeze_and_excite,
    "dense block": dense_block,
    "inception": inception,
    "not trainable": frozen,
    "attention": attention,
    "group norm": lambda x: layers.GroupNormalization(2)(block(x)),
    "layer norm": lambda x: layers.LayerNormalization()(block(x)),
    "unit norm": lambda x: layers.UnitNormalization()(block(x)),
    "dropout": lambda x: layers.SpatialDropout2D(0.3)(layers.Dropout(0.5)(block(x))),
    "augmentation": lambda x: block(layers.RandomFlip()(layers.RandomRotation(0.1)(x))),
    "noise in training": lambda x: block(layers.GaussianNoise(0.5)(x)),
    "rescaled and resized": lambda x: block(layers.Resizing(6, 6)(layers.Rescaling(2.0, -1.0)(x))),
    "a layer of one's own": lambda x: BN()(Own()(x)),
    "a constraint": lambda x: BN()(conv(x, kernel_constraint="max_norm", kernel_regularizer="l2")),
    "batch statistics asked for": lambda x: BN()(conv(x), training=True),
}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.body = [layers.Conv2D(4, 3), BN(), layers.ReLU(), layers.Flatten(), layers.Dense(5)]

    def call(self, x, training=False):
        for layer in self.body:
            x = layer(x, training=training) if isinstance(layer, BN) else layer(x)
        return x


def of_body(body):
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(body(inputs))))


WHOLE = {
    "subclassed": Subclassed,
    "Sequential of models": lambda: keras.Sequential([of_body(block), layers.Dense(4), BN(), layers.Dense(3)]),
    "lenet": lambda: networks.build("lenet", (28, 28, 1), 10),
    "cifar_resnet8": lambda: networks.build("cifar_resnet8", (16, 16, 3), 10),
}
APPLICATIONS = {
    "MobileNet": ((32, 32, 3), {"alpha": 0.25}),
    "MobileNetV2": ((32, 32, 3), {"alpha": 0.35}),
    "MobileNetV3Small": ((32, 32, 3), {"alpha": 0.35, "minimalistic": True}),
    "ResNet50": ((32, 32, 3), {}),
    "ResNet50V2": ((32, 32, 3), {}),
    "DenseNet121": ((32, 32, 3), {}),
    "EfficientNetB0": ((32, 32, 3), {}),
    "EfficientNetV2B0": ((32, 32, 3), {}),
    "NASNetMobile": ((32, 32, 3), {}),
    "Xception": ((71, 71, 3), {}),
    "InceptionV3": ((75, 75, 3), {}),
    "ConvNeXtTiny": ((32, 32, 3), {}),
}


def with_statistics(model, shape, seed=0):
    """The model with weights and moving statistics unlike their initial values, near to what its layers see."""
    rng = np.random.default_rng(seed)
    model(np.zeros((1, *shape), np.float32))
    for layer in model._flatten_layers():
        if isinstance(layer, BN):
            for weight in layer.weights:
                low, high = (0.5, 1.5) if weight.path.endswith(("gamma", "variance")) else (-0.3, 0.3)
                if weight.dtype == "float32":
                    weight.assign(rng.uniform(low, high, weight.shape))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
    return model


def with_statistics_of_images(model, shape):
    """The model with moving statistics near those of random images, or the signal is lost on its way through."""
    model = with_statistics(model, shape)
    rng = np.random.default_rng(0)
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, BN)]
    for norm in norms:
        norm.momentum = 0.0
    model(rng.random((16, *shape), np.float32), training=True)
    for norm in norms:
        norm.moving_variance.assign(norm.moving_variance * rng.uniform(0.8, 1.25, norm.moving_variance.shape) + 1e-2)
    return model


def assert_same_function(model, shape, tolerance):
    images = np.random.default_rng(1).random((6, *shape), np.float32)
    expected = model(images, training=False).numpy()
    assert np.isfinite(expected).all()
    assert expected.std(axis=0).max() > 1e-4 * np.abs(expected).max()  # or agreement would mean little
    graph = InferenceGraph(model)
    np.testing.assert_allclose(graph(images), expected, rtol=0, atol=tolerance * np.abs(expected).max())
    probe(graph, shape)  # is certified


# Folding multiplies a kernel by what the norm multiplied its outputs by: each output is rounded differently by some
# units of the last of 24 binary digits (6e-8), and these add up like random numbers over sums and layers.
@pytest.mark.parametrize("name", BODIES)
def test_a_network_is_certified_as_the_function_it_is(name):
    keras.utils.set_random_seed(0)
    assert_same_function(with_statistics(of_body(BODIES[name]), SHAPE), SHAPE, 3e-6)


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_model_is_certified_as_the_function_it_is(name):
    keras.utils.set_random_seed(0)
    model = WHOLE[name]()
    shape = SHAPE if name == "subclassed" else model.input_shape[1:]
    assert_same_function(with_statistics(model, shape), shape, 3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_the_networks_of_keras_are_certified_as_the_functions_they_are(name):
    keras.utils.set_random_seed(0)
    shape, options = APPLICATIONS[name]
    build = getattr(keras.applications, name)
    model = build(weights=None, input_shape=shape, classes=10, classifier_activation=None, **options)
    assert_same_function(with_statistics_of_images(model, shape), shape, 1e-4)  # up to 400 layers


# These are functions of more than one image, or none of it.
NO_FUNCTIONS = {
    "the batch's mean": lambda x: x - ops.mean(x, axis=0, keepdims=True),
    "the batch's largest": lambda x: x / (1 + ops.max(x)),
    "its neighbours": lambda x: x + 0.1 * ops.roll(x, 1, axis=0),
    "those before it": lambda x: ops.cumsum(x, axis=0),
    "its place": lambda x: ops.sort(x, axis=0),
    "bytes if the largest is above 1": lambda x: ops.where(ops.max(x) > 1, x / 255, x),
    "signed if the least is below 0": lambda x: ops.where(ops.min(x) < 0, (x + 1) / 2, x),
    "inverted if it is bright on average": lambda x: ops.where(ops.mean(x) > 0.2, x, 1 - x),
    "less contrast if there is much": lambda x: ops.where(ops.std(x) > 1, x / 2, x),
    "attention among images": lambda x: ops.matmul(ops.softmax(ops.matmul(x, ops.transpose(x))), x),
}


@pytest.mark.parametrize("name", NO_FUNCTIONS)
def test_what_depends_on_the_rest_of_the_batch_is_refused(name):
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, layers.Dense(3)(NO_FUNCTIONS[name](layers.Flatten()(inputs))))
    with pytest.raises(ValueError, match="output for an image depends on the rest of its batch") as error:
        probe(InferenceGraph(model), (4, 4, 1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("precision", "layer", "far"),
    [
        ("float64", layers.Dense(3, dtype="float64"), lambda x: x + 1e8),
        ("float64", layers.Dense(3, dtype="float64"), lambda x: 1e200 * x),
        ("bfloat16", layers.Dense(3, dtype="mixed_bfloat16"), lambda x: ops.cast(x, "float32") + 3000.1),
        ("float16", layers.Dense(3, dtype="mixed_float16"), lambda x: ops.cast(x, "float32") + 3000.1),
    ],
)
def test_no_digit_and_no_size_hides_the_batch(precision, layer, far):
    """As the votes go by all digits."""
    inputs = keras.Input((4, 4, 1))
    flat = layers.Flatten()(inputs)
    mean = layer(ops.mean(flat, axis=0, keepdims=True) + 0 * flat)
    with pytest.raises(ValueError, match="output for an image depends on the rest of its batch"):
        probe(InferenceGraph(keras.Model(inputs, far(mean))), (4, 4, 1), precision)
    probe(InferenceGraph(keras.Model(inputs, far(layer(flat)))), (4, 4, 1), precision)


class AlwaysTraining(keras.Model):
    """Calls one layer in training mode whatever it is told."""

    def __init__(self, layer, classes=3, mask=0.0):
        super().__init__()
        self.parts, self.mask = [layers.Flatten(), layer, layers.Dense(classes)], np.float32(mask)

    def call(self, x):
        flat, layer, dense = self.parts
        return dense(layer(flat(x), training=True)) + self.mask


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (BN(), "depends on the rest of its batch"),
        (layers.Dropout(0.2), "different outputs for the same images"),
        (layers.GaussianNoise(0.1), "different outputs for the same images"),
    ],
)
def test_a_layer_in_training_mode_is_refused(layer, reason):
    with pytest.raises(ValueError, match=reason):
        probe(InferenceGraph(AlwaysTraining(layer)), (4, 4, 1))


@pytest.mark.parametrize("masked", [1, 5, 6, 8])
@pytest.mark.parametrize("mask", [-1e9, -1e4, -1e2, -30.0])
@pytest.mark.parametrize(
    ("layer", "reason"), [(BN(), "depends on the rest of its batch"), (layers.Dropout(0.2), "different outputs")]
)
def test_masked_classes_hide_nothing_however_many(layer, reason, mask, masked):
    """As a head of many classes is cut down to some of them."""
    keras.utils.set_random_seed(0)
    model = AlwaysTraining(layer, 10, np.where(np.arange(10) < 10 - masked, 0, mask))
    with pytest.raises(ValueError, match=reason):
        probe(InferenceGraph(model), (4, 4, 1))


@pytest.mark.parametrize("masked", [1, 5, 9])
@pytest.mark.parametrize("mask", [-np.inf, -1e9, 30.0])
def test_masked_classes_do_not_matter(mask, masked):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 1))
    logits = layers.Dense(10)(layers.Flatten()(inputs))
    model = keras.Model(inputs, logits + np.where(np.arange(10) < 10 - masked, 0, mask).astype("float32"))
    assert probe(InferenceGraph(model), (4, 4, 1)).shape == (16, 10)
