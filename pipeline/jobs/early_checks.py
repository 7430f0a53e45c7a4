"""What a command can find wrong with its data, network, model or engine before TensorFlow is imported."""

import errno
import os
from pathlib import Path

from macer_tf import checks
from pipeline.certification import model_files
from pipeline.data import datasets, image_files, sources
from pipeline.utils import code, places
from pipeline.utils.errors import InputError
from serving.versions import versions


def check_data(settings):
    """Raises a one-line InputError if there are no such images, or no noise of that sigma on their grid."""
    if settings["train_images"]:
        for name in ("train_images", "test_images"):
            check_apart(settings, name, "pipeline_root", "push_dir")
            sources.at(settings[name], None)
    else:
        _check_dataset(settings, "train_split", "test_split", "image_size")
    levels = checks.levels_of(datasets.pixel_max(None if settings["train_images"] else settings["dataset"]))
    try:
        checks.check_grid_noise(settings["sigma"], levels)
    except ValueError as error:
        raise InputError(str(error)) from None


def check_apart(settings, images, *names):
    """Raises a one-line InputError if a folder that we write to, one of these settings, lies among the images."""
    for name in names:
        if image_files.is_among(settings[name], settings[images]):
            raise InputError(
                f"--{name} {settings[name]} lies in --{images} {settings[images]}, where it would be taken for a "
                "class; give another folder."
            )


def _check_dataset(settings, *choices):
    datasets.check_name(settings["dataset"], settings["data_dir"])
    datasets.check_choice(settings["dataset"], **{name: settings[name] for name in choices})


def check_network(settings):
    """Raises a one-line InputError if there is no such network, or no such module."""
    name = settings["network"]
    if name is None:
        return
    if ":" in name:
        for module in code.modules(name):
            code.digest(module)
    # Anyone's method may bring its own network.
    elif ":" not in settings["method"]:
        try:
            registered, numbers = checks.check_network(name, (*checks.NETWORKS, "module:function"))
            if registered == "cifar_resnet<depth>":
                checks.check_depth(*numbers)
        except ValueError as error:
            raise InputError(str(error)) from None


def check_push_dir(push_dir):
    """Raises a one-line InputError if it can be seen that nobody could push a model there."""
    base = Path(push_dir).absolute()
    existing = next(folder for folder in (base, *base.parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise InputError(_cannot_push(push_dir, errno.ENOTDIR))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(_cannot_push(push_dir, errno.EACCES))
    # The system looks at a name only once the folders above it exist.
    longest = max(len(os.fsencode(part)) for part in base.parts)
    if longest > os.pathconf(existing, "PC_NAME_MAX"):
        raise InputError(_cannot_push(push_dir, errno.ENAMETOOLONG))
    try:
        versions(base)
    except ValueError as error:
        raise InputError(f"Cannot push to {push_dir}: {error}") from None


def _cannot_push(push_dir, number):
    return f"Cannot push to {push_dir} ({os.strerror(number)}); give another one with push_dir."


def checked_engine(settings):
    """The `Engine` that is asked for, or None. Raises a one-line InputError as `engine.of`."""
    if not settings["beam"]:  # nobody else need wait for Beam
        return None
    from pipeline.certification import engine

    return engine.of(settings)


def check_classifier(settings):
    """Raises a one-line InputError if a model, its module or the images to certify do not exist."""
    if not places.is_url(settings["model"]):
        model_files.check_whole(settings["model"])
    if settings["custom_objects"]:
        code.digest(settings["custom_objects"])
    if settings["dataset"] is not None:
        _check_dataset(settings, "split", "image_size")
    elif not places.is_url(settings["images"]):
        sources.at(settings["images"], None)
