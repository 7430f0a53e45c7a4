import functools
import random
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from macer_tf import networks
from macer_tf.inference import InferenceGraph, _content, _sum_of_words, own_precision
from macer_tf.layers import FusedBatchNormalization

SHAPE = (8, 8, 2)


def randomized(model, seed=0):
    """The model with weights and moving statistics unlike their initial values."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape
            # A residual branch must not grow from block to block.
            weights = [rng.uniform(0.2, 0.6, size)] * layer.scale + [rng.normal(0, 0.3, size)] * layer.center
            layer.set_weights([*weights, rng.normal(0, 0.3, size), rng.uniform(0.3, 2, size)])
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
    return model


def images_for(model, count=6):
    return np.random.default_rng(1).normal(0.5, 0.5, (count, *model.input_shape[1:])).astype(np.float32)


def norms_left(graph, images):
    """Fused batch norms in the traced graph."""
    operations = tf.function(graph).get_concrete_function(tf.constant(images)).graph.get_operations()
    return sum(operation.type == "FusedBatchNormV3" for operation in operations)


def assert_same_function(model, graph, tolerance=1e-5):
    images = images_for(model)
    expected = model(images, training=False).numpy()
    assert expected.std() > 0.01  # or agreement would mean little
    got = tf.function(graph)(images).numpy()
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def norm(**options):
    return FusedBatchNormalization(epsilon=1e-3, **options)


def functional(build):
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(build(inputs))))


def shared_convolution(x):
    conv = layers.Conv2D(2, 3, padding="same")
    return norm()(conv(norm()(conv(x))))


def used_twice(x):
    y = layers.Conv2D(4, 3)(x)
    return layers.Add()([norm()(y), y])


def shared_norm(x):
    shared = norm()
    return layers.Add()([shared(layers.Conv2D(4, 3)(x)), shared(layers.Conv2D(4, 3)(x))])


def masked_norm(x):
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x), mask=x[..., 0] > 0)
    return 1.0 * y  # an operation passes no mask on


def nested(x):
    inner = keras.Sequential([keras.Input(SHAPE), layers.Conv2D(4, 3, use_bias=False), norm(), layers.ReLU()])
    return norm()(layers.Conv2D(3, 3)(inner(x)))


# How many of its batch norms are left.
GRAPHS = {
    "bias": (lambda x: norm()(layers.Conv2D(4, 3)(x)), 0),
    "no bias": (lambda x: norm()(layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(x)), 0),
    "no scale": (lambda x: norm(scale=False)(layers.Conv2D(4, 3)(x)), 0),
    "no offset": (lambda x: norm(center=False, axis=3)(layers.Conv2D(4, 3)(x)), 0),
    "groups": (lambda x: norm()(layers.Conv2D(4, 3, groups=2)(x)), 0),
    "an operation": (lambda x: norm()(layers.Conv2D(4, 3)(2.0 * x - 1.0)), 0),
    "nested": (nested, 0),
    "dense": (lambda x: layers.BatchNormalization()(layers.Dense(5)(layers.Flatten()(x))), 0),
    "first": (norm(), 1),
    "activation inside": (lambda x: norm()(layers.Conv2D(4, 3, activation="relu")(x)), 1),
    "activation between": (lambda x: norm()(layers.ReLU()(layers.Conv2D(4, 3)(x))), 1),
    "depthwise": (lambda x: norm()(layers.DepthwiseConv2D(3)(x)), 1),
    "shared convolution": (shared_convolution, 2),
    "used twice": (used_twice, 1),
    "shared norm": (shared_norm, 2),
    "batch statistics": (lambda x: norm()(layers.Conv2D(4, 3)(x), training=True), 1),
    "a mask": (masked_norm, 0),
    "another axis": (lambda x: layers.BatchNormalization(axis=1)(layers.Conv2D(4, 3)(x)), 0),
    "Lambda": (lambda x: norm()(layers.Conv2D(4, 3)(layers.Lambda(lambda y: y * 2)(x))), 1),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_same_outputs_whether_folded_or_left(name):
    build, left = GRAPHS[name]
    keras.utils.set_random_seed(0)
    model = randomized(functional(build))
    graph = InferenceGraph(model)
    assert_same_function(model, graph)
    assert norms_left(graph, images_for(model)) == left


def test_folding_by_hand():
    # y = (2 x + 1 - 5) / sqrt(8 + 1) * 3 + 4 = 2 x.
    conv, batch_norm = layers.Conv2D(1, 1), norm()
    batch_norm.epsilon = 1.0
    model = keras.Sequential([keras.Input((1, 1, 1)), conv, batch_norm])
    conv.set_weights([np.full((1, 1, 1, 1), 2.0), np.ones(1)])
    batch_norm.set_weights([np.array([value]) for value in (3.0, 4.0, 5.0, 8.0)])
    graph = InferenceGraph(model)
    x = np.float32([-1, 0, 0.5, 7]).reshape(4, 1, 1, 1)
    np.testing.assert_allclose(graph(x), 2 * x, atol=1e-6)
    assert norms_left(graph, x) == 0


@pytest.mark.parametrize("name", ["lenet", "cifar_resnet20", "small_cnn"])
@pytest.mark.parametrize("precision", [None, "float32"])
def test_our_networks(name, precision):
    keras.utils.set_random_seed(0)
    model = randomized(networks.build(name, (32, 32, 3), 10))
    graph = InferenceGraph(model, precision)
    assert graph.precision == "float32"
    assert_same_function(model, graph)
    assert norms_left(graph, images_for(model)) == 0


@pytest.fixture
def policy():
    """Sets Keras' dtype policy until the test is over."""
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", ["lenet", "cifar_resnet8"])
def test_bfloat16_is_what_keras_computes_under_mixed_bfloat16(name, policy):
    policy("mixed_bfloat16")
    mixed = randomized(networks.build(name, (32, 32, 3), 10))
    policy("float32")
    plain = networks.build(name, (32, 32, 3), 10)
    plain.set_weights(mixed.get_weights())
    images = images_for(plain)
    graphs = [InferenceGraph(mixed), InferenceGraph(mixed, "bfloat16"), InferenceGraph(plain, "bfloat16")]
    assert [graph.precision for graph in graphs] == ["bfloat16"] * 3
    outputs = [tf.function(graph)(images).numpy() for graph in graphs]
    np.testing.assert_array_equal(outputs[1], outputs[0])
    np.testing.assert_array_equal(outputs[2], outputs[0])
    # 8 binary digits, through a few layers; and not float32's outputs.
    expected = plain(images).numpy()
    np.testing.assert_allclose(outputs[0], expected, atol=0.03 * np.abs(expected).max())
    assert (outputs[0] != expected).all()
    # ... which the mixed model can be brought to.
    back = InferenceGraph(mixed, "float32")
    assert back.precision == "float32"
    np.testing.assert_allclose(back(images), expected, atol=1e-5 * np.abs(expected).max())


def test_it_follows_the_classifiers_weights():
    model = randomized(functional(GRAPHS["bias"][0]))
    graph = tf.function(InferenceGraph(model))
    images = images_for(model)
    before = graph(images).numpy()
    randomized(model, seed=2)
    after = graph(images).numpy()
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(after, model(images).numpy(), atol=1e-5)


def test_the_classifier_is_left_as_it_was():
    model = functional(nested)
    before, weights = model.get_config(), [weight.copy() for weight in model.get_weights()]
    InferenceGraph(model, "bfloat16")(images_for(model))
    assert model.get_config() == before
    for weight, expected in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, expected)
    for layer in model.layers:
        assert layer.output is not None  # raises for a layer that was called a second time


def relu(x):
    return -x


def swish(x):
    return x * keras.ops.sigmoid(3 * x)


OWN_ACTIVATIONS = {
    "of a name that Keras has": relu,
    "of another name": swish,
    "lambda": lambda x: tf.nn.leaky_relu(x, 0.1),
    "partial": functools.partial(tf.nn.leaky_relu, alpha=0.1),
    "of TensorFlow": tf.nn.swish,
    "of Keras' operations": keras.ops.gelu,
    "layer with weights": layers.PReLU(alpha_initializer="ones"),
    "layer of such a name": layers.Activation(relu),
}


@pytest.mark.parametrize("as_layer", [False, True], ids=["argument", "layer"])
@pytest.mark.parametrize("name", OWN_ACTIVATIONS)
def test_an_activation_of_ones_own_is_never_taken_for_keras(name, as_layer):
    """In a configuration it has its bare name, `relu` for one."""
    activation = OWN_ACTIVATIONS[name]

    def build(x):
        if as_layer:
            return norm()(layers.Activation(activation)(layers.Conv2D(4, 3)(x)))
        return norm()(layers.Conv2D(4, 3, activation=activation)(x))

    model = randomized(functional(build))
    images = images_for(model)
    expected = model(images)
    np.testing.assert_allclose(InferenceGraph(model)(images), expected, atol=1e-5)
    if name in (
        "lambda",
        "partial",
        "layer with weights",
        "layer of such a name",
    ):  # their configurations cannot be read, or do not say all
        with pytest.raises(ValueError, match="only functional and sequential models of plain Keras layers can be"):
            InferenceGraph(model, "bfloat16")
    else:
        found = InferenceGraph(model, "bfloat16")(images)
        np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())


def test_a_model_that_cannot_be_converted_is_told_which_layers_are_why():
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.RandomFlip(), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"Received: precision=bfloat16, Sequential with RandomFlip$"):
        InferenceGraph(model, "bfloat16")


@pytest.mark.parametrize("activation", [tf.nn.relu, keras.ops.relu, layers.LeakyReLU(), swish])
def test_batch_norm_is_folded_beside_activations_of_any_kind(activation):
    model = randomized(functional(lambda x: layers.Activation(activation)(norm()(layers.Conv2D(4, 3)(x)))))
    graph = InferenceGraph(model)
    assert norms_left(graph, images_for(model)) == 0
    assert_same_function(model, graph)


def test_what_is_not_rebuilt_draws_no_random_numbers():
    model = functional(lambda x: layers.Dropout(0.5)(layers.Conv2D(4, 3)(x)))
    before = random.getstate()
    InferenceGraph(model)
    assert random.getstate() == before


class WithoutConfig(keras.regularizers.Regularizer):
    def __call__(self, weights):
        return 0.0 * keras.ops.sum(weights)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_initializer": lambda shape, dtype=None: tf.ones(shape, dtype)},
        {"kernel_constraint": lambda weights: weights},
        {"kernel_regularizer": WithoutConfig()},
    ],
    ids=["initialiser", "constraint", "regulariser"],
)
def test_a_layer_whose_configuration_cannot_be_read_runs_as_it_is(options):
    model = randomized(functional(lambda x: norm()(layers.Conv2D(4, 3, **options)(x))))
    images = images_for(model)
    np.testing.assert_allclose(InferenceGraph(model)(images), model(images), atol=1e-5)


def test_a_layer_or_a_model_whose_call_was_replaced_runs_as_it_is():
    for replaced in (lambda model: model.layers[1], lambda model: model):
        model = randomized(functional(lambda x: norm()(layers.Conv2D(4, 3)(x))))
        one = replaced(model)
        one.call = lambda *inputs, call=one.call, **options: 2 * call(*inputs, **options)
        images = images_for(model)
        np.testing.assert_array_equal(InferenceGraph(model)(images), model(images, training=False))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.parts = [layers.Conv2D(4, 3), norm(), layers.Flatten(), layers.Dense(3)]

    def call(self, images, training=False):
        for part in self.parts:
            images = part(images, training=training) if part is self.parts[1] else part(images)
        return images


class Doubling(layers.Layer):
    def call(self, inputs):
        return 2 * inputs


class Sum(keras.Model):
    """A functional model that adds what its configuration does not say."""

    def call(self, inputs, training=False):
        return super().call(inputs, training=training) + 1


def with_own_layer():
    return functional(lambda x: norm()(layers.Conv2D(4, 3)(Doubling()(x))))


def own_kind():
    inputs = keras.Input(SHAPE)
    return Sum(inputs, layers.Dense(3)(layers.Flatten()(norm()(layers.Conv2D(4, 3)(inputs)))))


def with_normalization():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(3).normal(2, 3, (50, *SHAPE)))
    return functional(lambda x: norm()(layers.Conv2D(4, 3)(normalization(x))))


@pytest.mark.parametrize("build", [Subclassed, with_own_layer, own_kind, with_normalization])
def test_what_is_not_keras_own_is_left_alone(build):
    keras.utils.set_random_seed(0)
    model = build()
    model(np.zeros((1, *SHAPE), np.float32))
    randomized(model)
    images = np.random.default_rng(1).random((3, *SHAPE), np.float32)
    graph = InferenceGraph(model, "float32")
    np.testing.assert_array_equal(graph(images), model(images, training=False))
    assert norms_left(graph, images) == 1
    with pytest.raises(ValueError, match=r"computes in float32; only functional .* Received: precision=bfloat16") as e:
        InferenceGraph(model, "bfloat16")
    assert "\n" not in str(e.value)


def test_unknown_precision():
    with pytest.raises(ValueError, match=r"precision must be one of float32, bfloat16\. Received: precision=float16"):
        InferenceGraph(functional(GRAPHS["bias"][0]), "float16")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("float32", "float32"), ("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16"), ("float64", "float64")],
)
def test_own_precision_is_that_of_the_layers_wherever_they_were_loaded(name, expected, policy, tmp_path):
    policy(name)
    networks.small_cnn().save(tmp_path / "model.keras")
    policy("float32")
    model = keras.models.load_model(tmp_path / "model.keras")
    assert own_precision(model) == InferenceGraph(model).precision == expected


def test_a_saved_model_runs_without_keras(tmp_path):
    model = randomized(networks.cifar_resnet(8, (16, 16, 3), 4))
    graph = InferenceGraph(model, "bfloat16")
    images = images_for(model)
    module = tf.Module()
    module.variables_of_the_model = graph.variables
    spec = tf.TensorSpec([None, 16, 16, 3], tf.float32, name="images")
    module.call = tf.function(lambda images: {"outputs": graph(images)}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.call})
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signature = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(tmp_path)).signature_def[
            "serving_default"
        ]
        outputs = session.run(signature.outputs["outputs"].name, {signature.inputs["images"].name: images})
    # A session fuses other operations than a tf.function, and in bfloat16 fewer intermediate results are rounded then.
    np.testing.assert_allclose(outputs, graph(images), atol=0.01)
    assert np.std(outputs, axis=0).max() > 0.001


def test_what_of_keras_and_of_ours_is_plain():
    """It is not tried in full passes, which takes most of the time: each row depends on itself alone."""
    assert InferenceGraph(networks.build("cifar_resnet20", (8, 8, 3), 10)).is_of_plain_layers
    inputs = keras.Input((4,))
    assert InferenceGraph(keras.Model(inputs, layers.Dense(2)(inputs + 2 * inputs))).is_of_plain_layers
    assert not InferenceGraph(keras.Model(inputs, keras.ops.cumsum(inputs, axis=0))).is_of_plain_layers
    for layer in (layers.Activation(keras.random.shuffle), layers.Rescaling(tf.Variable(2.0))):
        assert not InferenceGraph(keras.Model(inputs, layer(inputs))).is_of_plain_layers
    assert not InferenceGraph(keras.Model(inputs, inputs * tf.Variable(2.0))).is_of_plain_layers


@pytest.mark.parametrize("variable", [tf.Variable, keras.Variable])
def test_a_variable_that_is_a_layers_setting_is_followed(variable):
    scale, inputs = variable(2.0), keras.Input((8, 8, 3))
    norm = layers.BatchNormalization()(layers.Conv2D(2, 3)(layers.Rescaling(scale)(inputs)))
    model = keras.Model(inputs, layers.Flatten()(norm))
    graph, images = InferenceGraph(model), np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    scale.assign(-1.0)
    np.testing.assert_allclose(graph(images), model(images, training=False), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64", "bool", "uint8", "int32", "complex128"])
def test_checksums_in_a_graph_are_those_of_what_the_weights_hold(dtype):
    """Otherwise each draw with such a weight would be refused, as if the weight had changed meanwhile."""
    values = tf.cast(np.random.default_rng(0).normal(0, 100, (5, 3)), dtype)
    weights = [SimpleNamespace(value=tf.Variable(part)) for part in (values, values[:4, :2], values[0, :1])]
    holder = SimpleNamespace(_classifier=SimpleNamespace(weights=weights))
    found = tf.function(lambda: InferenceGraph.checksums(holder))().numpy()
    assert found.tolist() == [_sum_of_words(_content(weight)) for weight in weights]
