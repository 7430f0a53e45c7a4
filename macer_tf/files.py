"""Reading files from anywhere: once, and never more than a limit. Imports no TensorFlow."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

_BLOCK = 2**20
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")  # what PowerShell writes


def read(path: str | Path, most: int, *, pipes: bool = False) -> bytes:
    """The content of a file, in one read, so that the bytes that are digested can be the bytes that are used.

    Args:
        path: of the file.
        most: the most bytes that it may have.
        pipes: whether to read a pipe too, as a shell's `<(...)` gives one; a pipe that nobody writes to is empty.

    Raises:
        OSError: if it cannot be read.
        ValueError: in one line, if it is a pipe, a device or the like, which might never end, or has more bytes.
    """
    with open_plain(path, pipes=pipes) as file:
        content = bytearray()
        while len(content) <= most and (block := file.read(_BLOCK)):
            content += block
    if len(content) > most:
        raise ValueError(f"{path} is larger than {size_in_words(most)}, the most that is accepted.")
    return bytes(content)


def open_plain(path: str | Path, *, pipes: bool = False) -> BinaryIO:
    """Opens a file to read its bytes, without waiting for a writer; raises as `read` does."""
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115
    mode = os.fstat(file.fileno()).st_mode
    if not (stat.S_ISREG(mode) or (pipes and stat.S_ISFIFO(mode))):
        file.close()
        raise ValueError(f"{path} is a pipe or a device, not a plain file.")
    os.set_blocking(file.fileno(), True)
    return file


def text(content: bytes) -> str:
    """What people's editors and shells write, as text: UTF-8, also with a mark, or UTF-16 with one.

    Raises:
        UnicodeDecodeError: if it is neither.
    """
    return content.decode("utf-16" if content.startswith(_UTF_16_MARKS) else "utf-8-sig")


def size_in_words(size: float) -> str:
    """A number of bytes in words, such as 64 MiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:,.4g} TiB"


def _open_without_waiting(path, flags):
    # Otherwise, opening a pipe waits until somebody opens its other end.
    return os.open(path, flags | os.O_NONBLOCK)
