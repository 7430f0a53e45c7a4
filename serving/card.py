"""The model card: what a SavedModel was exported with, as JSON that people and programs can read."""

import hashlib
import json
import math
import numbers
from pathlib import Path

NAME = "model_card.json"
FORMAT = 1


def fingerprint(classifier):
    """Hexadecimal SHA-256 of a Keras model's weights: their shapes, types and values, in order."""
    digest = hashlib.sha256()
    for weight in classifier.weights:
        value = weight.numpy()
        digest.update(f"{value.shape} {value.dtype}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def to_json(card):
    """The card as text.

    Raises:
        ValueError: in one line, if a field is missing, unknown or not what the schema says.
    """
    _check(card)
    return json.dumps(card, indent=1)


def from_json(text):
    """The card in a text.

    Raises:
        ValueError: in one line, if it is not JSON, or as `to_json`.
    """
    try:
        card = json.loads(text)
    except ValueError as error:
        raise ValueError(f"The model card is not JSON: {error}") from None
    _check(card)
    return card


def read(saved_model):
    """The card of the SavedModel in a directory.

    Raises:
        OSError: if there is none.
        ValueError: as `from_json`.
    """
    return from_json((Path(saved_model) / "assets.extra" / NAME).read_text(encoding="utf-8"))


def _number(accepts, is_accepted, kind=numbers.Real):
    def check(value):
        return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value) and is_accepted(value)

    return accepts, check


def _text(accepts, is_accepted=bool):
    return accepts, lambda value: isinstance(value, str) and is_accepted(value)


def _list(accepts, is_accepted, smallest):
    def check(values):
        return isinstance(values, list) and len(values) >= smallest and all(is_accepted(value) for value in values)

    return accepts, check


_COUNT = _number("a whole number from 1", lambda value: value >= 1, numbers.Integral)
_FAILURE_PROBABILITY = _number("a number above 0 and below 1", lambda value: 0 < value < 1)

# field: what it accepts, in words, and the check
SCHEMA = {
    "format": (f"{FORMAT}", lambda value: value == FORMAT),
    "sigma": _number("a number above 0", lambda value: value > 0),
    "n0": _COUNT,
    "n": _COUNT,
    "alpha": _FAILURE_PROBABILITY,
    "max_num_samples": _COUNT,
    "max_batch_size": _COUNT,
    "micro_batch": _COUNT,
    "image_shape": _list("height, width and channels", _COUNT[1], 3),
    "scaling": _text("how stored pixels become pixels in [0, 1], in words"),
    "normalization": _text("what is done to pixels in [0, 1], in words"),
    "precision": _text("a Keras dtype, e.g. float32"),
    "class_names": _list("names of two classes or more", lambda value: isinstance(value, str), 2),
    "fingerprint": _text(
        "a SHA-256 in hexadecimal", lambda value: len(value) == 64 and set(value) <= set("0123456789abcdef")
    ),
    "library_version": _text("a version of macer_tf"),
}


def _check(card):
    if not isinstance(card, dict) or card.keys() != SCHEMA.keys():
        fields = sorted(card) if isinstance(card, dict) else type(card).__name__
        raise ValueError(f"The model card must have the fields {', '.join(sorted(SCHEMA))}. Received: {fields}")
    for name, (accepts, is_accepted) in SCHEMA.items():
        if not is_accepted(card[name]):
            raise ValueError(f"{name} in the model card must be {accepts}. Received: {card[name]!r}")
