"""SmoothMix (Jeong et al. 2021): images are mixed with their versions after an unconstrained attack."""

from macer_tf import checks
from pipeline.cli.command_line import ABOVE_0, FROM_0, Setting, whole
from pipeline.experiments.methods import Method

_OF_THE_MODEL = ("num_samples", "mixup", "attack_steps", "step_size")


def model(network, settings):
    from macer_tf.baselines.smoothmix import SmoothMixModel

    return SmoothMixModel(network, **{name: settings[name] for name in ("sigma", "microbatch", "seed", *_OF_THE_MODEL)})


def schedule(settings):
    from pipeline.training.schedules import WarmUp

    return WarmUp("mixup", settings["mixup"], settings["warmup_epochs"])


METHOD = Method(
    name="smoothmix",
    label="SmoothMix",
    settings=(
        Setting("num_samples", whole(1), "noisy copies of each image (the paper's m)", 4),
        Setting("mixup", FROM_0, "weight of the mixed images' term (the paper's eta)", 5.0),
        Setting("attack_steps", whole(1), "gradient steps of the attack", 4),
        Setting("step_size", ABOVE_0, "of each, in [0, 1] pixel units (the paper's alpha)", 1.0),
        Setting("warmup_epochs", whole(0), "epochs over which mixup rises linearly", 10),
    ),
    model=model,
    schedule=schedule,
    # What the attack does is still reported.
    idle=lambda settings: {} if settings["mixup"] else {"warmup_epochs": "mixup=0"},
    last_epochs=lambda settings: {"warmup_epochs": settings["warmup_epochs"]},
    check=lambda settings: checks.check(**{name: settings[name] for name in _OF_THE_MODEL}),
)
