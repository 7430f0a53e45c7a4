"""Consistency regularisation (Jeong and Shin 2020): the predictions on noisy copies should agree."""

from macer_tf import checks
from pipeline.cli.command_line import FROM_0, Setting, whole
from pipeline.experiments.methods import Method

_OF_THE_MODEL = ("num_samples", "consistency", "entropy")


def model(network, settings):
    from macer_tf.baselines.consistency import ConsistencyModel

    return ConsistencyModel(
        network, **{name: settings[name] for name in ("sigma", "microbatch", "seed", *_OF_THE_MODEL)}
    )


def idle(settings):
    return {"consistency": "num_samples=1, and a single copy cannot diverge"} if settings["num_samples"] == 1 else {}


METHOD = Method(
    name="consistency",
    label="Consistency",
    settings=(
        Setting("num_samples", whole(1), "noisy copies of each image (the paper's m)", 2),
        Setting("consistency", FROM_0, "weight of the copies' divergence from their mean", 10.0),
        Setting("entropy", FROM_0, "weight of the mean prediction's entropy", 0.5),
    ),
    model=model,
    idle=idle,
    check=lambda settings: checks.check(**{name: settings[name] for name in _OF_THE_MODEL}),
)
