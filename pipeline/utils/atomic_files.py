"""How files and directories are written: whole or not at all; and what to do about a failed write."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

from pipeline.utils.errors import InputError
from serving.files import flush
from serving.terminal import first_line

# By the system's own words, because TensorFlow, Beam and HDF5 raise errors of their own that contain these.
_REMEDIES = [
    (os.strerror(number), remedy)
    for remedy, numbers in {
        "Make room there": (errno.ENOSPC, errno.EDQUOT),
        "Raise the limit on the size of a file (ulimit -f)": (errno.EFBIG,),
        "Make it writable": (errno.EACCES, errno.EPERM, errno.EROFS),
        "Put back what is missing there": (errno.ENOENT,),
        "Move away what is in its place": (errno.EEXIST, errno.EISDIR, errno.ENOTDIR),
        "Correct that": errno.errorcode,
    }.items()
    for number in numbers
]
_REMEDIES.append(("is a named pipe", "Remove it"))  # in shutil's words
# How the system says that there is no room to write: on the disk, in a quota, or under a file size limit.
_NO_ROOM = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))
_MISPLACED = (FileExistsError, IsADirectoryError, NotADirectoryError)


def write_text(path, text):
    """Writes a file whole or not at all, as UTF-8: written beside it, flushed to disk, renamed."""
    write_bytes(path, text.encode())


def write_bytes(path, content):
    """Writes a file whole or not at all: written beside it, flushed to disk, renamed."""
    path = Path(path)
    beside = path.with_name(path.name + ".writing")
    with open(beside, "wb") as file, _removed_on_error(beside):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        os.replace(beside, path)


@contextlib.contextmanager
def _removed_on_error(path):
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def write_link(path, target):
    """Makes a link atomically, also in place of another; leaves a correct one as it is."""
    if path.is_symlink() and os.readlink(path) == target:
        return
    beside = path.with_name(f".{path.name}.writing")
    remove_path(beside)  # a kill may have left it
    beside.symlink_to(target)
    os.replace(beside, path)
    flush(path.parent)


def remedy(reason):
    """What to do, in the imperative, about a write that fails; `reason` is a text that contains the system's words."""
    # Failures in other words, such as NumPy's, are mostly for lack of room.
    return next((remedy for words, remedy in _REMEDIES if words in reason), "Make room there")


def cannot_copy(what, folder, error):
    """The InputError for what could not be copied to a folder; `error` is what shutil raised."""
    if isinstance(error, shutil.Error):
        (failures,) = error.args
        _, _, why = failures[0]
        if len(failures) > 1:
            why = f"{len(failures)} files could not be copied, the first: {why}"
    else:
        why = error.strerror or str(error)
    return InputError(f"Cannot copy {what} to {folder} ({why}). {remedy(why)} and run the same command again.")


@contextlib.contextmanager
def writing(path, then):
    """Reports a failed write in one line, for example on a full disk.

    Args:
        path: what is written.
        then: what the same command does when it is run again.

    Raises:
        InputError: if OSError is raised inside, or RuntimeError, into which HDF5 turns it.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        # If several things are written there, a file may be in the place of one of the folders.
        place = getattr(error, "filename", None) if isinstance(error, _MISPLACED) else None
        told = reason if place is None else f"{place}: {reason}"
        raise InputError(
            f"Cannot write {path} ({told}). {remedy(reason)} and run the same command again: {then}."
        ) from error


@contextlib.contextmanager
def working_in(folder, who, kept):
    """Reports in one line if work ends because a folder has no more room, or is gone.

    Args:
        folder: `Path`.
        who: who works there.
        kept: what was done and is not lost.

    Raises:
        InputError: in place of an error for that reason, of whatever type; other errors pass.
    """
    # TensorFlow and Beam raise errors of their own that contain the system's words.
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not folder.is_dir():
            raise InputError(
                f"{who} cannot write in {folder}, which is gone. Put it back and run the same command again: {kept} is "
                "kept."
            ) from error
        reason = next((words for words in _NO_ROOM if words in str(error)), None)
        if reason is None:
            raise
        raise InputError(
            f"{who} cannot write ({reason}) in {folder}. {remedy(reason)} and run the same command again: {kept} is "
            "kept."
        ) from error


def remove_path(path):
    """Removes a folder with its contents, a file, or a link (not its target); leaves what it cannot remove."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def finish_directory(unfinished, finished):
    """Flushes all files under `unfinished` to the disk, then renames it to `finished`, which must not exist."""
    for file in Path(unfinished).rglob("*"):
        flush(file)
    flush(unfinished)
    os.rename(unfinished, finished)
    flush(Path(finished).parent)
