"""MACER in Keras 3 / TensorFlow: train, certify and evaluate classifiers that are provably robust in l2."""

__version__ = "0.1.0"
