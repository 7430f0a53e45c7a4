"""Gaussian training (Cohen et al. 2019): cross-entropy on one noisy copy of each image."""

from pipeline.experiments.methods import Method


def model(network, settings):
    from macer_tf.model import MACERModel

    # Section 5.1 of the paper: this is MACER with k=1 and lam=0.
    shared = {name: settings[name] for name in ("sigma", "microbatch", "seed")}
    return MACERModel(network, num_samples=1, lam=0.0, **shared)


METHOD = Method(name="cohen", label="Gaussian training", model=model)
