"""Identifies contents: a digest identifies bytes, a fingerprint identifies values with their names.

A checksum is a file's record of its own content: `sealed` adds the fingerprint of the rest.
"""

import hashlib
import json

from serving.files import content_files, open_plain

_MAX_NAMED = 3
# Larger contents are told apart by their files' sizes and times, because reading them takes long.
SOON_DIGESTED_BYTES = 2**28


def digest(content):
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def short_digest(content):
    """63 bits of the SHA-256 of bytes, as a whole number."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8]) >> 1


def file_digest(path):
    """Hexadecimal SHA-256 of a file's contents.

    Raises:
        OSError, ValueError: if it cannot be read, or is a pipe or a device, which might never end.
    """
    with open_plain(path, follow=True) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(directory, without=()):
    """Name, relative to a directory, -> hexadecimal SHA-256 of each file under it that is not hidden.

    Links are followed, as they are when a file is loaded.

    Args:
        directory: a path; if it does not exist, there are no files.
        without: names of files to leave out.

    Raises:
        ValueError: if a link leads back to a folder that contains it.
        OSError: if something cannot be read.
    """
    return {name: file_digest(path) for name, path in content_files(directory) if name not in without}


def fingerprint(value):
    """Hexadecimal SHA-256 of a JSON value; equal values have equal fingerprints, whatever the order of their keys."""
    return digest(json.dumps(value, sort_keys=True).encode())


def directory_fingerprint(directory, without=()):
    """Hexadecimal SHA-256 of the names and contents of the files under a directory; see `file_digests`."""
    return fingerprint(file_digests(directory, without))


def weights_fingerprint(arrays):
    """Hexadecimal SHA-256 of weights, NumPy arrays: of their shapes, types and values, in order."""
    of_all = hashlib.sha256()
    for array in arrays:
        of_all.update(f"{array.shape} {array.dtype}".encode())
        of_all.update(array.tobytes())
    return of_all.hexdigest()


def differences(recorded, found):
    """Which files are new, missing or changed, in one line; empty if none are.

    Args:
        recorded, found: what `file_digests` returned before, and what it returns now.
    """
    said = {
        "is new": found.keys() - recorded.keys(),
        "is missing": recorded.keys() - found.keys(),
        "was changed": {name for name in recorded.keys() & found.keys() if recorded[name] != found[name]},
    }
    named = [f"{name!r} {what}" for what, names in said.items() for name in sorted(names)]
    more = [f"{len(named) - _MAX_NAMED} more"] if len(named) > _MAX_NAMED else []
    return ", ".join(named[:_MAX_NAMED] + more)


def sealed(value):
    """A JSON object with a checksum of the rest, which reveals damage and mix-ups; it is not a secret."""
    return {**value, "checksum": fingerprint(value)}


def unsealed(value):
    """A JSON value without the checksum that `sealed` added; None if it has none or was changed since."""
    if not isinstance(value, dict):
        return None
    content = {name: part for name, part in value.items() if name != "checksum"}
    return content if value.get("checksum") == fingerprint(content) else None
