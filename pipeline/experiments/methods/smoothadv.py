"""SmoothAdv (Salman et al. 2019): adversarial training of the smoothed classifier."""

from macer_tf import checks
from pipeline.cli.command_line import FROM_0, Setting, choice, whole
from pipeline.experiments.methods import Method

_OF_THE_MODEL = ("num_samples", "epsilon", "attack", "attack_steps")


def model(network, settings):
    from macer_tf.baselines.smoothadv import SmoothAdvModel

    return SmoothAdvModel(network, **{name: settings[name] for name in ("sigma", "microbatch", "seed", *_OF_THE_MODEL)})


def schedule(settings):
    from pipeline.training.schedules import WarmUp

    return WarmUp("epsilon", settings["epsilon"], settings["warmup_epochs"])


def idle(settings):
    return {} if settings["epsilon"] else dict.fromkeys(("attack", "attack_steps", "warmup_epochs"), "epsilon=0")


METHOD = Method(
    name="smoothadv",
    label="SmoothAdv",
    settings=(
        Setting("num_samples", whole(1), "noisy copies of each image (the paper's m)", 8),
        Setting("attack", choice(**{name: name for name in checks.ATTACKS}), " or ".join(checks.ATTACKS), "pgd"),
        Setting("attack_steps", whole(1), "gradient steps of the attack", 10),
        Setting("epsilon", FROM_0, "l2 radius of the attack, in [0, 1] pixel units", 1.0),
        Setting("warmup_epochs", whole(0), "epochs over which epsilon rises linearly", 10),
    ),
    model=model,
    schedule=schedule,
    idle=idle,
    last_epochs=lambda settings: {"warmup_epochs": settings["warmup_epochs"]},
    check=lambda settings: checks.check(**{name: settings[name] for name in _OF_THE_MODEL}),
)
