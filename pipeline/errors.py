"""The one exception the pipeline raises for what a user can put right, and how any other is told: in one line."""

import os
import sys
import traceback
from pathlib import Path


class InputError(ValueError):
    """Bad input, told in one line: what was received, what is accepted, what to do."""


def in_one_line(error, root):
    """The line for an exception that is being handled; what it leaves out goes to the file error.log in `root`."""
    if isinstance(error, InputError):
        return str(error)
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line} ({_write_details(root)})"


def exit_status(parse, work, kept):
    """Carries out a command, and tells what stops it in one line.

    Args:
        parse: () -> what to do, and the directory that an unforeseen error's details go to.
        work: what to do -> the exit status.
        kept: what Ctrl-C leaves, in words.

    Returns:
        The exit status: that of `work`, 1 if it failed, 2 for bad input, 130 for Ctrl-C.
    """
    root = Path()
    try:
        parsed, root = parse()
        return work(parsed)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted. {kept} is kept; run the same command again to go on.", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"error: {in_one_line(error, root)}", file=sys.stderr)
        return 1


def leave(status):
    """Ends this process, whatever its threads are doing.

    Workers that Ctrl-C or an error left in the middle of a forward pass would crash in what Python does at its end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _write_details(root):
    log = root / "error.log"
    try:
        log.write_text(traceback.format_exc())
    except OSError as error:
        return f"no details: cannot write {log}, {error.strerror}"
    return f"details: {log}"
