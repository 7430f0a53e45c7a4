"""The settings of a run: a command line and a preset -> values, checked together; and values in words and as flags."""

import os
import shlex
from pathlib import Path

from macer_tf import certificates, checks
from pipeline.certification import sampling_plan
from pipeline.cli import beam_options, command_line, saying
from pipeline.cli.command_line import in_words
from pipeline.data import own_images
from pipeline.data.datasets import SHORT_NAMES
from pipeline.experiments import methods, presets
from pipeline.experiments.setting_list import GROUPS
from pipeline.utils import processor
from pipeline.utils.errors import InputError
from pipeline.utils.numbers import exactly
from serving import card
from serving.fingerprints import digest

_DATASETS = f"{', '.join(SHORT_NAMES)}, or any TFDS image-classification builder"

# Where things are and how many threads work does not change a result.
_NOT_LISTED = ("preset", "sweep", "data_dir", "push_dir", "pipeline_root", "num_workers", "no_cache")
# Useful only with Beam's own options, so the help leaves them out.
_OF_ENGINES = (beam_options.VOTES, beam_options.PATIENCE)
# The help lists none of these; its description mentions those that every command has.
_UNLISTED = (*_OF_ENGINES, *saying.SETTINGS)
# Not for the user's own images, which have no data set name.
_OF_DATA_SETS = ("dataset", "preset", "data_dir", "train_split", "test_split", "image_size")
_RESERVED = {"beam", "help", "list_presets", "version"}
# What a settings file leaves out: what belongs to one call, or to this machine.
_NOT_WRITTEN = ("sweep", "num_workers", "no_cache")


def parse(arguments):
    """A command line -> (name -> value of every setting that its method has, the `Preset` it starts from).

    Raises:
        InputError: in one line, for an unknown flag, a value that its setting does not accept, a setting of another
            method, or one that would do nothing.
    """
    settings, preset, given = resolve(arguments)
    command_line.refuse_idle(given, idle(settings))
    return settings, preset


def resolve(arguments):
    """`parse`, but settings that do nothing are not refused; also returns name -> value of those that were given."""
    method = _method(arguments)
    given = _given(arguments, method)
    if "train_images" in given or "test_images" in given:
        given["dataset"] = _name_of_images(given)
    if "preset" in given:
        preset = presets.by_name(given["preset"], "See --list_presets.")
        _refuse_another_preset(given, preset)
    elif "dataset" in given:
        preset = presets.find(given["dataset"], given.get("sigma"), given.get("method", "macer"))
    else:
        raise InputError(f"--dataset is missing. Accepted: {_DATASETS}; or --train_images and --test_images.")
    _refuse_settings_of_others(given, method)
    settings = command_line.defaults(groups(method))
    settings |= {"beam": ()} | {setting.name: setting.default for setting in _UNLISTED} | preset.settings | given
    beam_options.check_engine(settings, given)
    settings["lr_drop_epochs"] = list(settings["lr_drop_epochs"] or ()) or None
    betas = [settings["beta"]] if "beta" in settings else sampling_plan.SOFT_BETAS.default
    settings["soft_betas"] = settings["soft_betas"] or betas
    settings["num_workers"] = settings["num_workers"] or os.cpu_count()
    settings["push_dir"] = settings["push_dir"] or _push_dir(settings)
    _check(settings, method)
    return settings, preset, given


def idle(settings):
    """Name -> why, of the settings that have no effect given the others, whatever their values."""
    found = {}
    if settings["soft_betas"] and not sampling_plan.SamplingPlan.of_run(settings).betas:
        found["soft_betas"] = f"it is for soft certificates, and certify={settings['certify']} asks for none"
    if settings["dataset"] == "digits":
        found["data_dir"] = "the digits are embedded"
    if settings["lr_schedule"] != "step" and settings["lr_drop_epochs"]:
        found["lr_drop_epochs"] = f"lr_schedule={settings['lr_schedule']} has no drops"
    if settings["lr_schedule"] != "step" or not settings["lr_drop_epochs"]:
        found["lr_drop_factor"] = "the learning rate does not drop"
    return found | unreached(settings) | methods.find(settings["method"]).idle(settings)


def unreached(settings):
    """Name -> why, of the settings that refer to epochs beyond the last one."""
    epochs = settings["epochs"]
    of_method = methods.find(settings["method"]).last_epochs(settings)
    last = {**of_method, "lr_drop_epochs": max(settings["lr_drop_epochs"] or [0]) + 1}
    if settings["lr_schedule"] != "step":
        del last["lr_drop_epochs"]
    return {
        name: f"that takes {needed} epochs, and there are {epochs}" for name, needed in last.items() if needed > epochs
    }


def notes(settings, preset, given):
    """What a user should know beforehand, one line each."""
    told = {name: value for entries in listing(settings).values() for name, value, _ in entries}
    return [
        *([preset.note] if preset.note else []),
        *sampling_plan.notes_on(settings["sigma"]),
        *processor.notes_on(settings["precision"]),
        *(f"{name}={told[name]}: {why}." for name, why in unreached(settings).items() if name not in given),
    ]


def groups(method):
    """Title -> `Setting`s, of all that a `Method` has: its own after those that every method has."""
    training = (*GROUPS["Training"], *method.settings)
    shared = {setting.name for group in (*GROUPS.values(), _UNLISTED) for setting in group} | _RESERVED
    if len(method.defaults()) < len(method.settings):
        every = ", ".join(setting.name for setting in method.settings)
        raise InputError(f"The method {method.name} has two settings with the same name: {every}.")
    if both := shared & method.defaults().keys():
        raise InputError(f"Every method has a setting {min(both)}; the method {method.name} must not define another.")
    return {**GROUPS, "Training": training}


def known(arguments):
    """Title -> `Setting`s, of all that a command line may name: those of its method and, under None, others'."""
    return _with_others(_method(arguments))


def _method(arguments):
    """The `Method` of a command line that is not parsed yet."""
    name = command_line.last(arguments, "method")
    preset = command_line.last(arguments, "preset")
    if preset in {one.name for one in presets.PRESETS}:
        return methods.find(presets.by_name(preset).method)
    return methods.find(name or "macer")


def _with_others(method):
    others = {setting.name: setting for name in methods.NAMES for setting in methods.find(name).settings}
    of_others = (others[name] for name in others.keys() - method.defaults().keys())
    return {**groups(method), None: (*of_others, *_UNLISTED)}


def _refuse_another_preset(given, preset):
    # That would not be an experiment of the paper; and another method's hyper-parameters are not in this preset.
    for name in ("method", "dataset", "sigma"):
        if given.get(name, preset.settings[name]) != preset.settings[name]:
            raise InputError(
                f"The preset {preset.name} is for the {name} {preset.settings[name]}: leave out --{name}, or --preset. "
                f"Received: --{name} {given[name]}"
            )


def _push_dir(settings):
    # All digits of sigma, because two models must not share a folder.
    images = settings["train_images"]
    # Nor must models of two of the user's own folders with the same last name share one.
    dataset = (
        f"{settings['dataset']}-{digest(os.fsencode(os.path.realpath(images)))[:8]}" if images else settings["dataset"]
    )
    model_name = f"{dataset}-{exactly(settings['sigma'])}".replace("/", "-")
    return str(Path(settings["pipeline_root"]) / "serving" / model_name)


def _name_of_images(given):
    for one, other in (("train_images", "test_images"), ("test_images", "train_images")):
        if one not in given:
            raise InputError(f"--{one} is missing: --{other} needs it.")
    for name in _OF_DATA_SETS:
        if name in given:
            raise InputError(f"--{name} is for data sets that have a name, not for --train_images and --test_images.")
    return own_images.name_of(given["train_images"])


def _refuse_settings_of_others(given, method):
    for name in given:
        having = methods.having(name)
        if having and name not in method.defaults():
            raise InputError(
                f"--{name} is not a setting of the method {method.name}: leave it out, or use --method "
                f"{' or '.join(having)}. Received: --{name} {given[name]}"
            )


def listing(settings):
    """Group -> list of [name, value in words, meaning], of every setting that can change a result."""
    return {
        group: [
            [setting.name, in_words(setting, settings[setting.name]), setting.meaning]
            for setting in entries
            if setting.name not in _NOT_LISTED
        ]
        for group, entries in groups(methods.find(settings["method"])).items()
        if any(setting.name not in _NOT_LISTED for setting in entries)
    }


def without_meanings(plan):
    """The part of a plan on which results depend: group -> list of [name, value in words]."""
    return {group: [entry[:2] for entry in entries] for group, entries in plan.items()}


def with_meanings(plan):
    """The original plan, restored from what `without_meanings` left of it."""
    (method,) = (value for entries in plan.values() for name, value in entries if name == "method")
    settings = {}
    for name in (*methods.NAMES, *method.split(" | ")):
        settings |= {setting.name: setting for group in groups(methods.find(name)).values() for setting in group}
    return {group: [[name, value, settings[name].meaning] for name, value in plan[group]] for group in plan}


def command(plan):
    """A command line that gives the settings of a plan (with or without meanings): what differs from its preset."""
    given = {name: f"--{name}={value}" for name, value, _ in differing(plan)}
    without = idle(resolve([*_naming(plan), *given.values()])[0])
    flags = [flag for name, flag in given.items() if name not in without]
    return shlex.join(["python", "-m", "pipeline.run", *_naming(plan), *flags])


def differing(plan, preset=None):
    """[name, value, and what it would be] of a plan's settings that do not follow from its data, sigma and method.

    Args:
        plan: with or without meanings.
        preset: name of the preset to compare with; None: the one for its data, sigma and method.
    """
    naming = _naming(plan) if preset is None else [f"--preset={preset}"]
    of_these = listing(resolve(naming)[0]).values()
    before = {name: value for entries in of_these for name, value, _ in entries}
    told = ((name, value) for entries in plan.values() for name, value, *_ in entries)
    return [[name, value, before.get(name)] for name, value in told if value != before.get(name)]


def written(settings):
    """Name -> text of the settings, as in a settings file: all that can change a result, and where it is kept.

    Settings that do nothing are left out, and so are those of one call or of this machine.
    """
    without = {*idle(settings), *_NOT_WRITTEN, *({"push_dir"} if settings["push_dir"] == _push_dir(settings) else ())}
    every = (setting for group in groups(methods.find(settings["method"])).values() for setting in group)
    texts = {
        setting.name: command_line.as_given(setting, settings[setting.name])
        for setting in every
        if setting.name not in without
    }
    of_data_sets = _OF_DATA_SETS if settings["train_images"] else ()
    return {name: text for name, text in texts.items() if text is not None and name not in of_data_sets}


def _naming(plan):
    """The flags that name the experiment from which a plan starts."""
    told = {name: value for entries in plan.values() for name, value, *_ in entries}
    # The user's own images have no data set name.
    absent = in_words(next(setting for setting in GROUPS["Data"] if setting.name == "train_images"), None)
    naming = ("dataset",) if told.get("train_images", absent) == absent else ("train_images", "test_images")
    return [f"--{name}={told[name]}" for name in (*naming, "sigma", "method") if name in told]


def _given(arguments, method):
    return command_line.given(
        arguments,
        _with_others(method),
        prog="python -m pipeline.run",
        usage="%(prog)s --dataset NAME [options]",
        description="Trains, certifies, evaluates, validates and pushes a classifier. What was done before is kept. In "
        "brackets: the default, or the presets' (--list_presets). For another method: --help --method=NAME. "
        + f"{beam_options.NOTE} {saying.NOTE}",
        rest=beam_options.checked,
        default=_default,
    )


def _default(setting):
    if setting.default_in_words:
        return setting.default_in_words
    if setting.name in ("method", "sigma"):
        return in_words(setting, setting.default)
    values = [preset.settings[setting.name] for preset in presets.PRESETS if setting.name in preset.settings]
    words = dict.fromkeys(in_words(setting, value) for value in values or [setting.default])
    return " | ".join(words) if len(words) <= 4 else "the preset's"


def _check(settings, method):
    """Checks what no single setting reveals, all of it before any work."""
    saying.check(settings)
    try:
        checks.check(sigma=settings["sigma"])
        method.check(settings)
    except ValueError as error:
        raise InputError(str(error)) from None
    sampling_plan.SamplingPlan.of_run(settings)
    try:
        certificates.check_can_certify(settings["serving_n"], settings["alpha"])
    except ValueError as error:
        raise InputError(f"--serving_n is too small. {error}") from None
    if settings["serving_n"] > card.MOST_N:
        raise InputError(
            f"--serving_n must be at most {card.MOST_N:,}, because the exported model accepts no more. "
            f"Received: {settings['serving_n']}"
        )
    low, high = card.ALPHA_RANGE
    if not low <= settings["alpha"] <= high:
        raise InputError(
            f"--alpha must lie between {low:g} and {high:g}, because the exported model accepts no others. "
            f"Received: {settings['alpha']:g}"
        )
    drops = settings["lr_drop_epochs"] or []
    if drops != sorted(set(drops)):
        raise InputError(f"--lr_drop_epochs must rise. Received: {','.join(map(str, drops))}")
