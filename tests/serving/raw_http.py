"""Requests read from a socket, for servers whose answers a test writes by hand."""

import re


def read_request(connection):
    """Reads a whole request, or closing the connection would take back what was answered."""
    received = b""
    while b"\r\n\r\n" not in received or len(received.split(b"\r\n\r\n", 1)[1]) < _length(received):
        part = connection.recv(65536)
        if not part:
            return
        received += part


def _length(received):
    found = re.search(rb"Content-Length: (\d+)", received)
    return int(found[1]) if found else 0
