"""Budgets: how many more estimation samples each image needs. Each certifies by a bound valid for its stopping rule.

    budget = RadiusBudget(0.5, n=100_000)
    while (more := budget.more(votes, sigma, alpha)).any():
        votes += ...  # `more` further estimation samples of each image, drawn from start `votes.n` on
    certificates = budget.certify(votes, sigma, alpha)

Whatever a budget decides, its certificates hold at alpha; it decides only how many samples they cost.
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from macer_tf import bounds, certificates
from macer_tf.certificates import Certificates
from macer_tf.checks import check_labels, is_number, is_whole
from macer_tf.confidence import anytime_lower, anytime_upper, check_alpha, clopper_pearson_lower
from macer_tf.votes import MOST_SAMPLES, Votes, check_votes

# Samples are drawn in multiples of this, except perhaps the last ones before n.
BLOCK = 100
_GROWTH = 1.5
# Points of equal weight of a Beta distribution, the posterior of p_A after the selection votes. Its prior leans towards
# 1, where most images of a trained model are. Certificates hold with any prior; it only affects how good the plan is.
_PRIOR = (0.5, 0.05)
_QUANTILES = (np.arange(16) + 0.5) / 16


class _Budget:
    """What the budgets share: `n`, the most estimation samples of any image."""

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _checked(self.n))

    def more(self, votes: Votes, sigma: float, alpha: float, labels: ArrayLike | None = None) -> np.ndarray:
        """How many more estimation samples to draw for each image; 0 where it is decided.

        Args:
            votes: `Votes` with all selection votes and the estimation votes so far.
            sigma, alpha: what the certificates will be for, the same at every call.
            labels: as `evaluate` takes them, in an EVALUATION only: images whose selected class, by hard votes, is not
                the label get no estimation samples. Certified accuracy and ACR are the same as without labels, because
                such an image counts as 0 whatever its votes; how many of them would abstain stays unknown. Outside an
                evaluation, the user is owed the certificate of a wrong class too.

        Returns:
            int64 [images].

        Raises:
            ValueError: if sigma or alpha is out of range, n samples could never reach what is asked for, an image has
                no selection votes or more than n estimation votes, or the labels are not one whole number from -1 per
                image.
        """
        check_votes(votes)
        sigma, alpha = certificates.check_sigma(sigma), check_alpha(alpha)
        self._check_can_reach(sigma, alpha)
        if (votes.n0 < 1).any() or (votes.n > self.n).any():
            raise ValueError(
                f"A budget needs selection votes and at most n={self.n} estimation votes for every image. Received: "
                f"as few as {votes.n0.min()} selection votes, as many as {votes.n.max()} estimation votes."
            )
        more = np.maximum(np.minimum(self._goal(votes, sigma, alpha), self.n) - votes.n, 0)
        if labels is None:
            return more
        return np.where(votes.selected == check_labels(labels, len(more)), more, 0)

    def _goal(self, votes: Votes, sigma: float, alpha: float) -> np.ndarray:
        """How many estimation samples each image should have, int64 [images]."""
        raise NotImplementedError

    def _check_can_reach(self, sigma, alpha):
        certificates.check_can_certify(self.n, alpha)


@dataclass(frozen=True)
class FixedBudget(_Budget):
    """n estimation samples for every image, as in CERTIFY (Cohen et al. 2019).

    Examples:
        >>> import numpy as np
        >>> from macer_tf import FixedBudget, Votes
        >>> votes = Votes(selection=np.array([[9, 1]]), estimation=np.array([[390, 10]]))
        >>> FixedBudget(1000).more(votes, sigma=0.25, alpha=0.001)
        array([600])
    """

    n: int

    def certify(
        self, votes: Votes, sigma: float, alpha: float, bound: str = bounds.DEFAULT, beta: float | None = None
    ) -> Certificates:
        """`certificates.certify` by any bound; by a soft one, only if no image was left out because of its label.

        Raises:
            ValueError: for an image whose number of estimation votes is not n, or not 0 if it was left out; see also
                `certificates.certify`.
        """
        check_votes(votes)
        # Images are left out by the class that hard votes select, which may not be the soft votes' class.
        left_out = (votes.n == 0) & (beta is None)
        fixed_n = np.where(left_out, 0, self.n) if bounds.get(bound).needs_fixed_n else None
        return certificates.certify(votes, sigma, alpha, bound, beta, fixed_n)

    def _goal(self, votes, sigma, alpha):
        return np.full(votes.n.shape, self.n)


@dataclass(frozen=True)
class RadiusBudget(_Budget):
    """Draws until it is decided whether the image is certified at a radius, or at each of several; at most n samples.

    Half of alpha goes to `anytime_lower`, at each look, and half to `clopper_pearson_lower`, at one look that is fixed
    beforehand: after n samples. An image is decided at a radius once one of them certifies it there, which is false
    with probability at most alpha; or once `anytime_upper` shows that its class's probability is below the share of
    votes that n samples would need to certify it, which is also false with probability at most alpha. In the second
    case, and if it is undecided after n samples, the image is not certified at the radius. All three are bounds on the
    same probability, whatever the radius, so several radii share alpha without splitting it. An image is done when it
    is decided at each of them. Certificates may hold beyond the radii, but are smaller there than more samples would
    make them: the ACR of such a run is not the model's.

    Examples:
        >>> import numpy as np
        >>> from macer_tf import RadiusBudget, Votes
        >>> budget = RadiusBudget(radius=0.25, n=100_000)
        >>> selection = np.array([[100, 0], [100, 0], [60, 40]])
        >>> votes = Votes(selection, estimation=np.array([[0, 0], [500, 0], [300, 200]]))
        >>> budget.more(votes, sigma=0.25, alpha=0.001)  # the second image is certified, the third never will be
        array([100,   0,   0])

    Attributes:
        radius: in units of a pixel in [0, 1], from 0; or a tuple of several. Radii that n samples cannot certify need
            no decision, unless there are no others.
        n: the most estimation samples of any image.
    """

    radius: float | tuple[float, ...]
    n: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.radii or not all(is_number(radius) and 0 <= radius < np.inf for radius in self.radii):
            raise ValueError(
                f"radius must be a finite number from 0, or a tuple of such numbers. Received: radius={self.radius!r}"
            )

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii to decide at, as a tuple."""
        return self.radius if isinstance(self.radius, tuple) else (self.radius,)

    def certify(self, votes: Votes, sigma: float, alpha: float) -> Certificates:
        """`Certificates` after any number of samples, by the better of the two bounds.

        Raises:
            ValueError: as `certificates.certify`.
        """
        check_votes(votes)
        sigma, alpha = certificates.check_sigma(sigma), check_alpha(alpha)
        certified = certificates.certify(votes, sigma, alpha / 2, bound="anytime")
        p_lower = _lower(_successes(votes), votes.n, self.n, alpha)
        passed = p_lower > 0.5
        return replace(
            certified,
            predictions=np.where(passed, certified.selected, certificates.ABSTAIN),
            radii=certificates.radius(p_lower, sigma),
            p_lower=p_lower,
            alpha=alpha,
        )

    def _goal(self, votes, sigma, alpha):
        successes, n = _successes(votes), votes.n
        upper = anytime_upper(successes, n, alpha)
        largest = certificates.max_radius(sigma, self.n, alpha / 2)
        decided = np.full(n.shape, True)
        for radius in self.radii:
            if radius <= largest:
                enough = _fewest_successes(radius, self.n, sigma, alpha) / self.n
                decided &= _reached(radius, successes, n, self.n, sigma, alpha) | (upper < enough)
        return np.where(decided, n, _blocks(np.maximum(n * _GROWTH, BLOCK)))

    def _check_can_reach(self, sigma, alpha):
        certificates.check_can_certify(self.n, alpha, share=0.5)
        largest = certificates.max_radius(sigma, self.n, alpha / 2)
        if min(self.radii) > largest:
            raise ValueError(
                f"n={self.n} samples certify up to radius {largest} at sigma={sigma:g}, alpha={alpha:g}. Received: "
                f"radius={self.radius}"
            )


@dataclass(frozen=True)
class ToleranceBudget(_Budget):
    """As many samples as bring the radius within a relative `tolerance` of what n samples are expected to give.

    The number is planned for each image from its SELECTION votes alone, using the expected radius under a Beta
    posterior of the class's probability; where the radius is expected to be 0 either way, one block is planned. The
    estimation samples are independent of the selection votes, so their number is fixed before any of them is seen:
    Clopper-Pearson holds at full alpha, though numbers differ between images. (A bound that allows for looks costs 1 %
    of the ACR by itself.) All are drawn in one go. The more precisely the selection votes determine the probability,
    the better the plan: an n0 of 500 to 1,000 is worth its samples. Where all votes agree, the radius grows with every
    sample, and little can be saved: getting within 1 % of 100,000 samples, at alpha = 0.001, takes 85,800.

    Examples:
        >>> import numpy as np
        >>> from macer_tf import ToleranceBudget, Votes
        >>> votes = Votes(selection=np.array([[1000, 0], [800, 200]]), estimation=np.zeros((2, 2), np.int64))
        >>> ToleranceBudget(0.01, n=100_000).more(votes, sigma=0.25, alpha=0.001)
        array([84500, 39500])

    Attributes:
        tolerance: in (0, 1).
        n: the most estimation samples of any image.
    """

    tolerance: float
    n: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.tolerance) and 0 < self.tolerance < 1):
            raise ValueError(f"tolerance must be above 0 and below 1. Received: tolerance={self.tolerance!r}")

    def certify(self, votes: Votes, sigma: float, alpha: float) -> Certificates:
        """`certificates.certify` by Clopper-Pearson.

        Raises:
            ValueError: for an image whose number of estimation votes is neither the planned one nor 0; see also
                `certificates.certify`.
        """
        check_votes(votes)
        sigma, alpha = certificates.check_sigma(sigma), check_alpha(alpha)
        return certificates.certify(
            votes, sigma, alpha, fixed_n=np.where(votes.n > 0, self._goal(votes, sigma, alpha), 0)
        )

    def _goal(self, votes, sigma, alpha):
        # Images with the same selection votes have the same plan.
        pairs, inverse = np.unique(
            np.stack([votes.selection.max(axis=1), votes.n0], axis=1), axis=0, return_inverse=True
        )
        successes, n0 = pairs[:, :1], pairs[:, 1:]
        p = special.betaincinv(successes + _PRIOR[0], n0 - successes + _PRIOR[1], _QUANTILES)

        def radius(n):
            # Clopper-Pearson at n * p successes, in units of sigma, averaged over p.
            lower = special.betaincinv(np.maximum(n * p, 1e-9), n * (1 - p) + 1, alpha)
            return np.maximum(special.ndtri(lower), 0).mean(axis=1)

        enough = (1 - self.tolerance) * radius(self.n)
        fewest = np.ones(len(pairs), np.int64)
        most = np.full(len(pairs), -(-self.n // BLOCK))
        while (fewest < most).any():
            middle = (fewest + most) // 2
            reached = radius(middle[:, None] * BLOCK) >= enough
            most = np.where(reached, middle, most)
            fewest = np.where(reached, fewest, np.minimum(middle + 1, most))
        return np.minimum(most * BLOCK, self.n)[inverse.ravel()]


def _checked(n):
    """n as a Python int, because NumPy's narrower ones overflow."""
    if not is_whole(n) or not 1 <= n <= MOST_SAMPLES:
        raise ValueError(
            f"n, the most samples per image, must be a whole number from 1 to {MOST_SAMPLES:,}. Received: n={n}"
        )
    return int(n)


def _successes(votes):
    return np.take_along_axis(votes.estimation, votes.selected[:, None], axis=1)[:, 0]


def _lower(successes, n, most, alpha):
    """RadiusBudget's bound on the class's probability after n of `most` samples."""
    anytime = anytime_lower(successes, n, alpha / 2)
    lower = np.where(n == most, np.maximum(anytime, clopper_pearson_lower(successes, n, alpha / 2)), anytime)
    return certificates.round_down(lower)


def _reached(radius, successes, n, most, sigma, alpha):
    lower = _lower(successes, n, most, alpha)
    return (lower > 0.5) & (certificates.radius(lower, sigma) >= radius)


@functools.lru_cache
def _fewest_successes(radius, n, sigma, alpha):
    """The fewest of n votes that certify at the radius."""
    return bisect.bisect_left(range(n + 1), True, key=lambda successes: _reached(radius, successes, n, n, sigma, alpha))


def _blocks(samples):
    return np.ceil(samples / BLOCK).astype(np.int64) * BLOCK
