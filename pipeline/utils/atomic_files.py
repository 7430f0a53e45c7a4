"""How files and directories are written: whole or not at all."""

import contextlib
import errno
import os
from pathlib import Path

from pipeline.utils.errors import InputError
from serving.files import flush


def write_text(path, text):
    """Writes a file whole or not at all, as UTF-8: beside it, flushed to the disk, renamed."""
    write_bytes(path, text.encode())


def write_bytes(path, content):
    """Writes a file whole or not at all: beside it, flushed to the disk, renamed."""
    path = Path(path)
    beside = path.with_name(path.name + ".writing")
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


@contextlib.contextmanager
def writing(path, then):
    """Tells in one line of a write that fails, as on a full disk.

    Args:
        path: what is written.
        then: what the same command does when it is run again.

    Raises:
        InputError: where OSError is raised inside, or RuntimeError, which is what HDF5 makes of it.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        is_forbidden = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        raise InputError(
            f"Cannot write {path} ({reason}). Make {'it writable' if is_forbidden else 'room there'} and run the same "
            f"command again: {then}."
        ) from error


def finish_directory(unfinished, finished):
    """Flushes all files under `unfinished` to the disk, then renames it to `finished`, which must not exist."""
    for file in Path(unfinished).rglob("*"):
        flush(file)
    flush(unfinished)
    os.rename(unfinished, finished)
    flush(Path(finished).parent)
