"""A small model server for tests: a SavedModel over gRPC and REST, with TensorFlow Serving's messages and formats.

By hand, on TensorFlow Serving's ports 8500 and 8501: python -m tests.serving.model_server SAVED_MODEL

Its REST follows TensorFlow Serving's json_tensor.cc: row and columnar formats, every input of the signature required,
floats printed in six digits if these bring the number back, else in nine or seventeen.
"""

import contextlib
import json
import re
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

# As http_server.cc maps them.
_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.INTERNAL: 500,
}


class RefusedError(Exception):
    """A request that is refused, with a gRPC status."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class ModelServer:
    """Serves a SavedModel under the name `model`; in a `with`, on this machine's `ports`, by default free ones.

    Attributes:
        grpc_address, rest_url: where it listens.
        state: what the status of the model says.
        requests: (signature, name -> array) of all requests that were run.
        before: called before each request with its number; may sleep or raise `RefusedError`.
        change: outputs name -> array -> the outputs that are sent instead.
        raw: bytes -> the bytes of the answer that are sent instead.
    """

    def __init__(self, saved_model, model="classifier", versions=(1,), ports=(0, 0)):
        self.model, self.versions, self.requests, self.count = model, versions, [], 0
        self._ports = ports
        self.state = "AVAILABLE"
        self.before, self.change, self.raw = lambda number: None, lambda outputs: outputs, lambda body: body
        self._lock, graph = threading.Lock(), tf.Graph()
        with graph.as_default():
            self._session = tf.compat.v1.Session()
            meta_graph = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(saved_model))
        self._signatures = meta_graph.signature_def

    def __enter__(self):
        self._grpc = grpc.server(futures.ThreadPoolExecutor(4))
        # By hand, so that `raw` can send bytes that are no message.
        handler = grpc.unary_unary_rpc_method_handler(
            self._predict_by_grpc, predict_pb2.PredictRequest.FromString, lambda body: body
        )
        service = {"Predict": handler}
        name = "tensorflow.serving.PredictionService"
        self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, service),))
        assert hasattr(prediction_service_pb2_grpc.PredictionServiceServicer, "Predict")
        self.grpc_address = f"127.0.0.1:{self._grpc.add_insecure_port(f'127.0.0.1:{self._ports[0]}')}"
        self._grpc.start()
        self._rest = ThreadingHTTPServer(("127.0.0.1", self._ports[1]), _handler(self))
        self._rest.daemon_threads = True
        self.rest_url = f"http://127.0.0.1:{self._rest.server_port}"
        self._thread = threading.Thread(target=self._rest.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._grpc.stop(None).wait()
        self._rest.shutdown()
        self._rest.server_close()
        self._thread.join()
        self._session.close()

    def run(self, signature, inputs, version=None, label=None):
        """Outputs of a signature, name -> array. Raises RefusedError as TensorFlow Serving refuses."""
        if (version is not None and version not in self.versions) or label is not None:
            raise RefusedError(grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(classifier, 9)")
        definition = self._signatures[signature or "serving_default"]
        feed = {definition.inputs[name].name: value for name, value in inputs.items() if name in definition.inputs}
        for name, default in definition.defaults.items():
            feed.setdefault(definition.inputs[name].name, tf.make_ndarray(default))
        missing = sorted(set(definition.inputs) - set(inputs) - set(definition.defaults))
        if missing or not set(inputs) <= set(definition.inputs):
            message = f"input size does not match signature: {len(inputs)}!={len(definition.inputs)}"
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, message)
        fetches = {name: tensor.name for name, tensor in definition.outputs.items()}
        try:
            outputs = self._session.run(fetches, feed)
        # A session refuses shapes in Python that TensorFlow Serving's refuses in C++.
        except (tf.errors.InvalidArgumentError, ValueError) as error:
            # What Python puts before it, C++ does not.
            message = getattr(error, "message", str(error)).removeprefix("Graph execution error:\n\n")
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, message) from None
        self.requests.append((signature, inputs))
        return self.change(outputs)

    def begin(self):
        """Counts a request and lets `before` delay or refuse it."""
        with self._lock:
            self.count += 1
            number = self.count
        self.before(number)

    def signature(self, name):
        """The definition of a signature. Raises RefusedError where there is none."""
        if (name or "serving_default") not in self._signatures:
            message = f'Serving signature name: "{name}" not found in signature def'
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, message)
        return self._signatures[name or "serving_default"]

    def _predict_by_grpc(self, request, context):
        spec = request.model_spec
        try:
            self.begin()
            if spec.name != self.model:
                raise RefusedError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({spec.name})")
            self.signature(spec.signature_name)
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            version = spec.version.value if spec.HasField("version") else None
            outputs = self.run(spec.signature_name, inputs, version, spec.version_label or None)
        except RefusedError as error:
            context.abort(error.code, str(error))
        response = predict_pb2.PredictResponse()
        for name, array in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(array))
        return self.raw(response.SerializeToString())


def _handler(server):
    """A request handler class for `server`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if self.path != f"/v1/models/{server.model}":
                return self._send(404, json.dumps({"error": "Malformed request: GET " + self.path}))
            states = [{"version": str(version), "state": server.state} for version in server.versions]
            return self._send(200, json.dumps({"model_version_status": states}, indent=1))

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                server.begin()
                self._send(200, server.raw(self._predict(body).encode()))
            except RefusedError as error:
                self._send(_HTTP[error.code], json.dumps({"error": str(error)}))

        def _predict(self, body):
            match = re.fullmatch(r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?:predict", self.path)
            if not match or match[1] != server.model:
                raise RefusedError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {self.path}")
            request = json.loads(body)
            definition = server.signature(request.get("signature_name"))
            rows = "instances" in request
            values = request["instances"] if rows else request["inputs"]
            if rows and isinstance(values[0], dict):
                values = {name: [row[name] for row in values] for name in values[0]}
            elif not isinstance(values, dict):
                values = {next(iter(definition.inputs)): values}
            for name in definition.inputs:
                if name not in values:
                    message = f"Missing named input: {name} in 'inputs' object."
                    raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, message)
            inputs = {
                name: np.array(values[name], tf.as_dtype(tensor.dtype).as_numpy_dtype)
                for name, tensor in definition.inputs.items()
            }
            version = None if match[2] is None else int(match[2])
            outputs = server.run(request.get("signature_name"), inputs, version, match[3])
            if rows:
                count = len(next(iter(outputs.values())))
                lines = [
                    "{" + ", ".join(f'"{name}": {_json(array[i])}' for name, array in outputs.items()) + "}"
                    for i in range(count)
                ]
                return '{\n    "predictions": [' + ", ".join(lines) + "\n    ]\n}"
            columns = ", ".join(f'"{name}": {_json(array)}' for name, array in outputs.items())
            return '{\n    "outputs": {' + columns + "}\n}"

        def _send(self, status, body):
            body = body if isinstance(body, bytes) else body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    return Handler


def _json(array):
    if np.ndim(array):
        return "[" + ", ".join(_json(row) for row in array) + "]"
    if isinstance(array, str):
        return json.dumps(array)
    return decimal(array) if isinstance(array, np.floating) else str(array)


def decimal(value):
    """A float32 or float64 as TensorFlow Serving's WriteDecimal prints it."""
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    printed = f"{value:.6g}"
    if value.dtype.type(printed) != value:
        printed = f"{value:.9g}" if value.dtype == np.float32 else f"{value:.17g}"
    return printed if "." in printed or "e" in printed else printed + ".0"


def wait_until(holds, seconds=30):
    """Waits until `holds()`; fails if it does not within the time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


if __name__ == "__main__":
    with ModelServer(sys.argv[1], ports=(8500, 8501)) as served, contextlib.suppress(KeyboardInterrupt):
        print(f"gRPC: {served.grpc_address}, REST: {served.rest_url}", flush=True)
        threading.Event().wait()
