"""MACER in Keras 3 / TensorFlow: train, certify and evaluate classifiers that are provably robust in l2."""

import importlib
import sys

import wrapt

__version__ = "0.1.0"

_HOMES = {"MACERModel": "macer_tf.model", "SmoothedClassifier": "macer_tf.smoothing"}
__all__ = ["MACERModel", "SmoothedClassifier"]

# What registers the classes that `keras.models.load_model` must find in a file that was saved here.
_SAVED = ("macer_tf.model", "macer_tf.baselines.smoothadv")


def __getattr__(name):
    # On demand: the version and the statistics do not need TensorFlow.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def _register(keras):
    # Their common base, if it is the first to import Keras, has not got far enough to be derived from.
    if keras.config.backend() == "tensorflow" and "macer_tf.noisy_training" not in sys.modules:
        for module in _SAVED:
            importlib.import_module(module)


# As soon as there is a Keras to load a model with, and not before: command lines print their help without TensorFlow.
wrapt.register_post_import_hook(_register, "keras")
