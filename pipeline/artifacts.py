"""Artifacts: directories of finished files, known by a fingerprint of their contents; and how files get finished."""

import contextlib
import errno
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from serving.files import directory_fingerprint, flush, is_hidden


@dataclass(frozen=True)
class Artifact:
    """What one execution made and later ones read.

    Attributes:
        path: a directory.
        fingerprint: hexadecimal SHA-256 of its files' names and contents; hidden ones are left out.
    """

    path: Path
    fingerprint: str

    @classmethod
    def of(cls, path):
        """The artifact in the directory `path`, its fingerprint computed from the files as they are."""
        return cls(Path(path), directory_fingerprint(path))


def private_copy(artifact, directory):
    """Copies an artifact to a directory that nobody else writes to: what was fingerprinted is what is loaded there.

    Args:
        artifact: an `Artifact`.
        directory: `Path`, replaced if it is there.

    Raises:
        InputError: if the artifact is no longer what its fingerprint says, or cannot be copied.
    """
    shutil.rmtree(directory, ignore_errors=True)
    try:
        shutil.copytree(artifact.path, directory, ignore=lambda _, names: [*filter(is_hidden, names)])
    except OSError as error:
        reason = error.strerror or f"{len(error.args[0])} files could not be copied"
        raise InputError(
            f"Cannot copy {artifact.path} to {directory} ({reason}); make room there or mend it."
        ) from None
    if directory_fingerprint(directory) != artifact.fingerprint:
        raise InputError(f"{artifact.path} was changed while this command ran; run the same command again.")
    return directory


def short_digest(content):
    """63 bits of the SHA-256 of bytes, as a whole number."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8]) >> 1


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
