"""An engine on real processes: Beam's job service, two worker pools, and workers of theirs."""

import contextlib
import os
import sys

import pytest

from pipeline.certification.engine import Engine
from tests.cluster.processes import HERE, free_port, listens, start, wait_until


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
