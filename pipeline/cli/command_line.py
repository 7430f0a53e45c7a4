"""Command lines: settings and the kinds of value they accept; anything wrong is reported in one line."""

import argparse
import decimal
import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from macer_tf import checks
from pipeline.utils.errors import InputError
from serving import terminal
from serving.exit import exits_are_errors
from serving.files import is_url

_LARGEST_INT32 = 2**31 - 1
# Such as 1e5 and 2.5e4: at most two digits of exponent, because a number must not fill the memory.
_WITH_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE]\+?\d{1,2}")
_SMALLEST_FLOAT32, _LARGEST_FLOAT32 = 2.0**-126, 3.4028234e38


@dataclass(frozen=True)
class Kind:
    """What a setting accepts, in words; text -> value, which raises ValueError, KeyError, OverflowError or RuntimeError
    for anything else, or InputError with what it must be; and the word for None, if None is a value.
    """

    accepts: str
    parse: Callable
    none: str | None = None


@dataclass(frozen=True)
class Setting:
    """One setting: a flag on the command line, and a line of the listing and of the report.

    Attributes:
        name: without dashes.
        kind: what it accepts.
        meaning: what it is, with its unit.
        default: its value.
        default_in_words: the default in words, if the value does not say it.
    """

    name: str
    kind: Kind
    meaning: str
    default: object
    default_in_words: str | None = None


def number(accepts, parse_number, is_accepted):
    """A finite number that fits into 32 bits, as in TensorFlow; `parse_number` returns an int or a float."""

    def parse(text):
        value = parse_number(text)
        if not (math.isfinite(value) and is_accepted(value)):
            raise ValueError
        if isinstance(value, int) and abs(value) > _LARGEST_INT32:
            raise InputError(f"must be at most {_LARGEST_INT32}")
        if isinstance(value, float) and value != 0 and not _SMALLEST_FLOAT32 <= abs(value) <= _LARGEST_FLOAT32:
            raise InputError(
                f"must be of a size that float32 can hold, {_SMALLEST_FLOAT32:.2g} to {_LARGEST_FLOAT32:.2g}"
            )
        return value

    return Kind(accepts, parse)


def whole(first):
    """A whole number from `first`, also written as 1e5."""
    return number(f"a whole number from {first}", _parse_whole, lambda value: value >= first)


def _parse_whole(text):
    if not _WITH_EXPONENT.fullmatch(text):
        return int(text)
    written = decimal.Decimal(text)
    if written != int(written):
        raise ValueError
    return int(written)


def none_or(word, kind):
    """`kind`, or a word that stands for None."""
    return Kind(f"{kind.accepts}, or {word}", lambda text: None if text == word else kind.parse(text), word)


def choice(**values):
    """One of these words, each with its value."""
    return Kind(" or ".join(values), values.__getitem__)


def _module(text):
    if not all(name.isidentifier() for name in text.split(".")):
        raise ValueError
    return text


def _parse_radii(text):
    radii = [FROM_0.parse(radius) for radius in text.split(",")]
    if radii != sorted(set(radii)):
        raise ValueError
    return tuple(radii)


def _parse_path(text):
    if not text:  # as of "$UNSET"; it would be the working folder
        raise ValueError
    if is_url(text):
        raise InputError("must be a path on this machine, not a URL")
    return str(Path(_utf_8(text)).expanduser())


def _utf_8(text):
    """The text of a place; TensorFlow and our own files accept names in this encoding only."""
    if "\0" in text:  # as a settings file can give one
        raise InputError("must be a name that a file can have, without a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("must be a name in UTF-8; rename it, or link to it") from None
    return text


TEXT = Kind("text", str)
PATH = Kind("a path", _parse_path)
# A URL's two slashes are not a path's.
PLACE = Kind("a path or a URL", lambda text: _utf_8(text) if is_url(text) else PATH.parse(text))
FOLDER = Kind("a folder", PATH.parse)
ABOVE_0 = number("a number above 0", float, lambda value: value > 0)
FROM_0 = number("a number from 0", float, lambda value: value >= 0)
INSIDE_0_1 = number("a number above 0 and below 1", float, lambda value: 0 < value < 1)
FROM_0_BELOW_1 = number("a number from 0 and below 1", float, lambda value: 0 <= value < 1)
MODULE = Kind("a module such as package.layers", _module)
LEVELS = number("a whole number from 1 to 65535", _parse_whole, lambda value: 1 <= value < 2**16)
# What is known of each epoch beforehand is kept in a list.
NUM_EPOCHS = number("a whole number from 1 to 1000000", _parse_whole, lambda value: 1 <= value <= 10**6)
# Beam starts them one after the other, and thousands of them for ever.
NUM_WORKERS = number("a whole number from 1 to 1024", _parse_whole, lambda value: 1 <= value <= 2**10)
RADII = Kind("rising radii such as 0,0.25,0.5", _parse_radii)
SWITCH = choice(yes=True, no=False)
EPOCHS = Kind("epochs such as 200,400", lambda text: [whole(1).parse(epoch) for epoch in text.split(",")])
SEED = Kind("a whole number from 0 to 4294967295", lambda text: checks.check_seed(_parse_whole(text)))


def in_words(setting, value):
    """A setting's value as it is printed in listings, helps and reports."""
    if value is None:
        return setting.default_in_words or setting.kind.none
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or setting.kind.none
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def as_given(setting, value):
    """A setting's value as its flag takes it; None if the flag must be left out for it."""
    return setting.kind.none if value is None else in_words(setting, value)


def default_in_words(setting):
    """A setting's default as it is printed in the help."""
    return setting.default_in_words or in_words(setting, setting.default)


def given(arguments, groups, *, prog, usage, description, default=default_in_words, positional=None, rest=None):
    """The settings that a command line gives: name -> value.

    Args:
        arguments: the command line, without the program.
        groups: title -> `Setting`s, as the help lists them; it leaves out those under None.
        prog, usage, description: for the help.
        default: `Setting` -> its default, as printed in the help.
        positional: name of the arguments without a flag, if the program takes any; their value is a list of texts.
        rest: called with the arguments that are left and the settings' names, if given; its value is named
            "beam".

    Raises:
        InputError: in one line, for an unknown flag, an empty path or a value outside what its setting accepts.
    """
    parser = _Parser(
        prog=prog,
        usage=usage,
        description=description,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=24, width=100),
        allow_abbrev=False,
        add_help=False,
    )
    if positional:
        parser.add_argument(positional, nargs="*", help=argparse.SUPPRESS)
    for title, entries in groups.items():
        group = parser.add_argument_group(title)
        for setting in entries:
            told = argparse.SUPPRESS if title is None else f"{setting.meaning} [{default(setting)}]"
            # A switch needs no "yes".
            switch = {"nargs": "?", "const": "yes"} if setting.kind is SWITCH else {}
            group.add_argument(f"--{setting.name}", metavar="", help=told, action=_Once, **switch)
    if positional:
        # A path after a switch is neither yes nor no.
        switches = {f"--{setting.name}" for entries in groups.values() for setting in entries if setting.kind is SWITCH}
        arguments = [
            f"{one}=yes" if one in switches and after not in ("yes", "no") else one
            for one, after in zip(arguments, [*arguments[1:], None], strict=False)
        ]
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=terminal.version(), help=argparse.SUPPRESS)
    texts, unknown = parser.parse_known_intermixed_args(arguments)
    settings = {setting.name: setting for entries in groups.values() for setting in entries}
    if positional and "" in getattr(texts, positional):
        raise InputError(f"Each of the {positional} must be a path. Received: ''")
    if unknown and not rest:
        raise InputError(unknown_argument(unknown[0], settings))
    return ({"beam": rest(unknown, settings)} if unknown else {}) | {
        name: value(settings[name], text) if name in settings else text
        for name, text in vars(texts).items()
        if text is not None
    }


def defaults(groups):
    """Setting's name -> its default, for all that `given` takes."""
    return {setting.name: setting.default for entries in groups.values() for setting in entries}


def last(arguments, name):
    """The text that a command line gives for a setting, the last one if there are several; None if there is none."""
    text = None
    for place, argument in enumerate(arguments):
        if argument == f"--{name}" and place + 1 < len(arguments):
            text = arguments[place + 1]
        elif argument.startswith(f"--{name}="):
            text = argument.partition("=")[2]
    return text


def flags(arguments):
    """The names of the flags in a command line that is not parsed yet."""
    return [argument.split("=")[0].removeprefix("--") for argument in arguments if argument.startswith("--")]


def is_on(arguments, name):
    """Whether a command line that is not parsed yet turns on a switch."""
    return any(
        argument == f"--{name}=yes" or (argument == f"--{name}" and arguments[place + 1 : place + 2] != ["no"])
        for place, argument in enumerate(arguments)
    )


class _Once(argparse.Action):
    """Refuses a flag that is given twice, because one would do nothing."""

    def __call__(self, parser, namespace, values, option_string=None):
        if (before := getattr(namespace, self.dest)) is not None:
            raise InputError(f"--{self.dest} is given twice: {before} and {values}. Give it once.")
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(message)


def value(setting, text):
    """The value that a setting's text stands for. Raises a one-line InputError if it is not accepted."""
    received = text or repr(text)
    try:
        with exits_are_errors():
            return setting.kind.parse(text)
    except InputError as error:
        raise InputError(f"--{setting.name} {error}. Received: {received}") from None
    except (ValueError, KeyError, OverflowError, RuntimeError):
        raise InputError(f"--{setting.name} must be {setting.kind.accepts}. Received: {received}") from None


def refuse_idle(given, idle):
    """Raises a one-line InputError for the first of the given settings that does nothing; `idle` says why."""
    for name in given:
        if name in idle:
            raise InputError(f"--{name} would do nothing here: {idle[name]}. Leave it out, or change that.")


def unknown_argument(argument, settings, others=()):
    """The message about an argument that is none of these settings' flags, nor of `others`, which are less likely."""
    name = argument.split("=")[0]
    found = nearest(name, settings) or nearest(name, others)
    return f"Unknown argument {argument}. {did_you_mean([f'--{one}' for one in found], 'See --help.')}"


def nearest(name, settings):
    """At most two settings that a name may mean: spelt like batch-size, by its initials like lr, or with a typo."""
    name = name.strip("-_").replace("-", "_")
    if name in settings:
        return [name]
    meant = [one for one in settings if name == "".join(word[0] for word in one.split("_"))]
    return meant[:2] or difflib.get_close_matches(name, settings, n=2)


def did_you_mean(names, otherwise):
    """The hint at these names; if there are none, another sentence."""
    return f"Did you mean {' or '.join(names)}?" if names else otherwise
