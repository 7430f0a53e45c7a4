"""The settings of a run: their names, types, meanings and units, and what of them a command line leaves to presets."""

import os
from pathlib import Path

from macer_tf import certificates, checks
from pipeline.certification import sampling_plan
from pipeline.cli import command_line
from pipeline.cli.command_line import (
    ABOVE_0,
    FOLDER,
    FROM_0,
    FROM_0_BELOW_1,
    INSIDE_0_1,
    SEED,
    TEXT,
    Kind,
    Setting,
    choice,
    in_words,
    none_or,
    whole,
)
from pipeline.data.datasets import SHORT_NAMES
from pipeline.experiments import presets
from pipeline.utils.errors import InputError

PRESET = object()
_DATASETS = f"{', '.join(SHORT_NAMES)}, or any TFDS image-classification builder"
_EPOCHS = Kind("epochs such as 200,400", lambda text: [whole(1).parse(epoch) for epoch in text.split(",")])
_PRECISION = choice(**{name: name for name in ("float32", "mixed_bfloat16", "mixed_float16")})
_STRATEGY = none_or("none", choice(auto="auto", mirrored="mirrored"))

GROUPS = {
    "Data": (
        Setting("dataset", TEXT, f"{', '.join(SHORT_NAMES)}, or any of TFDS", None, "or --preset"),
        Setting("preset", TEXT, "an experiment of the paper by its name", None, "by dataset, sigma and method"),
        Setting("data_dir", FOLDER, "folder of prepared TFDS data", None, "TFDS's own"),
        Setting("train_split", TEXT, "TFDS split to train on", None, "train"),
        Setting("test_split", TEXT, "TFDS split to certify", None, "test"),
        Setting("image_size", none_or("none", whole(1)), "resize and crop to this side, pixels", PRESET),
        Setting("train_examples", none_or("all", whole(1)), "train on so many images, evenly spaced", None, "all"),
    ),
    "Training": (
        Setting(
            "method", choice(**{name: name for name in presets.METHODS}), "macer, cohen or smoothadv", PRESET, "macer"
        ),
        Setting("sigma", ABOVE_0, "noise level, in [0, 1] pixel units", PRESET, f"{presets.DEFAULT_SIGMA}"),
        Setting("network", TEXT, "small_cnn, lenet, cifar_resnet<depth> or resnet50", PRESET, "the dataset's"),
        Setting("num_samples", whole(1), "noisy copies of each image (the paper's k)", PRESET),
        Setting("lam", FROM_0, "weight of the robustness term; 0: Gaussian training", PRESET),
        Setting("gamma", ABOVE_0, f"hinge on xi, at most {checks.MAX_GAMMA:g}", PRESET),
        Setting("beta", ABOVE_0, "inverse temperature in the robustness term, and of soft certificates", PRESET),
        Setting("lam_start_epoch", whole(0), "lam is 0 before this epoch", PRESET),
        Setting("attack", none_or("none", choice(pgd="pgd", ddn="ddn")), "of smoothadv: pgd or ddn", PRESET),
        Setting("epsilon", none_or("none", FROM_0), "of smoothadv: l2 radius, in [0, 1] pixel units", PRESET),
        Setting("attack_steps", none_or("none", whole(1)), "of smoothadv: gradient steps", PRESET),
        Setting("warmup_epochs", whole(0), "of smoothadv: epochs over which epsilon rises", PRESET),
        Setting("epochs", whole(1), "passes over the training images", PRESET),
        Setting("batch_size", whole(1), "images a step", PRESET),
        Setting("learning_rate", ABOVE_0, "of SGD, at the start", PRESET),
        Setting("lr_schedule", choice(step="step", cosine="cosine"), "step or cosine", PRESET),
        Setting("lr_drop_epochs", none_or("none", _EPOCHS), "epochs where a step schedule drops", PRESET),
        Setting("lr_drop_factor", INSIDE_0_1, "what a drop multiplies the learning rate by", PRESET),
        Setting("momentum", FROM_0_BELOW_1, "of SGD", PRESET),
        Setting("l2", FROM_0, "L2 regularisation, in the gradient of all weights", PRESET),
        Setting("clip_norm", none_or("none", ABOVE_0), "bound on the gradient's global norm", PRESET),
        Setting("crop_padding", whole(0), "random crops after padding by so many pixels", PRESET),
        Setting("flip", choice(yes=True, no=False), "random horizontal flips, yes or no", PRESET),
        Setting("precision", _PRECISION, f"of the network: {_PRECISION.accepts}", "float32"),
        Setting("microbatch", none_or("none", whole(1)), "images a gradient slice, to save memory", None),
        Setting("strategy", _STRATEGY, "auto: mirrored on 2 GPUs or more; learning_rate is not scaled", "auto"),
        Setting("seed", SEED, "of weights, order and all noise", 0),
    ),
    "Certification": (
        Setting("n0", whole(1), "samples that choose the class", PRESET),
        Setting("n", whole(1), "samples that bound its probability", PRESET),
        Setting("alpha", INSIDE_0_1, "probability that a certificate is false", PRESET),
        Setting("num_test_examples", none_or("all", whole(2)), "test images, evenly spaced", PRESET),
        sampling_plan.CERTIFY,
        sampling_plan.BUDGET,
    ),
    "Blessing and push": (
        Setting("min_accuracy", INSIDE_0_1, "certified accuracy to bless from", None, "twice chance"),
        Setting("serving_n", whole(1), "n of the served model", 1000),
        Setting("push_dir", FOLDER, "model server's folder", None, "<pipeline_root>/serving/<name>"),
    ),
    "Run": (
        Setting("sweep", TEXT, "compare values of a setting: lam=0,1,4", None, "off"),
        Setting("pipeline_root", FOLDER, "where everything is kept", "runs"),
        Setting("num_workers", whole(1), "certification threads", None, "one a core"),
    ),
}
SETTINGS = tuple(setting for group in GROUPS.values() for setting in group)

# Where things are and how many threads work changes no result.
_NOT_LISTED = ("preset", "sweep", "data_dir", "push_dir", "pipeline_root", "num_workers")


def parse(arguments):
    """A command line -> (name -> value of every setting, the `Preset` they start from).

    Raises:
        InputError: in one line, for an unknown flag or a value outside what its setting accepts.
    """
    given = _given(arguments)
    if "preset" in given:
        preset = presets.by_name(given["preset"], "See --list_presets.")
        _refuse_another_method(given, preset)
    elif "dataset" in given:
        preset = presets.find(given["dataset"], given.get("sigma"), given.get("method", "macer"))
    else:
        raise InputError(f"--dataset is missing. Accepted: {_DATASETS}.")
    settings = {
        setting.name: getattr(preset, setting.name) if setting.default is PRESET else setting.default
        for setting in SETTINGS
    }
    settings.update(dataset=preset.dataset, lr_drop_epochs=list(settings["lr_drop_epochs"]))
    settings.update(given)
    settings["num_workers"] = settings["num_workers"] or os.cpu_count()
    if settings["push_dir"] is None:
        model_name = f"{settings['dataset']}-{settings['sigma']:g}".replace("/", "-")
        settings["push_dir"] = str(Path(settings["pipeline_root"]) / "serving" / model_name)
    _check(settings)
    return settings, preset


def _refuse_another_method(given, preset):
    # Another method's hyper-parameters are not in this preset.
    if given.get("method", preset.method) != preset.method:
        raise InputError(
            f"The preset {preset.name} is of the method {preset.method}: leave --method out. Received: --method "
            f"{given['method']}"
        )


def listing(settings):
    """Group -> list of [name, value in words, meaning], of every setting that can change a result."""
    return {
        group: [
            [setting.name, in_words(setting, settings[setting.name]), setting.meaning]
            for setting in entries
            if setting.name not in _NOT_LISTED
        ]
        for group, entries in GROUPS.items()
        if any(setting.name not in _NOT_LISTED for setting in entries)
    }


def _given(arguments):
    return command_line.given(
        arguments,
        GROUPS,
        prog="python -m pipeline.run",
        usage="%(prog)s --dataset NAME [options]",
        description="Trains, certifies, evaluates, validates and pushes a classifier. What was done before is not done "
        "again. In brackets: the default; several values are those of the presets (--list_presets).",
        default=_default,
    )


def _default(setting):
    if setting.default_in_words:
        return setting.default_in_words
    if setting.default is not PRESET:
        return in_words(setting, setting.default)
    values = dict.fromkeys(getattr(preset, setting.name) for preset in presets.PRESETS)
    return " | ".join(in_words(setting, value) for value in values) if len(values) <= 4 else "the preset's"


def _check(settings):
    """What no single setting shows; all of it before any work."""
    names = ("sigma", "gamma", "beta", "lam", "num_samples")
    if settings["method"] == "smoothadv":
        names += ("epsilon", "attack", "attack_steps")
    if settings["method"] == "cohen" and (settings["lam"], settings["num_samples"]) != (0, 1):
        raise InputError(
            "The method cohen is Gaussian training on one noisy copy: leave --lam and --num_samples out, or take "
            f"--method macer. Received: lam={settings['lam']:g}, num_samples={settings['num_samples']}"
        )
    try:
        checks.check(**{name: settings[name] for name in names})
    except ValueError as error:
        raise InputError(str(error)) from None
    sampling_plan.SamplingPlan.of_run(settings)
    try:
        certificates.check_can_certify(settings["serving_n"], settings["alpha"])
    except ValueError as error:
        raise InputError(f"--serving_n is too small. {error}") from None
    drops = settings["lr_drop_epochs"] or []
    if drops != sorted(set(drops)):
        raise InputError(f"--lr_drop_epochs must rise. Received: {','.join(map(str, drops))}")
