"""The one exception the pipeline raises for what a user can put right, and how any other is told: in one line."""

import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path

_INTERRUPTED = 130


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
        kept: what Ctrl-C leaves, in words. Ctrl-C ends the process, with status 130.

    Returns:
        The exit status: that of `work`, 1 if it failed, 2 for bad input.
    """
    root = Path()
    with _ctrl_c_ends_the_process(f"Interrupted. {kept} is kept; run the same command again to go on."):
        try:
            parsed, root = parse()
            return work(parsed)
        except InputError as error:
            _print_error(error)
            return 2
        except Exception as error:
            _print_error(in_one_line(error, root))
            return 1


def _print_error(line):
    with contextlib.suppress(OSError):  # stderr may lie on the disk that is full
        print(f"error: {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _ctrl_c_ends_the_process(line):
    """There and then: a KeyboardInterrupt can get lost in a callback, and a kill loses nothing that was finished."""

    def stop(*_):
        # The signal may have come within a write.
        with contextlib.suppress(RuntimeError, OSError):
            sys.stdout.flush()
        print(f"\n{line}", file=sys.stderr, flush=True)
        os._exit(_INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:  # as in the background of a shell
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def leave(status):
    """Ends this process, whatever its threads are doing.

    Workers that an error left in the middle of a forward pass would crash in what Python does at its end.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # as on a full disk: not all was told
            status = status or 1
    os._exit(status)


def _write_details(root):
    log = root / "error.log"
    try:
        log.write_text(traceback.format_exc())
    except OSError as error:
        return f"no details: cannot write {log}, {error.strerror}"
    return f"details: {log}"
