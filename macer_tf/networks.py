"""The paper's base classifiers (Section 5.1), and a small one for 8x8 digits: Keras models that return logits.

Convolutions, padding, initialisation and batch norm follow torch's conventions, as the authors' networks do: symmetric
padding even where the stride is 2, no bias before batch norm, He-normal initialisation over the fan-out, batch norm
with momentum 0.9 (torch: 0.1) and epsilon 1e-5. Layers are named like the authors' and torchvision's modules, for
`torch_checkpoints`.
"""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

from collections.abc import Callable, Iterable

import keras
from keras import layers

from macer_tf import checks
from macer_tf.layers import FusedBatchNormalization

# (height, width, channels)
Shape = tuple[int, int, int]

# Name -> the function that builds it, in the order of registration; `register` adds to it. In a name, <depth> or the
# like stands for a whole number, which the function takes before the other arguments.
BUILDERS: dict[str, Callable[..., keras.Model]] = {}


def register(name: str) -> Callable[[Callable[..., keras.Model]], Callable[..., keras.Model]]:
    """Decorator: registers a function (input_shape, num_classes) -> Keras model of logits as the network `name`.

    Examples:
        >>> import keras
        >>> from macer_tf import networks
        >>> @networks.register("linear<width>")
        ... def linear(width, input_shape, num_classes):
        ...     flatten, hidden = keras.layers.Flatten(), keras.layers.Dense(width)
        ...     return keras.Sequential([keras.Input(input_shape), flatten, hidden, keras.layers.Dense(num_classes)])
        >>> networks.build("linear5", (8, 8, 1), 10).count_params()  # 64 * 5 + 5 and 5 * 10 + 10
        385
        >>> del networks.BUILDERS["linear<width>"]  # so that this example leaves nothing behind

    Args:
        name: the name to ask for it by; <depth> or the like in it stands for a whole number, which is then passed to
            the function as its first argument.

    Raises:
        ValueError: if there is already a network of that name.
    """
    if name in BUILDERS:
        raise ValueError(f"A network of this name already exists; choose another name. Received: name={name!r}")

    def add(builder: Callable[..., keras.Model]) -> Callable[..., keras.Model]:
        BUILDERS[name] = builder
        return builder

    return add


def build(name: str, input_shape: Shape, num_classes: int) -> keras.Model:
    """The network called `name`, one of `BUILDERS`.

    Examples:
        >>> from macer_tf import networks
        >>> networks.build("cifar_resnet20", (32, 32, 3), 10).output_shape
        (None, 10)

    Args:
        name: the network's name, e.g. "lenet" or "cifar_resnet110".
        input_shape: (height, width, channels) of the images.
        num_classes: how many logits it returns for each image.

    Raises:
        ValueError: for an unknown name, or an image shape that the network does not take.
    """
    registered, numbers = checks.check_network(name, BUILDERS)
    return BUILDERS[registered](*numbers, input_shape, num_classes)


@register("small_cnn")
def small_cnn(input_shape: Shape = (8, 8, 1), num_classes: int = 10) -> keras.Model:
    """Two 3x3 convolutions (32, 64), each max-pooled, and a hidden layer of 128 units, for very small images.

    Examples:
        >>> from macer_tf import networks
        >>> networks.small_cnn((8, 8, 1), num_classes=10).output_shape
        (None, 10)
    """
    _check("small_cnn", input_shape, 4, num_classes)
    inputs = keras.Input(input_shape)
    x = layers.MaxPooling2D(2)(layers.Conv2D(32, 3, padding="same", activation="relu")(inputs))
    x = layers.MaxPooling2D(2)(layers.Conv2D(64, 3, padding="same", activation="relu")(x))
    x = layers.Dense(128, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, _logits(x, num_classes), name="small_cnn")


@register("lenet")
def lenet(input_shape: Shape = (28, 28, 1), num_classes: int = 10) -> keras.Model:
    """LeNet as the authors use it for MNIST.

    Examples:
        >>> from macer_tf import networks
        >>> networks.lenet().count_params()
        431080
    """
    _check("lenet", input_shape, 16, num_classes)
    inputs = keras.Input(input_shape)
    # The maximum of four ReLUs is the ReLU of their maximum, on a quarter of the values.
    x = layers.ReLU()(layers.MaxPooling2D(2)(layers.Conv2D(20, 5, name="conv1")(inputs)))
    x = layers.ReLU()(layers.MaxPooling2D(2)(layers.Conv2D(50, 5, name="conv2")(x)))
    x = layers.Dense(500, activation="relu", name="fc1")(layers.Flatten()(x))
    return keras.Model(inputs, _logits(x, num_classes, name="fc2"), name="lenet")


@register("cifar_resnet<depth>")
def cifar_resnet(depth: int, input_shape: Shape = (32, 32, 3), num_classes: int = 10) -> keras.Model:
    """ResNet of He et al. (2016) for 32x32 images: 1,730,714 trainable parameters at depth 110.

    Examples:
        >>> from macer_tf import networks
        >>> networks.cifar_resnet(20, (28, 28, 1), num_classes=7).output_shape
        (None, 7)

    Args:
        depth: 6n + 2, e.g. 20 or 110.
        input_shape: (height, width, channels) of the images.
        num_classes: how many logits it returns for each image.

    Raises:
        ValueError: if depth is not 6n + 2.
    """
    checks.check_depth(depth)
    _check(f"cifar_resnet{depth}", input_shape, 8, num_classes)
    inputs = keras.Input(input_shape)
    x = layers.ReLU()(_conv_norm(inputs, 16, 3, 1, ("conv1", "bn1")))
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range((depth - 2) // 6):
            x = _basic_block(x, filters, 2 if stage > 1 and block == 0 else 1, f"layer{stage}.{block}")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, _logits(x, num_classes, name="fc"), name=f"cifar_resnet{depth}")


@register("resnet50")
def resnet50(input_shape: Shape = (224, 224, 3), num_classes: int = 1000) -> keras.Model:
    """ResNet-50, stride in the 3x3 convolutions as in torchvision: 25,557,032 trainable parameters at 224x224x3.

    Examples:
        >>> from macer_tf import networks
        >>> networks.resnet50((32, 32, 3), num_classes=10).output_shape
        (None, 10)
    """
    _check("resnet50", input_shape, 32, num_classes)
    inputs = keras.Input(input_shape)
    x = layers.ReLU()(_conv_norm(inputs, 64, 7, 2, ("conv1", "bn1")))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for stage, (filters, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            x = _bottleneck_block(x, filters, 2 if stage > 1 and block == 0 else 1, f"layer{stage}.{block}")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, _logits(x, num_classes, name="fc"), name="resnet50")


def _conv_norm(x, filters, size, stride=1, names=("conv", "bn")):
    padding = "same"
    if stride > 1:
        # 'same' would pad the bottom and the right only.
        x, padding = layers.ZeroPadding2D(size // 2)(x) if size > 1 else x, "valid"
    he_normal_fan_out = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    conv, norm = names
    x = layers.Conv2D(
        filters, size, stride, padding, use_bias=False, kernel_initializer=he_normal_fan_out, name=conv
    )(x)  # fmt: skip
    return FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=norm)(x)


def _block_conv_norm(x, filters, size, stride, block, number):
    return _conv_norm(x, filters, size, stride, (f"{block}.conv{number}", f"{block}.bn{number}"))


def _shortcut(x, filters, stride, block):
    if stride == 1 and x.shape[-1] == filters:
        return x
    return _conv_norm(x, filters, 1, stride, (f"{block}.downsample.0", f"{block}.downsample.1"))


def _basic_block(x, filters, stride, name="block"):
    residual = layers.ReLU()(_block_conv_norm(x, filters, 3, stride, name, 1))
    residual = _block_conv_norm(residual, filters, 3, 1, name, 2)
    return layers.ReLU()(layers.Add()([residual, _shortcut(x, filters, stride, name)]))


def _bottleneck_block(x, filters, stride, name="block"):
    residual = layers.ReLU()(_block_conv_norm(x, filters, 1, 1, name, 1))
    residual = layers.ReLU()(_block_conv_norm(residual, filters, 3, stride, name, 2))
    residual = _block_conv_norm(residual, 4 * filters, 1, 1, name, 3)
    return layers.ReLU()(layers.Add()([residual, _shortcut(x, 4 * filters, stride, name)]))


def _logits(x, num_classes, name=None):
    # In mixed precision logits stay float32: rounded to bfloat16 and times beta = 16, they would jump by whole units.
    is_mixed = keras.config.dtype_policy().name.startswith("mixed_")
    return layers.Dense(num_classes, name=name, dtype="float32" if is_mixed else None)(x)


def _check(name, input_shape, smallest, num_classes):
    sides = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
    if len(sides) != 3 or not all(checks.is_whole(side) and side >= 1 for side in sides):
        raise ValueError(f"input_shape must be (height, width, channels). Received: {input_shape!r}")
    if min(sides[:2]) < smallest:
        raise ValueError(
            f"{name} takes images of at least {smallest}x{smallest} pixels. Received: {sides[0]}x{sides[1]}"
        )
    if not (checks.is_whole(num_classes) and num_classes >= 2):
        raise ValueError(f"num_classes must be a whole number from 2. Received: {num_classes!r}")
