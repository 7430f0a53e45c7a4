"""Bundle files: each sample counts once however often it is handed in, and nothing that is not whole is believed."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from apache_beam.utils.shared import Shared

from macer_tf import noise
from pipeline.certification.bundles import Mark
from pipeline.certification.pieces import Chunk, Piece, split
from pipeline.certification.vote_store import VoteStore
from pipeline.certification.workers import HandInVotes
from pipeline.utils.errors import InputError

LOOK = {"n0": 1, "n": 1000, "radii": None, "tolerance": None}
IDENTITY = {"model": "abc", "sigma": 0.5, "seed": 3}


def make(directory, look=LOOK, handed_in=None):
    return VoteStore(directory, IDENTITY, look, 2, (), handed_in)


def piece(start, count):
    return Piece(Chunk(5, 7, noise.ESTIMATION, start, count), np.array([[count, 0]]))


def hand_in(store, pieces, failures=()):
    writer = store.bundle_writer()
    writer.record(pieces, dict(failures))
    writer.hand_in()


def addresses(store):
    return [one.chunk[3:] for one in store.pieces()]


def test_what_is_handed_in_is_read_once_and_moved_to_a_shard(tmp_path):
    store = make(tmp_path / "votes" / "store")
    reader = store.follow_bundles()
    assert reader.poll() == ([], {})
    hand_in(store, [piece(0, 5)], {9: "it is damaged"})
    pieces, failures = reader.poll()
    assert ([one.chunk for one in pieces], failures) == ([piece(0, 5).chunk], {9: "it is damaged"})
    assert reader.poll() == ([], {})
    hand_in(store, [piece(0, 5), piece(5, 4)])  # the first one again
    store.compact()
    assert addresses(store) == [(0, 9)]
    assert list(store.directory.glob("*.votes")) == []


def test_a_bundle_file_that_is_not_whole_or_damaged_is_no_vote_and_waits(tmp_path):
    store = make(tmp_path / "votes" / "store")
    hand_in(store, [piece(0, 5)])
    (path,) = store.directory.glob("*.votes")
    content = path.read_bytes()
    reader = store.follow_bundles()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        assert reader.poll() == ([], {})
    path.write_bytes(content[:-3] + b"9" + content[-2:])
    assert addresses(store) == []
    store.compact()
    assert path.exists()
    path.write_bytes(content)
    assert [one.chunk for one in store.follow_bundles().poll()[0]] == [piece(0, 5).chunk]


def test_votes_handed_in_elsewhere_tell_what_they_were_first_drawn_for(tmp_path):
    """Or a bound for a fixed n would be promised for a second look at the same noise."""
    place = str(tmp_path / "shared")
    hand_in(make(tmp_path / "one" / "store", handed_in=place), [piece(0, 5)])
    other = LOOK | {"n": 2000}
    assert make(tmp_path / "two" / "store", other, place).first_looks == [LOOK]
    assert make(tmp_path / "three" / "store", other).first_looks == [other]


def test_a_mark_stands_alone_and_is_gone_for_those_who_look(tmp_path):
    first, second = Mark(str(tmp_path)), Mark(str(tmp_path))
    first.set()
    assert first.is_set()
    second.set()
    assert len(list(tmp_path.glob("*.wanted"))) == 1
    second.remove()
    second.remove()
    assert list(tmp_path.glob("*.wanted")) == []


def test_what_a_worker_cannot_do_is_told_beside_its_own_mark_and_gone_with_the_next(tmp_path):
    first = Mark(str(tmp_path))
    first.set()
    assert first.refusal() is None
    pickle.loads(pickle.dumps(first)).refuse("The model is not here.")
    assert first.refusal() == "The model is not here."
    second = Mark(str(tmp_path))
    assert second.refusal() is None
    second.set()
    assert first.refusal() is None
    assert len(list(tmp_path.iterdir())) == 1


def test_a_worker_that_cannot_load_the_model_says_so_beside_the_mark(tmp_path):
    def load():
        raise InputError("The model is not here.")

    mark = Mark(str(tmp_path))
    mark.set()
    at_work = HandInVotes(SimpleNamespace(load=load), Shared(), None, mark)
    with pytest.raises(InputError):
        at_work.process([(0, 0, 0, 1, "")])
    assert mark.refusal() == "The model is not here."


@pytest.mark.parametrize(("start", "count"), [(0, 10), (3, 4), (3, 20), (8, 8)])
def test_a_long_chunk_is_split_on_the_grid(start, count):
    parts = list(split(piece(start, count).chunk, 4))
    assert [sample for part in parts for sample in range(part.start, part.start + part.count)] == list(
        range(start, start + count)
    )
    assert all(part.start // 4 == (part.start + part.count - 1) // 4 for part in parts)
