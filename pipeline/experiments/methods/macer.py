"""MACER: cross-entropy of the smoothed classifier and a hinge on its soft certified radius (Eq. 17 of the paper)."""

from macer_tf import checks
from pipeline.cli.command_line import ABOVE_0, FROM_0, Setting, whole
from pipeline.experiments.methods import Method

_OF_THE_MODEL = ("num_samples", "lam", "gamma", "beta")


def model(network, settings):
    from macer_tf.model import MACERModel

    return MACERModel(network, **{name: settings[name] for name in ("sigma", "microbatch", "seed", *_OF_THE_MODEL)})


def schedule(settings):
    from pipeline.training.schedules import DeferLam

    return DeferLam(settings["lam"], settings["lam_start_epoch"])


METHOD = Method(
    name="macer",
    label="MACER",
    settings=(
        Setting("num_samples", whole(1), "noisy copies of each image (the paper's k)", 16),
        Setting("lam", FROM_0, "weight of the robustness term; 0: Gaussian training", 12.0),
        Setting("gamma", ABOVE_0, f"hinge on xi, at most {checks.MAX_GAMMA:g}", 8.0),
        Setting("beta", ABOVE_0, "inverse temperature in the robustness term", 16.0),
        Setting("lam_start_epoch", whole(0), "lam is 0 before this epoch, counted from 0", 0),
    ),
    model=model,
    schedule=schedule,
    check=lambda settings: checks.check(**{name: settings[name] for name in _OF_THE_MODEL}),
)
