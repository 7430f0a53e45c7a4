"""What a run prints: live progress with the time left, and plain tables."""

import logging
import os
import shlex
import shutil
import sys
import textwrap
import time

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.utils.errors import InputError
from serving import terminal
from serving.terminal import printable

_SECONDS_BETWEEN_LINES = 15
# The first steps say nothing about the speed: they trace graphs, load models and wake threads.
_SECONDS_TO_MEASURE = 2
# If nothing says how wide lines may be.
_WIDTH = 100
_LONG = 3600  # seconds; above that, the user is told what would make it shorter
_BAR = 16  # columns
_IN_ONE_LINE = {"no_wrap": True, "overflow": "ellipsis"}


def quiet():
    """Silences, for this process and the ones it starts, what others print."""
    # TensorFlow's C++ log.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Beam warns about cloud clients that are not installed, and prints a page about each error that it also raises.
    logging.getLogger().setLevel(logging.CRITICAL)


def import_tensorflow():
    """Imports TensorFlow as `terminal.import_tensorflow` does, and says that it will take a while.

    Raises:
        InputError: if Keras is told to compute with another backend, or Python to leave out docstrings.
    """
    if sys.flags.optimize > 1:
        raise InputError("Python must keep docstrings, which Beam reads: leave out PYTHONOPTIMIZE=2, or -OO.")
    try:
        from macer_tf import tensorflow_backend  # noqa: F401
    except ImportError as error:
        raise InputError(str(error)) from None
    if "tensorflow" not in sys.modules:
        print("Loading TensorFlow ...", flush=True)
    terminal.import_tensorflow()


class Progress:
    """One line that shows how far long work is and how long it will still take.

    On a terminal, the line has a bar and is redrawn in place, below whatever is printed meanwhile; elsewhere, and where
    the terminal is dumb or NO_COLOR is set, a new line is printed every 15 seconds.

    Args:
        title: what is being done.
        total: the amount of work, in any unit.
        done: how much of it an earlier run did; it does not count towards the speed.
    """

    def __init__(self, title, total, done=0):
        self._title, self._total, self._first = title, total, done
        self._started = self._printed = time.monotonic()
        self._measured_from = None  # when, and how much was done
        # Whatever FORCE_COLOR says: a file is not a terminal.
        screen = Console(force_terminal=sys.stdout.isatty())
        is_live = screen.is_terminal and not screen.is_dumb_terminal and not screen.no_color
        self._live = Live(console=screen, auto_refresh=False, redirect_stderr=sys.stderr.isatty()) if is_live else None

    def update(self, done, details="", total=None):
        """Shows that `done` of the total, or of a new total, is done; `details` is appended."""
        self._total = total or self._total
        now = time.monotonic()
        if self._measured_from is None and done > self._first:
            self._measured_from = now, done
        if now - self._printed < (0.2 if self._live else _SECONDS_BETWEEN_LINES):
            return
        self._printed = now
        if self._live is None:
            print(self._line(done, details), flush=True)
            return
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_row(ProgressBar(self._total, done, width=_BAR), Text(self._line(done, details), **_IN_ONE_LINE))
        self._draw(row)

    def speed(self, done):
        """The amount of work per second since the first work was done, or None while that says nothing yet."""
        if self._measured_from is None:
            return None
        since, first = self._measured_from
        seconds = time.monotonic() - since
        return (done - first) / seconds if done > first and seconds >= _SECONDS_TO_MEASURE else None

    def finish(self, done, details="", total=None):
        """Prints the last state for good."""
        self._total = total or self._total
        if self._live is None:
            print(self._line(done, details), flush=True)
        else:
            self._draw(Text(self._line(done, details), **_IN_ONE_LINE))
            self.close()

    def close(self):
        """Leaves the line as it is. Whatever is printed later comes below it."""
        if self._live:
            self._live.stop()

    def _draw(self, what):
        if not self._live.is_started:
            self._live.start()
            # It is hidden by then, and would stay hidden after a kill.
            self._live.console.show_cursor()
        self._live.update(what, refresh=True)

    def _line(self, done, details):
        line = f"  {self._title}: {100 * done / self._total:3.0f} %"
        if done >= self._total:
            line += f", took {duration(time.monotonic() - self._started)}"
        elif speed := self.speed(done):
            line += f", {duration((self._total - done) / speed)} left"
        return line + (f" · {details}" if details else "")


def print_listing(listing, notes=()):
    """Prints the notes, one line each, and then what will be done: group -> entries of [name, value in words, ...]."""
    _print_notes(notes)
    for group, entries in listing.items():
        print(wrapped(f"{group}: " + ", ".join(f"{name}={printable(value)}" for name, value, *_ in entries)))
    print(flush=True)


def print_differing(entries, notes=()):
    """Prints the notes, and then what differs from a preset: entries of [name, value, and the preset's or None]."""
    _print_notes(notes)
    told = [
        f"{name}={printable(value)}" + ("" if before is None else f" ({printable(before)})")
        for name, value, before in entries
    ]
    told = f"Differs from the preset: {', '.join(told)}" if told else "No difference from the preset"
    print(wrapped(f"{told}. --verbose shows every setting."))
    print(flush=True)


def _print_notes(notes):
    for note in notes:
        print(wrapped(f"Note: {note}"))


def wrapped(text):
    """A text in lines that fit the terminal, broken between words and indented by two columns."""
    width = shutil.get_terminal_size((_WIDTH, 0)).columns
    how = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, max(width, 20), initial_indent="  ", subsequent_indent="    ", **how)


def curves(folder):
    """How to look at the training curves in a folder."""
    return f"Curves: tensorboard --logdir {shlex.quote(printable(folder))}"


def print_if_long(seconds, ways):
    """Prints which settings would shorten work that takes more than an hour.

    Args:
        seconds: how long it will take.
        ways: names of settings to reduce, or name=value.
    """
    if seconds <= _LONG or not ways:
        return
    flags = [f"--{way.replace('=', ' ')}" if "=" in way else f"a smaller --{way}" for way in ways]
    told = flags[0] if len(flags) == 1 else f"{', '.join(flags[:-1])} or {flags[-1]}"
    print(wrapped(f"More than an hour: {told} would shorten it."), flush=True)


def cost_in_words(metrics):
    """What an evaluation's certificates cost, by which bounds, and the shares of its images that have none."""
    kinds = {}
    for name, of_kind in metrics["certificates"].items():
        # Evaluations of an earlier version do not record each kind's bound.
        kinds.setdefault(of_kind.get("bound", metrics["bound"]), []).append(name)
    bounds = [bound if len(kinds) == 1 else f"{bound} ({', '.join(names)})" for bound, names in kinds.items()]
    words = f"{metrics['samples_per_image']:,.0f} samples per image, bound: {', '.join(bounds)}; "
    words += f"{100 * metrics['abstained']:.1f} % abstained"
    if len(kinds) > 1:
        words += f" ({next(iter(metrics['certificates']))})"
    if metrics["unestimated"]:
        words += f", {100 * metrics['unestimated']:.1f} % not estimated, as their selected class is wrong"
    return words


def duration(seconds):
    """Seconds in words: 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def table(header, rows):
    """Rows of text, set in columns under a header; the first column is left-aligned, the others right-aligned."""
    header, *rows = ([printable(cell) for cell in row] for row in (header, *rows))
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    return "\n".join(lines)
