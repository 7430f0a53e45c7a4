"""The one exception that the pipeline raises for what a user can correct."""

import re

from serving.terminal import printable

_REASON_CHARACTERS = 500
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class InputError(ValueError):
    """Bad input, described in one line: what was received, what is accepted, what to do."""


def reason(error):
    """What an exception, or a text, says: in one line, the same in every run, with nothing that a terminal obeys."""
    line = " ".join(str(error).split()) or type(error).__name__
    return printable(_ADDRESS.sub("", line))[:_REASON_CHARACTERS]
