"""An HTTP connection that ends in time: connecting, sending and reading share one deadline, and replies are limited."""

import contextlib
import http.client
import io
import socket
import ssl
import threading
import time

_PORTS = {"http": 80, "https": 443}
# EAI_AGAIN is not among them, because it may pass.
_NO_SUCH_HOST = (socket.EAI_NONAME, socket.EAI_NODATA)


class TooLargeError(Exception):
    """A reply has more bytes than allowed."""


@contextlib.contextmanager
def connected(scheme, host, port, deadline, max_bytes):
    """A connected `http.client.HTTPConnection`, for one request in a `with`.

    Every call of it raises TimeoutError once `time.monotonic()` has passed the deadline, however slowly the server
    sends, and `TooLargeError` once the server has sent more than max_bytes of any kind.

    Args:
        scheme: "http", or "https" with the server's certificate checked.
        host, port: of the server; None is the scheme's default port.
        deadline: by `time.monotonic()`.
        max_bytes: size limit of a whole reply, including its head.

    Raises:
        TimeoutError: if the deadline passes first.
        OSError: if there is no such host, or it does not accept the connection.
        ssl.SSLError: if it has no trusted TLS.
    """
    connection = http.client.HTTPConnection(host, port or _PORTS[scheme])
    sock = _open_socket(host, connection.port, deadline)
    try:
        if scheme == "https":
            sock.settimeout(_left(deadline))
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        connection.sock = _BoundedSocket(sock, deadline, max_bytes)
        yield connection
    finally:
        sock.close()


def reason_nobody_listens(host, port, deadline):
    """Why nobody listens at a port, in words, so that waiting is in vain; None if that is not certain.

    Args:
        host, port: a name or an IP address, and a number.
        deadline: by `time.monotonic()`.
    """
    try:
        _open_socket(host, port, deadline).close()
    except OSError as error:
        return error.strerror if is_nobody(error) else None
    return None


def is_nobody(error):
    """Whether an OSError proves that nobody listens there: the connection was refused, or there is no such host."""
    return isinstance(error, ConnectionRefusedError) or (
        isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_HOST
    )


def _open_socket(host, port, deadline):
    failure = OSError(f"{host} has no address")
    for *kind, _, address in _addresses(host, port, deadline):
        try:
            return _connected_socket(*kind, address, deadline)
        except OSError as error:
            # Of several addresses, some may not even exist on this machine, nor may their family.
            failure = failure if isinstance(failure, ConnectionRefusedError) else error
    raise failure


def _connected_socket(family, kind, protocol, address, deadline):
    sock = socket.socket(family, kind, protocol)
    try:
        sock.settimeout(_left(deadline))
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        sock.close()
        raise
    return sock


def _addresses(host, port, deadline):
    """The results of `socket.getaddrinfo`. It has no time-out, so a thread runs it and we wait until the deadline."""
    found = []

    def look_up():
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            no_name = socket.gaierror(socket.EAI_NONAME, f"{host!r} is not a host name")
            found.append(error if isinstance(error, OSError) else no_name)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if not found:
        raise TimeoutError(f"{host} was not found in time")
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]


def _left(deadline):
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


class _BoundedSocket:
    """What `http.client` needs of a socket."""

    def __init__(self, sock, deadline, max_bytes):
        self._sock, self._deadline, self._max_bytes = sock, deadline, max_bytes

    def sendall(self, data):
        # The time-out is for all of the data.
        self._sock.settimeout(_left(self._deadline))
        self._sock.sendall(data)

    def makefile(self, mode):
        return io.BufferedReader(_BoundedReader(self._sock, self._deadline, self._max_bytes))

    def close(self):
        """Does nothing: `http.client` calls it as soon as it has the head of a reply; the `with` closes the socket."""


class _BoundedReader(io.RawIOBase):
    def __init__(self, sock, deadline, max_bytes):
        self._sock, self._deadline, self._left = sock, deadline, max_bytes

    def readable(self):
        return True

    def readinto(self, buffer):
        self._sock.settimeout(_left(self._deadline))
        count = self._sock.recv_into(buffer)
        self._left -= count
        if self._left < 0:
            raise TooLargeError
        return count
