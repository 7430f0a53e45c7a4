"""Settings files, in YAML or JSON: the same names and values as on the command line."""

import contextlib
import json
import re

from macer_tf import files
from pipeline.cli import command_line, saying
from pipeline.utils.errors import InputError, reason
from serving.terminal import printable

_MOST_BYTES = 2**20
_EXAMPLE = "one `name: value` per line, such as `epochs: 30`"
# What every reader understands without quotes.
_PLAIN = re.compile(r"(?!(?:null|true|false|~)$)[\w./+-][\w./+,:=-]*(?<!:)", re.ASCII)
_NOTHING, _WORDS = ("", "~", "null"), {"true": "yes", "false": "no"}
_ENGINE = "runner"


def expand(arguments, known):
    """A command line in which the settings of its --config are flags, except those that its own flags give.

    Args:
        arguments: texts.
        known: called with a command line; returns title -> `Setting`s, of all that it may name.

    Raises:
        InputError: in one line, if the file cannot be read, or has something that no flag accepts.
    """
    path = command_line.last(arguments, saying.CONFIG.name)
    if path is None:
        return list(arguments)
    path = command_line.value(saying.CONFIG, path)
    given = {*command_line.flags(arguments)}
    # A setting that is swept takes its values from there.
    if swept := command_line.last(arguments, "sweep"):
        given.add(swept.partition("=")[0])
    read = _read(path)
    for name in {setting.name for setting in saying.SETTINGS} & read.keys():
        raise InputError(f"{printable(path)}: {name} is for the command line, not for a file.")
    entries = {name: value for name, value in read.items() if name not in given}
    flags = [f"--{name}={value}" for name, value in entries.items() if isinstance(value, str)]
    settings = {setting.name: setting for group in known([*flags, *arguments]).values() for setting in group}
    has_engine = _ENGINE in given or _ENGINE in entries
    expanded = []
    for name, value in entries.items():
        if name not in settings:
            if has_engine and isinstance(value, str):  # Beam's own, or unknown: its parser decides
                expanded.append(f"--{name}={value}")
                continue
            raise InputError(f"{printable(path)}: {_unknown(name, settings)}")
        if (text := _text(path, settings[name], value)) is not None:
            expanded.append(f"--{name}={text}")
    return [*expanded, *arguments]


@contextlib.contextmanager
def named(arguments, expanded):
    """A context in which a complaint that begins with a flag names the file instead, if the flag came from there.

    Args:
        arguments, expanded: what `expand` took and returned.
    """
    from_file = {flag.partition("=")[0] for flag in expanded[: len(expanded) - len(arguments)]}
    try:
        yield
    except InputError as error:
        flag = str(error).partition(" ")[0]
        if flag not in from_file:
            raise
        path = command_line.last(arguments, saying.CONFIG.name)
        raise InputError(f"{printable(path)}: {str(error).removeprefix('--')}") from None


def dumps(program, settings):
    """The text of a settings file.

    Args:
        program: the program that takes it, as on a command line.
        settings: name -> text, as on a command line.
    """
    lines = [f"{name}: {_scalar(text)}\n" for name, text in settings.items()]
    return f"# {program} --config THIS_FILE\n" + "".join(lines)


def _read(path):
    """Name -> text, list of texts, or None for an empty value."""
    try:
        text = files.text(files.read(path, _MOST_BYTES, pipes=True))
    except UnicodeDecodeError:
        raise InputError(f"--config {printable(path)} is not text; save it in UTF-8.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read --config {printable(path)} ({reason(error)}).") from None
    pairs = _of_json(text)
    if pairs is None:
        pairs = _of_yaml(path, text)
    read = {}
    for name, value in pairs:
        if name in read:
            raise InputError(f"{printable(path)}: {printable(name)} is given twice.")
        read[name] = value
    return read


def _of_json(text):
    """Pairs of an object's names and values; None if it is not a JSON object."""
    try:
        # Numbers stay as they are written.
        pairs = json.loads(text, object_pairs_hook=_Pairs, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, _Pairs):
        return None
    return [(name, [_word(one) for one in value] if type(value) is list else _word(value)) for name, value in pairs]


class _Pairs(list):
    """A JSON object."""


def _word(value):
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _of_yaml(path, text):
    import yaml  # only now: few commands have a file

    try:
        # Composed, not loaded: 010 and 12:30 are texts here, as on a command line.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}: "
        told = (getattr(error, "context", None), getattr(error, "problem", None) or reason(error))
        problem = ", ".join(filter(None, told))
        raise InputError(f"{printable(path)} is neither YAML nor JSON ({where}{problem}).") from None
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode) or not all(isinstance(name.value, str) for name, _ in node.value):
        raise InputError(f"{printable(path)} must hold settings: {_EXAMPLE}.")
    return [(name.value, _value_of(value)) for name, value in node.value]


def _value_of(node):
    """A scalar's text, None if it is empty, a list of these, or something else that no setting is."""
    if node.tag.endswith(":seq"):
        return [_text_of(one) for one in node.value]
    return _text_of(node)


def _text_of(node):
    if not isinstance(node.value, str) or node.style is not None:
        return node.value
    return None if node.value.lower() in _NOTHING else _WORDS.get(node.value.lower(), node.value)


def _text(path, setting, value):
    """A value as a flag takes it, checked; None for a setting that is left as it is."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        value = ",".join(value)
    if value is None:
        return setting.kind.none
    if not isinstance(value, str):
        raise InputError(f"{printable(path)}: {setting.name} must be {setting.kind.accepts}; write {_EXAMPLE}.")
    try:
        command_line.value(setting, value)
    except InputError as error:
        raise InputError(f"{printable(path)}: {str(error).removeprefix('--')}") from None
    return value


def _unknown(name, settings):
    hint = command_line.did_you_mean(command_line.nearest(name, settings), "--help lists them.")
    return f"unknown setting {printable(name) or repr(name)}. {hint}"


def _scalar(text):
    if _PLAIN.fullmatch(text):
        return text
    import yaml

    return yaml.safe_dump(text, width=float("inf"), allow_unicode=True, default_style='"').strip()
