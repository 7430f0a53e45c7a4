"""Artifacts: directories of finished files, known by a fingerprint of their contents."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.utils import atomic_files
from pipeline.utils.errors import InputError
from serving.files import is_hidden
from serving.fingerprints import directory_fingerprint


@dataclass(frozen=True)
class Artifact:
    """What one execution made and later ones read.

    Attributes:
        path: a directory; None of what there is not.
        fingerprint: hexadecimal SHA-256 of its files' names and contents; hidden ones are left out.
    """

    path: Path | None
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
    atomic_files.remove_path(directory)
    try:
        shutil.copytree(artifact.path, directory, ignore=lambda _, names: [*filter(is_hidden, names)])
    except OSError as error:
        reason = error.strerror or _first_of(error.args[0])
        raise InputError(
            f"Cannot copy {artifact.path} to {directory} ({reason}). {atomic_files.remedy(reason)} and run the same "
            "command again."
        ) from None
    if directory_fingerprint(directory) != artifact.fingerprint:
        shutil.rmtree(directory)
        raise InputError(f"{artifact.path} was changed while this command ran; run the same command again.")
    return directory


def _first_of(failures):
    """Why files could not be copied, in words: `failures` are what `shutil.Error` has."""
    _, _, why = failures[0]
    return why if len(failures) == 1 else f"{len(failures)} files could not be copied, the first: {why}"
