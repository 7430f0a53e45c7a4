"""Votes: how often the base classifier returned each class on an image's noisy copies. They add up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from macer_tf.checks import as_array

# Soft scores, the softmax probabilities p, are counted in whole units: u = floor(p * UNITS). Sums of whole numbers are
# the same in any order, and u / UNITS <= p, so that a lower bound on the mean of u is one on the mean of p.
UNITS = 2**20
# Sums of squares of up to UNITS each stay below 2**63.
MAX_SOFT_SAMPLES = 2**22
# Far above what can be drawn, and as far as the bounds were compared with exact ones.
MOST_SAMPLES = 2**40


@dataclass(frozen=True, eq=False)
class SoftMoments:
    """First two moments of the soft scores at one inverse temperature, in `UNITS` (SAMPLEUNDERNOISE, Algorithm 2).

    Attributes:
        sums, squares: int64 [images, classes], sums of u and of u * u over the estimation samples.
        selection_sums: int64 [images, classes], sums of u over the selection samples, which choose the class.
    """

    sums: np.ndarray
    squares: np.ndarray
    selection_sums: np.ndarray

    @classmethod
    def zeros(cls, num_images: int, num_classes: int) -> SoftMoments:
        """No samples yet."""
        return cls(*np.zeros((3, num_images, num_classes), np.int64))

    def mean(self, n: ArrayLike) -> np.ndarray:
        """float64 [images, classes]: mean score in [0, 1] of n estimation samples [images]; 0 where n is 0."""
        return self.sums / (np.maximum(n, 1)[:, None] * float(UNITS))

    def variance(self, n: ArrayLike) -> np.ndarray:
        """float64 [images, classes]: unbiased sample variance (Eq. 25 of the paper); 0 where n is below 2."""
        n = np.asarray(n, np.int64)[:, None]
        # Centred at a whole number next to the mean, exactly: floats would cancel, and n times the squares overflow.
        centre = self.sums // np.maximum(n, 1)
        rest = self.sums - n * centre
        centred = self.squares - centre * (self.sums + rest)
        return (centred - rest * (rest / np.maximum(n, 1))) / (np.maximum(n - 1, 1) * float(UNITS) ** 2)

    def __add__(self, other: SoftMoments) -> SoftMoments:
        return SoftMoments(
            self.sums + other.sums, self.squares + other.squares, self.selection_sums + other.selection_sums
        )


@dataclass(frozen=True, eq=False, repr=False)
class Votes:
    """Class counts of a set of images, kept separately for choosing the class and for bounding its probability.

    Votes of disjoint samples add: `a + b`, identical to the bit in any order. The caller must make sure that no sample
    is counted twice. Two results of `SmoothedClassifier.votes` with one seed and ids begin with the same samples, and
    are refused.

    Examples:
        >>> import numpy as np
        >>> from macer_tf import Votes
        >>> votes = Votes(selection=np.array([[8, 2], [1, 9]]), estimation=np.array([[95, 5], [30, 70]]))
        >>> votes
        Votes(2 images, 2 classes, n0=10, n=100)
        >>> votes.selected
        array([0, 1])
        >>> (votes + votes).n
        array([200, 200])

    Attributes:
        selection: int64 [images, classes], counts of the samples that choose a class (n0 of them).
        estimation: int64 [images, classes], counts of the independent samples that bound its probability (n).
        soft: inverse temperature beta -> `SoftMoments` of the same samples, for Soft-RS; empty if there are none.
        uniforms: float64 [images] in [0, 1], independent of the samples: `noise.uniforms`, for a randomised bound; None
            if there are none.

    Raises:
        ValueError: if shapes differ, a count is negative, an image has more than 2^40 votes, soft moments do not match
            the numbers of samples, or uniforms are not in [0, 1].
    """

    selection: np.ndarray
    estimation: np.ndarray
    soft: dict[float, SoftMoments] = field(default_factory=dict)
    uniforms: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(counts, np.ndarray) for counts in (self.selection, self.estimation)):
            raise ValueError(
                f"Votes need NumPy arrays [images, classes]. Received: selection {type(self.selection).__name__}, "
                f"estimation {type(self.estimation).__name__}"
            )
        for name in ("selection", "estimation"):
            # The sums of a masked array or a matrix would be different.
            object.__setattr__(self, name, as_array(f"The {name} votes", getattr(self, name)))
        if self.selection.ndim != 2 or self.selection.shape != self.estimation.shape:
            raise ValueError(
                f"Votes need two arrays [images, classes] of one shape. Received: selection {self.selection.shape}, "
                f"estimation {self.estimation.shape}"
            )
        for counts in (self.selection, self.estimation):
            check_counts(counts)
        if not isinstance(self.soft, dict) or not all(isinstance(one, SoftMoments) for one in self.soft.values()):
            raise ValueError(f"Soft votes are a dict, beta -> `SoftMoments`. Received: {self.soft!r:.100}")
        for beta, moments in self.soft.items():
            self._check_soft(beta, moments)
        if self.uniforms is not None and not (
            isinstance(self.uniforms, np.ndarray)
            and self.uniforms.dtype.kind in "iuf"
            and self.uniforms.shape == (len(self.selection),)
            and ((self.uniforms >= 0) & (self.uniforms <= 1)).all()
        ):
            raise ValueError(f"Uniforms are one number in [0, 1] per image. Received: {self.uniforms}")

    @classmethod
    def zeros(cls, num_images: int, num_classes: int, betas: Iterable[float] = ()) -> Votes:
        """No votes yet, with soft moments at each of `betas`."""
        soft = {float(beta): SoftMoments.zeros(num_images, num_classes) for beta in betas}
        selection, estimation = np.zeros((2, num_images, num_classes), np.int64)
        return cls(selection, estimation, soft)

    def __repr__(self) -> str:
        numbers = f"n0={numbers_in_words(self.n0)}, n={numbers_in_words(self.n)}"
        soft = f", soft at beta={', '.join(f'{beta:g}' for beta in self.soft)}" if self.soft else ""
        return f"Votes({images_in_words(len(self.n))}, {self.selection.shape[1]:,} classes, {numbers}{soft})"

    @property
    def n0(self) -> np.ndarray:
        """int64 [images]: selection samples."""
        return self.selection.sum(axis=1)

    @property
    def n(self) -> np.ndarray:
        """int64 [images]: estimation samples."""
        return self.estimation.sum(axis=1)

    @property
    def selected(self) -> np.ndarray:
        """int64 [images]: the most frequent class of the selection samples, the first one on a tie."""
        return self.selection.argmax(axis=1)

    def __add__(self, other: Votes) -> Votes:
        if not isinstance(other, Votes):
            return NotImplemented
        if self.selection.shape != other.selection.shape:
            # NumPy would broadcast one image's votes over all the others.
            raise ValueError(
                f"Only votes for the same images and classes can be added. Received: {self.selection.shape} and "
                f"{other.selection.shape}"
            )
        if self.soft.keys() != other.soft.keys():
            raise ValueError(
                f"Only votes with soft moments at the same betas can be added. Received: {sorted(self.soft)} and "
                f"{sorted(other.soft)}"
            )
        if (self.uniforms is None) != (other.uniforms is None) or np.any(self.uniforms != other.uniforms):
            raise ValueError("Only votes with the same uniforms can be added. Received: different ones, or none.")
        if self.uniforms is not None and ((self.n0 > 0) & (other.n0 > 0)).any():
            # The uniforms tell that seed and ids are the same, so both begin with the same samples.
            raise ValueError(
                "Votes of one seed and the same ids, such as two results of `SmoothedClassifier.votes`, begin with the "
                "same samples, which would be counted twice. Draw further ones with `SmoothedClassifier.draw`, from "
                "start n on, and add them as estimation votes without selection votes. Received: both have selection "
                "votes"
            )
        return Votes(
            self.selection + other.selection,
            self.estimation + other.estimation,
            {beta: moments + other.soft[beta] for beta, moments in self.soft.items()},
            self.uniforms,
        )

    def _check_soft(self, beta, moments):
        if not (isinstance(beta, float) and 0 < beta < np.inf):
            raise ValueError(f"beta, the inverse temperature, is a float above 0. Received: {beta!r}")
        arrays = (moments.sums, moments.squares, moments.selection_sums)
        if any(array.dtype != np.int64 or array.shape != self.selection.shape for array in arrays):
            raise ValueError(
                f"Soft moments are int64 arrays {self.selection.shape}. Received: "
                + ", ".join(f"{array.dtype} {array.shape}" for array in arrays)
            )
        most = max(self.n0.max(initial=0), self.n.max(initial=0))
        if most > MAX_SOFT_SAMPLES:
            raise ValueError(f"Soft moments hold up to {MAX_SOFT_SAMPLES:,} samples per image. Received: {most:,}")
        if not (
            _are_scores(moments.sums, self.n)
            and _are_scores(moments.selection_sums, self.n0)
            # 0 <= u <= UNITS, so u <= u * u <= u * UNITS; and no variance is negative.
            and (moments.squares >= moments.sums).all()
            and (moments.squares <= moments.sums * UNITS).all()
            and (moments.variance(self.n) >= 0).all()
        ):
            raise ValueError(f"The soft moments at beta={beta:g} do not match the numbers of samples.")


def check_counts(counts: np.ndarray) -> None:
    """Raises a one-line ValueError unless these are class counts: int64 [images, classes] from 0, up to 2^40."""
    if counts.dtype != np.int64 or (counts < 0).any():
        raise ValueError(f"Votes are int64 counts from 0. Received: dtype={counts.dtype}, min={counts.min(initial=0)}")
    most = counts.sum(axis=1, dtype=np.float64).max(initial=0)
    if most > MOST_SAMPLES:
        raise ValueError(f"Votes hold up to 2^40 samples per image. Received: {most:g}")


def check_votes(votes: Votes) -> None:
    """Raises a one-line ValueError for anything but `Votes`."""
    if not isinstance(votes, Votes):
        raise ValueError(f"Expected `Votes`, as `SmoothedClassifier.votes` returns. Received: {type(votes).__name__}")


def numbers_in_words(numbers: ArrayLike) -> str:
    """Numbers of samples for a short repr: the one that all images share, or the least and the most, "100 to 5,000"."""
    least, most = np.min(numbers, initial=2**63 - 1), np.max(numbers, initial=0)
    return f"{most:,}" if least >= most else f"{least:,} to {most:,}"


def images_in_words(number: int) -> str:
    """A number of images: "1 image", "2,000 images"."""
    return f"{number:,} image{'' if number == 1 else 's'}"


def _are_scores(sums, n):
    # A sample's scores add up to at most 1 before they are floored.
    return (sums >= 0).all() and (sums <= n[:, None] * UNITS).all() and (sums.sum(axis=1) <= n * UNITS).all()
