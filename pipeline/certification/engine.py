"""A Beam engine other than this process: whether it can be used, and jobs on it that can be cancelled."""

import contextlib
import difflib
import json
import re
import signal
import socket
import threading
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import NamedTuple
from urllib.parse import urlparse

import apache_beam as beam
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions, PortableOptions, StandardOptions
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineRunner, PipelineState, create_runner

from pipeline.cli.command_line import did_you_mean
from pipeline.utils import places
from pipeline.utils.errors import InputError, reason

_SECONDS_TO_CONNECT = 10.0
_SECONDS_TO_CANCEL = 15.0
_MOST_BYTES = 2**20  # of what Flink says about itself
_DASK = (
    "DaskRunner reports jobs as done but loses results: files come out empty, and one of two outputs is missing. Use "
    "another runner, such as FlinkRunner."
)
# The last line of a Python error, wherever it is in a page of Java's.
_PYTHON_ERROR = re.compile(
    r"^\s*((?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)): (.*?)(?: \[while running.*)?$", re.MULTILINE
)
_OURS = re.compile(r"InputError: (.*?)(?: \[while running.*)?$", re.MULTILINE)
_DETAILS = re.compile(r'details = "(.*?)"$', re.MULTILINE)
_JAVA = ("java", "org.", "io.")


@dataclass(frozen=True)
class Engine:
    """What a user says about an engine: plain values.

    Attributes:
        flags: Beam's own command line; it names the runner.
        handed_in: path or URL of a folder where workers hand in votes; None: the folder of the votes.
        patience: seconds without new votes after which a job counts as lost.
    """

    flags: tuple
    handed_in: str | None = None
    patience: float = 300.0

    def options(self):
        """New `PipelineOptions`."""
        return PipelineOptions(list(self.flags))

    @property
    def runner(self):
        """The runner's name as given."""
        return self.options().view_as(StandardOptions).runner

    def check(self):
        """Raises a one-line InputError for a runner that is unknown or wrong, or a cluster that does not answer."""
        name = self.runner
        if name.rsplit(".", 1)[-1].lower().removesuffix("runner") == "dask":
            raise InputError(_DASK)
        try:
            runner = create_runner(name)
        except (ImportError, AttributeError, TypeError) as error:
            raise InputError(f"The runner {name} cannot be loaded ({reason(error)}).") from None
        except ValueError:
            nearest = difflib.get_close_matches(name, StandardOptions.KNOWN_RUNNER_NAMES, n=2)
            hint = did_you_mean(nearest, "Known: FlinkRunner, PortableRunner, ...")
            raise InputError(f"Beam has no runner {name}. {hint}") from None
        if not isinstance(runner, PipelineRunner):
            raise InputError(f"{name} is not a runner of Beam's, but a {type(runner).__name__}.")
        options = self.options()
        endpoint = options.view_as(PortableOptions).job_endpoint
        if endpoint and endpoint != "embed":
            _check_listens(endpoint, "job server (job_endpoint)")
        if name.lower().removesuffix("runner") == "flink" and not endpoint:
            _check_flink(options.view_as(FlinkRunnerOptions))


def of(settings):
    """The `Engine` that settings ask for, checked; None if they ask for none.

    Args:
        settings: "beam", Beam's command line; "votes" and "patience", see `Engine`.

    Raises:
        InputError: as `Engine.check`, or if Beam cannot write where votes are to be handed in.
    """
    if not settings["beam"]:
        return None
    engine = Engine(settings["beam"], settings["votes"], settings["patience"])
    places.use(engine.options())
    if engine.handed_in is not None:
        places.check(engine.handed_in)
    engine.check()
    return engine


def _check_listens(address, what):
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]") or "localhost", int(port)), _SECONDS_TO_CONNECT):
            pass
    except ValueError:
        raise InputError(f"The {what} must be given as HOST:PORT. Received: {address}") from None
    except OSError as error:
        raise InputError(f"Nothing answers at {address}, where the {what} should be ({reason(error)}).") from None


def _check_flink(options):
    master = options.flink_master
    if master.startswith("["):  # one that Beam starts on this machine
        return
    url = master if urlparse(master).scheme in ("http", "https") else f"http://{master}"
    try:
        with urllib.request.urlopen(f"{url}/config", timeout=_SECONDS_TO_CONNECT) as answer:
            version = str(json.loads(answer.read(_MOST_BYTES))["flink-version"])
    except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"No Flink answers at {master}, flink_master ({reason(error)}).") from None
    if version.split(".")[:2] != str(options.flink_version).split(".")[:2]:
        raise InputError(
            f"The Flink at {master} is {version}, but the job server is for {options.flink_version}: a job server fits "
            "one minor version. Give the cluster's as flink_version."
        )


class Failure(NamedTuple):
    """Why a job did not finish.

    Attributes:
        line: the reason, in one line.
        is_final: whether another job would fail in the same way: a worker says what it lacks.
    """

    line: str
    is_final: bool = False


class Job:
    """A job on an engine; a context after which it no longer runs, as far as the engine obeys.

    Args:
        options: `PipelineOptions`.
        build: called with the `beam.Pipeline`, to which it applies transforms.

    Attributes:
        failure: `Failure`; None if it finished or is running.
    """

    def __init__(self, options, build):
        self._pipeline = beam.Pipeline(options=options)
        build(self._pipeline)
        self._result, self.failure = None, None
        self._thread = threading.Thread(target=self._finish, daemon=True)

    def __enter__(self):
        if isinstance(self._pipeline.runner, PortableRunner):
            # In this thread, because some start a job server and replace the handler of Ctrl-C, which only the main
            # thread may do.
            handler = signal.getsignal(signal.SIGINT)
            try:
                self._result = self._pipeline.run()
            except InputError:
                raise
            except Exception as error:  # whatever Beam and gRPC raise
                self.failure = cause(error)
                return self
            finally:
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGINT, handler)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.cancel()

    def is_running(self, seconds=0.2):
        """Whether it is running, after at most this many seconds."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return self._thread.is_alive()

    def cancel(self):
        """Cancels it if it is running; returns within a few seconds, whatever the engine does."""
        if not self._thread.is_alive():
            return

        def ask():
            with contextlib.suppress(Exception):  # an engine that is gone or cannot cancel
                self._result.cancel()

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_SECONDS_TO_CANCEL)
        self._thread.join(_SECONDS_TO_CANCEL)

    def _finish(self):
        try:
            if self._result is None:
                self._result = self._pipeline.run()
            state = self._result.wait_until_finish()
            state = state or self._result.state
            if state != PipelineState.DONE:
                self.failure = Failure(f"it ended as {state}")
        except Exception as error:
            self.failure = cause(error)


def cause(error):
    """The `Failure` of a runner's exception: the worker's own error, if it is in the text of that exception."""
    text = str(error)
    if ours := _OURS.findall(text):
        return Failure(ours[-1], is_final=True)
    python = [pair for pair in _PYTHON_ERROR.findall(text) if not pair[0].startswith(_JAVA)]
    if python:
        line = f"{python[-1][0].rsplit('.', 1)[-1]}: {python[-1][1]}"
        if "No module named" in line:
            return Failure(f"{line}, on a worker: its Python needs this package and its dependencies", is_final=True)
        return Failure(line)
    if details := _DETAILS.findall(text):
        return Failure(details[-1])
    return Failure(f"{type(error).__name__}: {reason(text)}")
