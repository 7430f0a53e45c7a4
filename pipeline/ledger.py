"""The ledger of votes: what each certification worker has counted, on disk as soon as it is counted.

Every worker appends to a file of its own, one JSON line a chunk of samples, flushed. A line cut off by a kill, or
damaged, is passed over, and its chunk is drawn again: the noise is addressed, so the votes come out the same.
"""

import json
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.artifacts import fingerprint, write_text


class Chunk(NamedTuple):
    """Samples `start` to `start + count - 1` of one example's noise stream."""

    example_id: int
    stream: int
    start: int
    count: int


def new_or_resumed(votes, identity):
    """The directory under `votes` of the ledger for this identity, a JSON value; made if it is not there."""
    directory = Path(votes) / fingerprint(identity)[:16]
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "ledger.json", json.dumps(identity, indent=1))
    return directory


class LedgerWriter:
    """Appends to a new file in `directory`."""

    def __init__(self, directory):
        self._file = open(Path(directory) / f"{uuid.uuid4().hex}.jsonl", "a")  # noqa: SIM115 (closed by `close`)

    def record(self, chunk, counts):
        """Writes down the class counts of a chunk."""
        self._file.write(json.dumps([*chunk, counts.tolist()]) + "\n")
        self._file.flush()

    def close(self):
        self._file.close()


class LedgerReader:
    """Follows the ledger in `directory`.

    Attributes:
        counts: chunk -> int64 [classes], of the wanted chunks read so far.
    """

    def __init__(self, directory, wanted, num_classes):
        self._directory, self._wanted, self._num_classes = Path(directory), frozenset(wanted), num_classes
        self._offsets = {}
        self.counts = {}

    def poll(self):
        """Reads what was appended since the last call. Returns the number of samples on the ledger."""
        for path in self._directory.glob("*.jsonl"):
            with open(path, "rb") as file:
                file.seek(self._offsets.get(path, 0))
                appended = file.read()
            whole = appended[: appended.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            for line in whole.splitlines():
                self._add(line)
        return sum(chunk.count for chunk in self.counts)

    def _add(self, line):
        try:
            *address, counts = json.loads(line)
            chunk, counts = Chunk(*address), np.array(counts, np.int64)
            is_wanted = chunk in self._wanted
        except (ValueError, TypeError, OverflowError):
            return
        votes_are_whole = counts.shape == (self._num_classes,) and counts.min() >= 0 and counts.sum() == chunk.count
        if is_wanted and votes_are_whole:
            self.counts[chunk] = counts
