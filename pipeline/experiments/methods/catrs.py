"""CAT-RS (Jeong et al. 2023): as many noisy copies as the model is sure of, and worse noise if it is sure of all."""

from macer_tf import checks
from pipeline.cli.command_line import ABOVE_0, FROM_0, Setting, whole
from pipeline.experiments.methods import Method

_OF_THE_MODEL = ("num_samples", "adversarial", "attack_steps", "noise_radius")


def model(network, settings):
    from macer_tf.baselines.catrs import CATRSModel

    return CATRSModel(network, **{name: settings[name] for name in ("sigma", "microbatch", "seed", *_OF_THE_MODEL)})


def idle(settings):
    return {} if settings["adversarial"] else dict.fromkeys(("attack_steps", "noise_radius"), "adversarial=0")


METHOD = Method(
    name="catrs",
    label="CAT-RS",
    settings=(
        Setting("num_samples", whole(1), "noisy copies of each image (m)", 4),
        Setting("adversarial", FROM_0, "weight of the worst noise's term (the paper's lambda)", 1.0),
        Setting("attack_steps", whole(1), "gradient steps on the noise", 4),
        Setting("noise_radius", ABOVE_0, "l2 radius of these steps, in [0, 1] pixel units", 1.0),
    ),
    model=model,
    idle=idle,
    check=lambda settings: checks.check(**{name: settings[name] for name in _OF_THE_MODEL}),
)
