"""Runs the command as a user does: in a process of its own."""

import os
import subprocess
import sys
import time

import pytest

from tests.forks import REPOSITORY, Fork

_SECONDS = 300


class Command:
    """`python -m pipeline.run` with arguments.

    Attributes:
        status, out, err, seconds: of the last process that was waited for.
    """

    def __init__(self, *arguments):
        self._arguments = [str(argument) for argument in arguments]

    def run(self):
        return self.wait(self.start())

    def run_afresh(self):
        """In an interpreter that has not imported anything yet."""
        return self.wait(self._start_afresh())

    def start(self):
        return Fork(["-m", "pipeline.run", *self._arguments])

    def _start_afresh(self):
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.run", *self._arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
            env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"},
        )  # fmt: skip

    def wait(self, process):
        started = time.monotonic()
        try:
            self.out, self.err = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"did not end within {_SECONDS} s: {process.communicate()}")
        self.status, self.seconds = process.returncode, time.monotonic() - started
        return self

    def stop(self, signal_number, reached):
        """Runs until `reached()` is true, then sends the signal."""
        process = self.start()
        deadline = time.monotonic() + _SECONDS
        while not reached():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(f"ended before it could be stopped: {process.communicate()}")
            time.sleep(0.02)
        process.send_signal(signal_number)
        return self.wait(process)


@pytest.fixture(scope="session")
def command():
    """A function: arguments -> `Command`."""
    return Command
