"""How a command ends: what stops it is told in one line, and Ctrl-C ends it there and then."""

import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path

from pipeline.utils.errors import InputError
from serving.terminal import printable

_INTERRUPTED = 130
# What Ctrl-C does before it ends the process.
_before_end = []


@contextlib.contextmanager
def before_interrupted(action):
    """In this context, Ctrl-C calls `action` before it ends the process; it must return after some seconds at most."""
    _before_end.append(action)
    try:
        yield
    finally:
        _before_end.remove(action)


def in_one_line(error, root):
    """The line for an exception that is being handled; what it leaves out goes to the file error.log in `root`."""
    if isinstance(error, InputError):
        return printable(error)
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {printable(first_line)} ({printable(_write_details(root))})"


def exit_status(parse, work, when_interrupted):
    """Carries out a command, and tells what stops it in one line.

    Args:
        parse: () -> what to do, and the directory that an unforeseen error's details go to.
        work: what to do -> the exit status.
        when_interrupted: a sentence about what Ctrl-C leaves. Ctrl-C ends the process, with status 130.

    Returns:
        The exit status: that of `work`, 1 if it failed, 2 for bad input.
    """
    root = Path()
    with _ctrl_c_ends_the_process(f"Interrupted. {when_interrupted}"):
        try:
            parsed, root = parse()
            return work(parsed)
        except InputError as error:
            _print_error(printable(error))
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
        with contextlib.suppress(OSError):
            print(f"\n{line}", file=sys.stderr, flush=True)
        for action in reversed(_before_end):
            with contextlib.suppress(Exception):
                action()
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


def _write_details(root):
    log = root / "error.log"
    try:
        log.write_text(traceback.format_exc())
    except OSError as error:
        return f"no details: cannot write {log}, {error.strerror}"
    return f"details: {log}"
