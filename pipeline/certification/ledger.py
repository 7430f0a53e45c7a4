"""Ledgers: the files that workers append their votes to, a checksummed line for each chunk."""

import json
import uuid
import zlib
from pathlib import Path

import numpy as np

from pipeline.certification.pieces import Chunk, Piece, fits
from pipeline.utils import sealed
from pipeline.utils.errors import InputError

# Of votes on ledgers and in shards, and of what says what they were drawn for.
FORMAT = 2


class LedgerWriter:
    """Appends to a new ledger in `directory`.

    Its first line says what the votes are of, `kind`, and what the samples were first drawn for, `first_looks`. The
    others are checksummed from the kind on, so that votes of anything else are taken for damaged ones.
    """

    def __init__(self, directory, kind, first_looks):
        self._path = Path(directory) / f"{key(kind):08x}-{uuid.uuid4().hex}.jsonl"
        self._key, self._about = key(kind), {**kind, "first_looks": first_looks}

    def record(self, pieces, failures):
        """Writes down pieces, and failures: example id -> why it cannot be certified."""
        rows = [[*map(int, chunk), votes.tolist()] for chunk, votes in pieces]
        rows += [[int(example_id), reason] for example_id, reason in failures.items()]
        # Opened anew each time: a worker that Ctrl-C leaves behind must not find it closed.
        with open(self._path, "a") as file:
            if not file.tell():
                file.write(sealed.dumps(self._about) + "\n")
            file.writelines(self._line(row) for row in rows)

    def _line(self, row):
        text = json.dumps(row, separators=(",", ":"))
        return f"{zlib.crc32(text.encode(), self._key):08x} {text}\n"


class LedgerReader:
    """Follows the ledgers in `directory`; `kind` is their writers', `shape` that of a piece's votes."""

    def __init__(self, directory, kind, shape):
        self._directory, self._kind, self._shape = Path(directory), kind, shape
        self._offsets, self._damaged = {}, set()

    def poll(self):
        """The pieces, and the failures (example id -> reason), that were appended since the last call."""
        pieces, failures = [], {}
        for path in ledgers_of(self._directory, self._kind):
            for line in self._appended(path):
                row = self._row(line)
                if row is None:
                    continue
                *address, votes = row
                if len(address) == 1:
                    failures[address[0]] = votes
                    continue
                chunk, votes = Chunk(*address), np.array(votes, np.int64)
                if fits(chunk, votes, self._shape):
                    pieces.append(Piece(chunk, votes))
        return pieces, failures

    def _appended(self, path):
        """The new lines that are whole, without the first; none if the first says something else, or is damaged."""
        offset = self._offsets.get(path, 0)
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                appended = file.read()
        except FileNotFoundError:  # moved to a shard meanwhile
            return []
        whole = appended[: appended.rfind(b"\n") + 1]
        self._offsets[path] = offset + len(whole)
        lines = whole.split(b"\n")[:-1]
        if lines and not offset:
            about = _ledger_about(lines.pop(0))
            if about is None or any(about.get(name) != value for name, value in self._kind.items()):
                self._damaged.add(path)
        return [] if path in self._damaged else lines

    def _row(self, line):
        checksum, _, text = line.partition(b" ")
        return json.loads(text) if checksum == b"%08x" % zlib.crc32(text, key(self._kind)) else None


def ledgers_of(directory, kind):
    """The ledgers of one kind of votes."""
    return sorted(directory.glob(f"{key(kind):08x}-*.jsonl"))


def key(kind):
    """A checksum of a kind of votes, where its ledgers' names and checksums begin."""
    return zlib.crc32(json.dumps(kind, sort_keys=True).encode())


def about_of_ledger(path):
    """What a ledger is of. One without a whole line has no votes, and was drawn for nothing."""
    with open(path, "rb") as file:
        line = file.readline()
    about = _ledger_about(line[:-1]) if line.endswith(b"\n") else {"format": FORMAT, "first_looks": []}
    if about is None:
        raise unreadable_votes(path, "its first line is damaged")
    return about


def _ledger_about(line):
    try:
        about = sealed.loads(line)
    except ValueError:
        return None
    return about if is_about(about) else None


def is_about(content):
    """Whether JSON values say what votes were first drawn for: in this format, or in the one before."""
    name = "first_looks" if content.get("format") == FORMAT else "plans" if "format" not in content else None
    return isinstance(content.get(name), list)


def unreadable_votes(path, reason):
    """The `InputError` for a file of votes."""
    return InputError(f"Cannot read the votes in {path} ({reason}); delete it to draw its samples again.")
