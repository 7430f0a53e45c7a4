"""Beam's own portable job service in a process of its own, on two worker pools: PORT POOL,POOL STAGING_DIR.

As `apache_beam.runners.portability.local_job_service_main`, but that a job gets a worker of each pool; the stock one
uses one worker, whatever it is told.
"""

import itertools
import sys
import threading

from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability import local_job_service
from apache_beam.runners.portability.fn_api_runner import fn_runner, worker_handlers


def main(port, pools, staging_dir):
    """Serves until it is killed."""
    pools = pools.split(",")
    turns = itertools.cycle(pools)

    @worker_handlers.WorkerHandler.register_environment(
        common_urns.environments.EXTERNAL.urn, beam_runner_api_pb2.ExternalPayload
    )
    class InTurn(worker_handlers.ExternalWorkerHandler):
        def __init__(self, payload, *others):
            mine = beam_runner_api_pb2.ExternalPayload()
            mine.CopyFrom(payload)
            mine.endpoint.url = next(turns)
            super().__init__(mine, *others)

    class Job(local_job_service.BeamJob):
        def _invoke_runner(self):
            self.set_state(local_job_service.beam_job_api_pb2.JobState.RUNNING)
            runner = fn_runner.FnApiRunner(provision_info=self._provision_info)
            runner._num_workers = len(pools)
            return runner.run_via_runner_api(self._pipeline_proto, self.pipeline_options())

    local_job_service.LocalJobServicer(staging_dir, beam_job_type=Job).start_grpc_server(int(port))
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
