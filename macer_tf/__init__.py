"""MACER in Keras 3 / TensorFlow: train, certify and evaluate classifiers that are provably robust in l2."""

import importlib

__version__ = "0.1.0"

_HOMES = {"MACERModel": "macer_tf.model", "SmoothedClassifier": "macer_tf.smoothing"}
__all__ = ["MACERModel", "SmoothedClassifier"]


def __getattr__(name):
    # On demand: the version and the statistics do not need TensorFlow.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
