"""Beam's workers by fork, in some tenths of a second: `serve SOCKET` imports TensorFlow once and forks each worker.

Called by `worker_pool_main --container_executable` with the address of the engine, it has `serve` fork one. A worker is
a process of its own, as any; it only need not import for ten seconds. Their process ids are lines of SOCKET.pids.
"""

import os
import signal
import socket
import sys


def serve(address):
    """Forks a worker for each line ID CONTROL_ENDPOINT, until it is killed."""
    from apache_beam.runners.worker.sdk_worker import SdkHarness

    import pipeline.certification.workers  # noqa: F401

    for module in filter(None, os.environ.get("WORKER_IMPORTS", "").split(",")):
        __import__(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print("ready", flush=True)
    while True:
        asking, _ = listening.accept()
        with asking:
            worker_id, endpoint = asking.makefile().readline().split()
        if os.fork() == 0:
            listening.close()
            with open(f"{address}.pids", "a") as file:
                file.write(f"{os.getpid()}\n")
            SdkHarness(endpoint, worker_id=worker_id, state_cache_size=0, data_buffer_time_limit_ms=-1).run()
            os._exit(0)


def ask(arguments):
    """Has `serve` fork the worker that a pool's command line names."""
    values = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(os.environ["FORK_WORKER"])
        asking.sendall(f"{values['id']} {values['control_endpoint']}\n".encode())


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "serve" else ask(sys.argv[1:])
