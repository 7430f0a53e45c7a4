"""Publishes a SavedModel into a model server's base directory, as the next version, by one rename."""

import os
import shutil
from pathlib import Path


def publish(saved_model, base):
    """Copies a SavedModel to `<base>/<next version number>`.

    It is copied beside, under a name that a model server ignores, flushed to the disk and renamed, so that a server
    never sees half of it. An existing version is never overwritten.

    Args:
        saved_model: directory of a SavedModel.
        base: the model's base directory; made if it is not there.

    Returns:
        `Path` of the new version.

    Raises:
        OSError: if `base` cannot be written.
    """
    base = Path(base)
    base.mkdir(parents=True, exist_ok=True)
    beside = base / f".publishing-{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(saved_model, beside)
    for path in (*beside.rglob("*"), beside):
        path.chmod(0o755 if path.is_dir() else 0o644)
        flush(path)
    published = versions(base)
    target = base / str(int(published[-1].name) + 1 if published else 1)
    os.rename(beside, target)
    flush(base)
    return target


def versions(base):
    """The version directories under `base`, a `Path` that need not exist, by rising number."""
    return sorted((entry for entry in base.glob("*") if entry.name.isdecimal()), key=lambda entry: int(entry.name))


def flush(path):
    """Flushes a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
