"""A small model server for this machine, to try out a published model: python -m serving.local BASE

It speaks TensorFlow Serving's gRPC (Predict) and REST (predict, status and metadata), with its messages, and the tests
run the clients against it. It is not for production: it has one model, no batching, no metrics, no TLS, and does not
look for newer versions.
"""

if __name__ == "__main__":
    import os

    from serving import terminal

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    terminal.run_main_of("serving.local")

import argparse
import contextlib
import errno
import functools
import json
import math
import os
import re
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import grpc

import macer_tf  # noqa: F401 (so that TensorFlow computes with oneDNN here too, and the library repeats votes exactly)
from serving import rest_format, terminal
from serving.arguments import TRUST_MODEL, Parser
from serving.exit import exit_status
from serving.graph_safety import check_effects
from serving.terminal import first_line, printable
from serving.versions import versions

_SERVICE = "tensorflow.serving.PredictionService"
# The same mapping as TensorFlow Serving's.
_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.INTERNAL: 500,
}
_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/([0-9]{1,19})|/labels/([^/:]+))?(|/metadata|:predict)")
_THREADS = 4
_MAX_REQUEST_BYTES = 2**28
# The least that a text takes in NumPy.
_POINTER_BYTES = 8
# How long to wait for a client that sends nothing more.
_IDLE_SECONDS = 60
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What the system says of an address that is not this machine's.
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class StatusError(Exception):
    """A request is refused, with a gRPC status.

    Attributes:
        code: a `grpc.StatusCode`.
    """

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class LocalServer:
    """Serves one SavedModel under one name and version number while in a `with`.

    Args:
        saved_model: directory.
        model: name that clients ask for.
        version: number that they may ask for.
        host: address to listen on; by default, one that only this machine reaches.
        ports: ports of gRPC and of REST; 0 is any free one.

    Attributes:
        model, version: as given.
        grpc_address, rest_url: where it listens.

    Raises:
        ValueError: in one line, if the SavedModel cannot be loaded, or, on entering, if a port is taken.
    """

    def __init__(self, saved_model, model="classifier", version=1, *, host="127.0.0.1", ports=(0, 0)):
        import tensorflow as tf

        from serving.validate import Server

        self.model, self.version = model, version
        self._tf, self._host, self._ports = tf, host, ports
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            self._loaded = Server(self._session, saved_model)
        except (tf.errors.OpError, ValueError, RuntimeError, OSError) as error:
            raise ValueError(f"{saved_model} cannot be loaded ({first_line(error)[:300]})") from None

    def __enter__(self):
        from tensorflow_serving.apis import predict_pb2

        with contextlib.ExitStack() as started:
            started.callback(self._session.close)
            self._rest = self._bound(self._ports[1], lambda at: _RestServer(at, functools.partial(_Handler, self)))
            started.callback(self._rest.server_close)
            options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES)]
            by_grpc = grpc.server(futures.ThreadPoolExecutor(_THREADS), options=options)
            handler = grpc.unary_unary_rpc_method_handler(
                self._predict_by_grpc, predict_pb2.PredictRequest.FromString, bytes
            )
            by_grpc.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, {"Predict": handler})])
            port = self._bound(self._ports[0], lambda at: by_grpc.add_insecure_port(_joined(*at)))
            by_grpc.start()
            started.callback(lambda: by_grpc.stop(None).wait())
            thread = threading.Thread(target=self._rest.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
            thread.start()
            started.callback(self._rest.shutdown)
            self._started = started.pop_all()
        self.grpc_address = _joined(self._host, port)
        self.rest_url = f"http://{_joined(self._host, self._rest.server_port)}"
        return self

    def __exit__(self, *error):
        self._started.close()

    def predict(self, spec, inputs_of):
        """Outputs of a signature, name -> array.

        Args:
            spec: the `ModelSpec` of a request.
            inputs_of: definition of the signature -> the request's inputs, name -> array.

        Raises:
            StatusError: where TensorFlow Serving refuses.
        """
        self.check(spec)
        name = spec.signature_name or "serving_default"
        if name not in self._loaded.signatures:
            message = f'Serving signature name: "{name}" not found in signature def'
            raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, message)
        definition = self._loaded.signatures[name]
        errors = self._tf.errors
        try:
            inputs = inputs_of(definition)
            missing = set(definition.inputs) - set(inputs) - set(definition.defaults)
            if missing or not set(inputs) <= set(definition.inputs):
                raise ValueError(f"input size does not match signature: {len(inputs)}!={len(definition.inputs)}")
            return self._loaded(name, **inputs)
        # A session refuses in Python, with the other types, what TensorFlow Serving's session refuses in C++.
        except (errors.InvalidArgumentError, ValueError, TypeError, MemoryError) as error:
            # Python puts this in front of the message, C++ does not.
            message = getattr(error, "message", str(error)).removeprefix("Graph execution error:\n\n")
            raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, message) from None
        except errors.OpError as error:
            raise StatusError(grpc.StatusCode.INTERNAL, error.message) from None

    def check(self, spec):
        """Accepts the `ModelSpec` of what is served here; raises `StatusError` for any other."""
        found = "Latest" if not spec.HasField("version") else "Specific"
        is_other = spec.HasField("version") and spec.version.value != self.version
        if spec.name != self.model or is_other or spec.version_label:
            named = [spec.name, *([str(spec.version.value)] if spec.HasField("version") else []), spec.version_label]
            message = f"Servable not found for request: {found}({', '.join(filter(None, named))})"
            raise StatusError(grpc.StatusCode.NOT_FOUND, message)

    def status(self):
        """What the status URL returns, as a JSON value; a model that is served is available."""
        about = {"version": str(self.version), "state": "AVAILABLE"}
        return {"model_version_status": [{**about, "status": {"error_code": "OK", "error_message": ""}}]}

    def metadata(self):
        """What the metadata URL returns, as a JSON value: the signatures' inputs and outputs."""
        from google.protobuf import json_format

        options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
        signatures = {
            name: json_format.MessageToDict(definition, **options)
            for name, definition in self._loaded.signatures.items()
        }
        spec = {"name": self.model, "signature_name": "", "version": str(self.version)}
        return {"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}}

    def dtypes(self, definition):
        """Input name -> NumPy dtype, object for text."""
        return {name: self._tf.as_dtype(info.dtype).as_numpy_dtype for name, info in definition.inputs.items()}

    def grpc_body(self, outputs):
        """Outputs as the bytes of a `PredictResponse`."""
        from tensorflow_serving.apis import predict_pb2

        response = predict_pb2.PredictResponse()
        for name, array in outputs.items():
            response.outputs[name].CopyFrom(self._tf.make_tensor_proto(array))
        return response.SerializeToString()

    def rest_body(self, outputs, by_rows):
        """Outputs as the bytes of JSON."""
        return rest_format.body_of(outputs, by_rows)

    def _predict_by_grpc(self, request, context):
        def inputs_of(_):
            # One value may stand for as many values as the shape says.
            if sum(map(self._declared_bytes, request.inputs.values())) > _MAX_REQUEST_BYTES:
                message = f"A request's tensors must take at most {_MAX_REQUEST_BYTES:,} bytes."
                raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, message)
            return {name: self._tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}

        try:
            return self.grpc_body(self.predict(request.model_spec, inputs_of))
        except StatusError as error:
            context.abort(error.code, str(error))

    def _declared_bytes(self, tensor):
        values = math.prod(abs(dimension.size) for dimension in tensor.tensor_shape.dim)
        return values * (self._tf.as_dtype(tensor.dtype).size or _POINTER_BYTES)

    def _bound(self, port, bind):
        """The result of `bind` for (host, port), if nobody listens there."""
        try:
            if port:
                with socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((self._host, port))
            return bind((self._host, port))
        except (OSError, RuntimeError, TypeError) as error:
            reason = getattr(error, "strerror", None) or "gRPC cannot listen there"
            # Python raises a TypeError for what no name can have.
            is_host = isinstance(error, socket.gaierror | TypeError) or getattr(error, "errno", None) in _NOT_HERE
            if isinstance(error, TypeError):
                reason = "no host's name"
            another = "host, an address of this machine" if is_host else "port"
            raise ValueError(
                f"Cannot listen on {_joined(self._host, port)} ({reason}); give another {another}."
            ) from None


def _joined(host, port):
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _RestServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address, handler):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def handle_error(self, request, client_address):
        error = sys.exception()
        # Clients may disconnect at any time.
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"error: a request failed: {type(error).__name__}: {printable(error)}", file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS

    def __init__(self, served, *arguments):
        self._served = served
        super().__init__(*arguments)

    def do_GET(self):
        def answer():
            spec, what = self._asked()
            self._served.check(spec)
            if what == ":predict":
                raise self._malformed()
            told = self._served.metadata() if what else self._served.status()
            return json.dumps(told, indent=1).encode()

        self._answer(answer)

    def do_POST(self):
        def answer():
            body = self._body()
            spec, what = self._asked()
            if what != ":predict":
                raise self._malformed()
            try:
                request = rest_format.request_of(body)
            except ValueError as error:
                raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
            spec.signature_name = request.get("signature_name", "")
            outputs = self._served.predict(
                spec, lambda definition: rest_format.inputs_of(request, self._served.dtypes(definition))
            )
            return self._served.rest_body(outputs, "instances" in request)

        self._answer(answer)

    def send_error(self, code, message=None, explain=None):
        """Reports, in the same form as other errors, what `http.server` refuses by itself."""
        self.close_connection = True
        self._send(code, json.dumps({"error": message or self.responses[code][0]}).encode())

    def log_message(self, *_):
        """Logs nothing: the client is told."""

    def _asked(self):
        """The `ModelSpec` of the path, and what is asked for: nothing, /metadata or :predict."""
        from tensorflow_serving.apis import model_pb2

        found = _PATH.fullmatch(self.path)
        if not found:
            raise self._malformed()
        name, version, label, what = found.groups()
        spec = model_pb2.ModelSpec(name=unquote(name))
        if version is not None and int(version) < 2**63:
            spec.version.value = int(version)
        elif version is not None or label is not None:
            spec.version_label = unquote(label or version)
        return spec, what

    def _malformed(self):
        message = f"Malformed request: {self.command} {self.path}"
        return StatusError(grpc.StatusCode.NOT_FOUND, message)

    def _body(self):
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,12}", length) or int(length) > _MAX_REQUEST_BYTES:
            self.close_connection = True
            message = f"A request must have a Content-Length of at most {_MAX_REQUEST_BYTES:,} bytes."
            raise StatusError(grpc.StatusCode.INVALID_ARGUMENT, message)
        return self.rfile.read(int(length))

    def _answer(self, answer):
        try:
            self._send(200, answer())
        except StatusError as error:
            self._send(_HTTP[error.code], json.dumps({"error": str(error)}).encode())

    def _send(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _parse(arguments):
    parser = Parser(
        prog="python -m serving.local",
        description="Serves the highest version of a model to this machine until Ctrl-C, like TensorFlow Serving, by "
        "gRPC (Predict) and REST (predict, status, metadata). It is for trying a model out, not for production: it "
        "has no batching, metrics, TLS or authentication, and does not notice versions that are published later. For "
        "production, see serving/conf.",
    )
    parser.add_argument("base", help="where versions are published to, or the directory of one SavedModel")
    parser.add_argument("--name", default="classifier", help="what clients call the model (classifier)")
    parser.add_argument("--host", default=_LOOPBACK[0], help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=_port, default=8500, metavar="N", help="for gRPC (8500); 0: any free one")
    parser.add_argument("--rest_port", type=_port, default=8501, metavar="N", help="for REST (8501); 0: any free one")
    parser.add_argument("--trust_model", **TRUST_MODEL)
    parser.add_argument("--version", action="version", version=terminal.version())
    return parser.parse_args(arguments)


def _port(text):
    if not (re.fullmatch("[0-9]{1,5}", text, re.ASCII) and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"must be a port, 0 to 65535. Received: {text!r}")
    return int(text)


def _chosen(base):
    """The directory of the SavedModel to serve, and its number."""
    base = Path(base)
    if (base / "saved_model.pb").is_file():
        return base, int(base.name) if re.fullmatch("[0-9]{1,18}", base.name, re.ASCII) else 1
    if not base.is_dir():
        raise ValueError(f"There is no directory {base}; give the one that a run or serving.publish published to.")
    published = versions(base)
    if not published:
        raise ValueError(f"There is no version in {base}; give the directory that versions are published to.")
    return published[-1], int(published[-1].name)


def _check_effects(saved_model):
    try:
        check_effects(saved_model)
    except ValueError as error:
        raise ValueError(f"{error} --trust_model serves it anyway.") from None


def _serve(options):
    saved_model, version = _chosen(options.base)
    print(f"Loading {printable(saved_model)} ...", flush=True)
    terminal.import_tensorflow()
    if not options.trust_model:
        _check_effects(saved_model)
    with LocalServer(
        saved_model, options.name, version, host=options.host, ports=(options.port, options.rest_port)
    ) as server:
        print(f"Version {version} is served as {printable(options.name)} until Ctrl-C; not for production.")
        if options.host not in _LOOPBACK:
            print("Anyone who can reach this address can query it: there is no authentication.")
        url = f"{server.rest_url}/v1/models/{quote(options.name, safe='')}"
        print(f"  gRPC:     {server.grpc_address}\n  REST:     {url}:predict")
        print(f"  status:   {url}\n  metadata: {url}/metadata", flush=True)
        threading.Event().wait()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C. Returns the exit status: 130, or 1 if it failed, 2 for bad input."""
    return exit_status(
        lambda: (_parse(arguments), Path()), _serve, "The model is no longer served.", foreseen=(OSError,)
    )
