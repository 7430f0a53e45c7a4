"""Votes -> certificates: the statistics of CERTIFY and PREDICT (Cohen et al. 2019). No sampling happens here."""

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from macer_tf.confidence import check_alpha, clopper_pearson_lower

ABSTAIN = -1


@dataclass(frozen=True, eq=False)
class Certificates:
    """What can be said of the smoothed classifier at each image, wrong with probability at most alpha an image.

    Attributes:
        predictions: int64 [images], a class or ABSTAIN (-1).
        radii: float64 [images], certified l2 radius in units of a pixel in [0, 1]; 0 where it abstains.
        p_lower: float64 [images], lower confidence bound on the selected class' probability.
        selected: int64 [images], the class that selection chose, abstained on or not.
        sigma, alpha: what they hold for.
        n0, n: samples of selection and of estimation for each image.
    """

    predictions: np.ndarray
    radii: np.ndarray
    p_lower: np.ndarray
    selected: np.ndarray
    sigma: float
    alpha: float
    n0: int
    n: int


def certify(votes, sigma, alpha):
    """CERTIFY: the most frequent class of the selection votes, with a radius if its probability is above 1/2.

    With probability at least 1 - alpha over the noise, an image's certificate holds: the smoothed classifier
    returns `predictions` everywhere within the l2 radius `sigma * Phi^-1(p_lower)` (Cohen et al. 2019, Theorem 1 and
    Proposition 2; p_lower by Clopper-Pearson). It holds for n fixed beforehand, not for an n chosen after a look.

    Args:
        votes: `Votes`, the same n0 and the same n for every image.
        sigma: noise level the votes were drawn at.
        alpha: failure probability for each image.

    Returns:
        `Certificates`.

    Raises:
        ValueError: if alpha or sigma is out of range, the images' numbers of samples differ or are 0, or n is so
            small that no image could ever be certified.
    """
    if not 0 < sigma < np.inf:
        raise ValueError(f"sigma must be above 0 and finite. Received: sigma={sigma}")
    n0, n = _same(votes.n0, "n0"), _same(votes.n, "n")
    check_can_certify(n, alpha)
    selected = votes.selection.argmax(axis=1)
    successes = np.take_along_axis(votes.estimation, selected[:, None], axis=1)[:, 0]
    p_lower = clopper_pearson_lower(successes, n, alpha)
    certified = p_lower > 0.5
    return Certificates(
        predictions=np.where(certified, selected, ABSTAIN),
        radii=np.where(certified, sigma * special.ndtri(p_lower), 0.0),
        p_lower=p_lower,
        selected=selected,
        sigma=float(sigma),
        alpha=float(alpha),
        n0=n0,
        n=n,
    )


def predict(counts, alpha):
    """PREDICT: the most frequent class, or ABSTAIN if the runner-up could be as likely (Cohen et al. 2019).

    The returned class is not the smoothed classifier's with probability at most alpha an image, by the two-sided
    binomial test of the two highest counts against 1/2 (Hung and Fithian, 2019).

    Args:
        counts: int64 [images, classes], votes of one set of samples.
        alpha: failure probability for each image.

    Returns:
        int64 [images], a class or ABSTAIN, and float64 [images], the p-values.

    Raises:
        ValueError: if alpha is out of range, there are fewer than two classes, the images' numbers of samples differ,
            or n is so small that every image would be abstained on.
    """
    if counts.shape[1] < 2:
        raise ValueError(f"PREDICT needs counts [images, classes], 2 classes or more. Received: {counts.shape}")
    check_can_predict(_same(counts.sum(axis=1), "n"), alpha)
    order = np.argsort(-counts, axis=1, kind="stable")[:, :2]
    top, runner_up = np.take_along_axis(counts, order, axis=1).T
    p_values = np.minimum(1.0, 2 * stats.binom.sf(top - 1, top + runner_up, 0.5))
    return np.where(p_values <= alpha, order[:, 0], ABSTAIN), p_values


def check_can_certify(n, alpha):
    """Raises ValueError if not even n votes out of n would certify an image at alpha."""
    check_alpha(alpha)
    if n < 1 or clopper_pearson_lower(n, n, alpha) <= 0.5:
        raise ValueError(
            f"No image could be certified: with alpha={alpha:g}, even n votes out of n leave the bound on p_A at "
            f"1/2 or below. Received: n={n}; n must be at least {int(np.floor(np.log(alpha) / np.log(0.5))) + 1}."
        )


def check_can_predict(n, alpha):
    """Raises ValueError if not even n votes out of n would pass PREDICT's test at alpha."""
    check_alpha(alpha)
    if n < 1 or 2 * 0.5**n > alpha:
        raise ValueError(
            f"Every image would be abstained on: with alpha={alpha:g}, even n votes out of n do not pass the binomial "
            f"test. Received: n={n}; n must be at least {int(np.ceil(1 - np.log2(alpha)))}."
        )


def max_radius(sigma, n, alpha):
    """The largest radius that n samples can certify at alpha, in units of a pixel in [0, 1]."""
    return float(sigma * special.ndtri(clopper_pearson_lower(n, n, alpha)))


def _same(numbers, name):
    if len(numbers) == 0 or (numbers != numbers[0]).any() or numbers[0] < 1:
        raise ValueError(f"Every image needs the same {name}, at least 1. Received: {sorted(set(numbers.tolist()))}")
    return int(numbers[0])
