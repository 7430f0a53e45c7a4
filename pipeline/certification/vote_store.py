"""The vote store: a folder with every vote that was drawn for one classifier at one noise level.

While samples are drawn, every worker appends to its own ledger, one line per chunk. `compact` then moves the ledgers'
lines into a shard, a Parquet file. Workers of an engine instead hand in bundle files (`bundles`), in this folder or at
a URL, which `compact` moves in the same way. A line that a kill cut off is skipped, and its chunk drawn again: because
noise is addressed, the votes are the same. To merge shards of other machines, copy them into the folder.

A bound for a number of samples fixed beforehand holds for the plan that was made before any sample of the noise was
seen, in whatever folder. So the first looks are kept in a register beside the folders, one for each model and seed;
and, in case it is lost, in `votes.json`, each shard and the first line of each ledger. All of them carry a checksum.
"""

import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.certification import bundles
from pipeline.certification.bundles import SUFFIX, BundleReader, BundleWriter
from pipeline.certification.ledger import (
    FORMAT,
    LedgerReader,
    LedgerWriter,
    about_of_ledger,
    is_about,
    ledgers_of,
    unreadable_votes,
)
from pipeline.certification.pieces import Chunk, Piece, fits, joined
from pipeline.utils import places, sealed
from pipeline.utils.atomic_files import write_bytes, write_text, writing
from pipeline.utils.errors import InputError
from serving.files import flush
from serving.fingerprints import digest, fingerprint

# Votes that agree in these share noise, so drawing for one plan reveals another's: n0 and precision do not change it,
# and sigma only scales it, so that nearly the same sigma gives nearly the same votes.
_NOISE = ("model", "seed")
# Identifies the folder's votes.
ABOUT = "votes.json"
# Where a shard's metadata has the same.
_METADATA = b"macer_tf"
# If one of these is damaged, its votes are drawn again.
_DRAWN_AGAIN = (".jsonl", SUFFIX)
_FIRST_DRAWN_FOR = "which says what samples were first drawn for"
_ADDRESS = ("example_id", "digest", "stream", "start", "count")


class VoteStore:
    """The votes in `directory`, which is created if it does not exist, unless nothing is to be written.

    Attributes:
        directory: the folder.
        betas: as given, a list.
        place: path or URL where workers of an engine hand in votes.
        first_looks: `SamplingPlan.first_look` of what the samples seen of this noise were first drawn for: one, unless
            votes of others were copied here. None among them stands for one that can no longer be read. A bound for
            a number of samples fixed beforehand holds only for a plan that is the only one here.

    Args:
        directory: a folder. Those beside it may hold votes of the same noise, for other numbers of selection samples.
        identity: what identifies the votes, JSON values by name; votes of anything else are refused.
        first_look: JSON value, what the samples will be drawn for now.
        num_classes: number of the classifier's classes.
        betas: inverse temperatures at which soft votes are counted.
        handed_in: path or URL of a folder where workers of an engine hand in votes; each store has its own folder
            below it. None: in `directory` itself.
        is_read_only: whether to write nothing; then nothing can be drawn or compacted.

    Raises:
        InputError: if the folder, or a shard in it, holds votes of something else, is of an older format, or
            cannot be read; or if the register of first looks is of an older format or cannot be read.
    """

    def __init__(self, directory, identity, first_look, num_classes, betas=(), handed_in=None, *, is_read_only=False):
        self.directory = Path(directory)
        self._handed_in = handed_in
        self.place = places.join(handed_in or places.absolute(self.directory.parent), self.directory.name)
        self._identity = {"format": FORMAT, **identity, "num_classes": num_classes}
        self._num_classes, self.betas = num_classes, list(betas)
        self._shape = (1 + 2 * len(betas), num_classes)
        if not is_read_only:
            with writing(self.directory, "votes that were drawn are kept"):
                self.directory.mkdir(parents=True, exist_ok=True)
        self.first_looks = self._seen() or [first_look]
        if not is_read_only:
            self._record_looks()

    def _record_looks(self):
        # Before the first sample, because what is planned later has seen votes.
        looks = {"first_looks": self.first_looks}
        _write_if_new(self._register, {"format": FORMAT, **self._noise, **looks})
        path = self.directory / ABOUT
        # Earlier versions relied on the file's own time.
        opened_at = path.stat().st_mtime if path.exists() else time.time()
        _write_if_new(path, {**self._identity, **looks}, opened_at=opened_at)

    def pieces(self):
        """Every `Piece` in shards and ledgers that has soft votes at all the requested betas. They may overlap."""
        for path in _shards(self.directory):
            yield from self._read_shard(path)
        yield from self.follow().poll()[0]
        yield from self.follow_bundles().poll()[0]

    @property
    def opened_at(self):
        """When the folder was first prepared for drawing, in seconds since the epoch."""
        return _read_sealed(self.directory / ABOUT)["opened_at"]

    def follow(self):
        """A `LedgerReader` of what the threads of this machine append."""
        return LedgerReader(self.directory, self._kind, self._shape)

    def follow_bundles(self):
        """A `BundleReader` of what workers of an engine hand in."""
        return BundleReader(self.place, self._kind, self._shape)

    def ledger(self):
        """A new `LedgerWriter`, for a thread of this machine."""
        return LedgerWriter(self.directory, self._kind, self.first_looks)

    def bundle_writer(self):
        """A new `BundleWriter`, which can be sent to a worker of an engine."""
        return BundleWriter(self.place, self._kind, self.first_looks)

    def compact(self):
        """Moves the pieces of ledgers and bundle files into a new shard, adjacent ones merged; failures are forgotten.

        To be called only when no thread of this machine is drawing. What workers of an engine hand in meanwhile stays.
        """
        ledgers, handed_in = ledgers_of(self.directory, self._kind), self.follow_bundles()
        pieces = joined([*self.follow().poll()[0], *handed_in.poll()[0]])
        if pieces:
            self._write_shard(pieces)
        # A kill before the last of these leaves votes twice; they overlap and count once.
        for ledger in ledgers:
            ledger.unlink()
        places.remove(handed_in.read)

    @property
    def _kind(self):
        return {**self._identity, "betas": self.betas}

    @property
    def _noise(self):
        return {name: self._identity.get(name) for name in _NOISE}

    @property
    def _register(self):
        return self.directory.parent / f"looks-{fingerprint(self._noise)[:16]}.json"

    def _seen(self):
        """The first looks at everything seen of this noise, each once."""
        looks, is_known, is_damaged = [], self._register.exists(), False
        if is_known:
            try:
                register = _read_sealed(self._register)
            except InputError:
                is_damaged = True
            else:
                looks += _looks_of(self._register, register)
        beside = self.directory.parent.iterdir() if self.directory.parent.is_dir() else ()
        for folder in sorted(path for path in beside if path.is_dir()):
            about, unreadable = _of_folder(folder)
            if folder == self.directory:
                for path, error in unreadable:
                    if path.suffix not in _DRAWN_AGAIN:
                        raise error
                for path, one in about:
                    self._check(path, one)
            same = [pair for pair in about if all(pair[1].get(name) == value for name, value in self._noise.items())]
            looks += [look for pair in same for look in _looks_of(*pair)]
            is_of_other_noise = about and not same
            has_votes_json = any(path.name == ABOUT for path, _ in about)
            if unreadable and not (is_known or is_of_other_noise or has_votes_json):
                looks.append(None)
        if self._handed_in is not None:
            looks += self._handed_in_elsewhere(is_known)
        if is_damaged:
            # If it could be deleted where no votes are left, n could be chosen after a look.
            remedy = (
                "delete it: what the votes themselves say will count" if looks else "put it back, or give another seed"
            )
            raise InputError(f"{self._register}, {_FIRST_DRAWN_FOR}, was changed or damaged; {remedy}.")
        return [look for place, look in enumerate(looks) if look not in looks[:place]]

    def _handed_in_elsewhere(self, is_known):
        """The first looks at everything seen of this noise that is where workers hand in votes."""
        looks = []
        for about in bundles.abouts(self._handed_in):
            if about is None:
                looks += [] if is_known else [None]
            elif all(about.get(name) == value for name, value in self._noise.items()):
                looks += about["first_looks"]
        return looks

    def _check(self, path, about):
        if path.suffix in _DRAWN_AGAIN:  # skipped, unless they are of this very kind
            return
        _looks_of(path, about)
        for name, value in self._identity.items():
            if about.get(name) != value:
                raise InputError(
                    f"{path} holds votes of another {name}: {about.get(name)}. This run's is {value}; move it out "
                    "of the folder, or give this run another folder."
                )

    def _read_shard(self, path):
        about, table = _read_shard(path)
        betas = about["betas"]
        if not set(self.betas) <= set(betas):
            return
        addresses = np.stack([table[name].to_numpy() for name in _ADDRESS], axis=1)
        votes = table["votes"].combine_chunks().flatten().to_numpy()
        soft = [1 + 2 * betas.index(beta) + moment for beta in self.betas for moment in (0, 1)]
        votes = votes.reshape(-1, 1 + 2 * len(betas), self._num_classes)[:, [0, *soft]]
        for address, piece_votes in zip(addresses.tolist(), votes, strict=True):
            chunk = Chunk(*address)
            if not fits(chunk, piece_votes, self._shape):
                raise InputError(f"The votes in {path} do not add up; delete it to draw its samples again.")
            yield Piece(chunk, piece_votes)

    def _write_shard(self, pieces):
        addresses = np.array([piece.chunk for piece in pieces], np.int64)
        votes = np.stack([piece.votes for piece in pieces]).reshape(-1)
        columns = {name: pa.array(column) for name, column in zip(_ADDRESS, addresses.T, strict=True)}
        columns["votes"] = pa.FixedSizeListArray.from_arrays(pa.array(votes), int(np.prod(self._shape)))
        about = {**self._kind, "first_looks": self.first_looks}
        table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(about)})
        content = pa.BufferOutputStream()
        pq.write_table(table, content, compression="zstd")
        content = content.getvalue().to_pybytes()
        write_bytes(self.directory / f"{_name(content)}.parquet", content)
        flush(self.directory)


def _name(content):
    return digest(content)[:32]


def _shards(directory):
    return sorted(directory.glob("*.parquet"))


def _of_folder(folder):
    """What the files in a folder say about their votes, [(path, about)]; and unreadable ones, [(path, error)]."""
    about, unreadable = [], []
    drawn_again = [path for suffix in _DRAWN_AGAIN for path in sorted(folder.glob(f"*{suffix}"))]
    for path in [folder / ABOUT, *_shards(folder), *drawn_again]:
        if not path.exists():
            continue
        try:
            read = {
                ".json": _read_sealed,
                ".parquet": lambda path: _read_shard(path)[0],
                ".jsonl": about_of_ledger,
                SUFFIX: bundles.about_of,
            }
            about.append((path, read[path.suffix](path)))
        except InputError as error:
            unreadable.append((path, error))
    return about, unreadable


def _looks_of(path, about):
    """The first looks that a file records. Raises InputError if it is of an older format."""
    if about.get("format") != FORMAT:
        raise InputError(
            f"{path} is of the votes' format 1, which an earlier version wrote; this one reads format {FORMAT}. Move "
            f"{path.parent} away: its samples are drawn again."
        )
    return about["first_looks"]


def _write_if_new(path, content, **once):
    """Writes content, and `once`, which keeps its first values, unless the file already holds both."""
    before = _read_sealed(path) if path.exists() else {}
    kept = {name: before.get(name, value) for name, value in once.items()}
    if before != json.loads(json.dumps({**content, **kept})):
        write_text(path, sealed.dumps({**content, **kept}, indent=1))
        flush(path.parent)


def _read_sealed(path):
    """The content of votes.json, or of the register."""
    try:
        content = sealed.loads(path.read_bytes())
        if not is_about(content):
            raise ValueError("no list")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}, {_FIRST_DRAWN_FOR}, was changed or damaged ({type(error).__name__}); delete it: what the "
            "register and the votes themselves say will count."
        ) from None
    return content


def _read_shard(path):
    """What a shard says about its votes, and its table."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable_votes(path, error.strerror) from None
    # Checked before anything parses it.
    if _name(content) != path.stem:
        raise unreadable_votes(path, "they do not match the checksum in its name")
    try:
        table = pq.read_table(pa.BufferReader(content))
        about = json.loads(table.schema.metadata[_METADATA])
        if not is_about(about) or not isinstance(about["betas"], list):
            raise TypeError
        columns = {*_ADDRESS, "votes"} - set(table.column_names)
        if columns:
            raise KeyError
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise unreadable_votes(path, type(error).__name__) from None
    return about, table
