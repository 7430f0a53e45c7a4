"""A file system for tests, known to Beam by URLs shelf://name/...: write once, and no folders. It lies in $SHELF."""

import os
import re
import urllib.parse
from pathlib import Path

from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem


class Shelf(FileSystem):
    """Files in one flat folder, each named by its whole URL, as an object store has them."""

    @classmethod
    def scheme(cls):
        return "shelf"

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def mkdirs(self, path):
        raise BeamIOError("a shelf has no folders")

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        for file in sorted(_root().iterdir()):
            url = urllib.parse.unquote(file.name)
            if url.startswith(dir_or_prefix) and not url.endswith(".unfinished"):
                yield FileMetadata(url, file.stat().st_size)

    def create(self, path, mime_type="", compression_type="auto"):
        if self.exists(path):
            raise BeamIOError(f"{path} was written already")
        return _Upload(path)

    def open(self, path, mime_type="", compression_type="auto"):
        if not self.exists(path):
            raise BeamIOError(f"there is no {path}")
        return open(_file(path), "rb")

    def exists(self, path):
        return _file(path).exists()

    def delete(self, paths):
        for path in paths:
            if not self.exists(path):
                raise BeamIOError(f"there is no {path}")
            _file(path).unlink()

    def copy(self, source_file_names, destination_file_names):
        raise BeamIOError("nothing asks for this")

    def rename(self, source_file_names, destination_file_names):
        raise BeamIOError("a shelf cannot rename")

    def size(self, path):
        return _file(path).stat().st_size

    def last_updated(self, path):
        return _file(path).stat().st_mtime

    def checksum(self, path):
        return str(self.size(path))

    def metadata(self, path):
        return FileMetadata(path, self.size(path))

    @staticmethod
    def _url_dirname(url_or_path):
        return url_or_path.rsplit("/", 1)[0]


class _Upload:
    """A file that shows once it is closed, as on an object store."""

    def __init__(self, url):
        self._file, self._unfinished = _file(url), _file(f"{url}.{os.getpid()}.unfinished")
        self._opened = open(self._unfinished, "wb")  # noqa: SIM115 (closed below)

    def write(self, content):
        return self._opened.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._opened.close()
        self._unfinished.rename(self._file)


def _root():
    return Path(os.environ["SHELF"])


def _file(url):
    assert re.match(r"shelf://\w+/", url), url
    return _root() / urllib.parse.quote(url, safe="")
