"""Python processes that need not import TensorFlow: forks of one that has imported it and used none of it.

Each is a process of its own, as if started afresh: it has its own memory, signals and end, and no test's patches. What
acts when something is imported, KERAS_BACKEND for one, takes a fresh interpreter in place of this.
"""

import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
_SECONDS = 300
_STREAMS = ("out", "err")
_COMPONENTS = ("trainer", "certifier", "evaluator", "exporter", "infra_validator", "pusher")
_PRELOADED = [
    *("tensorflow", "keras", "tensorflow_probability.python.distributions", "tensorflow_datasets", "sklearn.datasets"),
    *("macer_tf.model", "macer_tf.baselines.smoothadv", "macer_tf.smoothing"),
    *(f"pipeline.components.{name}" for name in _COMPONENTS),
]


class Fork:
    """`python ARGUMENTS` in a folder, where ARGUMENTS are `-m MODULE ...`, `-c PROGRAM ...` or `SCRIPT ...`.

    Attributes:
        pid: process id.
        returncode: None while it works, then its exit status, or below 0 the signal that ended it.
    """

    def __init__(self, arguments, folder=REPOSITORY, **environment):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        environment = {**os.environ, **environment}
        self._scratch = Path(tempfile.mkdtemp())
        arguments = list(map(str, arguments))
        self._process = context.Process(
            target=_work, args=(arguments, str(folder), environment, self._scratch), daemon=True
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=_SECONDS):
        """(what it printed, its errors), once it has ended.

        Raises:
            subprocess.TimeoutExpired: if it has not ended in so many seconds.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a fork", timeout)
        printed = tuple((self._scratch / name).read_text() for name in _STREAMS)
        shutil.rmtree(self._scratch)
        return printed


def run(arguments, folder=REPOSITORY, timeout=_SECONDS, **environment):
    """A `Fork` that has ended, as a subprocess.CompletedProcess."""
    process = Fork(arguments, folder, **environment)
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def _work(arguments, folder, environment, scratch):
    assert "tensorflow" in sys.modules, "what was to be imported before was not"
    for descriptor, name in enumerate(_STREAMS, start=1):
        with open(scratch / name, "w") as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # A process that a shell starts in the background ignores Ctrl-C; this one must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Else every fork would draw the same.
    random.seed()
    np.random.seed()
    _run(*arguments)


def _run(what, *arguments):
    match what:
        case "-m":
            module, *sys.argv[1:] = arguments
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case "-c":
            program, *rest = arguments
            sys.argv, sys.path[:0] = ["-c", *rest], [""]
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(program, "<string>", "exec"), sys.modules["__main__"].__dict__)
        case script:
            sys.argv, sys.path[:0] = [script, *arguments], [os.path.dirname(script)]
            runpy.run_path(script, run_name="__main__")
