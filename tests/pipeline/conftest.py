"""Small artifacts for the pipeline's tests: examples, a model of known probabilities, an execution of a component."""

import logging
import signal
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest

from tests.kills import leave


@pytest.fixture(autouse=True)
def logging_as_before():
    """Commands silence the log of their process, which here is that of the tests after them too."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
def write_examples(tmp_path):
    """A function: test (and train) images uint8 and labels -> directory of an examples artifact."""
    from pipeline.data import examples

    def write(images, labels, train=None, class_names=None, pixel_max=16, name="examples", names=None):
        directory = tmp_path / name
        directory.mkdir()
        train_images, train_labels = train or (images, labels)
        examples.write(
            SimpleNamespace(
                name="tiny",
                train=SimpleNamespace(images=train_images, labels=train_labels, description="tiny train", names=None),
                test=SimpleNamespace(images=images, labels=labels, description="tiny test", names=names),
                pixel_max=pixel_max,
                class_names=class_names or tuple(str(i) for i in range(10)),
            ),
            directory,
        )
        return directory

    return write


@pytest.fixture
def digit_examples(write_examples, digits):
    """An examples artifact of 12 real digits to test and 70 to train on."""
    images, labels = (digits[0] * 16).astype(np.uint8), digits[1]
    return write_examples(images[-12:], labels[-12:], train=(images[:70], labels[:70]))


@pytest.fixture
def write_model(tmp_path):
    """A function: a Keras classifier -> path of a saved `MACERModel` of it."""
    from macer_tf.model import MACERModel

    def write(classifier, sigma=0.5, name="model.keras"):
        path = tmp_path / name
        MACERModel(classifier, sigma=sigma, seed=0).save(path)
        return path

    return write


@pytest.fixture
def threshold_model(write_model):
    """A function: p -> path of a classifier whose smoothed class 1 has probability p at an image of zeros.

    Its logits are (0, pixel (0, 0) + b). At sigma 0.5 the pixel's noise is N(0, 0.25), so class 1 wins with
    probability Phi(b / 0.5) = p for b = 0.5 Phi^-1(p).
    """
    import keras

    def write(p):
        inputs = keras.Input((2, 2, 1))
        dense = keras.layers.Dense(2)
        classifier = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
        kernel = np.zeros((4, 2), np.float32)
        kernel[0, 1] = 1
        dense.set_weights([kernel, np.array([0, 0.5 * NormalDist().inv_cdf(p)], np.float32)])
        return write_model(classifier, sigma=0.5)

    return write


@pytest.fixture
def ctrl_c(monkeypatch):
    """A function that does what Ctrl-C does, but that the process' end is Ended with its status."""
    monkeypatch.setattr("serving.exit.os._exit", leave)
    return lambda: signal.raise_signal(signal.SIGINT)


@pytest.fixture
def execution(tmp_path):
    """A function: inputs and parameters -> an `Execution` with empty output and scratch directories."""
    from pipeline.orchestration.artifacts import Artifact
    from pipeline.orchestration.orchestrator import Execution

    def make(inputs=None, outputs=(), parameters=None, name="execution"):
        root = tmp_path / name
        for folder in (*outputs, "scratch"):
            (root / folder).mkdir(parents=True)
        return Execution(
            inputs={key: Artifact.of(path) for key, path in (inputs or {}).items()},
            outputs={key: root / key for key in outputs},
            parameters=parameters or {},
            root=root,
            scratch=root / "scratch",
            num_workers=2,
        )

    return make
