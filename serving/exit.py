"""How a command ends: whatever stops it, including Ctrl-C, is reported in one line, with an exit status."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from serving.terminal import INTERRUPTED, printable

_OF_A_SESSION = "Graph execution error:"
# What Ctrl-C does before it ends the process.
_before_end: list[Callable[[], object]] = []


@contextlib.contextmanager
def before_interrupted(action: Callable[[], object]) -> Iterator[None]:
    """In this context, Ctrl-C calls `action` before it ends the process; it must return within a few seconds."""
    _before_end.append(action)
    try:
        yield
    finally:
        _before_end.remove(action)


@contextlib.contextmanager
def exits_are_errors() -> Iterator[None]:
    """In this context, SystemExit becomes an error: someone's own layer may exit with status 0, as if all were done."""
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"code of your own called sys.exit({error.code!r}); let it raise an error") from error


def in_one_line(
    error: BaseException,
    root: Path | None,
    bad_input: type[Exception] = ValueError,
    foreseen: tuple = (),
    log: str = "error.log",
) -> str:
    """The line for an exception that is being handled.

    Args:
        error: the exception.
        root: directory whose file `log` gets the details that the line of an unforeseen error omits; if None, nothing
            is written.
        bad_input: type of errors that a user can correct; their message is enough by itself.
        foreseen: other types whose message is enough; for an OSError, it is the system's words and the file's name.
        log: name of the file, which is replaced if it exists.
    """
    if isinstance(error, (bad_input, *foreseen)):
        if isinstance(error, OSError):
            return printable(f"cannot use {error.filename or 'a file'}: {error.strerror or error}")
        return printable(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    # A TensorFlow session puts its own words on the next line.
    first_line = lines[1] if lines[0] == _OF_A_SESSION and len(lines) > 1 else lines[0]
    line = f"{type(error).__name__}: {printable(first_line)}"
    return line if root is None else f"{line} ({printable(_write_details(root / log))})"


def exit_status(
    parse: Callable[[], tuple[Any, Path | None]],
    work: Callable[[Any], int],
    when_interrupted: str,
    *,
    bad_input: type[Exception] = ValueError,
    foreseen: tuple[type[Exception], ...] = (),
    at_once: bool = False,
    on_error: Callable[[str], object] = lambda line: None,
) -> int:
    """Carries out a command, and reports in one line what stops it.

    Args:
        parse: () -> what to do, and the directory for an unforeseen error's details, or None.
        work: what to do -> the exit status.
        when_interrupted: a sentence about what remains after Ctrl-C.
        bad_input, foreseen: see `in_one_line`.
        at_once: whether Ctrl-C ends the process immediately, and not by an exception, which can get lost in a
            callback; for work that a kill leaves in order.
        on_error: called with the line that reports what went wrong.

    Returns:
        The exit status: that of `work`, 1 if it failed, 2 for bad input, 130 for Ctrl-C.
    """
    root: Path | None = Path()
    interrupted = f"\nInterrupted. {when_interrupted}"
    with _ctrl_c_ends_the_process(interrupted) if at_once else contextlib.nullcontext():
        try:
            parsed, root = _parsed(parse, bad_input)
            with exits_are_errors():
                return work(parsed)
        except KeyboardInterrupt:
            _print_error(interrupted)
            return INTERRUPTED
        except Exception as error:
            line = in_one_line(error, root, bad_input, foreseen)
            on_error(line)
            _print_error(f"error: {line}")
            return 2 if isinstance(error, bad_input) else 1


def _parsed(parse, bad_input):
    """What `parse` returns; a path that the system refuses to look up, such as one that is too long, is bad input."""
    try:
        return parse()
    except OSError as error:
        if error.filename is None:
            raise
        raise bad_input(f"Cannot use {error.filename} ({error.strerror}); give another path.") from error


def _print_error(line):
    with contextlib.suppress(OSError):  # stderr may be on the disk that is full
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _ctrl_c_ends_the_process(line: str) -> Iterator[None]:
    def stop(*_):
        # The signal may have come during a write.
        with contextlib.suppress(RuntimeError, OSError):
            sys.stdout.flush()
        _print_error(line)
        for action in reversed(_before_end):
            with contextlib.suppress(Exception):
                action()
        os._exit(INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    # As in the background of a shell. And only the main thread, which Ctrl-C interrupts, may change what it does.
    if before == signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _write_details(log):
    try:
        # Whatever the locale, and names of files that are not valid text.
        log.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        return f"no details: cannot write {log}, {error.strerror}"
    return f"details: {log}"
