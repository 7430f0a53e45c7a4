"""What the serving tests share: a linear classifier whose probabilities are known, and a briefly trained network."""

import keras
import numpy as np
import pytest

from macer_tf import networks
from macer_tf.model import MACERModel


@pytest.fixture(scope="session")
def linear_classifier():
    """A function: bias -> two classes on 2x2x1 images, logits (s, 0), s = sum of the pixels + bias.

    With noise sigma on each of the four pixels, p_0 = Phi(s / (2 sigma)).
    """

    def build(bias=0.0):
        inputs = keras.Input((2, 2, 1))
        outputs = keras.layers.Dense(2)(keras.layers.Flatten()(inputs))
        model = keras.Model(inputs, outputs)
        model.set_weights([np.array([[1.0, 0.0]] * 4, np.float32), np.array([bias, 0.0], np.float32)])
        return model

    return build


@pytest.fixture(scope="session")
def digits_model(digits):
    """A briefly trained `MACERModel` of a network with batch norm, on the digits."""
    images, labels = digits
    keras.utils.set_random_seed(0)
    model = MACERModel(networks.cifar_resnet(8, (8, 8, 1), 10), sigma=0.25, num_samples=2, lam=0.0, seed=0)
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(images[:512], labels[:512], epochs=4, verbose=0)
    return model
