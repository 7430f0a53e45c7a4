"""The vote store: a folder with every vote that was drawn for one classifier at one noise level.

While samples are drawn, every worker appends to a ledger of its own, one line a chunk of samples. `compact` then moves
the ledgers' lines into a shard, a Parquet file. A line that a kill cut off is passed over, and its chunk drawn again:
as noise is addressed, the votes come out the same. Shards of other machines merge by being copied into the folder.
"""

import json
import os
import uuid
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from macer_tf import noise
from pipeline.artifacts import write_text
from pipeline.errors import InputError
from serving.files import flush

_ABOUT = b"macer_tf"
_ADDRESS = ("example_id", "digest", "stream", "start", "count")


class Chunk(NamedTuple):
    """Samples `start` to `start + count - 1` of one example's noise stream; `digest` tells its image from others."""

    example_id: int
    digest: int
    stream: int
    start: int
    count: int


class Piece(NamedTuple):
    """A chunk that was drawn.

    Attributes:
        chunk: `Chunk`.
        votes: int64 [1 + 2 * betas, classes]: class counts, then each beta's sums and squares, as `smoothing.Drawn`.
    """

    chunk: Chunk
    votes: np.ndarray


class VoteStore:
    """The votes in `directory`, which is made if it is not there.

    Attributes:
        directory: the folder.
        first_plans: what the votes in it were first planned to be drawn for, JSON values: one, unless shards of other
            plans were copied here. A certificate by a bound for a number of samples fixed beforehand is for this plan.

    Args:
        directory: a folder.
        identity: what the votes are of, JSON values by name; votes of anything else are refused.
        plan: JSON value, what the samples are to be drawn for now.
        num_classes: of the classifier.
        betas: inverse temperatures that soft votes are counted at.

    Raises:
        InputError: if the folder, or a shard in it, holds votes of something else, or cannot be read.
    """

    def __init__(self, directory, identity, plan, num_classes, betas=()):
        self.directory = Path(directory)
        self._identity = {**identity, "num_classes": num_classes}
        self._num_classes, self._betas = num_classes, list(betas)
        self._shape = (1 + 2 * len(betas), num_classes)
        self.directory.mkdir(parents=True, exist_ok=True)
        about = self.directory / "votes.json"
        if about.exists():
            self._plan = self._checked(about, _read_json(about))["plan"]
        else:
            # Before the first sample: what was planned later has seen votes.
            self._plan = plan
            write_text(about, json.dumps({**self._identity, "plan": plan}, indent=1))
        self.first_plans = [self._plan]
        for path in self._shards():
            first = self._checked(path, _read_about(path))["plan"]
            if first not in self.first_plans:
                self.first_plans.append(first)

    def pieces(self):
        """Every `Piece` in shards and ledgers that has soft votes at all betas wanted. They may overlap."""
        for path in self._shards():
            yield from self._read_shard(path)
        yield from self.follow().poll()[0]

    def follow(self):
        """A `LedgerReader` of what the workers append."""
        return LedgerReader(self.directory, self._key, self._shape)

    def ledger(self):
        """A new `LedgerWriter`, for a worker."""
        return LedgerWriter(self.directory, self._key)

    def compact(self):
        """Moves the ledgers' pieces into a new shard, adjacent ones as one. Only when no worker is writing."""
        ledgers = ledgers_of(self.directory, self._key)
        pieces = joined(self.follow().poll()[0])
        if pieces:
            self._write_shard(pieces)
        # A kill before the last of these leaves votes twice, which overlap and count once.
        for ledger in ledgers:
            ledger.unlink()

    def _about(self):
        return {**self._identity, "plan": self._plan, "betas": self._betas}

    @property
    def _key(self):
        return zlib.crc32(json.dumps(self._about(), sort_keys=True).encode())

    def _shards(self):
        return sorted(self.directory.glob("*.parquet"))

    def _checked(self, path, about):
        for name, value in self._identity.items():
            if about.get(name) != value:
                raise InputError(
                    f"{path} holds votes of another {name}: {about.get(name)}. This run's is {value}; take it out of "
                    "the folder, or give this run a folder of its own."
                )
        if "plan" not in about:
            raise InputError(f"{path} does not say what its votes were drawn for; take it out of the folder.")
        return about

    def _read_shard(self, path):
        try:
            betas = _read_about(path)["betas"]
            if not set(self._betas) <= set(betas):
                return
            table = pq.read_table(path, page_checksum_verification=True)
            addresses = np.stack([table[name].to_numpy() for name in _ADDRESS], axis=1)
            votes = table["votes"].combine_chunks().flatten().to_numpy()
            soft = [1 + 2 * betas.index(beta) + moment for beta in self._betas for moment in (0, 1)]
            votes = votes.reshape(-1, 1 + 2 * len(betas), self._num_classes)[:, [0, *soft]]
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise _unreadable(path, error) from None
        for address, piece_votes in zip(addresses.tolist(), votes, strict=True):
            chunk = Chunk(*address)
            if not _fits(chunk, piece_votes, self._shape):
                raise InputError(f"The votes in {path} do not add up; delete it to draw its samples again.")
            yield Piece(chunk, piece_votes)

    def _write_shard(self, pieces):
        addresses = np.array([piece.chunk for piece in pieces], np.int64)
        votes = np.stack([piece.votes for piece in pieces]).reshape(-1)
        columns = {name: pa.array(column) for name, column in zip(_ADDRESS, addresses.T, strict=True)}
        columns["votes"] = pa.FixedSizeListArray.from_arrays(pa.array(votes), int(np.prod(self._shape)))
        table = pa.table(columns).replace_schema_metadata({_ABOUT: json.dumps(self._about())})
        beside = self.directory / f"{uuid.uuid4().hex}.writing"
        pq.write_table(table, beside, compression="zstd", write_page_checksum=True)
        flush(beside)
        os.replace(beside, beside.with_suffix(".parquet"))
        flush(self.directory)


class LedgerWriter:
    """Appends to a new ledger in `directory`.

    Lines are checksummed from `key` on, so that votes of anything else are taken for damaged ones.
    """

    def __init__(self, directory, key):
        self._path, self._key = Path(directory) / f"{key:08x}-{uuid.uuid4().hex}.jsonl", key

    def record(self, pieces, failures):
        """Writes down pieces, and failures: example id -> why it cannot be certified."""
        rows = [[*map(int, chunk), votes.tolist()] for chunk, votes in pieces]
        rows += [[int(example_id), reason] for example_id, reason in failures.items()]
        # Opened anew each time: a worker that Ctrl-C leaves behind must not find it closed.
        with open(self._path, "a") as file:
            file.writelines(self._line(row) for row in rows)

    def _line(self, row):
        text = json.dumps(row, separators=(",", ":"))
        return f"{zlib.crc32(text.encode(), self._key):08x} {text}\n"


class LedgerReader:
    """Follows the ledgers in `directory`; `key` is their writers', `shape` that of a piece's votes."""

    def __init__(self, directory, key, shape):
        self._directory, self._key, self._shape = Path(directory), key, shape
        self._offsets = {}

    def poll(self):
        """The pieces, and the failures (example id -> reason), that were appended since the last call."""
        pieces, failures = [], {}
        for path in ledgers_of(self._directory, self._key):
            try:
                with open(path, "rb") as file:
                    file.seek(self._offsets.get(path, 0))
                    appended = file.read()
            except FileNotFoundError:  # moved to a shard meanwhile
                continue
            whole = appended[: appended.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            for line in whole.splitlines():
                checksum, _, text = line.partition(b" ")
                if checksum != b"%08x" % zlib.crc32(text, self._key):
                    continue
                *address, votes = json.loads(text)
                if len(address) == 1:
                    failures[address[0]] = votes
                    continue
                chunk, votes = Chunk(*address), np.array(votes, np.int64)
                if _fits(chunk, votes, self._shape):
                    pieces.append(Piece(chunk, votes))
        return pieces, failures


def ledgers_of(directory, key):
    """The ledgers of one kind of votes."""
    return sorted(directory.glob(f"{key:08x}-*.jsonl"))


def cover(spans, goal, limit):
    """Which spans of one stream to take for its samples 0 to goal - 1, each sample once, and what is missing.

    Args:
        spans: (start, count) of pieces, in any order; they may overlap.
        goal: number of samples.
        limit: spans that reach beyond this sample are not taken; from `goal`.

    Returns:
        The taken spans, one after another; and the gaps below `goal`, as (start, stop).
    """
    taken, gaps, position = [], [], 0
    for start, count in sorted(spans, key=lambda span: (span[0], -span[1])):
        if position >= goal or start >= goal:
            break
        if start >= position and start + count <= limit:
            if start > position:
                gaps.append((position, start))
            taken.append((start, count))
            position = start + count
    if position < goal:
        gaps.append((position, goal))
    return taken, gaps


def joined(pieces):
    """The pieces by rising address, each once, adjacent ones as one."""
    whole = []
    for chunk, votes in sorted({piece.chunk: piece.votes for piece in pieces}.items(), key=lambda item: item[0]):
        last = whole[-1].chunk if whole else None
        if last and chunk[:3] == last[:3] and chunk.start == last.start + last.count:
            whole[-1] = Piece(last._replace(count=last.count + chunk.count), whole[-1].votes + votes)
        else:
            whole.append(Piece(chunk, votes))
    return whole


def _fits(chunk, votes, shape):
    is_address = all(0 <= field < 2**63 for field in chunk) and chunk.count > 0 and chunk.stream in noise.STREAMS
    return is_address and votes.shape == shape and votes.min() >= 0 and votes[0].sum() == chunk.count


def _read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _read_about(path):
    try:
        return json.loads(pq.read_schema(path).metadata[_ABOUT])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path, error):
    return InputError(f"Cannot read the votes in {path} ({type(error).__name__}); delete it to draw its samples again.")
