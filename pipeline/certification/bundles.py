"""Bundle files: how workers of an engine hand in votes, and how they learn that nobody wants them any more.

On an object store, nothing can be appended or renamed, and in a folder, a file is visible before it is complete. So a
worker writes each file once, under a name of its own that ends in the checksum of the content. If an engine repeats a
bundle, addresses and votes are the same, because noise is addressed, and each sample still counts once.
"""

import contextlib
import os
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from pipeline.certification import ledger
from pipeline.utils import places, sealed
from pipeline.utils.errors import InputError
from serving.fingerprints import digest

SUFFIX = ".votes"
_WANTED, _REFUSED = ".wanted", ".refused"
_SECONDS_BETWEEN_FILES = 5.0
_SECONDS_BETWEEN_LOOKS = 2.0
_READERS = 8


class Mark:
    """A file beside the bundle files that exists as long as the votes of a job are wanted; plain values.

    Not every engine ends its workers when a job is cancelled, so workers look for the mark and stop drawing without it.
    Nor does every engine report at once what stops a worker: an engine that restarts jobs tries again first. So a
    worker reports it beside the mark.

    Attributes:
        place: where the bundle files are.
    """

    def __init__(self, place):
        self.place, self._path, self._looked_at = place, places.join(place, f"{uuid.uuid4().hex}{_WANTED}"), None

    def set(self):
        """Sets it, replacing any that killed runs left. Raises InputError if nothing can be written there."""
        try:
            places.remove(path for path in places.files(self.place) if path.endswith((_WANTED, _REFUSED)))
            places.write(self._path, b"The workers of a job look for this file and stop drawing once it is gone.\n")
        except OSError as error:
            raise places.cannot_write(self.place, error) from None

    def remove(self):
        """Removes it."""
        places.remove([self._path])

    def refuse(self, why):
        """Records, for a worker, in one line why it cannot draw at all."""
        places.write(f"{self._path}-{uuid.uuid4().hex}{_REFUSED}", why.encode())

    def refusal(self):
        """Why a worker cannot draw; None if none has reported that, or the place cannot be read just now."""
        name = self._path.rsplit("/", 1)[-1]
        with contextlib.suppress(OSError):
            for path in places.files(self.place):
                if path.rsplit("/", 1)[-1].startswith(name) and path.endswith(_REFUSED):
                    return _content(path).decode() or None
        return None

    def check(self):
        """Raises InputError, for a worker that starts, if it does not see the mark."""
        if not self.is_set():
            raise InputError(
                f"A worker on {os.uname().nodename} does not see {self._path}: votes must be handed in at a URL, or in "
                "a folder that all machines share."
            )

    def is_set(self):
        """Whether it existed a moment ago."""
        now = time.monotonic()
        if self._looked_at is None or now - self._looked_at[0] > _SECONDS_BETWEEN_LOOKS:
            self._looked_at = now, places.exists(self._path)
        return self._looked_at[1]

    def __getstate__(self):
        return self.__dict__ | {"_looked_at": None}


class BundleWriter:
    """Hands in votes at `place`. The files' contents are described as ledgers are: see `ledger.LedgerWriter`."""

    def __init__(self, place, kind, first_looks):
        self._place, self._key = place, ledger.key(kind)
        self._about = {**kind, "first_looks": first_looks}
        self._lines, self._handed_in_at = [], None

    def record(self, pieces, failures):
        """Takes pieces, and failures: example id -> why it cannot be certified. Hands them in every few seconds."""
        self._lines += ledger.encoded(self._key, pieces, failures)
        self._handed_in_at = self._handed_in_at or time.monotonic()
        if time.monotonic() - self._handed_in_at > _SECONDS_BETWEEN_FILES:
            self.hand_in()

    def hand_in(self):
        """Writes what was taken but is not written yet."""
        if self._lines:
            about = self._about | {"worker": f"{os.uname().nodename} {os.getpid()}"}
            content = "".join([sealed.dumps(about), "\n", *self._lines]).encode()
            name = f"{self._key:08x}-{uuid.uuid4().hex}-{digest(content)[:16]}{SUFFIX}"
            places.write(places.join(self._place, name), content)
            self._lines = []
        self._handed_in_at = time.monotonic()


class BundleReader:
    """Follows the bundle files at `place`; `kind` is their writers' kind, `shape` that of a piece's votes.

    Attributes:
        read: the places of the files that have been read.
        samples: Counter of samples by worker.
    """

    def __init__(self, place, kind, shape):
        self._place, self._kind, self._key, self._shape = place, kind, ledger.key(kind), shape
        self.read, self._not_whole, self.samples = [], {}, Counter()

    def poll(self):
        """The pieces, and the failures (example id -> reason), that were handed in since the last call."""
        seen = set(self.read)
        new = [
            path
            for path, size in sorted(places.files(self._place).items())
            if path.endswith(SUFFIX) and path.rsplit("/", 1)[-1].startswith(f"{self._key:08x}-")
            if path not in seen and self._not_whole.get(path) != size
        ]
        pieces, failures = [], {}
        with ThreadPoolExecutor(_READERS) as readers:
            for path, content in zip(new, readers.map(_content, new), strict=True):
                about, lines = _parts(path, content)
                if about is None or not ledger.is_of(self._kind, about):
                    self._not_whole[path] = len(content)
                    continue
                self.read.append(path)
                of_file, failed = ledger.decoded(self._key, lines, self._shape)
                worker = ledger.ledger_about(about).get("worker")
                self.samples[worker] += sum(piece.chunk.count for piece in of_file)
                pieces += of_file
                failures |= failed
        return pieces, failures


def abouts(place):
    """What bundle files of any kind below a place say about their votes; None for one that cannot be read."""
    for path in sorted(path for path in places.files(place, is_deep=True) if path.endswith(SUFFIX)):
        about, _ = _parts(path, _content(path))
        yield None if about is None else ledger.ledger_about(about)


def about_of(path):
    """What a bundle file says about its votes. Raises InputError if it is damaged or incomplete."""
    about, _ = _parts(path, _content(path))
    if about is None:
        raise ledger.unreadable_votes(path, "they do not match the checksum in its name")
    return ledger.ledger_about(about)


def _content(path):
    try:
        return places.read(path)
    except OSError:
        if places.exists(path):
            raise
        return b""


def _parts(path, content):
    """The first line, and the others; None and none if the file is damaged or incomplete."""
    checksum = str(path).removesuffix(SUFFIX).rsplit("-", 1)[-1]
    if digest(content)[:16] != checksum:
        return None, []
    about, *lines = content.split(b"\n")[:-1]
    return about, lines
