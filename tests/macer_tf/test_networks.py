import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import signal

from macer_tf import checks, networks


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def of_type(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


def test_parameter_counts_and_shapes_of_the_papers_networks():
    # LeNet: (25 + 1) * 20 + (25 * 20 + 1) * 50 + (4 * 4 * 50 + 1) * 500 + (500 + 1) * 10 = 431,080.
    lenet = networks.lenet()
    assert lenet.count_params() == 431_080
    assert lenet.output_shape == (None, 10)
    resnet110 = networks.cifar_resnet(110)
    assert trainable(resnet110) == 1_730_714
    assert resnet110.output_shape == (None, 10)
    assert len([c for c in of_type(resnet110, keras.layers.Conv2D) if c.kernel_size == (3, 3)]) == 109


def test_resnet50():
    model = networks.resnet50()
    assert trainable(model) == 25_557_032  # torchvision's resnet50
    assert model.output_shape == (None, 1000)
    assert [model.get_layer(index=i).output.shape[1] for i in (1, 2)] == [230, 112]
    # The stride is in the 3x3 convolutions (and the shortcuts), never in a block's 1x1.
    strided = [c.kernel_size for c in of_type(model, keras.layers.Conv2D) if c.strides == (2, 2)]
    assert sorted(strided) == [(1, 1)] * 3 + [(3, 3)] * 3 + [(7, 7)]


def test_other_sizes_and_classes():
    assert networks.small_cnn((8, 8, 1), 10).output_shape == (None, 10)
    assert networks.lenet((32, 32, 3), 4).output_shape == (None, 4)
    resnet = networks.cifar_resnet(20, (28, 28, 1), 7)
    assert resnet(np.zeros((2, 28, 28, 1), np.float32)).shape == (2, 7)
    # He et al.: 0.27 M parameters at depth 20; the 1x1 shortcuts add 16 * 32 + 32 * 64 + 2 * (32 + 64).
    assert trainable(networks.cifar_resnet(20)) == 269_722 + 2_560 + 192


@pytest.mark.parametrize(
    "model", [networks.small_cnn(), networks.lenet(), networks.cifar_resnet(8)], ids=lambda model: model.name
)
def test_the_last_layer_returns_logits(model):
    assert isinstance(model.layers[-1], keras.layers.Dense)
    assert model.layers[-1].activation is keras.activations.linear


@pytest.mark.parametrize(("size", "stride", "side"), [(3, 2, 8), (3, 1, 8), (7, 2, 8), (1, 2, 8), (3, 2, 7)])
def test_padding_is_symmetric_as_torchs(size, stride, side):
    inputs = keras.Input((side, side, 2))
    model = keras.Model(inputs, networks._conv_norm(inputs, 3, size, stride))
    rng = np.random.default_rng(0)
    image = rng.normal(size=(side, side, 2)).astype(np.float32)
    (kernel,) = of_type(model, keras.layers.Conv2D)[0].get_weights()
    padded = np.pad(image, [(size // 2, size // 2)] * 2 + [(0, 0)])
    expected = np.stack(
        [
            sum(signal.correlate2d(padded[:, :, i], kernel[:, :, i, o], mode="valid") for i in range(2))
            for o in range(3)
        ],
        axis=-1,
    )[::stride, ::stride]
    # A fresh batch norm at inference divides by sqrt(1 + epsilon).
    got = model(image[None], training=False).numpy()[0]
    np.testing.assert_allclose(got, expected / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-5)


def test_batch_norm_and_initialisation_are_torchs():
    model = networks.cifar_resnet(20)
    for norm in of_type(model, keras.layers.BatchNormalization):
        assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)
    for convolution in of_type(model, keras.layers.Conv2D):
        assert not convolution.use_bias
        (kernel,) = convolution.get_weights()
        # kaiming_normal_(mode="fan_out"): standard deviation sqrt(2 / (height * width * out channels)).
        expected = np.sqrt(2 / (kernel.shape[0] * kernel.shape[1] * kernel.shape[3]))
        assert abs(kernel.std() / expected - 1) < 4 / np.sqrt(2 * kernel.size)
        if kernel.size > 5000:
            assert np.abs(kernel).max() > 2.5 * expected  # not truncated at two standard deviations


def test_one_residual_block_by_hand():
    # With zero kernels in the residual branch, a block without a stride is the identity after a ReLU.
    inputs = keras.Input((4, 4, 16))
    model = keras.Model(inputs, networks._basic_block(inputs, 16, 1))
    for convolution in of_type(model, keras.layers.Conv2D):
        convolution.set_weights([np.zeros_like(convolution.get_weights()[0])])
    image = np.random.default_rng(0).normal(size=(1, 4, 4, 16)).astype(np.float32)
    np.testing.assert_array_equal(model(image, training=False), np.maximum(image, 0))


def test_build_by_name():
    assert networks.build("cifar_resnet20", (32, 32, 3), 10).name == "cifar_resnet20"
    assert networks.build("lenet", (28, 28, 1), 10).count_params() == 431_080
    assert networks.build("small_cnn", (8, 8, 1), 5).output_shape == (None, 5)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vgg", (32, 32, 3), "Unknown network. Received: vgg; accepted: small_cnn, lenet, cifar_resnet<depth>"),
        ("cifar_resnet", (32, 32, 3), "Unknown network"),
        ("cifar_resnet20x", (32, 32, 3), "Unknown network"),
        ("cifar_resnet21", (32, 32, 3), r"must be 6n \+ 2, e.g. 20 or 110. Received: depth=21"),
        ("cifar_resnet2", (32, 32, 3), r"must be 6n \+ 2"),
        ("lenet", (8, 8, 1), "lenet takes images of at least 16x16 pixels. Received: 8x8"),
        ("small_cnn", (3, 8, 1), "at least 4x4 pixels. Received: 3x8"),
        ("cifar_resnet20", (4, 4, 3), "at least 8x8"),
        ("resnet50", (28, 28, 1), "at least 32x32"),
        ("small_cnn", "abc", r"input_shape must be \(height, width, channels\). Received: 'abc'"),
        ("lenet", (28, 28), r"input_shape must be \(height, width, channels\). Received: \(28, 28\)"),
        (5, (8, 8, 1), "A network is chosen by its name, e.g. 'lenet'. Received: 5"),
    ],
)
def test_bad_input(name, shape, message):
    with pytest.raises(ValueError, match=message) as caught:
        networks.build(name, shape, 10)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"num_classes must be a whole number from 2\. Received: 1"):
        networks.build("small_cnn", (8, 8, 1), 1)


def test_the_shape_that_a_dataset_tells_is_one():
    shape = tf.data.Dataset.from_tensors(np.zeros((8, 9, 1))).element_spec.shape
    assert networks.small_cnn(shape).input_shape == (None, 8, 9, 1)


def test_another_network_is_one_decorated_function(monkeypatch):
    monkeypatch.setattr(networks, "BUILDERS", dict(networks.BUILDERS))

    @networks.register("mlp<width>x<depth>")
    def mlp(width, depth, input_shape, num_classes):
        hidden = [keras.layers.Dense(width, activation="relu") for _ in range(depth)]
        return keras.Sequential(
            [keras.Input(input_shape), keras.layers.Flatten(), *hidden, keras.layers.Dense(num_classes)]
        )

    # 4 * 5 + 5, 5 * 5 + 5 and 5 * 3 + 3.
    assert networks.build("mlp5x2", (2, 2, 1), 3).count_params() == 25 + 30 + 18
    for name in ("mlp5", "mlp5x", "mlp5x2x", "amlp5x2"):
        with pytest.raises(ValueError, match=f"Unknown network. Received: {name}; accepted: .*, mlp<width>x<depth>"):
            networks.build(name, (2, 2, 1), 3)
    with pytest.raises(ValueError, match="A network of this name already exists"):
        networks.register("lenet")


def test_the_names_that_are_known_without_keras_are_those_of_the_networks():
    assert tuple(networks.BUILDERS) == checks.NETWORKS
