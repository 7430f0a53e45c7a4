"""What the serving tests share: a linear classifier whose probabilities are known, and a briefly trained network."""

import keras
import numpy as np
import pytest

from macer_tf import networks
from macer_tf.model import MACERModel
from serving.export import export


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


@pytest.fixture(scope="session")
def exported(tmp_path_factory, digits_model):
    """Its SavedModel, at n0 = 100, n = 300 and alpha = 0.001, for 8 images and 20,000 samples at most."""
    directory = tmp_path_factory.mktemp("export") / "saved_model"
    limits = {"max_n": 20_000, "max_batch_size": 8}
    export(digits_model, directory, n0=100, n=300, alpha=0.001, pixel_max=16, **limits)
    return directory
