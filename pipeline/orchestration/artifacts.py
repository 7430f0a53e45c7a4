"""Artifacts: directories of finished files, known by a fingerprint of their contents."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.utils import atomic_files
from pipeline.utils.errors import InputError
from serving.files import content_files, is_hidden
from serving.fingerprints import SOON_DIGESTED_BYTES, directory_fingerprint


@dataclass(frozen=True)
class Artifact:
    """What one execution made and later ones read.

    Attributes:
        path: a directory; None if there is nothing.
        fingerprint: hexadecimal SHA-256 of its files' names and contents; hidden files are left out.
        stamps: name, inode, size and times of each file, before it was read for the fingerprint.
    """

    path: Path | None
    fingerprint: str
    stamps: tuple = field(default=(), compare=False, repr=False)

    @classmethod
    def of(cls, path):
        """The artifact in the directory `path`, with its fingerprint computed from the present files."""
        stamps = _stamps(path)
        return cls(Path(path), directory_fingerprint(path), stamps)

    def is_unchanged(self):
        """Whether its files are what they were; above 256 MiB, by the stamps, because reading again takes long."""
        try:
            now = _stamps(self.path)
            if now == self.stamps and sum(size for _, _, size, *_ in now) > SOON_DIGESTED_BYTES:
                return True
            return directory_fingerprint(self.path) == self.fingerprint
        except (OSError, ValueError):
            return False


def _stamps(directory):
    found = ((name, os.stat(path)) for name, path in content_files(directory))
    return tuple(sorted((name, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for name, one in found))


def private_copy(artifact, directory):
    """Copies an artifact to a directory that nobody else writes to, so that what is loaded is what was fingerprinted.

    Args:
        artifact: an `Artifact`.
        directory: `Path`, replaced if it exists.

    Raises:
        InputError: if the artifact no longer matches its fingerprint, or cannot be copied.
    """
    atomic_files.remove_path(directory)
    try:
        shutil.copytree(artifact.path, directory, ignore=lambda _, names: [*filter(is_hidden, names)])
    except OSError as error:
        raise atomic_files.cannot_copy(artifact.path, directory, error) from None
    if directory_fingerprint(directory) != artifact.fingerprint:
        shutil.rmtree(directory)
        raise InputError(f"{artifact.path} was changed while this command ran; run the same command again.")
    return directory
