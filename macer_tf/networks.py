"""The paper's base classifiers (Section 5.1), and a small one for 8x8 digits: Keras models that return logits.

Convolutions, padding, initialisation and batch norm follow torch's conventions, as the authors' networks do: symmetric
padding also where the stride is 2, no bias before batch norm, He-normal initialisation over the fan-out, batch norm
with momentum 0.9 (torch: 0.1) and epsilon 1e-5.
"""

import re

import keras
from keras import layers

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
    return keras.Model(inputs, layers.Dense(num_classes)(x), name="small_cnn")


def lenet(input_shape=(28, 28, 1), num_classes=10):
    """LeNet as the authors use it for MNIST: 431,080 parameters at 28x28x1."""
    _check_side("lenet", input_shape, 16)
    inputs = keras.Input(input_shape)
    x = layers.MaxPooling2D(2)(layers.Conv2D(20, 5, activation="relu")(inputs))
    x = layers.MaxPooling2D(2)(layers.Conv2D(50, 5, activation="relu")(x))
    x = layers.Dense(500, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(num_classes)(x), name="lenet")


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
    x = layers.ReLU()(_conv_norm(inputs, 16, 3))
    for stage, filters in enumerate((16, 32, 64)):
        for block in range((depth - 2) // 6):
            x = _basic_block(x, filters, stride=2 if stage > 0 and block == 0 else 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x), name=f"cifar_resnet{depth}")


def resnet50(input_shape=(224, 224, 3), num_classes=1000):
    """ResNet-50, stride in the 3x3 convolutions as in torchvision: 25,557,032 trainable parameters at 224x224x3."""
    _check_side("resnet50", input_shape, 32)
    inputs = keras.Input(input_shape)
    x = layers.ReLU()(_conv_norm(inputs, 64, 7, stride=2))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for stage, (filters, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            x = _bottleneck_block(x, filters, stride=2 if stage > 0 and block == 0 else 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x), name="resnet50")


def _conv_norm(x, filters, size, stride=1):
    if size > 1:
        x = layers.ZeroPadding2D(size // 2)(x)
    he_normal_fan_out = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    x = layers.Conv2D(filters, size, stride, use_bias=False, kernel_initializer=he_normal_fan_out)(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)


def _shortcut(x, filters, stride):
    return x if stride == 1 and x.shape[-1] == filters else _conv_norm(x, filters, 1, stride)


def _basic_block(x, filters, stride):
    residual = _conv_norm(layers.ReLU()(_conv_norm(x, filters, 3, stride)), filters, 3)
    return layers.ReLU()(layers.Add()([residual, _shortcut(x, filters, stride)]))


def _bottleneck_block(x, filters, stride):
    residual = layers.ReLU()(_conv_norm(x, filters, 1))
    residual = layers.ReLU()(_conv_norm(residual, filters, 3, stride))
    residual = _conv_norm(residual, 4 * filters, 1)
    return layers.ReLU()(layers.Add()([residual, _shortcut(x, 4 * filters, stride)]))


def _check_side(name, input_shape, smallest):
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            f"{name} takes images of at least {smallest}x{smallest} pixels. Received: {input_shape[0]}x{input_shape[1]}"
        )
