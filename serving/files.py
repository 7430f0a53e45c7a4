"""Files of a SavedModel: known by a fingerprint, read without being led elsewhere, flushed to the disk."""

import hashlib
import json
import os
import stat
from pathlib import Path

# Where TensorFlow's own files end: a model server ignores what else is in here.
EXTRA = "assets.extra"
_MAX_BYTES = 2**20


def file_digest(path):
    """Hexadecimal SHA-256 of a file's contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value):
    """Hexadecimal SHA-256 of a JSON value; equal values have equal fingerprints, whatever their keys' order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def directory_fingerprint(directory, without=()):
    """Hexadecimal SHA-256 of the names and contents of the files under a directory.

    Args:
        directory: a path.
        without: names of files that are left out, relative to it.
    """
    directory = Path(directory)
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return fingerprint({name: file_digest(path) for name, path in files.items() if name not in without})


def read_extra(saved_model, name):
    """The JSON value in `assets.extra/<name>` of a SavedModel's directory.

    Raises:
        OSError, ValueError: as `read_json`, or if assets.extra is a link to elsewhere.
    """
    extra = Path(saved_model) / EXTRA
    if extra.is_symlink():
        raise ValueError(f"{extra} is a symbolic link; put the directory itself there.")
    return read_json(extra / name)


def read_json(path):
    """The JSON value in a small plain file.

    Raises:
        OSError: if there is none, or it is a symbolic link.
        ValueError: in one line, if it is no plain file, larger than 1 MiB, or not JSON.
    """
    with open(path, "rb", opener=_open_without_following) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is no plain file.")
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{path} is larger than {_MAX_BYTES} bytes.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _open_without_following(path, flags):
    # A pipe would keep us waiting for its other end.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def flush(path):
    """Flushes a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
