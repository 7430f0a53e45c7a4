"""Places: paths and URLs, read and written by Beam's file systems; and local copies of URLs, by fingerprint."""

import contextlib
import os
import shutil
import tempfile
import uuid
from pathlib import Path

from pipeline.utils.atomic_files import remove_path
from pipeline.utils.errors import InputError, reason
from serving.files import is_url
from serving.fingerprints import directory_fingerprint, file_digest

_REASON = 200  # characters of an error of Beam's that we show
_UNKNOWN = "Unable to get filesystem from specified path"  # in Beam's words
_MOST_BYTES = 100  # of someone's name in a name of ours, for which file systems have 255


def absolute(place):
    """The place's name for any process on any machine that shares it: a URL, or an absolute path."""
    return str(place) if is_url(place) else os.path.abspath(place)


def join(place, *names):
    """A place below another one."""
    return "/".join([str(place).rstrip("/"), *names])


def short(name):
    """What someone calls something, as a part of a file's name: cut if it is long."""
    return name.encode()[:_MOST_BYTES].decode(errors="ignore")


def _file_systems():
    # Imported only now, so that work on this machine alone does not wait for Beam.
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    # Otherwise, Beam gives them options once a pipeline is made; those of S3, Azure and HDFS do not work without.
    if FileSystems._pipeline_options is None:
        FileSystems.set_options(PipelineOptions([]))
    return FileSystems


def use(options):
    """Gives Beam's `PipelineOptions` to its file systems, such as where HDFS is, or the keys of S3."""
    _file_systems().set_options(options)


@contextlib.contextmanager
def _used():
    """Beam's file systems; whatever one of them raises, as for a package that it lacks, becomes an OSError."""
    try:
        yield _file_systems()
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {reason(error)}") from error


def check(place):
    """Raises InputError if no file system of Beam's can be used for the place, or would take its name for a pattern."""
    scheme, _, path = str(place).partition("://")
    if is_url(place) and any(character in str(place) for character in "*?["):
        raise InputError(f"Give a URL without *, ? or [, which are wildcards. Received: {place}")
    if is_url(place) and not (scheme and path.strip("/")):
        raise InputError(f"Give a URL of a file or a folder, such as s3://bucket/folder. Received: {place}")
    try:
        _file_systems().get_filesystem(str(place))
    except (OSError, ValueError) as error:
        if _UNKNOWN not in str(error):
            raise InputError(f"Beam cannot use {place} ({reason(error)[:_REASON]}).") from None
        raise InputError(
            f"Beam has no file system for {scheme}:// here: gs needs apache-beam[gcp], s3 apache-beam[aws], azfs "
            f"apache-beam[azure] and hdfs apache-beam[hadoop], in the version that is installed. Received: {place}"
        ) from None


def read(place):
    """The bytes of the file at a place. Raises OSError."""
    with _used() as systems, systems.open(str(place), compression_type="uncompressed") as file:
        return file.read()


def write(place, content):
    """Writes a new file of these bytes, with the folders above it. Raises OSError."""
    if not is_url(place):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
    with _used() as systems, systems.create(str(place), compression_type="uncompressed") as file:
        file.write(content)


def files(place, is_deep=False):
    """Place -> size in bytes of each file in a folder, or also below it; empty if it does not exist. Raises OSError."""
    if not is_url(place):
        return _local_files(place, is_deep)
    with _used() as systems:
        (found,) = systems.match([join(place, "**" if is_deep else "*")])
    return {one.path: one.size_in_bytes for one in found.metadata_list}


def _local_files(folder, is_deep):
    # Not with a pattern, because brackets in a folder's name would have a meaning there.
    sizes = {}
    for above, folders, names in os.walk(folder):
        if not is_deep:
            folders.clear()
        for path in (os.path.join(above, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                sizes[path] = os.stat(path).st_size
    return sizes


def exists(place):
    """Whether there is a file at a place. Raises OSError."""
    with _used() as systems:
        return systems.exists(str(place))


def remove(places):
    """Removes files; it is not an error if they are already gone."""
    for place in places:
        try:
            with _used() as systems:
                systems.delete([str(place)])
        except OSError:
            if exists(place):
                raise


def fingerprint_of(path):
    """Hexadecimal SHA-256 of a file, or of the names and contents in a folder."""
    return directory_fingerprint(path) if Path(path).is_dir() else file_digest(path)


def cannot_write(place, error):
    """The InputError for an OSError of `write`."""
    return InputError(f"Cannot write to {place} ({reason(error)[:_REASON]}).")


def upload(path, place):
    """Copies a file or folder to a place that has nothing else below it. Raises OSError."""
    path = Path(path)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            write(join(place, name), file.read_bytes())


def download(url, folder):
    """Copies the file at a URL, or all files below it, into a folder. Returns the path of the copy.

    Raises:
        InputError: if there is neither, or it cannot be read.
    """
    check(url)
    url, copy = url.rstrip("/"), Path(folder) / url.rstrip("/").rsplit("/", 1)[1]
    try:
        names = {one: copy / one.removeprefix(url).lstrip("/") for one in files(url, is_deep=True)}
        names = names or {one: copy for one in files(url.rsplit("/", 1)[0]) if one == url}
        for one, path in names.items():
            # In an object store, '..' is a name like any other.
            if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
                raise InputError(f"{one} has '..' in its name, which here leads to another folder; rename it.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read(one))
    except OSError as error:
        raise InputError(f"Cannot read {url} ({reason(error)[:_REASON]}).") from None
    if not names:
        raise InputError(f"There is nothing at {url}.")
    return copy


def fetched(url):
    """The fingerprint of the file or folder at a URL; `local` then finds it without reading it again.

    Raises:
        InputError: as in `download`.
    """
    unfinished = _cache() / uuid.uuid4().hex
    try:
        copy = download(url, unfinished)
        fingerprint = fingerprint_of(copy)
        _keep(copy, fingerprint)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return fingerprint


def local(place, fingerprint, is_checked=True):
    """A path on this machine to the file or folder of this fingerprint at a place.

    A path stays as it is; what is at a URL is copied once, into a folder of temporary files that other processes find.

    Args:
        place: path or URL.
        fingerprint: as `fingerprint_of`.
        is_checked: whether to compare a path, or a copy that already existed, which is replaced if it is damaged; a new
            copy is always compared.

    Raises:
        InputError: if there is nothing, or something with another fingerprint.
    """
    try:
        if is_url(place):
            path = _copied(place, fingerprint, is_checked)
        else:
            path = Path(place)
            if is_checked:
                _check_unchanged(place, path, fingerprint)
        path.stat()
    except OSError as error:
        raise InputError(f"{place} cannot be read on {os.uname().nodename} ({error.strerror}).") from None
    return path


def _check_unchanged(place, path, fingerprint):
    if fingerprint_of(path) != fingerprint:
        raise InputError(f"{place} is not what it was when the certification began; run the same command again.")


def _cache():
    folder = Path(tempfile.gettempdir()) / f"macer_tf-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise InputError(
            f"{folder}, where copies of URLs are kept, belongs to another user, who could change them; remove it, or "
            "set TMPDIR to a folder of your own."
        )
    return folder


def _copied(url, fingerprint, is_checked):
    copy = _kept(fingerprint, url.rstrip("/").rsplit("/", 1)[1])
    if not copy.exists() or (is_checked and fingerprint_of(copy) != fingerprint):
        unfinished = _cache() / uuid.uuid4().hex
        try:
            new = download(url, unfinished)
            _check_unchanged(url, new, fingerprint)
            _keep(new, fingerprint)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return copy


def _kept(fingerprint, name):
    return _cache() / fingerprint / name


def _keep(copy, fingerprint):
    """Moves a copy to where other processes find it, unless it is already there as a whole."""
    kept = _kept(fingerprint, copy.name)
    kept.parent.mkdir(exist_ok=True)
    # What cleans up temporary files may have removed some of a folder's.
    if kept.exists() and fingerprint_of(kept) != fingerprint:
        remove_path(kept)
    with contextlib.suppress(OSError):  # a folder that is whole, or that another process has just put there
        copy.rename(kept)
