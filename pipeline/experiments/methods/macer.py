"""MACER: cross-entropy of the smoothed classifier and a hinge on its soft certified radius (Eq. 17 of the paper)."""

from macer_tf import checks
from pipeline.cli.command_line import ABOVE_0, EPOCHS, FROM_0, SWITCH, Setting, none_or, whole
from pipeline.experiments.methods import Method

_CHECKED = ("num_samples", "lam", "gamma", "beta", "consistency", "entropy", "noise_steps", "noise_radius")
_OF_THE_MODEL = (*_CHECKED, "average_cross_entropy", "noise_for_all")
# What begins at lam_start_epoch; see `schedules.MACERSchedule`.
_DEFERRED = ("lam", "consistency", "entropy", "unlabelled")


def model(network, settings):
    from macer_tf.model import MACERModel
    from macer_tf.semi_supervised import SemiSupervisedMACERModel

    kind = SemiSupervisedMACERModel if settings["unlabelled"] else MACERModel
    return kind(network, **{name: settings[name] for name in ("sigma", "microbatch", "seed", *_OF_THE_MODEL)})


def schedule(settings):
    from pipeline.training.schedules import MACERSchedule

    return MACERSchedule(
        settings["lam"],
        settings["lam_start_epoch"],
        settings["ramp_epochs"],
        settings["num_samples"],
        settings["samples_rise_epochs"] or (),
        settings["samples_rise_factor"],
    )


def check(settings):
    checks.check(**{name: settings[name] for name in _CHECKED})
    if settings["unlabelled"] and not (settings["ema"] and settings["labels"]):
        raise ValueError(
            "unlabelled needs the settings labels (how many to keep) and ema (the teacher). "
            f"Received: labels={settings['labels']}, ema={settings['ema']:g}"
        )
    rises = settings["samples_rise_epochs"] or []
    if rises != sorted(set(rises)):
        raise ValueError(f"samples_rise_epochs must rise. Received: {','.join(map(str, rises))}")


def idle(settings):
    found = {}
    if not settings["noise_steps"]:
        found["noise_radius"] = found["noise_for_all"] = "noise_steps=0"
    if not settings["lam"]:
        # The model moves the noise only while there is a hinge to move it for.
        found |= dict.fromkeys(("noise_steps", "noise_radius", "noise_for_all"), "lam=0")
    if not settings["samples_rise_epochs"]:
        found["samples_rise_factor"] = "samples_rise_epochs=none"
        if settings["num_samples"] == 1:
            found["consistency"] = "num_samples=1, and a single copy cannot diverge"
    if not any(settings[name] for name in _DEFERRED):
        nothing = "lam, consistency and entropy are 0, and unlabelled=no"
        found |= dict.fromkeys(("lam_start_epoch", "ramp_epochs"), nothing)
    return found


def last_epochs(settings):
    last = {"samples_rise_epochs": max(settings["samples_rise_epochs"] or [0]) + 1}
    if any(settings[name] for name in _DEFERRED):
        last["lam_start_epoch"] = settings["lam_start_epoch"] + 1
        last["ramp_epochs"] = settings["lam_start_epoch"] + settings["ramp_epochs"]
    return last


def work(settings, epoch):
    more = settings["samples_rise_factor"] ** sum(epoch >= rise for rise in settings["samples_rise_epochs"] or ())
    return more * _passes(settings, epoch) / _passes(settings, 0)


def _passes(settings, epoch):
    """Forward and backward passes of a noisy copy in a step; while lam is above 0, the noise is moved, step by step."""
    moves_noise = settings["lam"] and settings["noise_steps"] and epoch >= settings["lam_start_epoch"]
    return 2 + settings["noise_steps"] if moves_noise else 1


METHOD = Method(
    name="macer",
    label="MACER",
    settings=(
        Setting("num_samples", whole(1), "noisy copies of each image (the paper's k)", 16),
        Setting("lam", FROM_0, "weight of the robustness term; 0: Gaussian training", 12.0),
        Setting("gamma", ABOVE_0, f"hinge on xi, at most {checks.MAX_GAMMA:g}", 8.0),
        Setting("beta", ABOVE_0, "inverse temperature in the robustness term", 16.0),
        Setting("lam_start_epoch", whole(0), "epoch, from 0, at which lam, consistency and entropy begin", 0),
        Setting("average_cross_entropy", SWITCH, "cross-entropy averaged over the copies, not of their mean", False),
        Setting("consistency", FROM_0, "weight of the copies' divergence; 0: off", 0.0),
        Setting("entropy", FROM_0, "weight of the mean prediction's entropy; 0: off", 0.0),
        Setting("noise_steps", whole(0), "gradient steps towards noise with a worse hinge; 0: off", 0),
        Setting("noise_radius", ABOVE_0, "l2 radius of these steps, in [0, 1] pixel units", 1.0),
        Setting("noise_for_all", SWITCH, "use the worse noise for all terms, not only the hinge", False),
        Setting("ramp_epochs", whole(0), "epochs over which they rise linearly to their full weight", 0),
        Setting("unlabelled", SWITCH, "train on unlabelled images too, pseudo-labelled by averaged weights", False),
        Setting("samples_rise_epochs", none_or("none", EPOCHS), "epochs where num_samples rises", None),
        Setting("samples_rise_factor", whole(2), "what a rise multiplies num_samples by", 4),
    ),
    model=model,
    schedule=schedule,
    check=check,
    idle=idle,
    last_epochs=last_epochs,
    work=work,
)
