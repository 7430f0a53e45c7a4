"""The ledger gives back what was counted, passes over what is damaged, and can be followed while it grows."""

import json

import numpy as np
import pytest

from pipeline.ledger import Chunk, LedgerReader, LedgerWriter

CLASSES = 3
FIRST, SECOND, THIRD = (Chunk(7, 0, 0, 10), Chunk(7, 1, 0, 100), Chunk(7, 1, 100, 50))
WANTED = [FIRST, SECOND, THIRD]
COUNTS = {FIRST: [10, 0, 0], SECOND: [90, 4, 6], THIRD: [0, 50, 0]}


def line(chunk, counts):
    return json.dumps([*chunk, counts]) + "\n"


def read(directory, wanted=WANTED):
    reader = LedgerReader(directory, wanted, CLASSES)
    samples = reader.poll()
    assert samples == sum(chunk.count for chunk in reader.counts)
    return {chunk: counts.tolist() for chunk, counts in reader.counts.items()}


def test_what_writers_record_is_read_back(tmp_path):
    writers = [LedgerWriter(tmp_path), LedgerWriter(tmp_path)]
    for i, chunk in enumerate(WANTED):
        writers[i % 2].record(chunk, np.array(COUNTS[chunk]))
        # On disk as soon as it is recorded, not when the file is closed.
        assert read(tmp_path) == {chunk: COUNTS[chunk] for chunk in WANTED[: i + 1]}
    for writer in writers:
        writer.close()
    assert len(list(tmp_path.iterdir())) == 2


def test_an_empty_ledger(tmp_path):
    assert read(tmp_path) == {}
    LedgerWriter(tmp_path).close()
    (tmp_path / "ledger.json").write_text("{}")
    assert read(tmp_path) == {}


@pytest.mark.parametrize("length", range(1, len(line(SECOND, COUNTS[SECOND]))))
def test_a_torn_last_line_is_not_counted(tmp_path, length):
    torn = line(SECOND, COUNTS[SECOND])[:length]
    (tmp_path / "a.jsonl").write_text(line(FIRST, COUNTS[FIRST]) + torn)
    assert read(tmp_path) == {FIRST: COUNTS[FIRST]}


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"not json",
        b"\xff\xfe\x00\x01",
        b"null",
        b"7",
        b"{}",
        b"[]",
        b"[7, 1, 0, 100]",
        b"[7, 1, 0, [90, 4, 6]]",
        b'[7, 1, 0, 100, "990"]',
        b"[7, 1, 0, 100, [90, 4, [6]]]",
        b"[[7], 1, 0, 100, [90, 4, 6]]",
        b"[7, 1, 0, 100, [1000000000000000000000000000000, 4, 6]]",
        b"[7, 1, 0, 100, [90, 4, 6]] [",
        b"[7, 1, 0, 100, 100]",
        # Votes that do not sum, negative ones, and too many or too few classes.
        b"[7, 1, 0, 100, [90, 4, 5]]",
        b"[7, 1, 0, 100, [90, 4, 7]]",
        b"[7, 1, 0, 100, [110, -4, -6]]",
        b"[7, 1, 0, 100, [90, 4, 6, 0]]",
        b"[7, 1, 0, 100, [96, 4]]",
        # Whole, but of another run: another example, stream, start, or chunk size.
        b"[8, 1, 0, 100, [90, 4, 6]]",
        b"[7, 0, 0, 100, [90, 4, 6]]",
        b"[7, 1, 50, 100, [90, 4, 6]]",
        b"[7, 1, 0, 99, [90, 4, 5]]",
    ],
)
def test_a_damaged_or_foreign_line_is_passed_over(tmp_path, garbage):
    (tmp_path / "a.jsonl").write_bytes(
        line(FIRST, COUNTS[FIRST]).encode() + garbage + b"\n" + line(THIRD, COUNTS[THIRD]).encode()
    )
    assert read(tmp_path) == {FIRST: COUNTS[FIRST], THIRD: COUNTS[THIRD]}


def test_a_chunk_drawn_twice_counts_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(line(FIRST, COUNTS[FIRST]) + line(SECOND, COUNTS[SECOND]) * 2)
    assert read(tmp_path) == {FIRST: COUNTS[FIRST], SECOND: COUNTS[SECOND]}


def test_a_growing_ledger_is_followed(tmp_path):
    reader = LedgerReader(tmp_path, WANTED, CLASSES)
    assert reader.poll() == 0
    with open(tmp_path / "a.jsonl", "w") as file:
        text = line(FIRST, COUNTS[FIRST]) + line(SECOND, COUNTS[SECOND])
        for i, character in enumerate(text):
            file.write(character)
            file.flush()
            first_is_whole = i + 1 >= len(line(FIRST, COUNTS[FIRST]))
            assert reader.poll() == 10 * first_is_whole + 100 * (i + 1 == len(text))
    (tmp_path / "b.jsonl").write_text(line(THIRD, COUNTS[THIRD]))
    assert reader.poll() == 160
    assert reader.poll() == 160
    assert reader.counts.keys() == set(WANTED)


def test_only_what_is_wanted_is_taken(tmp_path):
    """Runs over different numbers of test images share a ledger."""
    (tmp_path / "a.jsonl").write_text("".join(line(chunk, COUNTS[chunk]) for chunk in WANTED))
    assert read(tmp_path, [SECOND]) == {SECOND: COUNTS[SECOND]}
