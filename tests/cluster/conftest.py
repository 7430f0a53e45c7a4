"""An engine on real processes: Beam's job service, two worker pools, and workers of theirs."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.certification.engine import Engine

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


class Cluster:
    """Job service, two pools, and the process that forks workers for them."""

    def __init__(self, stack, folder):
        self._folder = folder
        ports = [free_port() for _ in range(3)]
        self.endpoint, pools = f"localhost:{ports[0]}", [f"localhost:{port}" for port in ports[1:]]
        python, forks = sys.executable, folder / "forks"
        os.environ["SHELF"] = str(folder / "shelf")
        (folder / "shelf").mkdir()
        start(stack, folder / "forks.log", python, HERE / "fork_worker.py", "serve", forks, WORKER_IMPORTS="shelf")
        script = folder / "fork_worker"
        script.write_text(f'#!/bin/sh\nexec {python} {HERE / "fork_worker.py"} "$@"\n')
        script.chmod(0o755)
        for place, port in enumerate(ports[1:]):
            pool = [python, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
            log = folder / f"pool{place}.log"
            start(stack, log, *pool, f"--container_executable={script}", FORK_WORKER=str(forks))
        service = [python, HERE / "job_service.py", ports[0], ",".join(pools), folder / "staging"]
        start(stack, folder / "service.log", *service)
        self.flags = (
            *("--runner=PortableRunner", f"--job_endpoint={self.endpoint}"),
            *("--environment_type=EXTERNAL", f"--environment_config={pools[0]}"),
        )
        wait_until(lambda: all(map(listens, ports)) and forks.exists(), "the services do not listen")

    def engine(self, **changed):
        return Engine(self.flags, **{"patience": 60.0, **changed})

    def workers(self):
        """Process ids of the workers that were ever started, the oldest first."""
        pids = self._folder / "forks.pids"
        return [int(line) for line in pids.read_text().split()] if pids.exists() else []


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    with contextlib.ExitStack() as stack:
        yield Cluster(stack, tmp_path_factory.mktemp("cluster"))
