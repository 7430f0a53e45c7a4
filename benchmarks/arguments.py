"""Types of the benchmarks' arguments: what they do not accept is told in one line, before anything is measured."""

import argparse
from pathlib import Path

import numpy as np

from macer_tf import checks
from pipeline.certification import model_files
from pipeline.cli import command_line
from pipeline.utils.errors import InputError


def _of(kind):
    """What argparse calls for a `Kind` of the pipeline's settings."""

    def parse(text):
        try:
            return kind.parse(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(f"{error}. Received: {text!r}") from None
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"must be {kind.accepts}. Received: {text!r}") from None

    return parse


whole = _of(command_line.whole(1))
fraction = _of(command_line.INSIDE_0_1)
seed = _of(command_line.SEED)
pixel_max = _of(command_line.LEVELS)


def file(text):
    """The path of a file."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"must be a file. Received: {text!r}")
    return Path(text)


def images_file(text):
    """What an .npy file of images as bytes holds: uint8 [images, H, W, C], memory-mapped."""
    try:
        array = np.load(file(text), mmap_mode="r")
    except (OSError, ValueError, EOFError):
        array = None
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.dtype != np.uint8 or not array.size:
        raise argparse.ArgumentTypeError(f"must be an .npy file of images, uint8 [images, H, W, C]. Received: {text!r}")
    return array


def model_file(text):
    """The path of a saved model."""
    try:
        model_files.check_whole(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def trained_model(path):
    """The model in a file, such as a MACERModel, which knows its noise level. Raises InputError for any other."""
    from macer_tf.noisy_training import NoisyTrainingModel
    from pipeline.certification import classifiers

    model = classifiers.load(path)
    if not isinstance(model, NoisyTrainingModel):
        raise InputError(
            f"--model must be a model that was trained here, such as a MACERModel. Received: {path}, which holds a "
            f"{type(model).__name__}"
        )
    return model


def network(text):
    """The name of a network for images of MNIST's or CIFAR-10's size."""
    try:
        _, depth = checks.check_network(text, ("lenet", "cifar_resnet<depth>"))
        if depth:
            checks.check_depth(*depth)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
