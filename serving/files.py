"""Files of a SavedModel: which ones are its content, reading them without being led elsewhere, and flushing to disk."""

import contextlib
import json
import os
import stat
from pathlib import Path

# Where TensorFlow's own files end: a model server ignores everything else in here.
EXTRA = "assets.extra"
# Requests that a model server runs as it loads a version.
WARMUP = f"{EXTRA}/tf_serving_warmup_requests"
# What desktops leave in folders that they show or unpack, besides names that begin with a dot.
_LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_MAX_BYTES = 2**20
# What TensorFlow's loaders of variables take for a pattern in a path.
_IN_PATTERNS = {*"*?[\\"}


def is_url(place):
    """Whether a place is a URL, not a path."""
    return "://" in str(place)


def check_local(path):
    """Raises ValueError if a path is a URL, which `Path` would turn into a folder here."""
    if is_url(path):
        raise ValueError(f"Expected a path on this machine, not a URL. Received: {path}")


def is_hidden(name):
    """Whether a file or folder of this name is not content: neither fingerprinted, nor copied, nor loaded."""
    return name.startswith(".") or name in _LITTER


def read_extra(saved_model, name):
    """The JSON value in `assets.extra/<name>` of a SavedModel's directory.

    Raises:
        OSError, ValueError: as `read_json`, or if assets.extra is a link that leads elsewhere.
    """
    extra = Path(saved_model) / EXTRA
    if extra.is_symlink():
        raise ValueError(f"{extra} is a symbolic link; put the directory itself there.")
    return read_json(extra / name)


def read_json(path):
    """The JSON value in a small plain file.

    Raises:
        OSError: if there is none, or it is a symbolic link.
        ValueError: in one line, if it is not a plain file, is larger than 1 MiB, or is not JSON.
    """
    with open_plain(path) as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{path} is larger than {_MAX_BYTES} bytes.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def content_files(directory, prefix="", above=()):
    """(name, path) of each file that is not hidden; `above` are the real paths of the folders that contain it.

    Raises:
        ValueError: if a link leads back to a folder that contains it.
    """
    if not os.path.isdir(directory):
        return
    real = os.path.realpath(directory)
    if real in above:
        raise ValueError(f"{directory} is a link to a folder that contains it; remove the link.")
    with os.scandir(directory) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from content_files(entry.path, f"{prefix}{entry.name}/", (*above, real))
            elif entry.is_file():
                yield prefix + entry.name, entry.path


@contextlib.contextmanager
def open_plain(path, follow=False):
    """Opens a plain file for reading bytes, but nothing that has taken its place in the meantime.

    Args:
        path: of the file.
        follow: whether it may be a symbolic link.

    Raises:
        OSError: if there is none, or it is a symbolic link that must not be followed.
        ValueError: if it is not a plain file.
    """
    with open(path, "rb", opener=_open_without_waiting if follow else _open_without_following) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is not a plain file.")
        yield file


@contextlib.contextmanager
def for_tensorflow(folder):
    """The path by which TensorFlow loads variables below a folder, in this context, whatever characters its own has.

    TensorFlow takes the folder `runs [old]` for a pattern, and finds nothing there.
    """
    if _IN_PATTERNS.isdisjoint(str(folder)):
        yield str(folder)
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path):
    """Adds to an OSError that names no file, such as that of a write to a full disk, what was being written."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _open_without_following(path, flags):
    return _open_without_waiting(path, flags | os.O_NOFOLLOW)


def _open_without_waiting(path, flags):
    # Opening a pipe would otherwise wait for its other end.
    return os.open(path, flags | os.O_NONBLOCK)


def flush(path):
    """Flushes a file or a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
