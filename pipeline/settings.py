"""The settings of a run: their names, types, meanings and units, and how a command line becomes them."""

import argparse
import dataclasses
import difflib
import math
import os
from collections.abc import Callable
from pathlib import Path

from macer_tf import certificates, checks
from pipeline import presets
from pipeline.datasets import SHORT_NAMES
from pipeline.errors import InputError

PRESET = object()
_DATASETS = f"{', '.join(SHORT_NAMES)}, or any TFDS image-classification builder"


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a setting accepts, in words; text -> value, which raises ValueError, KeyError, OverflowError or RuntimeError
    for anything else; and the word for None, if that is a value.
    """

    accepts: str
    parse: Callable
    none: str | None = None


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: a flag of the command line, a line of the plan and of the report.

    Attributes:
        name: without dashes.
        kind: what it accepts.
        meaning: what it is, with its unit.
        default: its value, or PRESET if the preset of (dataset, sigma) has it.
        default_in_words: where the value does not say it.
    """

    name: str
    kind: Kind
    meaning: str
    default: object
    default_in_words: str | None = None


def _whole(first):
    return _number(f"a whole number from {first}", int, lambda value: value >= first)


def _number(accepts, parse_number, is_accepted):
    def parse(text):
        value = parse_number(text)
        if not (math.isfinite(value) and is_accepted(value)):
            raise ValueError
        return value

    return Kind(accepts, parse)


def _or(word, kind):
    """`kind`, or a word that stands for None."""
    return Kind(f"{kind.accepts}, or {word}", lambda text: None if text == word else kind.parse(text), word)


def _choice(**values):
    return Kind(" or ".join(values), values.__getitem__)


_TEXT = Kind("text", str)
_FOLDER = Kind("a folder", lambda text: str(Path(text).expanduser()))
_ABOVE_0 = _number("a number above 0", float, lambda value: value > 0)
_FROM_0 = _number("a number from 0", float, lambda value: value >= 0)
_INSIDE_0_1 = _number("a number above 0 and below 1", float, lambda value: 0 < value < 1)
_FROM_0_BELOW_1 = _number("a number from 0 and below 1", float, lambda value: 0 <= value < 1)
_EPOCHS = Kind("epochs such as 200,400", lambda text: [_whole(1).parse(epoch) for epoch in text.split(",")])
_SEED = Kind("a whole number from 0 to 4294967295", lambda text: checks.check_seed(int(text)))
_PRECISION = _choice(**{name: name for name in ("float32", "mixed_bfloat16", "mixed_float16")})
_STRATEGY = _or("none", _choice(auto="auto", mirrored="mirrored"))

GROUPS = {
    "Data": (
        Setting("dataset", _TEXT, _DATASETS, None, "required without --preset"),
        Setting("preset", _TEXT, "an experiment of the paper by its name", None, "by dataset, sigma and method"),
        Setting("data_dir", _FOLDER, "folder of prepared TFDS data", None, "TFDS's own"),
        Setting("train_split", _TEXT, "TFDS split to train on", None, "train"),
        Setting("test_split", _TEXT, "TFDS split to certify", None, "test"),
        Setting("image_size", _or("none", _whole(1)), "resize and crop to this side, pixels", PRESET),
        Setting("train_examples", _or("all", _whole(1)), "train on so many images, evenly spaced", None, "all"),
    ),
    "Training": (
        Setting(
            "method", _choice(**{name: name for name in presets.METHODS}), "macer, cohen or smoothadv", PRESET, "macer"
        ),
        Setting("sigma", _ABOVE_0, "noise level, in [0, 1] pixel units", PRESET, f"{presets.DEFAULT_SIGMA}"),
        Setting("network", _TEXT, "small_cnn, lenet, cifar_resnet<depth> or resnet50", PRESET, "the dataset's"),
        Setting("num_samples", _whole(1), "noisy copies of each image (the paper's k)", PRESET),
        Setting("lam", _FROM_0, "weight of the robustness term; 0: Gaussian training", PRESET),
        Setting("gamma", _ABOVE_0, f"hinge on xi, at most {checks.MAX_GAMMA:g}", PRESET),
        Setting("beta", _ABOVE_0, "inverse temperature in the robustness term", PRESET),
        Setting("lam_start_epoch", _whole(0), "lam is 0 before this epoch", PRESET),
        Setting("attack", _or("none", _choice(pgd="pgd", ddn="ddn")), "of smoothadv: pgd or ddn", PRESET),
        Setting("epsilon", _or("none", _FROM_0), "of smoothadv: l2 radius, in [0, 1] pixel units", PRESET),
        Setting("attack_steps", _or("none", _whole(1)), "of smoothadv: gradient steps", PRESET),
        Setting("warmup_epochs", _whole(0), "of smoothadv: epochs over which epsilon rises", PRESET),
        Setting("epochs", _whole(1), "passes over the training images", PRESET),
        Setting("batch_size", _whole(1), "images a step", PRESET),
        Setting("learning_rate", _ABOVE_0, "of SGD, at the start", PRESET),
        Setting("lr_schedule", _choice(step="step", cosine="cosine"), "step or cosine", PRESET),
        Setting("lr_drop_epochs", _or("none", _EPOCHS), "epochs where a step schedule drops", PRESET),
        Setting("lr_drop_factor", _INSIDE_0_1, "what a drop multiplies the learning rate by", PRESET),
        Setting("momentum", _FROM_0_BELOW_1, "of SGD", PRESET),
        Setting("l2", _FROM_0, "L2 regularisation, in the gradient of all weights", PRESET),
        Setting("clip_norm", _or("none", _ABOVE_0), "bound on the gradient's global norm", PRESET),
        Setting("crop_padding", _whole(0), "random crops after padding by so many pixels", PRESET),
        Setting("flip", _choice(yes=True, no=False), "random horizontal flips, yes or no", PRESET),
        Setting("precision", _PRECISION, f"of the network: {_PRECISION.accepts}", "float32"),
        Setting("microbatch", _or("none", _whole(1)), "images a gradient slice, to save memory", None),
        Setting("strategy", _STRATEGY, "auto: mirrored on 2 GPUs or more; learning_rate is not scaled", "auto"),
        Setting("seed", _SEED, "of weights, order and all noise", 0),
    ),
    "Certification": (
        Setting("n0", _whole(1), "samples that choose the class", PRESET),
        Setting("n", _whole(1), "samples that bound its probability", PRESET),
        Setting("alpha", _INSIDE_0_1, "probability that a certificate is false", PRESET),
        Setting("num_test_examples", _or("all", _whole(2)), "test images, evenly spaced", PRESET),
    ),
    "Blessing and push": (
        Setting("min_accuracy", _INSIDE_0_1, "certified accuracy to bless from", None, "twice chance"),
        Setting("serving_n", _whole(1), "n of the served model", 1000),
        Setting("push_dir", _FOLDER, "model server's folder", None, "<pipeline_root>/serving/<name>"),
    ),
    "Run": (
        Setting("sweep", _TEXT, "compare values of a setting: lam=0,1,4", None, "off"),
        Setting("pipeline_root", _FOLDER, "where everything is kept", "runs"),
        Setting("num_workers", _whole(1), "certification threads", None, "one a core"),
    ),
}
SETTINGS = tuple(setting for group in GROUPS.values() for setting in group)

# Where things are and how many threads work changes no result.
_NOT_IN_THE_PLAN = ("preset", "sweep", "data_dir", "push_dir", "pipeline_root", "num_workers")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(message)


def parse(arguments):
    """A command line -> (name -> value of every setting, the `Preset` they start from).

    Raises:
        InputError: in one line, for an unknown flag or a value outside what its setting accepts.
    """
    given = _given(arguments)
    if "preset" in given:
        preset = presets.by_name(given["preset"])
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


def plan(settings):
    """Group -> list of [name, value in words, meaning], of every setting that can change a result."""
    return {
        group: [
            [setting.name, in_words(setting, settings[setting.name]), setting.meaning]
            for setting in entries
            if setting.name not in _NOT_IN_THE_PLAN
        ]
        for group, entries in GROUPS.items()
        if any(setting.name not in _NOT_IN_THE_PLAN for setting in entries)
    }


def in_words(setting, value):
    """A setting's value as the plan, the help and the report print it."""
    if value is None:
        return setting.default_in_words or setting.kind.none
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or setting.kind.none
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _given(arguments):
    parser = _Parser(
        prog="python -m pipeline.run",
        usage="%(prog)s --dataset NAME [options]",
        description="Trains a classifier with MACER, certifies, evaluates, validates and pushes it. What was done "
        "before is not done again. In brackets: the default; several values are those of the presets, which "
        "--list_presets shows.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=24, width=100),
        allow_abbrev=False,
        add_help=False,
    )
    for title, entries in GROUPS.items():
        group = parser.add_argument_group(title)
        for setting in entries:
            group.add_argument(f"--{setting.name}", metavar="", help=f"{setting.meaning} [{_default(setting)}]")
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    texts, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise InputError(_unknown_argument(unknown[0]))
    kinds = {setting.name: setting.kind for setting in SETTINGS}
    return {name: value(name, kinds[name], text) for name, text in vars(texts).items() if text is not None}


def _default(setting):
    if setting.default_in_words:
        return setting.default_in_words
    if setting.default is not PRESET:
        return in_words(setting, setting.default)
    values = dict.fromkeys(getattr(preset, setting.name) for preset in presets.PRESETS)
    return " | ".join(in_words(setting, value) for value in values) if len(values) <= 4 else "the preset's"


def value(name, kind, text):
    """The value that a setting's text stands for. Raises InputError, in one line, if it is not accepted."""
    try:
        return kind.parse(text)
    except (ValueError, KeyError, OverflowError, RuntimeError):
        raise InputError(f"--{name} must be {kind.accepts}. Received: {text}") from None


def _unknown_argument(argument):
    nearest = difflib.get_close_matches(argument.split("=")[0], [f"--{setting.name}" for setting in SETTINGS], n=2)
    hint = f"Did you mean {' or '.join(nearest)}?" if nearest else "See --help."
    return f"Unknown argument {argument}. {hint}"


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
    for name in ("n", "serving_n"):
        try:
            certificates.check_can_certify(settings[name], settings["alpha"])
        except ValueError as error:
            raise InputError(f"--{name} is too small. {error}") from None
    drops = settings["lr_drop_epochs"] or []
    if drops != sorted(set(drops)):
        raise InputError(f"--lr_drop_epochs must rise. Received: {','.join(map(str, drops))}")
