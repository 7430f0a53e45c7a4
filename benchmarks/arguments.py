"""Types of the benchmarks' arguments: what they do not accept is told in one line, before anything is measured."""

import argparse
import re
from pathlib import Path

from macer_tf import checks
from pipeline.certification import model_files
from pipeline.utils.errors import InputError


def whole(text):
    """A whole number from 1."""
    if not re.fullmatch("[0-9]{1,9}", text, re.ASCII) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1. Received: {text!r}")
    return int(text)


def fraction(text):
    """A number above 0 and below 1."""
    if not re.fullmatch(r"0?\.[0-9]*[1-9][0-9]*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be a number above 0 and below 1. Received: {text!r}")
    return float(text)


def file(text):
    """The path of a file."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"must be a file. Received: {text!r}")
    return Path(text)


def model_file(text):
    """The path of a saved model."""
    try:
        model_files.check_whole(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def network(text):
    """The name of a network for images of MNIST's or CIFAR-10's size."""
    try:
        _, depth = checks.check_network(text, ("lenet", "cifar_resnet<depth>"))
        if depth:
            checks.check_depth(*depth)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
