"""The one exception the pipeline raises for what a user can put right, and how any other is told: in one line."""

import traceback


class InputError(ValueError):
    """Bad input, told in one line: what was received, what is accepted, what to do."""


def in_one_line(error, root):
    """The line for an exception that is being handled; what it leaves out goes to the file error.log in `root`."""
    if isinstance(error, InputError):
        return str(error)
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line} ({_write_details(root)})"


def _write_details(root):
    log = root / "error.log"
    try:
        log.write_text(traceback.format_exc())
    except OSError as error:
        return f"no details: cannot write {log}, {error.strerror}"
    return f"details: {log}"
