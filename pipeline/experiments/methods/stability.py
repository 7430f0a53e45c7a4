"""Stability training (Li et al. 2019): predictions on noisy copies are kept close to those on clean images."""

from macer_tf import checks
from pipeline.cli.command_line import FROM_0, Setting, whole
from pipeline.experiments.methods import Method

_OF_THE_MODEL = ("num_samples", "stability")


def model(network, settings):
    from macer_tf.baselines.stability import StabilityModel

    return StabilityModel(network, **{name: settings[name] for name in ("sigma", "microbatch", "seed", *_OF_THE_MODEL)})


METHOD = Method(
    name="stability",
    label="Stability training",
    settings=(
        Setting("num_samples", whole(1), "noisy copies of each image", 1),
        Setting("stability", FROM_0, "weight of the stability term", 2.0),
    ),
    model=model,
    check=lambda settings: checks.check(**{name: settings[name] for name in _OF_THE_MODEL}),
)
