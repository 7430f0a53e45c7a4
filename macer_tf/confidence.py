"""Confidence bounds on the probability, or the mean score, of the top class. All float64, all one-sided."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from macer_tf.checks import as_array, is_number
from macer_tf.votes import MOST_SAMPLES

# The alternatives that the anytime bounds mix, as odds ratios exp(-theta): certainty, and theta halved repeatedly from
# 3 to 9e-5. The first thetas serve n up to about 100,000 and carry most of the weight; the last ones keep the bounds
# converging up to n = 1e9. Any weights that add up to 1 are valid: these were chosen on the published CIFAR-10 logs.
_THETA = 3 / 2.0 ** np.arange(16)
_ODDS_RATIOS = np.concatenate([[0.0], np.exp(-_THETA)])
_LOG_WEIGHTS = np.log(np.concatenate([[0.15], np.full(7, 0.75 / 7), np.full(9, 0.1 / 9)]))
_BISECTIONS = 54
_LEAST_UNIFORM = 1 / 16
# SciPy's inverse of the incomplete beta function is off by less than this, with exceptions, which are bisected: with
# 999 failures, it is too high by 5e-13 of a million samples and by 1e-8 of 1e9; with half a trillion, by up to 1e-9.
_INVERSE_OFF = 1e-14
# It loses terms that underflow: from about 1e-250 on, the Clopper-Pearson bound is too high.
_LEAST_ALPHA = 1e-100

# Added to a p-value: more than the error in total variation of n samples of d pixels, for n * d up to 1e12 where the
# noise is 600 steps of the grid or less; and for n * d up to 4e10 where it is widest, see `grid_noise`.
SAMPLES_OFF = 1e-13


def clopper_pearson_lower(successes: ArrayLike, n: ArrayLike, alpha: float) -> np.ndarray:
    """The exact one-sided lower bound on a binomial proportion (Clopper and Pearson, 1934).

    Over the drawing of `successes`, the bound exceeds the true proportion with probability at most alpha, for n
    fixed before the samples were seen.

    Examples:
        >>> from macer_tf.confidence import clopper_pearson_lower
        >>> clopper_pearson_lower([99_000, 100_000], 100_000, alpha=0.001).round(4)
        array([0.989 , 0.9999])

    Args:
        successes: integers, any shape.
        n: number of samples, broadcasts against `successes`.
        alpha: failure probability, in (0, 1).

    Returns:
        float64 of the broadcast shape, in [0, 1): 0 where there is no success.

    Raises:
        ValueError: for alpha that `check_alpha` refuses, or unless 0 <= successes <= n <= 2^40 and successes are whole.
    """
    successes, n, alpha = *_counts(successes, n, "Clopper-Pearson"), check_alpha(alpha)
    bound = _betaincinv(np.maximum(successes, 1), n - successes + 1, alpha)
    return np.where(successes > 0, np.minimum(bound, np.nextafter(1, 0)), 0.0)


def clopper_pearson_upper(successes: ArrayLike, n: ArrayLike, alpha: float) -> np.ndarray:
    """The exact one-sided upper bound on a binomial proportion; see `clopper_pearson_lower`.

    Returns:
        float64 of the broadcast shape, in (0, 1]: 1 where there is no failure.
    """
    successes, n, alpha = *_counts(successes, n, "Clopper-Pearson"), check_alpha(alpha)
    return 1 - clopper_pearson_lower(n - successes, n, alpha)


def randomized_clopper_pearson_lower(
    successes: ArrayLike, n: ArrayLike, alpha: float, uniform: ArrayLike
) -> np.ndarray:
    """Clopper and Pearson's lower bound, randomised to err as often as it may (Stevens, 1950; arXiv 2406.17830).

    For X ~ Binomial(n, p) and U uniform on [0, 1], P(X > x) + U P(X = x) at x = X is uniform on [0, 1]; Clopper-Pearson
    takes U = 1, which makes this larger. The bound is the p at which this is alpha: over the drawing of `successes` and
    `uniform`, it exceeds the true proportion with probability at most alpha, for n fixed before the samples were seen.
    It is above `clopper_pearson_lower` wherever there is a success and U is below 1. A U below 1/16 or 2 alpha is
    raised to the larger of the two: at U = alpha, the bound of a unanimous vote would be 1.

    Args:
        successes: integers, any shape.
        n: number of samples, broadcasts against `successes`.
        alpha: failure probability, in (0, 1).
        uniform: in [0, 1], independent of the samples, one for each of `successes`; drawn only once.

    Returns:
        float64 of the broadcast shape, in [0, 1): 0 where there is no success.

    Raises:
        ValueError: as `clopper_pearson_lower`, or for uniforms outside [0, 1].
    """
    successes, n, alpha = *_counts(successes, n, "Clopper-Pearson"), check_alpha(alpha)
    uniforms = np.broadcast_to(_floats("uniform", uniform), np.shape(successes))
    if not ((uniforms >= 0) & (uniforms <= 1)).all():
        raise ValueError(
            f"The randomised bound needs uniforms in [0, 1]. Received: {uniforms.min()} to {uniforms.max()}"
        )
    uniforms = np.maximum(uniforms, min(max(_LEAST_UNIFORM, 2 * alpha), 1))

    def is_below(p):
        at_least = special.betainc(np.maximum(successes, 1), n - successes + 1, p)
        above = np.where(successes < n, special.betainc(successes + 1, np.maximum(n - successes, 1), p), 0)
        return (1 - uniforms) * above + uniforms * at_least < alpha

    bound, _ = _bisected(clopper_pearson_lower(successes, n, alpha), is_below)
    return np.where(successes > 0, bound, 0.0)


def anytime_lower(successes: ArrayLike, n: ArrayLike, alpha: float) -> np.ndarray:
    """A lower bound on a Bernoulli mean that holds at all n at once: one may stop or go on after any look.

    With probability at least 1 - alpha, no prefix of the independent samples, however long, gives a bound above the
    true mean. For a mean p and an alternative of odds exp(theta) times those of p,

        M(p) = sum over theta of weight * exp(theta * successes) / (1 + p * (exp(theta) - 1))^n

    is a nonnegative martingale that starts at 1 where p is the mean, so its chance of ever reaching 1 / alpha is at
    most alpha (Ville, 1939; mixed over alternatives as by Robbins, 1970). M falls in p: the bound is the p at which M
    is 1 / alpha, rounded down. The weights, set beforehand, favour p near 1. It is looser than Clopper-Pearson, which
    holds for one n: the radius of a certificate at n = 100,000 and alpha = 0.001 is 0.5 to 3 % smaller.

    Args:
        successes: integers, any shape.
        n: number of samples, broadcasts against `successes`; 0 gives 0.
        alpha: failure probability, in (0, 1).

    Returns:
        float64 of the broadcast shape, in [0, 1).

    Raises:
        ValueError: for alpha that `check_alpha` refuses, or unless 0 <= successes <= n <= 2^40 and successes are whole.
    """
    successes, n, alpha = *_counts(successes, n, "The anytime bound"), check_alpha(alpha)
    return np.maximum(np.nextafter(1 - _anytime_upper(n - successes, n, alpha), 0), 0)


def anytime_upper(successes: ArrayLike, n: ArrayLike, alpha: float) -> np.ndarray:
    """The upper bound that goes with `anytime_lower`: 1 minus the lower bound on the failures' mean.

    Returns:
        float64 of the broadcast shape, in (0, 1]; 1 where n is 0.
    """
    successes, n, alpha = *_counts(successes, n, "The anytime bound"), check_alpha(alpha)
    return _anytime_upper(successes, n, alpha)


def hoeffding_lower(mean: ArrayLike, n: ArrayLike, alpha: float) -> np.ndarray:
    """A lower bound on the mean of a score in [0, 1] (Eq. 23 of the paper; Hoeffding, 1963).

    It exceeds the true mean with probability at most alpha, for n independent samples, with n fixed beforehand.

    Args:
        mean: mean of the samples, in [0, 1], any shape.
        n: number of samples, broadcasts against `mean`; 0 gives 0.
        alpha: failure probability, in (0, 1).

    Returns:
        float64 of the broadcast shape, in [0, 1].

    Raises:
        ValueError: for alpha that `check_alpha` refuses, or a mean outside [0, 1].
    """
    mean, n, alpha = *_scores(mean, n), check_alpha(alpha)
    return np.where(n > 0, np.maximum(mean - np.sqrt(-np.log(alpha) / (2 * np.maximum(n, 1))), 0), 0.0)


def empirical_bernstein_lower(mean: ArrayLike, variance: ArrayLike, n: ArrayLike, alpha: float) -> np.ndarray:
    """A lower bound on the mean of a score in [0, 1] from its sample variance (Eq. 26 of the paper).

    It exceeds the true mean with probability at most alpha, for n independent samples, with n fixed beforehand. This is
    Theorem 4 of Maurer and Pontil (2009), which bounds the mean from above; the paper applies it to 1 - X, which has
    the same variance. The constants are the same, and so is the variance (Eq. 25 is their V_n, divided by n - 1). One
    half of alpha goes to the mean and the other to the variance, hence log(2 / alpha) for a one-sided bound.

    Args:
        mean: mean of the samples, in [0, 1], any shape.
        variance: unbiased sample variance, broadcasts against `mean`.
        n: number of samples, broadcasts against `mean`; fewer than 2 give 0.
        alpha: failure probability, in (0, 1).

    Returns:
        float64 of the broadcast shape, in [0, 1].

    Raises:
        ValueError: for alpha that `check_alpha` refuses, a mean outside [0, 1] or a negative variance.
    """
    mean, n, alpha = *_scores(mean, n), check_alpha(alpha)
    variance = _floats("variance", variance)
    if not (variance >= 0).all():
        raise ValueError(f"A sample variance is at least 0. Received: {variance.min()}")
    log = np.log(2) - np.log(alpha)
    samples = np.maximum(n, 2)
    bound = mean - np.sqrt(2 * variance * log / samples) - 7 * log / (3 * (samples - 1))
    return np.where(n >= 2, np.maximum(bound, 0), 0.0)


def check_alpha(alpha: float) -> float:
    """Returns `alpha` as a Python float: in a narrower type, its logarithm or its half could make a bound too high.

    Raises:
        ValueError: unless it is in [1e-100, 1); below that, SciPy's inverses cannot be relied on.
    """
    if not is_number(alpha) or not 0 < float(alpha) < 1:
        raise ValueError(f"alpha, the failure probability, must be above 0 and below 1. Received: alpha={alpha!r}")
    if alpha < _LEAST_ALPHA:
        raise ValueError(f"alpha must be at least {_LEAST_ALPHA:g}. Received: alpha={alpha!r}")
    return float(alpha)


def _betaincinv(a: np.ndarray, b: np.ndarray, alpha: float) -> np.ndarray:
    """The p at which the regularised incomplete beta function, which SciPy computes well everywhere, is alpha."""
    a, b = np.broadcast_arrays(a, b)
    found = np.asarray(special.betaincinv(a, b, alpha))
    at_most, at_least = (special.betainc(a, b, np.clip(found + off, 0, 1)) for off in (-_INVERSE_OFF, _INVERSE_OFF))
    is_off = np.asarray(~((at_most <= alpha) & (at_least >= alpha)))  # so is NaN
    if is_off.any():
        a, b = a[is_off], b[is_off]
        found[is_off], _ = _bisected(np.zeros(a.shape), lambda p: special.betainc(a, b, p) < alpha)
    return found


def _bisected(low: np.ndarray, is_below: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Bounds from below and above on the p from `low` to 1 up to which `is_below` holds."""
    high = np.ones_like(low)
    for _ in range(_BISECTIONS):
        # Below 1, where logarithms are infinite.
        middle = np.minimum((low + high) / 2, np.nextafter(1, 0))
        below = is_below(middle)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low, high


def _counts(successes: ArrayLike, n: ArrayLike, name: str) -> tuple[np.ndarray, ...]:
    successes, n = np.broadcast_arrays(_floats("successes", successes), _floats("n", n))
    if not ((successes >= 0) & (successes <= n) & (n <= MOST_SAMPLES) & (successes == np.rint(successes))).all():
        raise ValueError(
            f"{name} needs whole numbers, 0 <= successes <= n, and n up to 2^40. Received: successes from "
            f"{successes.min():g} to {successes.max():g}, n from {n.min():g} to {n.max():g}"
        )
    return successes, n


def _floats(name: str, values: ArrayLike) -> np.ndarray:
    """Numbers as an array of float64; what is under a mask, or no real number, must not become a bound."""
    found = as_array(name, values)
    if found.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers. Received: {found.dtype}")
    return found.astype(np.float64)


def _scores(mean: ArrayLike, n: ArrayLike) -> tuple[np.ndarray, ...]:
    mean, n = np.broadcast_arrays(_floats("mean", mean), _floats("n", n))
    if not ((mean >= 0) & (mean <= 1) & (n >= 0)).all():
        raise ValueError("A bound on a mean score needs a mean in [0, 1] and n from 0.")
    return mean, n


def _anytime_upper(events, n, alpha):
    """The q, rounded up, at which the mixture's evidence that the events' mean is below q reaches 1 / alpha."""
    # Many images have the same counts, and every count costs some fifty bisections of the mixture.
    pairs, inverse = np.unique(np.stack([events.ravel(), n.ravel()], axis=1), axis=0, return_inverse=True)
    few, samples = pairs[:, :1], pairs[:, 1:]
    of_events = _LOG_WEIGHTS + special.xlogy(few, _ODDS_RATIOS)
    # Above the rounding error of sums that grow like n.
    threshold = -np.log(alpha) + 1e-12 + 4e-15 * samples

    def is_below(q):
        terms = of_events - samples * np.log1p(-q * (1 - _ODDS_RATIOS)) - threshold
        # A term above e is enough by itself, and must not overflow.
        return ~(np.exp(np.minimum(terms, 1)).sum(axis=1, keepdims=True) >= 1)

    _, high = _bisected(few / np.maximum(samples, 1), is_below)
    return np.minimum(np.nextafter(high, 2), 1)[inverse.ravel(), 0].reshape(n.shape)
