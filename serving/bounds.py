"""The statistics of `macer_tf.certificates` and `macer_tf.early_exit` as TensorFlow graphs, in float64."""

import math

import tensorflow as tf

from macer_tf.confidence import SAMPLES_OFF
from macer_tf.early_exit import ROUNDING

_BISECTIONS = 60
# More than the error of 60 bisections of float64 `betainc` against SciPy for n up to 1e8: the bound must not overstate.
# It is also more than the library's own margin, which covers the error of the noise in total variation.
_SAFETY = 1e-11
# More than the error of TensorFlow's inverse normal distribution.
_RADIUS_SAFETY = 1e-12


def certified_radius(successes, n, alpha, sigma):
    """What n estimation votes say about the selected class, as in `certificates.certify`.

    Args:
        successes: int64 [batch], votes for the selected class.
        n: int64 [batch], estimation votes.
        alpha: float64 [batch], failure probability.
        sigma: Python number.

    Returns:
        p_lower, float64 [batch], and radius, float32 [batch], rounded down; 0 where p_lower is not above 1/2.
    """
    p_lower = clopper_pearson_lower(successes, n, alpha)
    radius = sigma * tf.math.ndtri(tf.maximum(p_lower, 0.5)) * (1 - _RADIUS_SAFETY)
    return p_lower, round_down(tf.where(p_lower > 0.5, radius, 0))


def clopper_pearson_lower(successes, n, alpha):
    """The exact one-sided lower bound on a binomial proportion, by bisection of the incomplete beta function.

    Args:
        successes, n: int64, one shape, 0 <= successes <= n.
        alpha: float64 of that shape.

    Returns:
        float64 of that shape, at most 1e-10 below SciPy's value and never above it; 0 where there is no success.
    """
    a = tf.cast(tf.maximum(successes, 1), tf.float64)
    b = tf.cast(n, tf.float64) - a + 1
    low, high = tf.zeros_like(a), tf.ones_like(a)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = tf.math.betainc(a, b, middle) < alpha
        low, high = tf.where(below, middle, low), tf.where(below, high, middle)
    return tf.where(successes > 0, tf.maximum(low - _SAFETY, 0), 0)


def round_down(radius):
    """float64 -> float32 that is not above it, nor are the decimals that stand for it, such as 0.7 for 0.69999999."""
    # They lie within half a step of float32, which is at most this part of the number.
    most = radius / (1 + 2.0**-24)
    rounded = tf.cast(most, tf.float32)
    smaller = tf.maximum(rounded * (1 - 2.0**-23), 0)
    return tf.where(tf.cast(rounded, tf.float64) > most, smaller, rounded)


def anytime_p_value(counts):
    """`early_exit.anytime_p_values`: votes int64 [..., classes] -> float64 [...]."""
    top, runner_up = tf.unstack(tf.cast(tf.math.top_k(counts, 2).values, tf.float64), axis=-1)
    whole = (
        tf.math.lgamma(top + 1)
        + tf.math.lgamma(runner_up + 1)
        - tf.math.lgamma(top + runner_up + 2)
        + (top + runner_up + 1) * tf.constant(math.log(2), tf.float64)
    )
    tail = tf.math.log(tf.math.betainc(runner_up + 1, top + 1, tf.fill(tf.shape(top), tf.constant(0.5, tf.float64))))
    others = tf.constant(counts.shape[-1] - 1, tf.float64)
    return tf.minimum(others * tf.exp(-(whole + tail - ROUNDING)) + SAMPLES_OFF, 1)
