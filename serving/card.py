"""The model card: what a SavedModel was exported with, as JSON that people and programs can read.

The same text is in the graph, and `metadata` returns it. Publishing adds to the file, not to the graph, that a version
was forced.
"""

import json
import math
import numbers
import sys

from serving.files import read_extra
from serving.fingerprints import weights_fingerprint

NAME = "model_card.json"
FORMAT = 3
# What is wrong with SavedModels that earlier versions exported.
_WRONG = {
    1: "draws its noise in floats: rounding can make its certificates false",
    2: "draws its noise from numbers that reveal the next ones: a client can predict it and make certificates false",
}
# The range of alpha that is served.
ALPHA_RANGE = (1e-6, 0.1)
# The largest n that is served. With a hundred times as many votes, TensorFlow's functions are off by more than
# `serving.bounds` takes off a bound.
MOST_N = 10_000_000
_MAX_VALUES = 2**26


def fingerprint(classifier):
    """Hexadecimal SHA-256 of a Keras model's weights: their shapes, types and values, in order."""
    return weights_fingerprint(weight.numpy() for weight in classifier.weights)


def to_json(card):
    """The card as text.

    Raises:
        ValueError: in one line, if a field is missing, unknown or not what the schema says.
    """
    _check(card)
    return json.dumps(card, indent=1)


def from_json(text):
    """The card in a JSON text.

    Raises:
        ValueError: in one line, if it is not JSON, or as in `to_json`.
    """
    try:
        card = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The model card is not JSON: {error}") from None
    _check(card)
    return card


def read(saved_model):
    """The card of the SavedModel in a directory.

    Raises:
        OSError: if there is none, or a link in its place.
        ValueError: as in `from_json` and `serving.files.read_json`.
    """
    card = read_extra(saved_model, NAME)
    _check(card)
    return card


def unforced(card):
    """The card as it was exported, without what publishing adds to it."""
    return {name: value for name, value in card.items() if name != "forced"}


def check_fields(value, schema, where):
    """Accepts a JSON object in which every field that is present holds what a schema accepts.

    Args:
        value: the object.
        schema: field -> what it accepts, in words, and the check.
        where: what the object is called in errors.

    Raises:
        ValueError: in one line, for the first field that does not.
    """
    for field, (accepts, is_accepted) in schema.items():
        if field in value and not is_accepted(value[field]):
            raise ValueError(f"{field} in {where} must be {accepts}. Received: {value[field]!r}")


def _number(accepts, is_accepted, kind=numbers.Real):
    def check(value):
        # Not math.isfinite, which raises for anything but numbers.
        is_number = isinstance(value, kind) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        return is_number and is_accepted(value)

    return accepts, check


def _text(accepts, is_accepted=bool):
    return accepts, lambda value: isinstance(value, str) and is_accepted(value)


def _are_class_names(values):
    return isinstance(values, list) and len(values) >= 2 and all(isinstance(value, str) for value in values)


def _is_image_shape(values):
    is_list = isinstance(values, list) and len(values) == 3
    return is_list and all(_COUNT[1](value) for value in values) and math.prod(values) <= _MAX_VALUES


_FINGERPRINT = _text(
    "a SHA-256 in hexadecimal", lambda value: len(value) == 64 and set(value) <= set("0123456789abcdef")
)
_COUNT = _number("a whole number from 1", lambda value: value >= 1, numbers.Integral)
_FAILURE_PROBABILITY = _number("a number above 0 and below 1", lambda value: 0 < value < 1)

# field: what it accepts, in words, and the check
SCHEMA = {
    "format": (f"{FORMAT}", lambda value: value == FORMAT),
    "sigma": _number("a number above 0", lambda value: value > 0),
    "levels": _number("a whole number from 1 to 65535", lambda value: 1 <= value < 2**16, numbers.Integral),
    "n0": _COUNT,
    "n": _COUNT,
    "alpha": _FAILURE_PROBABILITY,
    "max_n": _COUNT,
    "max_batch_size": _COUNT,
    "microbatch": _COUNT,
    "image_shape": (f"height, width and channels, {_MAX_VALUES} values at most", _is_image_shape),
    "scaling": _text("how stored pixels become pixels in [0, 1], in words"),
    "normalization": _text("what is done to pixels in [0, 1], in words"),
    "precision": _text("a Keras dtype, e.g. float32"),
    "class_names": ("names of two classes or more", _are_class_names),
    "fingerprint": _FINGERPRINT,
    "library_version": _text("a version of macer_tf"),
}
# Fields that only some cards have.
OPTIONAL = {
    # The fingerprint of what the pipeline's Evaluator blesses: weights, network, sigma and precision, in its file.
    "model": _FINGERPRINT,
    "forced": ("true, or left out", lambda value: value is True),
}


def _check(card):
    before = card.get("format") if isinstance(card, dict) else None
    if isinstance(before, int) and before in _WRONG:
        raise ValueError(
            f"The model card is of format {before}, from an earlier version that {_WRONG[before]}. Export the model "
            "again."
        )
    if not isinstance(card, dict) or not SCHEMA.keys() <= card.keys() <= SCHEMA.keys() | OPTIONAL.keys():
        fields = sorted(card) if isinstance(card, dict) else type(card).__name__
        raise ValueError(
            f"The model card must have the fields {', '.join(sorted(SCHEMA))}, and may have "
            f"{', '.join(sorted(OPTIONAL))}. Received: {fields}"
        )
    check_fields(card, {**SCHEMA, **OPTIONAL}, "the model card")
