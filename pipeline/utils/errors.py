"""The one exception the pipeline raises for what a user can put right."""

import re

from serving.terminal import printable

_REASON_CHARACTERS = 500
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class InputError(ValueError):
    """Bad input, told in one line: what was received, what is accepted, what to do."""


def reason(error):
    """What an exception, or a text, says: in one line, the same in every run, without anything a terminal obeys."""
    line = " ".join(str(error).split()) or type(error).__name__
    return printable(_ADDRESS.sub("", line))[:_REASON_CHARACTERS]
