"""The paper's base classifiers (Section 5.1), and a small one for 8x8 digits: Keras models that return logits.

Convolutions, padding, initialisation and batch norm follow torch's conventions, as the authors' networks do: symmetric
padding also where the stride is 2, no bias before batch norm, He-normal initialisation over the fan-out, batch norm
with momentum 0.9 (torch: 0.1) and epsilon 1e-5. Layers are named as the authors' and torchvision's modules, for
`torch_checkpoints`.
"""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

import re

import keras
from keras import layers

from macer_tf.layers import FusedBatchNormalization

NAMES = ("small_cnn", "lenet", "cifar_resnet<depth>", "resnet50")


def build(name, input_shape, num_classes):
    """The network called `name`: one of NAMES, e.g. "cifar_resnet110".

    Raises:
        ValueError: for an unknown name, or an image shape that the network does not take.
    """
    resnet = re.fullmatch(r"cifar_resnet(\d+)", name)
    if resnet:
        return cifar_resnet(int(resnet[1]), input_shape, num_classes)
    builders = {"small_cnn": small_cnn, "lenet": lenet, "resnet50": resnet50}
    if name not in builders:
        raise ValueError(f"Unknown network. Received: {name}; accepted: {', '.join(NAMES)}, e.g. cifar_resnet20.")
    return builders[name](input_shape, num_classes)


def small_cnn(input_shape=(8, 8, 1), num_classes=10):
    """Two 3x3 convolutions (32, 64), each max-pooled, and a hidden layer of 128 units, for very small images."""
    _check_side("small_cnn", input_shape, 4)
    inputs = keras.Input(input_shape)
    x = layers.MaxPooling2D(2)(layers.Conv2D(32, 3, padding="same", activation="relu")(inputs))
    x = layers.MaxPooling2D(2)(layers.Conv2D(64, 3, padding="same", activation="relu")(x))
    x = layers.Dense(128, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, _logits(x, num_classes), name="small_cnn")


def lenet(input_shape=(28, 28, 1), num_classes=10):
    """LeNet as the authors use it for MNIST: 431,080 parameters at 28x28x1."""
    _check_side("lenet", input_shape, 16)
    inputs = keras.Input(input_shape)
    # The maximum of four ReLUs is the ReLU of their maximum, on a quarter of the values.
    x = layers.ReLU()(layers.MaxPooling2D(2)(layers.Conv2D(20, 5, name="conv1")(inputs)))
    x = layers.ReLU()(layers.MaxPooling2D(2)(layers.Conv2D(50, 5, name="conv2")(x)))
    x = layers.Dense(500, activation="relu", name="fc1")(layers.Flatten()(x))
    return keras.Model(inputs, _logits(x, num_classes, name="fc2"), name="lenet")


def cifar_resnet(depth, input_shape=(32, 32, 3), num_classes=10):
    """ResNet of He et al. (2016) for 32x32 images: 1,730,714 trainable parameters at depth 110.

    Args:
        depth: 6n + 2, e.g. 20 or 110.

    Raises:
        ValueError: if depth is not 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"The depth of a cifar_resnet must be 6n + 2, e.g. 20 or 110. Received: depth={depth}")
    _check_side(f"cifar_resnet{depth}", input_shape, 8)
    inputs = keras.Input(input_shape)
    x = layers.ReLU()(_conv_norm(inputs, 16, 3, 1, ("conv1", "bn1")))
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range((depth - 2) // 6):
            x = _basic_block(x, filters, 2 if stage > 1 and block == 0 else 1, f"layer{stage}.{block}")
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, _logits(x, num_classes, name="fc"), name=f"cifar_resnet{depth}")


def resnet50(input_shape=(224, 224, 3), num_classes=1000):
    """ResNet-50, stride in the 3x3 convolutions as in torchvision: 25,557,032 trainable parameters at 224x224x3."""
    _check_side("resnet50", input_shape, 32)
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


def _check_side(name, input_shape, smallest):
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            f"{name} takes images of at least {smallest}x{smallest} pixels. Received: {input_shape[0]}x{input_shape[1]}"
        )
