"""The vote store: what was written is read again, each sample counts once, and votes of anything else are refused."""

import hashlib
import itertools
import json
import os
import shutil
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from macer_tf import noise
from pipeline.certification.pieces import Chunk, Piece, cover, joined
from pipeline.certification.vote_store import VoteStore
from pipeline.utils import sealed
from pipeline.utils.errors import InputError

IDENTITY = {"model": "abc", "sigma": 0.5, "seed": 3, "precision": "float32", "n0": 100}
LOOK = {"n": 1000, "radii": None, "tolerance": None}
NUM_CLASSES, BETAS = 4, (1.0, 16.0)


def make(directory, look=LOOK, betas=BETAS, **changed):
    """The store in `directory`, whose parent is what the register of first looks lies in."""
    return VoteStore(directory, IDENTITY | changed, look, NUM_CLASSES, betas)


@pytest.fixture
def store(tmp_path):
    return make(tmp_path / "votes" / "store")


def piece(example_id, start, count, stream=noise.ESTIMATION, digest=7, betas=BETAS):
    """A piece whose votes are those of samples that each vote for class (sample mod 4), and moments made up of them."""
    counts = np.bincount(np.arange(start, start + count) % NUM_CLASSES, minlength=NUM_CLASSES)
    votes = np.stack([counts, *(counts * factor for factor in range(2, 2 + 2 * len(betas)))])
    return Piece(Chunk(example_id, digest, stream, start, count), votes.astype(np.int64))


def addresses(pieces):
    return sorted(tuple(one.chunk) for one in pieces)


def assert_same(pieces, expected):
    assert addresses(pieces) == addresses(expected)
    by_chunk = {one.chunk: one.votes for one in expected}
    for one in pieces:
        np.testing.assert_array_equal(one.votes, by_chunk[one.chunk])
        assert one.votes.dtype == np.int64


def test_what_workers_write_is_read_again_by_ledger_and_by_shard(store):
    pieces = [piece(5, 0, 30), piece(5, 30, 7), piece(2**40, 0, 9, noise.SELECTION, digest=2**63 - 1)]
    store.ledger().record(pieces[:2], {})
    store.ledger().record(pieces[2:], {})
    assert_same(list(store.pieces()), pieces)

    store.compact()
    assert list(store.directory.glob("*.jsonl")) == []
    (shard,) = store.directory.glob("*.parquet")
    whole = [piece(5, 0, 37), pieces[2]]
    assert_same(list(store.pieces()), whole)
    about = json.loads(pq.read_schema(shard).metadata[b"macer_tf"])
    assert about == {"format": 2, **IDENTITY, "num_classes": NUM_CLASSES, "betas": list(BETAS), "first_looks": [LOOK]}

    store.ledger().record([piece(5, 37, 3)], {})
    store.compact()
    store.compact()
    assert len(list(store.directory.glob("*.parquet"))) == 2
    assert_same(list(store.pieces()), [*whole, piece(5, 37, 3)])


def test_a_reader_follows(store):
    reader, ledger = store.follow(), store.ledger()
    assert reader.poll() == ([], {})
    ledger.record([piece(1, 0, 5)], {9: "it is damaged"})
    pieces, failures = reader.poll()
    assert_same(pieces, [piece(1, 0, 5)])
    assert failures == {9: "it is damaged"}
    store.compact()
    assert reader.poll() == ([], {})
    ledger = store.ledger()
    ledger.record([piece(1, 5, 5)], {})
    assert_same(reader.poll()[0], [piece(1, 5, 5)])


def test_a_line_cut_off_at_any_byte_is_passed_over_until_it_is_whole(store):
    store.ledger().record([piece(1, 0, 5), piece(2, 0, 6)], {})
    (path,) = store.directory.glob("*.jsonl")
    content = path.read_bytes()
    first = content.index(b"\n", content.index(b"\n") + 1) + 1
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        whole = (size >= first) + (size == len(content))
        assert addresses(store.pieces()) == addresses([piece(1, 0, 5), piece(2, 0, 6)][:whole])
        reader = store.follow()
        reader.poll()
        path.write_bytes(content)
        assert len(reader.poll()[0]) == 2 - whole


def test_no_damaged_byte_becomes_a_vote(store):
    store.ledger().record([piece(1, 0, 5)], {})
    (path,) = store.directory.glob("*.jsonl")
    content = path.read_bytes()
    for position, changed in itertools.product(range(len(content) - 1), (1, 2, 64)):
        path.write_bytes(content[:position] + bytes([content[position] ^ changed]) + content[position + 1 :])
        assert list(store.pieces()) == []


def test_a_ledger_of_another_store_is_no_vote(store, tmp_path):
    """Copied from a folder of another noise level, it would be a false certificate."""
    other = make(tmp_path / "elsewhere" / "other", sigma=0.25)
    other.ledger().record([piece(1, 0, 5)], {})
    (path,) = other.directory.glob("*.jsonl")
    # Even under a name of this store's.
    store.ledger().record([], {})
    (own,) = store.directory.glob("*.jsonl")
    path.rename(own)
    assert list(store.pieces()) == []


@pytest.mark.parametrize(
    ("name", "value"), [("model", "xyz"), ("sigma", 0.25), ("seed", 4), ("precision", "bfloat16"), ("n0", 50)]
)
def test_votes_of_anything_else_are_refused_by_name(store, tmp_path, name, value):
    received = rf"holds votes of another {name}: {value}. This run's is {IDENTITY[name]}; move it out of the folder"
    other = make(tmp_path / "elsewhere" / "other", **{name: value})
    other.ledger().record([piece(1, 0, 5)], {})
    other.compact()
    (shard,) = other.directory.glob("*.parquet")
    shard.rename(store.directory / shard.name)
    with pytest.raises(InputError, match=received):
        make(store.directory)
    with pytest.raises(InputError, match=rf"holds votes of another {name}: {IDENTITY[name]}. This run's is {value}"):
        make(store.directory, **{name: value})


def test_votes_at_more_betas_serve_those_at_fewer_and_not_the_other_way_round(store):
    soft = piece(1, 0, 5)
    store.ledger().record([soft], {})
    store.compact()
    for betas, rows in [((), [0]), ((16.0,), [0, 3, 4]), ((1.0,), [0, 1, 2]), ((16.0, 1.0), [0, 3, 4, 1, 2])]:
        (read,) = make(store.directory, betas=betas).pieces()
        np.testing.assert_array_equal(read.votes, soft.votes[rows])
    assert list(make(store.directory, betas=(1.0, 4.0)).pieces()) == []
    # Ledgers of other betas stay where they are.
    hard = make(store.directory, betas=())
    hard.ledger().record([piece(2, 0, 5, betas=())], {})
    store.compact()
    assert addresses(hard.pieces()) == addresses([soft, piece(2, 0, 5)])
    hard.compact()
    assert addresses(hard.pieces()) == addresses([soft, piece(2, 0, 5)])
    assert addresses(store.pieces()) == addresses([soft])


def test_the_first_look_stays_the_first_and_those_of_shards_count(store, tmp_path):
    later, elsewhere = LOOK | {"n": 2000}, LOOK | {"n": 3000}
    assert store.first_looks == [LOOK]
    assert make(store.directory, look=later).first_looks == [LOOK]
    for look, expected in [(LOOK, [LOOK]), (elsewhere, [LOOK, elsewhere])]:
        other = make(tmp_path / f"elsewhere{look['n']}" / "other", look=look)
        other.ledger().record([piece(1, 0, 5)], {})
        other.compact()
        (shard,) = other.directory.glob("*.parquet")
        shard.rename(store.directory / shard.name)
        assert make(store.directory, look=later).first_looks == expected


@pytest.mark.parametrize("lost", [(), ("store/votes.json",), ("store",), ("store/votes.json", "looks-*.json")])
def test_the_noise_s_first_look_is_known_in_every_folder_whatever_was_lost(store, lost):
    """As if n = 1000 had been looked at, and then n = 3000 were chosen with another n0, or in the same folder."""
    store.ledger().record([piece(1, 0, 5)], {})
    for pattern in lost:
        (path,) = store.directory.parent.glob(pattern)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    later = LOOK | {"n": 3000}
    assert make(store.directory.with_name("another n0"), later, n0=101).first_looks == [LOOK]
    assert make(store.directory, later).first_looks == [LOOK]
    assert make(store.directory.with_name("another sigma"), later, sigma=0.5000001).first_looks == [LOOK]
    assert make(store.directory.with_name("another seed"), later, seed=4).first_looks == [later]


def test_an_edited_look_is_refused_by_name(store):
    path = store.directory / "votes.json"
    path.write_text(path.read_text().replace("1000", "3000"))
    with pytest.raises(InputError, match=f"{path}, which says what samples were first drawn for, was changed") as error:
        make(store.directory, LOOK | {"n": 3000})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", None])
@pytest.mark.parametrize("is_lost", [False, True])
def test_a_damaged_register_is_to_be_deleted_only_where_votes_say_what_it_said(store, content, is_lost):
    """Deleted where none are left, it would let n be chosen after a look."""
    (path,) = store.directory.parent.glob("looks-*.json")
    path.write_text(path.read_text().replace("1000", "3000") if content is None else content)
    if is_lost:
        shutil.rmtree(store.directory)
    later = LOOK | {"n": 3000}
    remedy = "put it back, or give another seed" if is_lost else "delete it: what the votes themselves say will count"
    with pytest.raises(InputError) as told:
        make(store.directory, later)
    assert str(told.value) == (
        f"{path}, which says what samples were first drawn for, was changed or damaged; {remedy}."
    )
    assert make(store.directory.with_name("another seed"), later, seed=4).first_looks == [later]
    if not is_lost:
        path.unlink()
        assert make(store.directory, later).first_looks == [LOOK]


def test_when_votes_were_first_drawn_does_not_follow_the_files_time(store):
    opened_at = store.opened_at
    assert time.time() - 60 < opened_at <= time.time()
    os.utime(store.directory / "votes.json", (2e9, 2e9))
    assert make(store.directory).opened_at == opened_at


def test_of_votes_that_do_not_say_when_they_were_first_drawn_the_files_time_does(store):
    path = store.directory / "votes.json"
    about = sealed.loads(path.read_bytes())
    del about["opened_at"]
    path.write_text(sealed.dumps(about))
    os.utime(path, (1e9, 1e9))
    for _ in range(2):
        assert make(store.directory).opened_at == 1e9


def test_a_folder_of_votes_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "votes").write_text("a file")
    with pytest.raises(InputError, match=r"^Cannot write .*votes.*\. Move away what is in its place and run the same"):
        make(tmp_path / "votes" / "store")


def test_votes_whose_first_look_nobody_knows_are_a_look(store):
    store.ledger().record([piece(1, 0, 5)], {})
    (path,) = store.directory.glob("*.jsonl")
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert make(store.directory).first_looks == [LOOK]
    (store.directory / "votes.json").unlink()
    next(store.directory.parent.glob("looks-*.json")).unlink()
    assert make(store.directory).first_looks == [None]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:40] + bytes([content[40] ^ 255]) + content[41:],
        lambda content: b"PAR1",
    ],
)
def test_a_damaged_shard_is_one_line(store, damage):
    store.ledger().record([piece(1, 0, 5)], {})
    store.compact()
    (shard,) = store.directory.glob("*.parquet")
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(InputError, match=f"Cannot read the votes in {shard} .*delete it to draw its samples") as error:
        list(make(store.directory).pieces())
    assert "\n" not in str(error.value)


def test_a_shard_whose_votes_do_not_add_up_is_refused(store):
    store.ledger().record([piece(1, 0, 5)], {})
    store.compact()
    (shard,) = store.directory.glob("*.parquet")
    table = pq.read_table(shard)
    pq.write_table(table.set_column(4, "count", pa.array([6])), shard)
    with pytest.raises(InputError, match="do not match the checksum in its name"):
        list(store.pieces())
    # Nor by a shard whose name fits.
    shard.rename(shard.with_stem(hashlib.sha256(shard.read_bytes()).hexdigest()[:32]))
    with pytest.raises(InputError, match="do not add up"):
        list(store.pieces())


def test_a_kill_between_shard_and_ledger_counts_nothing_twice(store):
    store.ledger().record([piece(1, 0, 5), piece(1, 5, 5)], {})
    (ledger,) = store.directory.glob("*.jsonl")
    content = ledger.read_bytes()
    store.compact()
    ledger.write_bytes(content)
    spans = [(one.chunk.start, one.chunk.count) for one in store.pieces()]
    assert sorted(spans) == [(0, 5), (0, 10), (5, 5)]
    assert cover(spans, 10, 10) == ([(0, 10)], [])


@pytest.mark.parametrize(
    ("spans", "goal", "limit", "taken", "gaps"),
    [
        ([], 10, 10, [], [(0, 10)]),
        ([], 0, 0, [], []),
        ([(0, 10)], 10, 10, [(0, 10)], []),
        ([(4, 6), (0, 4)], 10, 10, [(0, 4), (4, 6)], []),
        ([(0, 4), (6, 4)], 10, 10, [(0, 4), (6, 4)], [(4, 6)]),
        ([(0, 100)], 10, 10, [], [(0, 10)]),
        ([(0, 100)], 10, 100, [(0, 100)], []),
        ([(0, 100), (0, 5), (5, 5)], 10, 10, [(0, 5), (5, 5)], []),
        ([(0, 5), (0, 8), (8, 2)], 10, 10, [(0, 8), (8, 2)], []),
        ([(3, 5), (4, 2)], 10, 10, [(3, 5)], [(0, 3), (8, 10)]),
        ([(20, 5)], 10, 100, [], [(0, 10)]),
    ],
)
def test_cover(spans, goal, limit, taken, gaps):
    assert cover(spans, goal, limit) == (taken, gaps)


def test_cover_takes_each_sample_once_and_misses_none():
    """Random spans: what is taken is disjoint and within the limit, and with the gaps it is all up to the goal."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        goal = int(rng.integers(0, 40))
        limit = goal + int(rng.integers(0, 2) * rng.integers(0, 20))
        spans = [
            (int(start), int(count)) for start, count in zip(*rng.integers(1, 20, (2, rng.integers(0, 8))), strict=True)
        ]
        spans += [(0, int(rng.integers(1, 20)))]
        taken, gaps = cover(spans, goal, limit)
        assert set(taken) <= set(spans)
        samples = [i for start, count in taken for i in range(start, start + count)]
        missing = [i for start, stop in gaps for i in range(start, stop)]
        assert len(set(samples + missing)) == len(samples + missing)
        assert set(range(goal)) <= set(samples + missing)
        assert max(missing, default=-1) < goal
        assert max(samples, default=-1) < limit or not samples
        # Once the gaps are filled, nothing is missing, and what was taken still is.
        assert cover([*spans, *((start, stop - start) for start, stop in gaps)], goal, limit)[1] == []


def test_joined_adds_adjacent_pieces_only():
    pieces = [
        piece(1, 5, 5), piece(1, 0, 5), piece(1, 0, 5), piece(1, 12, 3), piece(1, 0, 4, noise.SELECTION),
        piece(2, 10, 5), piece(2, 15, 5, digest=8),
    ]  # fmt: skip
    expected = [
        piece(1, 0, 4, noise.SELECTION), piece(1, 0, 10), piece(1, 12, 3), piece(2, 10, 5), piece(2, 15, 5, digest=8)
    ]  # fmt: skip
    assert_same(joined(pieces), expected)


def of_the_format_before(path):
    """What an earlier version would have written in place of a sealed file: no format, and other names."""
    content = sealed.loads(path.read_bytes())
    del content["format"]
    content["plans"] = [{"n": 1000, "radius": None, "precision": None} for _ in content.pop("first_looks")]
    path.write_text(sealed.dumps(content))


@pytest.mark.parametrize("name", ["store/votes.json", "looks-*.json"])
def test_votes_of_the_format_before_are_told_in_one_line(store, name):
    (path,) = store.directory.parent.glob(name)
    of_the_format_before(path)
    with pytest.raises(InputError, match=f"^{path} is of the votes' format 1, .* Move {path.parent} away") as error:
        make(store.directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("n0", [100, 101])
def test_a_shard_of_the_format_before_is_told_in_one_line(store, n0):
    store.ledger().record([piece(1, 0, 5)], {})
    store.compact()
    (shard,) = store.directory.glob("*.parquet")
    about = {**IDENTITY, "num_classes": NUM_CLASSES, "betas": list(BETAS), "plans": [{"n": 1000}]}
    table = pq.read_table(shard).replace_schema_metadata({b"macer_tf": json.dumps(about)})
    shard.unlink()
    content = pa.BufferOutputStream()
    pq.write_table(table, content)
    content = content.getvalue().to_pybytes()
    (store.directory / f"{hashlib.sha256(content).hexdigest()[:32]}.parquet").write_bytes(content)
    (store.directory / "votes.json").unlink()
    next(store.directory.parent.glob("looks-*.json")).unlink()
    with pytest.raises(InputError, match="parquet is of the votes' format 1"):
        make(store.directory.with_name("store" if n0 == 100 else "another n0"), n0=n0)
    assert make(store.directory.with_name("another seed"), seed=4).first_looks == [LOOK]
