"""`serving.local`'s server with faults on request: what it got, and what it answers instead."""

import threading
import time

from serving.local import LocalServer


class ModelServer(LocalServer):
    """A `LocalServer` whose tests may look in, and change what it sends.

    Attributes:
        state: what the status of the model says.
        requests: (signature, name -> array) of all requests that were answered.
        before: called before each request with its number; may sleep or raise `serving.local.StatusError`.
        change: outputs name -> array -> the outputs that are sent instead.
        raw: bytes -> the bytes of the answer that are sent instead.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.state, self.requests, self.count = "AVAILABLE", [], 0
        self.before, self.change, self.raw = lambda number: None, lambda outputs: outputs, lambda body: body
        self._lock = threading.Lock()

    def predict(self, spec, inputs_of):
        with self._lock:
            self.count += 1
            number = self.count
        self.before(number)
        given = {}

        def noted(definition):
            given.update(inputs_of(definition))
            return given

        outputs = super().predict(spec, noted)
        self.requests.append((spec.signature_name, given))
        return self.change(outputs)

    def status(self):
        status = super().status()
        status["model_version_status"][0]["state"] = self.state
        return status

    def grpc_body(self, outputs):
        return self.raw(super().grpc_body(outputs))

    def rest_body(self, outputs, by_rows):
        return self.raw(super().rest_body(outputs, by_rows))


def wait_until(holds, seconds=30):
    """Waits until `holds()`; fails if it does not within the time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
