"""The numbered versions in a model server's base directory: listing them, and adding one by a single rename."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from serving.files import check_local, flush, is_hidden, naming, open_plain

# A model server reads only names that are numbers.
_UNFINISHED = ".publishing-"
_MAX_VERSION = 2**63 - 1
# Held for a rename, or while removing what dead publishers left.
_LOCK_SECONDS = 60


def versions(base):
    """The version directories under `base`, which need not exist: a list of `Path`, in ascending order of number.

    Raises:
        ValueError: for an entry that a model server would take for a version but that is not a directory named by its
            number: it would serve what a symbolic link points to, or one of `7` and `007`.
        OSError: if `base` cannot be read.
    """
    check_local(base)
    base, found = Path(base), []
    if not base.exists():
        return found
    with os.scandir(base) as entries:
        for entry in entries:
            # What absl::SimpleAtoi, by which TensorFlow Serving reads names, accepts as an int64.
            if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", entry.name, re.ASCII) or abs(int(entry.name)) > _MAX_VERSION:
                continue
            if entry.name != str(int(entry.name)) or int(entry.name) < 0:
                raise ValueError(f"A model server takes {entry.path!r} for version {int(entry.name)}; rename it.")
            if not entry.is_dir(follow_symlinks=False):
                raise ValueError(
                    f"{entry.path} has the name of a version but is a symbolic link or a file; move it out of the base."
                )
            found.append(Path(entry.path))
    return sorted(found, key=lambda path: int(path.name))


def add(saved_model, base, finish):
    """Copies a directory to `<base>/<highest version + 1>`.

    The copy, without hidden files, is made in `base` under a name that a model server ignores. It is made readable by
    everybody, flushed to disk, finished and then renamed: a server never sees a part of it. Publishers that run at the
    same time get different numbers; what dead publishers left behind is removed, but nothing of live ones.

    Args:
        saved_model: directory of plain files and directories.
        base: the model's base directory; created if it does not exist.
        finish: called with the `Path` of the copy before it is renamed; if it raises, nothing is published.

    Returns:
        `Path` of the new version.

    Raises:
        ValueError: if `saved_model` is not a directory, holds a link or anything else that is not a plain file, or
            contains `base`; or as `versions`.
        OSError: if something cannot be read or written, or another publisher does not finish.
    """
    check_local(base)
    given, saved_model, base = Path(base), Path(saved_model).resolve(), Path(base).resolve()
    if not saved_model.is_dir():
        raise ValueError(f"{saved_model} is not a directory; give the directory of a SavedModel.")
    if base.is_relative_to(saved_model):
        raise ValueError(f"The base {base} lies inside the SavedModel {saved_model}; give another base.")
    if not base.exists():
        base.mkdir(parents=True, exist_ok=True)
        base.chmod(0o755)
        flush(base.parent)
    versions(base)
    with _unfinished(base) as copy:
        with naming(base):
            _copy(saved_model, copy)
        finish(copy)
        with _locked(base):
            published = versions(base)
            number = int(published[-1].name) + 1 if published else 1
            if number > _MAX_VERSION:
                raise ValueError(f"{published[-1]} is the highest possible version; give another base.")
            os.rename(copy, base / str(number))
        flush(base)
    return given / str(number)


@contextlib.contextmanager
def _unfinished(base):
    """A new directory under `base`, removed at the end unless it was renamed; locked, to show that we are alive."""
    # Between creating it and locking it, nobody else must take it for a dead publisher's.
    with _locked(base):
        _remove_abandoned(base)
        directory = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=base))
        claim = _lock(directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(claim)


def _remove_abandoned(base):
    for directory in base.glob(f"{_UNFINISHED}*"):
        try:
            claim = _lock(directory)
        except OSError:  # It is alive, or not ours to judge.
            continue
        try:
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(claim)


@contextlib.contextmanager
def _locked(directory):
    """One process at a time; the lock ends with its process, however that ends.

    Raises:
        TimeoutError: if another process holds it for longer than publishing ever takes, for example a stopped one.
    """
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            descriptor = _lock(directory)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, "another publisher holds it; end that process and try again", str(directory)
                ) from None
        time.sleep(0.01)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(directory):
    """A descriptor that holds the directory's lock until it is closed. Raises BlockingIOError if another holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _copy(source, target):
    """Copies a directory's contents, except hidden files: files as 0644, directories as 0755, flushed to disk."""
    with os.scandir(source) as entries:
        for entry in entries:
            copy = target / entry.name
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                copy.mkdir()
                _copy(entry.path, copy)
            elif entry.is_file(follow_symlinks=False):
                _copy_file(entry.path, copy)
            else:
                raise ValueError(
                    f"{entry.path} is a symbolic link or not a plain file; give a SavedModel without them."
                )
    target.chmod(0o755)
    flush(target)


def _copy_file(source, target):
    # Not through a link or a pipe that has taken the file's place in the meantime.
    with open_plain(source) as reader, open(target, "xb") as writer:
        shutil.copyfileobj(reader, writer)
        os.fchmod(writer.fileno(), 0o644)
        writer.flush()
        os.fsync(writer.fileno())
