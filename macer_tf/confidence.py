"""Confidence bounds on the probability of the top class."""

import numpy as np
from scipy import special


def clopper_pearson_lower(successes, n, alpha):
    """The exact one-sided lower bound on a binomial proportion (Clopper and Pearson, 1934).

    Over the drawing of `successes`, the bound exceeds the true proportion with probability at most alpha, for n
    fixed before the samples were seen.

    Args:
        successes: integers, any shape.
        n: number of samples, broadcasts against `successes`.
        alpha: failure probability, in (0, 1).

    Returns:
        float64 of the broadcast shape, in [0, 1): 0 where there is no success.

    Raises:
        ValueError: for alpha outside (0, 1), or successes outside [0, n].
    """
    check_alpha(alpha)
    successes, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(n, np.float64))
    if ((successes < 0) | (successes > n)).any():
        raise ValueError("Clopper-Pearson needs 0 <= successes <= n.")
    bound = special.betaincinv(np.maximum(successes, 1), n - successes + 1, alpha)
    return np.where(successes > 0, bound, 0.0)


def check_alpha(alpha):
    """Raises ValueError unless 0 < alpha < 1."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha, the failure probability, must be above 0 and below 1. Received: alpha={alpha}")
