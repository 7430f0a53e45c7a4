"""How a command speaks: messages go to people, and its result to people or to a program."""

import contextlib
import json
import sys
import time

from pipeline.cli import command_line
from pipeline.cli.command_line import PATH, SWITCH, Setting
from pipeline.utils.errors import InputError
from serving.exit import INTERRUPTED, before_interrupted

CONFIG = Setting("config", PATH, "file of settings, YAML or JSON; flags win", None, "none")
DRY_RUN = Setting("dry_run", SWITCH, "show plan, time and what is cached; do nothing", False)
VERBOSE = Setting("verbose", SWITCH, "show every setting, not only what differs", False)
_JSON = Setting("json", SWITCH, "the result as one JSON value on stdout, the rest on stderr", False)
_QUIET = Setting("quiet", SWITCH, "print only the result", False)
_CLOCK = Setting("clock", SWITCH, "print the time before each line", False)
# Settings of one call, not of a run: no settings file has them.
SETTINGS = (CONFIG, DRY_RUN, VERBOSE, _JSON, _QUIET, _CLOCK)
NOTE = (
    "Also: --config FILE (settings as YAML or JSON), --dry_run (plan, time, what is cached), --json, --quiet, "
    "--verbose, --clock."
)


class Saying:
    """What a command says, in a context: depending on its flags, all of it or the result alone, to stdout or stderr.

    Args:
        arguments: the command line.
    """

    def __init__(self, arguments):
        self._is_json, self._is_quiet, self._has_clock = (
            command_line.is_on(arguments, setting.name) for setting in (_JSON, _QUIET, _CLOCK)
        )
        self._value, self._stack = {}, contextlib.ExitStack()

    def __enter__(self):
        self._stdout = sys.stdout
        self._stack.enter_context(before_interrupted(self._interrupted))
        stream = sys.stderr if self._is_json else sys.stdout
        if self._is_quiet:
            stream = self._stack.enter_context(_Nowhere())
        elif self._has_clock:
            stream = _Clocked(stream)
        if stream is not self._stdout:
            self._stack.enter_context(contextlib.redirect_stdout(stream))
        return self

    def __exit__(self, *error):
        self._stack.close()

    @contextlib.contextmanager
    def result(self, **value):
        """What is printed in this context is the result for people; `value`, JSON by name, is that for a program."""
        self._value |= value
        if self._is_json or not self._is_quiet:
            yield
        else:
            with contextlib.redirect_stdout(self._stdout):
                yield

    def failed(self, line):
        """What stopped the command, in one line."""
        self._value["error"] = line

    def _interrupted(self):
        self.failed("Interrupted.")
        self.end(INTERRUPTED)

    def end(self, status):
        """Gives the result to a program, if one listens. Returns `status`."""
        if self._is_json:
            print(json.dumps({"status": status, **self._value}, indent=1, default=str), file=self._stdout, flush=True)
        return status


def check(settings):
    """Raises InputError for two flags if one would silence the other."""
    if settings["verbose"] and settings["quiet"]:
        raise InputError("--verbose and --quiet: give only one of them.")
    if settings["clock"] and settings["quiet"]:
        raise InputError("--clock and --quiet: give only one of them.")


class _Nowhere:
    """A stream that discards what is written."""

    encoding = "utf-8"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def write(self, text):
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return False


class _Clocked:
    """A stream that writes the time before each line; not a terminal, on which a line would be redrawn."""

    def __init__(self, stream):
        self._stream, self._begins = stream, True

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        for line in text.splitlines(keepends=True):
            if self._begins and line.strip():
                self._stream.write(time.strftime("%Y-%m-%d %H:%M:%S  "))
            self._stream.write(line)
            self._begins = line.endswith("\n")
        return len(text)

    def isatty(self):
        return False
