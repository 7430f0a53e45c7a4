"""A file that numbers classes: the names of folders -> the numbers that a model was trained with."""

import json
import re

from macer_tf import files
from pipeline.utils.errors import InputError, reason

_MOST_BYTES = 2**24
_ACCEPTED = (
    "Accepted: lines of a name and a number, separated by tab, comma or space; or JSON, such as {\"cat\": 0}, "
    "[\"cat\", \"dog\"] or ImageNet's {\"0\": [\"n01440764\", \"tench\"]}"
)  # fmt: skip
_LINE = re.compile(r"(.+?)(?:\s*[\t,]\s*|\s+)(\d{1,9})")
_NUMBER = re.compile(r"\d{1,9}")


def read(path):
    """Class name -> its number, a whole number from 0; several names may share a number.

    Blank lines and lines that start with # are skipped. In a JSON list, a name's number is its place; in an object of
    numbers with lists, as in ImageNet's class index, the first item of each list is the name.

    Raises:
        InputError: in one line, if it cannot be read, is none of these, or gives a name two numbers.
    """
    try:
        text = files.text(files.read(path, _MOST_BYTES))
    except OSError as error:
        raise InputError(f"Cannot read the class numbers in {path} ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} has no class numbers: it is not text. {_ACCEPTED}.") from None
    except ValueError as error:
        raise InputError(str(error)) from None
    pairs = _of_json(path, text) if text.lstrip()[:1] in ("{", "[") else _of_lines(path, text)
    numbers = {}
    for name, number in pairs:
        if numbers.setdefault(name, number) != number:
            raise InputError(f"{path} gives the class {name!r} two numbers, {numbers[name]} and {number}.")
    if not numbers:
        raise InputError(f"{path} has no class numbers. {_ACCEPTED}.")
    return numbers


def _of_lines(path, text):
    pairs = []
    for place, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        pair = _LINE.fullmatch(line)
        if not pair:
            raise InputError(f"{path}:{place} is not a class and its number. {_ACCEPTED}. Received: {line[:80]!r}")
        pairs.append((pair[1], int(pair[2])))
    return pairs


def _of_json(path, text):
    try:
        # As pairs, because otherwise the last of several values for a name would win.
        value = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged JSON ({reason(error)}). {_ACCEPTED}.") from None
    if isinstance(value, tuple):
        return [_pair(path, *entry) for entry in value]
    if not all(isinstance(name, str) for name in value):
        raise InputError(f"{path} has no class numbers. {_ACCEPTED}.")
    return [(name, number) for number, name in enumerate(value)]


def _pair(path, key, value):
    if type(value) is int and 0 <= value < 10**9:
        return key, value
    if isinstance(value, list) and value and isinstance(value[0], str) and _NUMBER.fullmatch(key):
        return value[0], int(key)
    if isinstance(value, str) and _NUMBER.fullmatch(key) and not _NUMBER.fullmatch(value):
        return value, int(key)
    raise InputError(f"{path}: {key!r} has no class number. {_ACCEPTED}. Received: {str(value)[:80]!r}")
