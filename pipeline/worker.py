"""A worker of an engine, as Beam's process environment starts it: python -m pipeline.worker --id=ID ...

Each task manager of Flink starts and ends its own, so that none is shared: in a pool that two task managers share, one
that is done ends the other's worker, because both call theirs by the same name.
"""

import argparse
import sys

from serving import terminal

_SECONDS_TO_ASK = 60


def main(arguments=None):
    """Works until the engine closes the connection. Returns the exit status, 0."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--id", required=True)
    parser.add_argument("--provision_endpoint", required=True)
    told, _ = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    # Imported only now, so that Ctrl-C meanwhile is answered in one line.
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
    from apache_beam.runners.worker.sdk_worker import SdkHarness

    with grpc.insecure_channel(told.provision_endpoint) as channel:
        answer = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel).GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            metadata=[("worker_id", told.id)],
            timeout=_SECONDS_TO_ASK,
            wait_for_ready=True,
        )
    # Data is not sent at intervals: see `driver`.
    SdkHarness(answer.info.control_endpoint.url, worker_id=told.id, data_buffer_time_limit_ms=-1).run()
    return 0


if __name__ == "__main__":
    terminal.run(main)
