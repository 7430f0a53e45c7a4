"""Ledgers: files to which the threads of this machine append their votes, one checksummed line per chunk.

Bundle files have the same lines: see `bundles`.
"""

import json
import uuid
import zlib
from pathlib import Path

import numpy as np

from pipeline.certification.pieces import Chunk, Piece, fits
from pipeline.utils import sealed
from pipeline.utils.errors import InputError

# The format of votes in ledgers and shards, and of the files that record what they were drawn for.
FORMAT = 2


class LedgerWriter:
    """Appends to a new ledger in `directory`.

    Its first line identifies the votes, `kind`, and records what the samples were first drawn for, `first_looks`. The
    checksums of the others include the kind, so that votes of anything else count as damaged.
    """

    def __init__(self, directory, kind, first_looks):
        self._path = Path(directory) / f"{key(kind):08x}-{uuid.uuid4().hex}.jsonl"
        self._key, self._about = key(kind), {**kind, "first_looks": first_looks}

    def record(self, pieces, failures):
        """Records pieces, and failures: example id -> why it cannot be certified."""
        # Opened anew each time, because a worker that Ctrl-C leaves behind must not find it closed.
        with open(self._path, "a") as file:
            if not file.tell():
                file.write(sealed.dumps(self._about) + "\n")
            file.writelines(encoded(self._key, pieces, failures))


class LedgerReader:
    """Follows the ledgers in `directory`; `kind` is their writers' kind, `shape` that of a piece's votes."""

    def __init__(self, directory, kind, shape):
        self._directory, self._kind, self._shape = Path(directory), kind, shape
        self._key, self._offsets, self._damaged = key(kind), {}, set()

    def poll(self):
        """The pieces, and the failures (example id -> reason), that were appended since the last call."""
        lines = [line for path in ledgers_of(self._directory, self._kind) for line in self._appended(path)]
        return decoded(self._key, lines, self._shape)

    def _appended(self, path):
        """The new complete lines, except the first; none if the first says something else or is damaged."""
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
        if lines and not offset and not is_of(self._kind, lines.pop(0)):
            self._damaged.add(path)
        return [] if path in self._damaged else lines


def encoded(kind_key, pieces, failures):
    """The lines, with line ends, for pieces and failures (example id -> reason); `kind_key` is what `key` returned."""
    rows = [[*map(int, chunk), votes.tolist()] for chunk, votes in pieces]
    rows += [[int(example_id), reason] for example_id, reason in failures.items()]
    texts = (json.dumps(row, separators=(",", ":")) for row in rows)
    return [f"{zlib.crc32(text.encode(), kind_key):08x} {text}\n" for text in texts]


def decoded(kind_key, lines, shape):
    """The pieces and failures in lines (without line ends) that `encoded` made; damaged lines are skipped."""
    pieces, failures = [], {}
    for line in lines:
        checksum, _, text = line.partition(b" ")
        if checksum != b"%08x" % zlib.crc32(text, kind_key):
            continue
        *address, votes = json.loads(text)
        if len(address) == 1:
            failures[address[0]] = votes
            continue
        chunk, votes = Chunk(*address), np.array(votes, np.int64)
        if fits(chunk, votes, shape):
            pieces.append(Piece(chunk, votes))
    return pieces, failures


def is_of(kind, line):
    """Whether a file's first line says that its votes are of this kind."""
    about = ledger_about(line)
    return about is not None and all(about.get(name) == value for name, value in kind.items())


def ledgers_of(directory, kind):
    """The ledgers of one kind of votes."""
    return sorted(directory.glob(f"{key(kind):08x}-*.jsonl"))


def key(kind):
    """A checksum of a kind of votes: its ledgers' names begin with it, and their lines' checksums start from it."""
    return zlib.crc32(json.dumps(kind, sort_keys=True).encode())


def about_of_ledger(path):
    """What a ledger says about its votes. One without a complete line has none, and records no first look."""
    with open(path, "rb") as file:
        line = file.readline()
    about = ledger_about(line[:-1]) if line.endswith(b"\n") else {"format": FORMAT, "first_looks": []}
    if about is None:
        raise unreadable_votes(path, "its first line is damaged")
    return about


def ledger_about(line):
    """What a file's first line says about its votes; None if it is damaged."""
    try:
        about = sealed.loads(line)
    except ValueError:
        return None
    return about if is_about(about) else None


def is_about(content):
    """Whether JSON values record what votes were first drawn for: in this format, or in the one before."""
    name = "first_looks" if content.get("format") == FORMAT else "plans" if "format" not in content else None
    return isinstance(content.get(name), list)


def unreadable_votes(path, reason):
    """The `InputError` for a file of votes."""
    return InputError(f"Cannot read the votes in {path} ({reason}); delete it to draw its samples again.")
