"""Files of a SavedModel: known by a fingerprint, read without being led elsewhere, flushed to the disk."""

import contextlib
import hashlib
import json
import os
import stat
from pathlib import Path

# Where TensorFlow's own files end: a model server ignores what else is in here.
EXTRA = "assets.extra"
# What desktops leave behind wherever they show or unpack a folder, beside names that begin with a dot.
_LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_MAX_BYTES = 2**20
_MAX_NAMED = 3


def file_digest(path):
    """Hexadecimal SHA-256 of a file's contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value):
    """Hexadecimal SHA-256 of a JSON value; equal values have equal fingerprints, whatever their keys' order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sealed(value):
    """A JSON object with a checksum of the rest, by which damage and mix-ups are noticed; it is no secret."""
    return {**value, "checksum": fingerprint(value)}


def unsealed(value):
    """A JSON value without the checksum that `sealed` gave it; None if it has none or was changed since."""
    if not isinstance(value, dict):
        return None
    content = {name: part for name, part in value.items() if name != "checksum"}
    return content if value.get("checksum") == fingerprint(content) else None


def is_hidden(name):
    """Whether a file or folder of this name is nobody's content: neither fingerprinted, nor copied, nor loaded."""
    return name.startswith(".") or name in _LITTER


def file_digests(directory, without=()):
    """Name, relative to a directory, -> hexadecimal SHA-256 of each file under it that is not hidden.

    Links are followed, as by whoever loads a file.

    Args:
        directory: a path; where there is nothing, there are no files.
        without: names of files that are left out.

    Raises:
        ValueError: if a link leads back to a folder that it lies in.
        OSError: if something cannot be read.
    """
    return {name: file_digest(path) for name, path in _files(directory, "", ()) if name not in without}


def directory_fingerprint(directory, without=()):
    """Hexadecimal SHA-256 of the names and contents of the files under a directory; see `file_digests`."""
    return fingerprint(file_digests(directory, without))


def differences(recorded, found):
    """In one line, which files are new, missing or changed; empty if none is.

    Args:
        recorded, found: what `file_digests` returned before, and returns now.
    """
    said = {
        "is new": found.keys() - recorded.keys(),
        "is missing": recorded.keys() - found.keys(),
        "was changed": {name for name in recorded.keys() & found.keys() if recorded[name] != found[name]},
    }
    named = [f"{name!r} {what}" for what, names in said.items() for name in sorted(names)]
    more = [f"{len(named) - _MAX_NAMED} more"] if len(named) > _MAX_NAMED else []
    return ", ".join(named[:_MAX_NAMED] + more)


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
    with open_plain(path) as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{path} is larger than {_MAX_BYTES} bytes.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _files(directory, prefix, above):
    """(name, path) of each file that is not hidden; `above` are the real paths of the folders that it lies in."""
    if not os.path.isdir(directory):
        return
    real = os.path.realpath(directory)
    if real in above:
        raise ValueError(f"{directory} is a link to a folder that it lies in; remove it.")
    with os.scandir(directory) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _files(entry.path, f"{prefix}{entry.name}/", (*above, real))
            elif entry.is_file():
                yield prefix + entry.name, entry.path


@contextlib.contextmanager
def open_plain(path):
    """Opens a plain file for reading bytes, and not what took its place meanwhile.

    Raises:
        OSError: if there is none, or it is a symbolic link.
        ValueError: if it is no plain file.
    """
    with open(path, "rb", opener=_open_without_following) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is no plain file.")
        yield file


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
