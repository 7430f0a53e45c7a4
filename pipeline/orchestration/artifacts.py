"""Artifacts: directories of finished files, known by a fingerprint of their contents."""

import shutil
from dataclasses import dataclass
from pathlib import Path

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
    shutil.rmtree(directory, ignore_errors=True)
    try:
        shutil.copytree(artifact.path, directory, ignore=lambda _, names: [*filter(is_hidden, names)])
    except OSError as error:
        reason = error.strerror or f"{len(error.args[0])} files could not be copied"
        raise InputError(
            f"Cannot copy {artifact.path} to {directory} ({reason}); make room there or mend it."
        ) from None
    if directory_fingerprint(directory) != artifact.fingerprint:
        shutil.rmtree(directory)
        raise InputError(f"{artifact.path} was changed while this command ran; run the same command again.")
    return directory
