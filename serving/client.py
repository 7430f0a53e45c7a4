"""Clients of a served smoothed classifier, by gRPC and by REST: NumPy images in, checked answers out.

Both talk to TensorFlow Serving. A call is repeated only if the server was unavailable, so that no answer was seen:
repeating it after an answer, until one pleases, would void the certificates' failure probability. If nothing listens,
the call fails at once.

Errors are a ValueError, if nothing was sent, or a `ServingError`: an `UnavailableError`, a `DeadlineError`, a
`RefusedError` or an `AnswerError`.
"""

import http.client
import ipaddress
import json
import math
import random
import re
import ssl
import time
import urllib.parse
from typing import NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike

from serving import answers
from serving.answers import AnswerError, DeadlineError, RefusedError, ServingError, UnavailableError
from serving.deadlines import TooLargeError, connected, is_nobody, reason_nobody_listens

__all__ = [
    "AnswerError",
    "DeadlineError",
    "GrpcClient",
    "RefusedError",
    "RestClient",
    "ServingError",
    "UnavailableError",
]

_CERTIFY, _CERTIFY_CUSTOM, _PREDICT = "serving_default", "certify_custom", "predict"
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.05, 2.0
# A month; the limits of the system's clocks are somewhere beyond.
_LONGEST_TIMEOUT_SECONDS = 30 * 86_400
_DEADLINE_HINT = "raise timeout or send fewer images"
_MAX_WORDS = 300
# Enough for answers for 128 images of 16,000 classes in JSON, or for many more in gRPC.
_MAX_REPLY_BYTES = 2**25
_PART_BYTES = 2**16
_NAME_HINT = "check the model's name, version and label"
_TOO_LARGE_HINT = "send fewer images at once"
_NOBODY_HINT = "is a model server listening there?"
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
# Outputs have one row for each image, and one or two dimensions: see `signatures`.
_MAX_DIMENSIONS = 2


class GrpcClient:
    """Queries a model server by gRPC. Thread-safe; close it, or use it in a `with`.

    Args:
        address: "host:port" of the server, "[address]:port" for IPv6; port 8500 by TensorFlow Serving's default.
        model_name: the server's name for the model.
        timeout: seconds for a call, including all its repetitions: no call takes longer, whatever the server does.
        version: version to query, by number; by default the server's latest.
        label: version to query, by label; instead of a number.

    Raises:
        ValueError: for an invalid address, name, time-out, version or label.
    """

    def __init__(
        self,
        address: str,
        model_name: str,
        *,
        timeout: float = 60.0,
        version: int | None = None,
        label: str | None = None,
    ) -> None:
        _check_selection(model_name, timeout, version, label)
        host_and_port = _host_and_port(address)
        # Imported here, because these import TensorFlow, which the REST client does without.
        import grpc
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        self._grpc, self._request_type = grpc, predict_pb2.PredictRequest
        self._address, self._host_and_port, self._timeout = address, host_and_port, timeout
        self._name, self._version, self._label = model_name, version, label
        self._channel = grpc.insecure_channel(
            address,
            options=[
                # The votes of many images exceed the 4 MB that gRPC accepts by default.
                ("grpc.max_receive_message_length", _MAX_REPLY_BYTES),
                ("grpc.max_send_message_length", -1),
                # The limit is on what arrives: a small compressed message could unpack into a large one behind it.
                ("grpc.per_message_decompression", 0),
                ("grpc.compression_enabled_algorithms_bitset", 1),
                # Otherwise a channel that has failed could wait longer before reconnecting than a call may take.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def certify(self, images: ArrayLike) -> answers.Certified:
        """Images float32 [batch, H, W, C] in [0, 1] -> `Certified`, with the n and alpha of the export.

        Raises:
            ValueError: for images that no model takes; nothing was sent.
            UnavailableError: at once, if nothing listens there; or if the model is still unavailable after `timeout`.
            DeadlineError: if the server does not answer within `timeout`.
            RefusedError: if the server refuses.
            AnswerError: if the answer is broken.
        """
        images = answers.check_images(images)
        return answers.certified(self._ask(_CERTIFY, images, answers.CERTIFY_OUTPUTS), len(images))

    def certify_custom(self, images: ArrayLike, n: int | None = None, alpha: float | None = None) -> answers.Certified:
        """As `certify`, with another number of estimation samples or another failure probability.

        Choose both before you look at an answer: asking again with more samples until it certifies voids alpha.

        Args:
            images: see `certify`.
            n: noisy copies for each image; the export's by default.
            alpha: failure probability for each image; the export's by default.

        Raises:
            ValueError: also for an n or an alpha out of range.
            ServingError: see `certify`.
        """
        images = answers.check_images(images)
        if n is not None and not (_whole(n) and 1 <= n < 2**63):
            raise ValueError(f"n must be a whole number from 1. Received: {n!r}")
        if alpha is not None and not (isinstance(alpha, float | np.floating) and 0 < alpha < 1):
            raise ValueError(f"alpha must be a number between 0 and 1. Received: {alpha!r}")
        scalars = {
            name: dtype(value)
            for name, dtype, value in (("n", np.int64, n), ("alpha", np.float64, alpha))
            if value is not None
        }
        outputs = self._ask(_CERTIFY_CUSTOM, images, answers.CERTIFY_OUTPUTS, scalars)
        return answers.certified(outputs, len(images), n, alpha)

    def predict(self, images: ArrayLike) -> answers.Predicted:
        """Images float32 [batch, H, W, C] in [0, 1] -> `Predicted`: the class alone, usually from fewer samples.

        Raises:
            ValueError, ServingError: see `certify`.
        """
        images = answers.check_images(images)
        return answers.predicted(self._ask(_PREDICT, images, answers.PREDICT_OUTPUTS), len(images))

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, signature, images, expected, scalars=None):
        request = self._request_type()
        request.model_spec.name = self._name
        request.model_spec.signature_name = signature
        if self._version is not None:
            request.model_spec.version.value = self._version
        if self._label is not None:
            request.model_spec.version_label = self._label
        for name, value in {"images": images, **(scalars or {})}.items():
            _fill(request.inputs[name], value)
        response = _repeat_while_loading(lambda seconds: self._call(request, seconds), self._timeout)
        _check_spec(request.model_spec, response.model_spec)
        _check_names(response.outputs, expected)
        return {name: _array(name, response.outputs[name]) for name in expected}

    def _call(self, request, seconds):
        code, deadline = self._grpc.StatusCode, time.monotonic() + seconds
        try:
            return self._stub.Predict(request, timeout=seconds)
        except self._grpc.RpcError as error:
            said = _first_line(error.details())
            status = error.code()
        if status == code.UNAVAILABLE:
            # gRPC has one status for both a server that is loading and no server at all.
            if nobody := reason_nobody_listens(*self._host_and_port, deadline):
                raise UnavailableError(f"{self._address} is unavailable; {_NOBODY_HINT} {nobody}")
            raise _LoadingError(f"{self._address} is unavailable; {_NOBODY_HINT} {said}")
        if status == code.DEADLINE_EXCEEDED:
            raise DeadlineError(f"{self._address} did not answer within {self._timeout:g} s; {_DEADLINE_HINT}.")
        hint = {code.NOT_FOUND: f"; {_NAME_HINT}", code.RESOURCE_EXHAUSTED: f"; {_TOO_LARGE_HINT}"}.get(status, "")
        raise RefusedError(f"{self._address} refused ({status.name}{hint}): {said}")


def _host_and_port(address):
    """Host and port of a gRPC address.

    Raises:
        ValueError: in one line, unless it is host:port.
    """
    like = "address must be host:port, such as localhost:8500 or [::1]:8500"
    text = address if isinstance(address, str) else ""
    found = re.fullmatch(r"(\[[^\[\]]*\]|[^\[\]:]*):([0-9]{1,5})", text)
    if found and _is_host(found[1]) and 1 <= int(found[2]) < 2**16:
        return found[1].strip("[]"), int(found[2])
    hint = ""
    if "//" in text:
        hint = ", without a scheme (RestClient takes a URL)"
    elif text.count(":") > 1 and "[" not in text:
        hint = "; an IPv6 address needs brackets"
    elif text and not re.search(r":[0-9]+$", text):
        hint = "; the port is missing"
    raise ValueError(f"{like}{hint}. Received: {address!r}")


def _is_host(host):
    """Whether it is a host name, an IPv4 address, or an IPv6 address in brackets."""
    if not host.startswith("["):
        return _HOST_NAME.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True


def _parts(url):
    """Scheme, host, port or None, and path of a model server's URL.

    Raises:
        ValueError: in one line, for anything else.
    """
    like = "url must be like http://localhost:8501"
    try:
        parts = urllib.parse.urlsplit(url)
        found = parts.scheme, parts.hostname, parts.port, parts.path
        # Refuses what `http.client` would fail on, and what it would silently drop.
        is_plain = url.isascii() and url.isprintable() and " " not in url
        is_more = "?" in url or "#" in url or "@" in parts.netloc or parts.netloc.endswith(":")
        is_fine = parts.scheme in ("http", "https") and parts.port != 0 and is_plain and not is_more
        is_fine = is_fine and _is_host(re.sub(r":[0-9]*$", "", parts.netloc))
    except (ValueError, TypeError, AttributeError):  # an invalid port, or brackets that do not match
        is_fine = False
    if not is_fine:
        raise ValueError(f"{like}. Received: {url!r}")
    if re.search(r"/v[0-9]+(/|$)", found[3]):
        raise ValueError(f"{like}, without the model's path, which is built from its name. Received: {url!r}")
    return found


class RestClient:
    """Queries a model server by REST, with the standard library only. Thread-safe.

    There is no `certify_custom` here, because TensorFlow Serving's REST has no optional inputs; use `GrpcClient`.

    Args:
        url: "http://host:port" of the server, or https, with the path of a proxy in front of it; port 8501 by
            TensorFlow Serving's default.
        model_name, timeout, version, label: see `GrpcClient`.

    Raises:
        ValueError: as for `GrpcClient`, and for an invalid URL.
    """

    def __init__(
        self,
        url: str,
        model_name: str,
        *,
        timeout: float = 60.0,
        version: int | None = None,
        label: str | None = None,
    ) -> None:
        _check_selection(model_name, timeout, version, label)
        scheme, host, port, path = _parts(url)
        self._url, self._timeout = url, timeout
        self._server = scheme, host, port
        model = urllib.parse.quote(model_name, safe="")
        selected = "" if version is None else f"/versions/{version}"
        selected += "" if label is None else f"/labels/{urllib.parse.quote(label, safe='')}"
        self._path = f"{path.rstrip('/')}/v1/models/{model}{selected}:predict"

    def certify(self, images: ArrayLike) -> answers.Certified:
        """See `GrpcClient.certify`."""
        images = answers.check_images(images)
        return answers.certified(self._ask(_CERTIFY, images, answers.CERTIFY_OUTPUTS), len(images))

    def certify_custom(self, images: ArrayLike, n: int | None = None, alpha: float | None = None) -> NoReturn:
        """Refuses.

        Raises:
            RefusedError: always; it says what to use instead.
        """
        raise RefusedError(
            "certify_custom has optional scalar inputs, which TensorFlow Serving's REST cannot take; use GrpcClient."
        )

    def predict(self, images: ArrayLike) -> answers.Predicted:
        """See `GrpcClient.predict`."""
        images = answers.check_images(images)
        return answers.predicted(self._ask(_PREDICT, images, answers.PREDICT_OUTPUTS), len(images))

    def _ask(self, signature, images, expected):
        # Every float32 is exactly a float64, and JSON has enough digits to restore a float64.
        request = json.dumps({"signature_name": signature, "inputs": {"images": images.tolist()}}).encode()
        body = _repeat_while_loading(lambda seconds: self._call(request, seconds), self._timeout)
        try:
            answer = json.loads(body, object_pairs_hook=_without_repetition)
            if not isinstance(answer, dict) or "outputs" not in answer:
                raise ValueError("there is no 'outputs' in it")
            # A single output comes without its name; every signature here has several.
            outputs = answer["outputs"] if isinstance(answer["outputs"], dict) else {"an output without a name": None}
            _check_names(outputs, expected)
            return {name: _json_array(outputs[name], dtype) for name, dtype in expected.items()}
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            said = _error_message(body) if body.strip() else "nothing"
            raise AnswerError(
                f"{self._url} returned no readable outputs: {_first_line(error)}. Received: {said}"
            ) from None

    def _call(self, request, seconds):
        deadline, response = time.monotonic() + seconds, None
        try:
            with connected(*self._server, deadline, _MAX_REPLY_BYTES) as connection:
                connection.request("POST", self._path, request, {"Content-Type": "application/json"})
                response = connection.getresponse()
                body = bytearray()
                # In parts: a read of the whole reply would set aside as much memory as the server says it takes.
                while part := response.read1(_PART_BYTES):
                    body += part
                if response.length:
                    raise http.client.IncompleteRead(bytes(body), response.length)
        except TimeoutError:
            raise DeadlineError(f"{self._url} did not answer within {self._timeout:g} s; {_DEADLINE_HINT}.") from None
        except TooLargeError:
            raise AnswerError(
                f"{self._url} answered with more than {_MAX_REPLY_BYTES:,} bytes; {_TOO_LARGE_HINT}."
            ) from None
        except ssl.SSLError as error:
            raise UnavailableError(f"{self._url} offers no trusted TLS: {_first_line(error)}") from None
        except OSError as error:
            said = _first_line(error.strerror or error)
            if response:
                raise AnswerError(f"{self._url} broke off in the middle of an answer: {said}") from None
            kind = UnavailableError if is_nobody(error) else _LoadingError
            raise kind(f"{self._url} is unavailable; {_NOBODY_HINT} {said}") from None
        # ValueError: where `http.client` expects a number and finds none.
        except (http.client.HTTPException, ValueError) as error:
            raise AnswerError(f"{self._url} did not send a complete HTTP response: {type(error).__name__}") from None
        if response.status == http.HTTPStatus.OK:
            return body
        said = _error_message(body)
        if response.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
            raise _LoadingError(f"{self._url} is unavailable; {_NOBODY_HINT} {said}")
        hint = f"; {_NAME_HINT}" if response.status == http.HTTPStatus.NOT_FOUND else ""
        raise RefusedError(f"{self._url} refused (HTTP {response.status}{hint}): {said}")


class _LoadingError(UnavailableError):
    """The server may be about to answer, and no answer was seen, so the call is repeated."""


def _repeat_while_loading(call, timeout):
    """The result of `call(seconds left)`, repeated with growing waits until there is one or time is up."""
    deadline, wait = time.monotonic() + timeout, _FIRST_WAIT_SECONDS
    while True:
        try:
            return call(max(deadline - time.monotonic(), 1e-3))
        except _LoadingError:
            # So that the clients of a server that comes back do not all call at once.
            pause = wait * random.uniform(0.5, 1)
            if time.monotonic() + pause >= deadline:
                raise
        time.sleep(pause)
        wait = min(2 * wait, _LONGEST_WAIT_SECONDS)


def _check_selection(model_name, timeout, version, label):
    if not _is_name(model_name):
        raise ValueError(f"model_name must be the name that the server has for the model. Received: {model_name!r}")
    is_number = isinstance(timeout, int | float | np.integer | np.floating) and not isinstance(timeout, bool)
    if not (is_number and 0 < timeout <= _LONGEST_TIMEOUT_SECONDS):
        raise ValueError(
            f"timeout must be a number of seconds above 0, at most {_LONGEST_TIMEOUT_SECONDS:,}. Received: {timeout!r}"
        )
    if label is not None and not _is_name(label):
        raise ValueError(f"label must be text. Received: {label!r}")
    if version is not None and label is not None:
        raise ValueError(f"Give a version or a label, not both. Received: version={version!r}, label={label!r}")
    if version is not None and not (_whole(version) and 0 <= version < 2**63):
        raise ValueError(f"version must be a whole number from 0. Received: {version!r}")


def _is_name(value):
    """Whether it is text, not empty, that can be sent: without half of a surrogate pair, as Python's text may have."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def _whole(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _fill(proto, value):
    """A NumPy array or scalar -> TensorProto."""
    from tensorflow.core.framework import types_pb2

    kinds = {np.float32: types_pb2.DT_FLOAT, np.float64: types_pb2.DT_DOUBLE, np.int64: types_pb2.DT_INT64}
    proto.dtype = kinds[value.dtype.type]
    for size in value.shape:
        proto.tensor_shape.dim.add(size=size)
    proto.tensor_content = value.tobytes()


def _check_spec(asked, said):
    """Raises AnswerError if a server says that it answers for another model than was asked for; it may say nothing."""
    pairs = {"model": (asked.name, said.name), "signature": (asked.signature_name, said.signature_name)}
    if asked.HasField("version") and said.HasField("version"):
        pairs["version"] = asked.version.value, said.version.value
    for what, (wanted, found) in pairs.items():
        if found not in ("", wanted):
            raise AnswerError(
                f"The server answered for another {what} than {wanted}; no part of this answer is a certificate. "
                f"Received: {_first_line(found)}"
            )


def _check_names(received, expected):
    """Raises AnswerError unless the names of an answer's outputs include all that are expected."""
    for name in expected:
        if name not in received:
            raise AnswerError(
                f"The server answered without {name}; does it serve a model exported by serving.export? "
                f"Received: {_first_line(', '.join(sorted(received)) or 'nothing')}"
            )


def _array(name, proto):
    """TensorProto -> NumPy array, if it has as many values as its shape says: none is made up."""
    from tensorflow.core.framework import types_pb2

    kinds = {
        types_pb2.DT_FLOAT: (np.float32, proto.float_val),
        types_pb2.DT_DOUBLE: (np.float64, proto.double_val),
        types_pb2.DT_INT64: (np.int64, proto.int64_val),
    }
    dtype, values = kinds.get(proto.dtype, (None, ()))
    if dtype is None:
        raise AnswerError(f"The server returned {name} as a tensor of type {proto.dtype}, which no output has.")
    if proto.tensor_shape.unknown_rank or len(proto.tensor_shape.dim) > _MAX_DIMENSIONS:
        raise AnswerError(f"The server returned {name} with a shape that no output has.")
    if proto.tensor_content and values:
        raise AnswerError(f"The server returned {name} twice, as bytes and as numbers.")
    shape = [dimension.size for dimension in proto.tensor_shape.dim]
    try:
        array = np.frombuffer(proto.tensor_content, dtype) if proto.tensor_content else np.array(values, dtype)
    except ValueError:
        raise AnswerError(f"The server returned {name} with an incomplete value.") from None
    if min(shape, default=0) < 0 or array.size != math.prod(shape):
        raise AnswerError(f"The server returned {name} with {array.size} values for the shape {shape}.")
    return array.reshape(shape)


def _without_repetition(pairs):
    """A JSON object in which no name occurs twice, because readers would differ in which value they take."""
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a name that occurs twice")
    return dict(pairs)


def _json_array(value, dtype):
    """Nested lists -> array. Raises ValueError unless every leaf is a number of the kind, on the same level.

    A float32 that the server printed is restored exactly, never above it: the server prints as many digits as
    distinguish it from its neighbours.
    """
    leaves = np.array(value, dtype=object)
    if leaves.ndim > _MAX_DIMENSIONS:
        raise ValueError("more dimensions than an output has")
    accepted = {int} if np.issubdtype(dtype, np.integer) else {int, float}
    if not {type(leaf) for leaf in leaves.flat} <= accepted:
        raise ValueError(f"expected an array of {np.dtype(dtype)}")
    with np.errstate(over="ignore"):
        return leaves.astype(dtype)


def _error_message(body):
    """The message in TensorFlow Serving's JSON for errors, or else the first line of the body."""
    try:
        return _first_line(json.loads(body)["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return _first_line(body.decode(errors="replace"))


def _first_line(said):
    """The first line of a message, without control characters, cut to a readable length."""
    lines = str(said or "").strip().splitlines() or ["it did not say why."]
    return "".join(letter for letter in lines[0][:_MAX_WORDS] if letter.isprintable())
