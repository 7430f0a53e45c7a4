"""Certification on Apache Flink: a job manager and two task managers, each a process of its own, on loopback.

Needs $FLINK_JOB_SERVER_JAR, Beam's job server, and $FLINK_HOME; `make cluster-test` gets both where it can.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import keras
import numpy as np
import pytest

from macer_tf import networks
from tests.cluster.processes import REPOSITORY, free_port, listens, start, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not {"FLINK_JOB_SERVER_JAR", "FLINK_HOME"} <= os.environ.keys(),
        reason="NEEDS FLINK: make cluster-test, or FLINK_JOB_SERVER_JAR (a file) and FLINK_HOME (a folder)",
    ),
]
SETTINGS = """
jobmanager.rpc.address: localhost
jobmanager.rpc.port: {rpc}
jobmanager.bind-host: localhost
jobmanager.memory.process.size: 1024m
taskmanager.bind-host: localhost
taskmanager.host: localhost
taskmanager.numberOfTaskSlots: 1
taskmanager.memory.process.size: 1024m
taskmanager.memory.managed.size: 64m
taskmanager.memory.jvm-metaspace.size: 192m
rest.address: localhost
rest.port: {rest}
rest.bind-address: localhost
rest.bind-port: {rest}
heartbeat.interval: 1000
heartbeat.timeout: 6000
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 5
restart-strategy.fixed-delay.delay: 2s
io.tmp.dirs: {folder}
env.java.opts.all: {opens}
"""


class Flink:
    """The processes; a task manager can be killed and started again."""

    def __init__(self, stack, folder):
        self._stack, self._folder, self._home = stack, folder, Path(os.environ["FLINK_HOME"])
        self.rest, rpc, jobs = (free_port() for _ in range(3))
        opens = re.search(r"^\s+all: (.*)$", (self._home / "conf" / "config.yaml").read_text(), re.MULTILINE)[1]
        shutil.copytree(self._home / "conf", folder / "conf")
        settings = SETTINGS.format(rpc=rpc, rest=self.rest, folder=folder, opens=opens)
        (folder / "conf" / "config.yaml").write_text(settings)
        self._start("jobmanager")
        self.task_managers = [self._start("taskmanager"), self._start("taskmanager")]
        server = [
            "java",
            "-Xmx512m",
            "-jar",
            os.environ["FLINK_JOB_SERVER_JAR"],
            "--artifacts-dir",
            folder / "artifacts",
        ]
        ports = ["--job-port", jobs, "--artifact-port", 0, "--expansion-port", -1]
        start(stack, folder / "server.log", *server, "--flink-master", f"localhost:{self.rest}", *ports)
        worker = folder / "worker"
        worker.write_text(f'#!/bin/sh\nexport PYTHONPATH={REPOSITORY}\nexec {sys.executable} -m pipeline.worker "$@"\n')
        worker.chmod(0o755)
        self.flags = (
            *("--runner=PortableRunner", f"--job_endpoint=localhost:{jobs}", "--environment_type=PROCESS"),
            *(f"--environment_config={json.dumps({'command': str(worker)})}", "--parallelism=2"),
        )
        wait_until(lambda: self.slots() == 2 and listens(jobs), "Flink is not up")

    def slots(self):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://localhost:{self.rest}/overview") as answer:
            return json.load(answer)["slots-total"]
        return 0

    def kill_task_manager(self):
        os.killpg(self.task_managers.pop().pid, signal.SIGKILL)
        self.task_managers.append(self._start("taskmanager"))

    def _start(self, what):
        log = self._folder / f"{what}-{time.monotonic_ns()}.log"
        command = [self._home / "bin" / f"{what}.sh", "start-foreground"]
        return start(
            self._stack, log, *command, FLINK_CONF_DIR=str(self._folder / "conf"), FLINK_LOG_DIR=str(log.parent)
        )


@pytest.fixture(scope="module")
def flink(tmp_path_factory):
    with contextlib.ExitStack() as stack:
        yield Flink(stack, tmp_path_factory.mktemp("flink"))


@pytest.fixture
def certify(tmp_path, digits):
    """A function: more arguments -> (what `pipeline.certify` printed, its certificates and its votes)."""
    keras.utils.set_random_seed(0)
    networks.small_cnn().save(tmp_path / "model.keras")
    np.savez(tmp_path / "images.npz", images=(digits[0][-20:] * 255).astype(np.uint8))

    def run(name, *more):
        command = [sys.executable, "-m", "pipeline.certify", "--model", "model.keras", "--images", "images.npz"]
        command += ["--sigma", "0.5", "--n", "20000", "--output", name, *more]
        finished = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
            timeout=900, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout, (tmp_path / name / "certificates.tsv").read_bytes()

    return run


@pytest.mark.parametrize("budget", [(), ("--budget", "adaptive", "--radii", "0.1")])
def test_certificates_are_those_of_one_machine(flink, certify, budget):
    _, expected = certify("one", *budget)
    out, certificates = certify("two", *budget, *flink.flags)
    assert certificates == expected
    if not budget:  # an adaptive one asks for a task or two at a time
        shares = re.findall(r"by 2 workers, (\d+) % by the busiest", out)
        assert shares, out
        assert int(shares[-1]) <= 60


def test_a_task_manager_that_is_killed_costs_no_vote(flink, certify, tmp_path):
    _, expected = certify("one")

    def kill():
        wait_until(lambda: list(tmp_path.glob("two/votes/*/*.votes")), "no votes", 300)
        flink.kill_task_manager()

    threading.Thread(target=kill, daemon=True).start()
    _, certificates = certify("two", *flink.flags, "--patience", "180")
    assert certificates == expected
