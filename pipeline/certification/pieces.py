"""Chunks of samples of one image's noise stream, and how the drawn ones cover it."""

import itertools
from typing import NamedTuple

import numpy as np

from macer_tf import noise


class Chunk(NamedTuple):
    """Samples `start` to `start + count - 1` of one example's noise stream; `digest` identifies its image."""

    example_id: int
    digest: int
    stream: int
    start: int
    count: int  # type: ignore[assignment]  # number of samples; hides a tuple's method, which is not used


class Piece(NamedTuple):
    """A chunk that was drawn.

    Attributes:
        chunk: `Chunk`.
        votes: int64 [1 + 2 * betas, classes]: class counts, then each beta's sums and squares, as `smoothing.Drawn`.
    """

    chunk: Chunk
    votes: np.ndarray


def cover(spans, goal, limit):
    """Which spans of one stream to use for its samples 0 to goal - 1, each sample once, and what is missing.

    Args:
        spans: (start, count) of pieces, in any order; they may overlap.
        goal: number of samples.
        limit: spans that reach beyond this sample are not used; at least `goal`.

    Returns:
        The spans used, one after another; and the gaps below `goal`, as (start, stop).
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
    """The pieces by ascending address, each once, with adjacent ones merged."""
    whole = []
    for chunk, votes in sorted({piece.chunk: piece.votes for piece in pieces}.items(), key=lambda item: item[0]):
        last = whole[-1].chunk if whole else None
        if last and chunk[:3] == last[:3] and chunk.start == last.start + last.count:
            whole[-1] = Piece(last._replace(count=last.count + chunk.count), whole[-1].votes + votes)
        else:
            whole.append(Piece(chunk, votes))
    return whole


def split(chunk, size):
    """Splits a chunk at multiples of `size` samples, so that wherever it begins, its parts are the same samples."""
    first, stop = chunk.start, chunk.start + chunk.count
    for start in itertools.chain((first,), range((first // size + 1) * size, stop, size)):
        yield chunk._replace(start=start, count=min((start // size + 1) * size, stop) - start)


def fits(chunk, votes, shape):
    """Whether these can be a chunk and its votes: int64, of this shape."""
    is_address = all(0 <= field < 2**63 for field in chunk) and chunk.count > 0 and chunk.stream in noise.STREAMS
    return is_address and votes.shape == shape and votes.min() >= 0 and votes[0].sum() == chunk.count
