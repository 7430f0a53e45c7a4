"""A server that drips, lies and floods: every call ends in time, in one line, and none brings a certificate."""

import contextlib
import gzip
import json
import socket
import struct
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest

from serving.answers import AnswerError, ServingError
from serving.client import GrpcClient, RestClient
from tests.serving import raw_http

IMAGES = np.full((1, 2, 2, 1), 0.5, np.float32)
TIMEOUT = 0.4
OUTPUTS = {
    "predicted_class": [1], "radius": [0.125], "p_lower": [0.75], "votes": [[10, 90]], "seed": [[1, 2]],
}  # fmt: skip
WHOLE = json.dumps({"outputs": OUTPUTS}).encode()
HEAD = b"HTTP/1.1 200 OK\r\n"


class Server:
    """Answers each connection by `reply(send, over)`; counts connections and the bytes that it got rid of."""

    def __init__(self, reply):
        self.connections = self.sent = 0
        self._reply, self._over = reply, threading.Event()

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        self._thread.join(10)
        self._listener.close()

    def _serve(self):
        while not self._over.is_set():
            self.connection = connection = self._listener.accept()[0]
            self.connections += 1

            def send(data, connection=connection):
                connection.sendall(data)
                self.sent += len(data)

            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                raw_http.read_request(connection)
                self._reply(send, self._over)

    def client(self, **options):
        return RestClient(f"http://127.0.0.1:{self.port}", "classifier", **{"timeout": TIMEOUT, **options})


def dripping(head, drop, pause=0.05):
    """Sends `head`, and then `drop` for ever with a pause before each."""

    def reply(send, over):
        send(head)
        while not over.wait(pause):
            send(drop)

    return reply


def saying(*parts):
    """Sends parts one after the other, and closes."""

    def reply(send, over):
        for part in parts:
            send(part)

    return reply


def of_length(length, body):
    return HEAD + b"Content-Length: " + str(length).encode() + b"\r\n\r\n" + body


def chunked(*chunks):
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)


DRIPS = {
    "nothing": dripping(b"", b""),
    "status line": dripping(b"HTTP/1.1 ", b"2"),
    "header": dripping(HEAD + b"X: ", b"x"),
    "headers": dripping(HEAD, b"X: x\r\n"),
    "100 Continue": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body of a length": dripping(of_length(10**6, b""), b" "),
    "body without a length": dripping(HEAD + b"\r\n", b" "),
    "chunks": dripping(chunked(), b"1\r\n \r\n"),
    "size of a chunk": dripping(chunked(), b"0"),
    "option of a chunk": dripping(chunked(b"1;"), b"x"),
    "trailers": dripping(chunked(b"1\r\n \r\n0\r\n"), b"X: x\r\n"),
    "trailer": dripping(chunked(b"1\r\n \r\n0\r\nX: "), b"x"),
}


@pytest.mark.parametrize("name", DRIPS)
def test_what_drips_does_not_outlast_the_deadline(name):
    with Server(DRIPS[name]) as server:
        started = time.monotonic()
        with pytest.raises(ServingError, match=r"did not answer within 0\.4 s") as error:
            server.client().certify(IMAGES)
        assert time.monotonic() - started < TIMEOUT + 1
        assert server.connections == 1
    assert "\n" not in str(error.value)


def test_who_does_not_read_does_not_keep_us_beyond_the_deadline():
    """10 MB of numbers go into no buffer of a socket; to write them takes some seconds of a busy machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = RestClient(f"http://127.0.0.1:{listener.getsockname()[1]}", "classifier", timeout=1)
        images = np.full((1, 700, 1, 700), 0.1, np.float32)  # few lists, which Python's collector would look through
        started = time.monotonic()
        with pytest.raises(ServingError, match="did not answer within 1 s"):
            client.certify(images)
        assert time.monotonic() - started < 20


FLOODS = {
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000, "more than 33,554,432 bytes"),
    "body without a length": (HEAD + b"\r\n", b" " * 2**20, "more than 33,554,432 bytes"),
    "body of a length": (of_length(2**31, b""), b" " * 2**20, "more than 33,554,432 bytes"),
    "chunks": (chunked(), (b"10000\r\n" + b" " * 2**16 + b"\r\n") * 16, "more than 33,554,432 bytes"),
    "headers": (HEAD, b"X: x\r\n" * 1000, "did not send a complete HTTP response"),
    "header": (HEAD + b"X: ", b"x" * 2**20, "did not send a complete HTTP response"),
    "error": (b"HTTP/1.1 500 No\r\n\r\n", b"x" * 2**20, "more than 33,554,432 bytes"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_cut_off(name):
    head, part, message = FLOODS[name]
    with Server(dripping(head, part, pause=0)) as server:
        with pytest.raises(AnswerError, match=message) as error:
            server.client(timeout=30).certify(IMAGES)
        assert "\n" not in str(error.value)
    assert server.sent < 2**26


LIES = {
    "a length too long": of_length(len(WHOLE) + 1, WHOLE),
    "a length too short": of_length(len(WHOLE) - 1, WHOLE),
    "a length beyond memory": of_length(2**62, WHOLE),
    "a length beyond numbers": of_length(10**40, WHOLE),
    "an empty body": of_length(0, b""),
    "a chunk too long": chunked(b"fff\r\n", WHOLE),
    "a chunk beyond memory": chunked(b"3fffffffffffffff\r\n", WHOLE),
    "a negative chunk": chunked(b"-5\r\n", WHOLE, b"\r\n0\r\n\r\n"),
    "a chunk of no size": chunked(b"size\r\n", WHOLE),
    "no last chunk": chunked(f"{len(WHOLE):x}\r\n".encode(), WHOLE),
    "no HTTP": WHOLE,
    "HTTP of another time": b"HTTP/9.9 200 OK\r\n\r\n" + WHOLE,
    "a status that is none": b"HTTP/1.1 2OO OK\r\n\r\n" + WHOLE,
    "no content": b"HTTP/1.1 204 OK\r\n\r\n" + WHOLE,
    "partial content": b"HTTP/1.1 206 OK\r\n\r\n" + WHOLE,
    "compressed": HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(WHOLE),
    "a compressed bomb": HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b" " * 10**7),
    "an error of many lines": b"HTTP/1.1 500 No\r\n\r\n" + b"a\x1b[2J\nb\n" * 1000,
    "an error of JSON": b'HTTP/1.1 500 No\r\n\r\n{"error": ' + b"[" * 10_000,
    "JSON that goes deep": HEAD + b"\r\n" + b'{"outputs": {"votes": ' + b"[" * 10**6,
    "JSON that goes wide": HEAD + b"\r\n" + WHOLE.replace(b"[[10, 90]]", b"[" + b"[]," * 10**5 + b"[]]"),
    "text in another encoding": HEAD + b"\r\n" + WHOLE.decode().encode("utf-16")[:-1],
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_no_certificate(name):
    with Server(saying(LIES[name])) as server:
        with pytest.raises(ServingError) as error:
            server.client(timeout=10).certify(IMAGES)
        text = str(error.value)
        assert "\n" not in text
        assert "\x1b" not in text
        assert 20 < len(text) < 700
        assert server.connections == 1, "an answer was seen: asking again would choose among answers"


def test_an_answer_that_is_cut_off_by_a_reset_is_not_asked_for_again():
    def reply(send, over):
        send(of_length(len(WHOLE), WHOLE[:-1]))
        over.wait(0.2)
        # With no time to linger, closing resets the connection.
        server.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with Server(reply) as server:
        with pytest.raises(AnswerError, match="broke off in the middle of an answer"):
            server.client(timeout=10).certify(IMAGES)
        assert server.connections == 1


def test_the_same_server_is_believed_when_it_says_the_truth():
    whole = of_length(len(WHOLE), WHOLE)
    in_a_chunk = chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(WHOLE), WHOLE))
    for reply in (whole, HEAD + b"\r\n" + WHOLE, in_a_chunk, b"HTTP/1.1 100 Continue\r\n\r\n" + whole):
        with Server(saying(reply)) as server:
            assert server.client(timeout=10).certify(IMAGES).predictions.tolist() == [1]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirection_is_followed(status):
    with Server(saying(of_length(len(WHOLE), WHOLE))) as other:
        there = f"HTTP/1.1 {status} Go\r\nLocation: http://127.0.0.1:{other.port}/\r\n\r\n".encode()
        with Server(saying(there)) as server, pytest.raises(ServingError, match=f"refused .HTTP {status}"):
            server.client(timeout=10).certify(IMAGES)
        assert other.connections == 0


@contextlib.contextmanager
def grpc_server(reply, **options):
    """A gRPC server of ours whose answers are the bytes that `reply()` returns -> its address."""
    pool = futures.ThreadPoolExecutor(2)
    server = grpc.server(pool, **options)
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: reply(), None, lambda body: body)
    service = grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", {"Predict": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
        pool.shutdown()


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_large_message_is_refused_compressed_or_not(compression):
    """256 MB, which gzip makes 256 kB."""
    body = bytes(2**28)
    options = [("grpc.max_send_message_length", -1)]
    with (
        grpc_server(lambda: body, compression=compression, options=options) as address,
        GrpcClient(address, "classifier", timeout=30) as client,
        pytest.raises(ServingError) as error,
    ):
        client.certify(IMAGES)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_what_speaks_no_grpc_is_not_waited_for():
    with Server(dripping(b"HTTP/1.1 200 OK\r\n", b"x")) as server:
        started = time.monotonic()
        client = GrpcClient(f"127.0.0.1:{server.port}", "classifier", timeout=TIMEOUT)
        with client, pytest.raises(ServingError) as error:
            client.certify(IMAGES)
        assert time.monotonic() - started < TIMEOUT + 2
    assert "\n" not in str(error.value)
