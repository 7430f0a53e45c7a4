"""Starting processes and waiting for them; each ends with its test."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SECONDS_TO_START = 120


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def start(stack, log, *command, **environment):
    """Starts a process with its children in a session of its own, which ends with the stack."""
    with open(log, "w") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, cwd=log.parent, start_new_session=True,
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{HERE}", "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        )  # fmt: skip

    def end():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    stack.callback(end)
    return process


def wait_until(is_so, what, seconds=SECONDS_TO_START):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
        return True
    return False
