"""Votes -> certificates: the statistics of CERTIFY and PREDICT (Cohen et al. 2019). No sampling happens here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from macer_tf import bounds
from macer_tf.checks import as_array, check_unmasked, is_number
from macer_tf.confidence import SAMPLES_OFF, check_alpha
from macer_tf.votes import Votes, check_counts, check_votes, images_in_words, numbers_in_words

if TYPE_CHECKING:
    import pandas as pd

ABSTAIN = -1
# Taken off p_lower, and off a radius: more than the errors of `confidence`'s inverse incomplete beta function and of
# SciPy's inverse normal distribution (1e-14 for up to 2^40 samples, and 1e-15), and more than `GridNoise`'s error in
# total variation (2^-54).
_ROUNDING, _RADIUS_ROUNDING = 1e-13, 1e-14
# Added to a p-value, times the root of the votes, as a part of itself: more than the rounding error of SciPy's binomial
# distribution, whose relative error grows like that, to 4e-10 at 2^40 votes.
_P_ROUNDING = 1e-14
# At a sigma within these limits, a radius is a float of full precision.
_LEAST_SIGMA, _LARGEST_SIGMA = 1e-100, 1e100
# None of our bounds needs more samples to certify a unanimous vote, at any alpha that float64 can hold.
_ENOUGH = 5000


@dataclass(frozen=True, eq=False, repr=False)
class Certificates:
    """What is certified about the smoothed classifier at each image; each is false with probability at most alpha.

    `len` is the number of images; an index, a slice or a mask gives the `Certificates` of those images.

    Examples:
        >>> import numpy as np
        >>> from macer_tf import Votes, certify
        >>> votes = Votes(selection=np.array([[100, 0], [60, 40]]), estimation=np.array([[10_000, 0], [5_000, 5_000]]))
        >>> certificates = certify(votes, sigma=0.25, alpha=0.001)
        >>> certificates
        Certificates(2 images, sigma=0.25, n=10,000, alpha=0.001: 50.0 % certified)
        >>> certificates[0].radii.round(3)
        array([0.8])
        >>> certificates.to_frame().round(3)
               prediction  radius  p_lower  selected      n
        image
        0               0     0.8    0.999         0  10000
        1              -1     0.0    0.485         0  10000

    Attributes:
        predictions: int64 [images], a class or ABSTAIN (-1).
        radii: float64 [images], certified l2 radius in units of a pixel in [0, 1]; 0 where it abstains.
        p_lower: float64 [images], lower confidence bound on the selected class's probability or mean soft score.
        selected: int64 [images], the class that selection chose, even where the prediction is ABSTAIN.
        sigma, alpha: what the certificates hold for.
        n0: selection samples of each image.
        n: estimation samples of each image; int64 [images] where images differ.
        bound: name of the bound that p_lower is.
        beta: inverse temperature of the soft-smoothed classifier that they are about; None for the hard one.
    """

    predictions: np.ndarray
    radii: np.ndarray
    p_lower: np.ndarray
    selected: np.ndarray
    sigma: float
    alpha: float
    n0: int
    n: int | np.ndarray
    bound: str = bounds.DEFAULT
    beta: float | None = None

    def __len__(self) -> int:
        return len(self.predictions)

    def __getitem__(self, images: int | slice | Sequence[int] | np.ndarray) -> Certificates:
        check_unmasked("The index", images)
        places = np.atleast_1d(np.arange(len(self))[images])
        if places.ndim > 1:
            raise IndexError(
                f"An index must be one number, a slice, or one row of numbers or bools. Received: {images}"
            )
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        per_image: dict[str, Any] = {name: value[places] for name, value in values if isinstance(value, np.ndarray)}
        return replace(self, **per_image)

    def __repr__(self) -> str:
        others = "" if self.bound == bounds.DEFAULT else f", bound={self.bound}"
        others += "" if self.beta is None else f", beta={self.beta:g}"
        share = f": {100 * np.mean(self.predictions != ABSTAIN):.1f} % certified" if len(self) else ""
        return (
            f"Certificates({images_in_words(len(self))}, sigma={self.sigma:g}, n={numbers_in_words(self.n)}, "
            f"alpha={self.alpha:g}{others}{share})"
        )

    def to_frame(self) -> pd.DataFrame:
        """A pandas DataFrame with one row per image: its prediction, radius, p_lower, selected class and n."""
        import pandas as pd

        columns = {"prediction": self.predictions, "radius": self.radii, "p_lower": self.p_lower}
        columns |= {"selected": self.selected, "n": np.broadcast_to(self.n, self.predictions.shape)}
        return pd.DataFrame(columns, index=pd.RangeIndex(len(self), name="image"))


def certify(
    votes: Votes,
    sigma: float,
    alpha: float,
    bound: str = bounds.DEFAULT,
    beta: float | None = None,
    fixed_n: ArrayLike | None = None,
) -> Certificates:
    """CERTIFY: the class that selection chose, with a radius if the bound on its probability is above 1/2.

    With probability at least 1 - alpha over the noise, an image's certificate holds: the smoothed classifier returns
    `predictions` everywhere within the l2 radius `sigma * Phi^-1(p_lower)`. When each bound holds:

    - "clopper-pearson" (Cohen et al. 2019, Theorem 1 and Proposition 2): for n fixed before the estimation samples
      were seen, not for an n chosen after a look at them. Votes do not show this: after a budget, use its `certify`.
    - "anytime": about the same classifier and class; n may differ between images and may depend on looks.
    - "randomized-clopper-pearson" (Stevens, 1950; arXiv 2406.17830): as Clopper-Pearson, and above it for nearly every
      image; the votes must hold `uniforms`, each drawn once. Its failure probability is at most alpha, and close to it.
    - "hoeffding", "empirical-bernstein" (Algorithm 2 of the paper, Soft-RS): about another classifier, which returns
      the class with the largest mean softmax at inverse temperature `beta`; its class is selected by soft scores. n
      must be fixed beforehand.

    Others are registered with `bounds.register`. An image without estimation samples gets ABSTAIN.

    Examples:
        >>> import numpy as np
        >>> from macer_tf import Votes, certify
        >>> votes = Votes(selection=np.array([[9, 1]]), estimation=np.array([[990, 10]]))
        >>> certify(votes, sigma=0.5, alpha=0.001).radii.round(3)
        array([0.989])

    Args:
        votes: `Votes`, the same n0 for every image, and the same n unless `fixed_n` is given or the bound is anytime.
        sigma: noise level the votes were drawn at.
        alpha: failure probability for each image.
        bound: see above.
        beta: inverse temperature, for the soft bounds only; the votes must hold soft moments at it.
        fixed_n: int64 [images], if numbers of estimation samples differ but were fixed without looking at any of them:
            the planned numbers. 0 means that an image was not to be estimated.

    Returns:
        `Certificates`.

    Raises:
        ValueError: if alpha, sigma, bound or beta is out of range, there are fewer than two classes, or the images'
            numbers of samples are not what was fixed, or are so small that no image could ever be certified.
    """
    check_votes(votes)
    sigma, alpha = check_sigma(sigma), check_alpha(alpha)
    chosen = bounds.get(bound)
    _check_beta(chosen, beta, votes.soft)
    if chosen.is_randomized and votes.uniforms is None:
        raise ValueError(f"The {bound} bound needs votes with uniforms, see `noise.uniforms`. Received: none")
    n0 = _same(votes.n0, "n0")
    if votes.estimation.shape[1] < 2:
        # All votes would be for it, whatever the images are.
        raise ValueError(
            f"CERTIFY needs votes [images, classes], 2 classes or more. Received: {votes.estimation.shape}"
        )
    n = _n(votes.n, chosen, fixed_n)
    if chosen.needs_fixed_n and n.any():
        check_can_certify(int(n.max()), alpha, bound)
    selection = votes.selection if beta is None else votes.soft[beta].selection_sums
    selected = selection.argmax(axis=1)
    p_lower = round_down(chosen.lower(votes, selected, alpha, beta))
    certified = p_lower > 0.5
    return Certificates(
        predictions=np.where(certified, selected, ABSTAIN),
        radii=radius(p_lower, sigma),
        p_lower=p_lower,
        selected=selected,
        sigma=sigma,
        alpha=alpha,
        n0=n0,
        n=int(n[0]) if (n == n[0]).all() else n,
        bound=bound,
        beta=None if beta is None else float(beta),
    )


def certify_without_selection(votes: Votes, sigma: float, alpha: float) -> Certificates:
    """CERTIFY with one set of votes that both chooses the class and bounds its probability, at half of alpha.

    The class is the most frequent of the n estimation votes, and its bound is Clopper-Pearson's at alpha / 2. A
    certificate is false only if the bound is above 1/2 and above the class's probability p, which happens with
    probability at most alpha. Let m be the fewest votes that put the bound above 1/2, so that F(p) = P(Bin(n, p) >= m)
    is at most alpha / 2 at p = 1/2. A class with p >= 1/2 is overstated with probability at most alpha / 2. A class
    with p < 1/2 is falsely certified with probability at most F(p); F is convex there and 0 at 0, so that
    F(p) <= 2 p F(1/2) <= p alpha. If one class has p >= 1/2, the others' p add up to at most 1/2: alpha / 2 + alpha / 2
    in all. If none has, they add up to 1: alpha. If two have exactly 1/2, the others have 0: alpha / 2 each.

    Args:
        votes: `Votes`, the same n for every image; selection votes are ignored, and there may be none.
        sigma: noise level the votes were drawn at.
        alpha: failure probability for each image.

    Returns:
        `Certificates` with n0 = 0.

    Raises:
        ValueError: as `certify`.
    """
    check_votes(votes)
    alpha = check_alpha(alpha)
    check_can_certify(_same(votes.n, "n"), alpha, share=0.5)
    certified = certify(Votes(votes.estimation, votes.estimation), sigma, alpha / 2)
    return replace(certified, alpha=alpha, n0=0)


def check_sigma(sigma: float) -> float:
    """Returns `sigma` as a float. Raises ValueError unless it is a number above 0, finite, and from 1e-100 to 1e100."""
    if getattr(sigma, "shape", None) == ():  # an array or a tensor of one number
        sigma = np.asarray(sigma).item()
    if not is_number(sigma) or not 0 < float(sigma) < np.inf:
        raise ValueError(f"sigma must be above 0 and finite. Received: sigma={sigma!r}")
    if not _LEAST_SIGMA <= sigma <= _LARGEST_SIGMA:
        raise ValueError(f"sigma must lie in [{_LEAST_SIGMA:g}, {_LARGEST_SIGMA:g}]. Received: sigma={sigma}")
    return float(sigma)


def radius(p_lower: ArrayLike, sigma: float) -> np.ndarray:
    """The certified l2 radius `sigma * Phi^-1(p_lower)`, rounded down; 0 where p_lower is not above 1/2.

    Args:
        p_lower: any shape, a lower bound on the selected class's probability, below 1.
        sigma: noise level, in units of a pixel in [0, 1].

    Returns:
        float64 of that shape, in units of a pixel in [0, 1].

    Raises:
        ValueError: for p_lower that is not below 1, which has no radius, or a sigma that `check_sigma` refuses.
    """
    p_lower, sigma = as_array("p_lower", p_lower).astype(np.float64), check_sigma(sigma)
    if not (p_lower < 1).all():
        raise ValueError(f"p_lower, a lower bound on a probability, is below 1. Received: {p_lower.max()}")
    return np.where(p_lower > 0.5, sigma * special.ndtri(p_lower) * (1 - _RADIUS_ROUNDING), 0.0)


def round_down(p_lower: float | np.ndarray) -> np.ndarray:
    """Lowers a computed lower bound on a probability, float64, by more than the error of computing it."""
    return np.maximum(np.asarray(p_lower, np.float64) - _ROUNDING, 0.0)


def is_correct(predictions: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Whether predictions are the labels; never where a label is -1, as in unlabelled data, because -1 is ABSTAIN."""
    predictions = np.asarray(predictions)  # a list would be compared as a whole
    return (predictions == np.asarray(labels)) & (predictions != ABSTAIN)


def predictions_and_radii(certificates: Any) -> tuple[np.ndarray, np.ndarray]:
    """What certificates say, `Certificates` or anything else that lists them: two arrays [images].

    Raises:
        ValueError: in one line, unless there is one class or ABSTAIN, and one number as its radius, per image.
    """
    if not all(hasattr(certificates, name) for name in ("predictions", "radii")):
        raise ValueError(f"Expected `Certificates` or a `CertificationLog`. Received: {type(certificates).__name__}")
    predictions, radii = as_array("Predictions", certificates.predictions), as_array("Radii", certificates.radii)
    if predictions.ndim != 1 or radii.shape != predictions.shape:
        raise ValueError(
            "Certificates have one prediction and radius per image. Received: predictions "
            f"{predictions.shape}, radii {radii.shape}"
        )
    for name, found in (("predictions", predictions), ("radii", radii)):
        if found.dtype.kind not in "iuf":
            raise ValueError(f"The {name} of certificates are numbers. Received: {found.dtype}")
    is_class = (predictions == np.rint(predictions)) & (predictions >= ABSTAIN)  # NaN fails both
    if not is_class.all():
        raise ValueError(
            f"Predictions are classes from 0, or {ABSTAIN} to abstain. Received: {predictions[np.argmin(is_class)]}"
        )
    return predictions, radii


def predict(counts: ArrayLike, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """PREDICT: the most frequent class, or ABSTAIN if the runner-up could be as likely (Cohen et al. 2019).

    The probability that the returned class is not the smoothed classifier's is at most alpha for each image, by the
    two-sided binomial test of the two highest counts against 1/2 (Hung and Fithian, 2019).

    Args:
        counts: int64 [images, classes], votes of one set of samples.
        alpha: failure probability for each image.

    Returns:
        int64 [images], a class or ABSTAIN, and float64 [images], the p-values.

    Raises:
        ValueError: if alpha is out of range, there are fewer than two classes, the images' numbers of samples differ,
            or n is so small that every image would get ABSTAIN.
    """
    counts = as_array("Votes", counts)
    if counts.ndim != 2 or counts.shape[1] < 2:
        raise ValueError(f"PREDICT needs counts [images, classes], 2 classes or more. Received: {counts.shape}")
    check_counts(counts)
    alpha = check_can_predict(_same(counts.sum(axis=1), "n"), alpha)
    order = np.argsort(-counts, axis=1, kind="stable")[:, :2]
    top, runner_up = np.take_along_axis(counts, order, axis=1).T
    p_values = _p_values(top, top + runner_up)
    return np.where(p_values <= alpha, order[:, 0], ABSTAIN), p_values


def _p_values(top, votes):
    """The two-sided binomial test of `top` of so many votes against 1/2, rounded up."""
    p_values = 2 * stats.binom.sf(top - 1, votes, 0.5)
    return np.minimum(1.0, p_values * (1 + _P_ROUNDING * np.sqrt(votes)) + SAMPLES_OFF)


def check_can_certify(n: int, alpha: float, bound: str = bounds.DEFAULT, share: float = 1.0) -> None:
    """Raises ValueError unless n votes out of n would certify an image, by a bound that gets this share of alpha."""
    of_bound = check_alpha(check_alpha(alpha) * share)
    unanimous = bounds.get(bound).unanimous
    if n < 1 or round_down(unanimous(n, of_bound)) <= 0.5:
        enough = round_down(unanimous(np.arange(_ENOUGH), of_bound)) > 0.5
        remedy = f"n must be at least {np.argmax(enough)}" if enough.any() else f"no n up to {_ENOUGH - 1:,} is enough"
        whose = "" if share == 1 else f", {100 * share:.0f} % of it for this bound"
        raise ValueError(
            f"No image could be certified: with alpha={alpha:g}{whose}, even n votes out of n leave the bound on p_A "
            f"at 1/2 or below. Received: n={n}; {remedy}."
        )


def check_can_predict(n: int, alpha: float) -> float:
    """Returns `alpha` as a float. Raises ValueError if not even n of n votes would pass PREDICT's test."""
    alpha = check_predict_alpha(alpha)
    if n < 1 or _p_values(n, n) > alpha:
        numbers = np.arange(1, 64)  # enough for any alpha that is accepted
        raise ValueError(
            f"Every image would be abstained on: with alpha={alpha:g}, even n votes out of n do not pass the binomial "
            f"test. Received: n={n}; n must be at least {1 + np.argmax(_p_values(numbers, numbers) <= alpha)}."
        )
    return alpha


def check_predict_alpha(alpha: float) -> float:
    """Returns `alpha` as a float. Raises ValueError if it is too small for how exact the noise is."""
    alpha = check_alpha(alpha)
    if alpha < 10 * SAMPLES_OFF:
        raise ValueError(f"A prediction's alpha must be at least {10 * SAMPLES_OFF:g}. Received: alpha={alpha:g}")
    return alpha


def max_radius(sigma: float, n: int, alpha: float, bound: str = bounds.DEFAULT) -> float:
    """The largest radius that n samples can certify at alpha, in units of a pixel in [0, 1]; 0 if none.

    Examples:
        >>> from macer_tf import certificates
        >>> round(certificates.max_radius(sigma=1.0, n=100_000, alpha=0.001), 2)
        3.81
    """
    return float(radius(round_down(bounds.get(bound).unanimous(n, check_alpha(alpha))), check_sigma(sigma)))


def _check_beta(bound: bounds.Bound, beta: float | None, soft: Mapping) -> None:
    if not bound.is_soft and beta is not None:
        soft_bounds = " and ".join(bounds.names(is_soft=True))
        raise ValueError(f"beta is for the soft bounds {soft_bounds}. Received: bound={bound.name!r}, {beta=}")
    if bound.is_soft and not (is_number(beta) and beta in soft):
        raise ValueError(
            f"The votes hold soft moments at beta in {sorted(soft)}. Received: bound={bound.name!r}, {beta=}"
        )


def _n(n: np.ndarray, bound: bounds.Bound, fixed_n: ArrayLike | None) -> np.ndarray:
    if not bound.needs_fixed_n:
        if fixed_n is not None:
            raise ValueError(
                f"fixed_n is for bounds that need n fixed beforehand; the {bound.name} bound holds for any n."
            )
        return n
    if fixed_n is None:
        _same(n, "n")
    elif (planned := as_array("fixed_n", fixed_n)).shape != n.shape or (n != planned).any():
        raise ValueError(
            f"Images do not have the number of samples fixed for them. Received: n={n.tolist()}, fixed_n={fixed_n}"
        )
    return n


def _same(numbers: np.ndarray, name: str) -> int:
    if len(numbers) == 0 or (numbers != numbers[0]).any() or numbers[0] < 1:
        raise ValueError(f"Every image needs the same {name}, at least 1. Received: {sorted(set(numbers.tolist()))}")
    return int(numbers[0])
