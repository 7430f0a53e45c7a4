"""The MACER objective: Eq. (17) and lines 5-9 of Algorithm 1 of Zhai et al. (ICLR 2020), as pure functions."""

import math
from typing import NamedTuple

import tensorflow as tf
from scipy import special

_LOGIT_LIMIT = 1e30


class MACERTerms(NamedTuple):
    """Per-example terms of Eq. (17); every field but `probabilities` has shape [batch].

    Attributes:
        classification: `-log z_y`, z the mean softmax over the noisy copies at inverse temperature 1.
        robustness: `sigma / 2 * max(gamma - xi, 0)` where the smoothed prediction is correct, else 0.
            Not multiplied by lam.
        radius: the soft certified radius of Eq. (16) as far as the hinge sees it, `sigma / 2 * min(xi, gamma)`, in
            units of a pixel in [0, 1]; 0 where the smoothed prediction is wrong. (Where all copies agree, the
            estimate of xi from a few copies has no bound.)
        in_hinge: bool, correct and `xi < gamma`: the examples that the robustness term acts on.
        probabilities: [batch, classes], the mean softmax at inverse temperature 1.
    """

    classification: tf.Tensor
    robustness: tf.Tensor
    radius: tf.Tensor
    in_hinge: tf.Tensor
    probabilities: tf.Tensor


def macer_terms(
    logits: tf.Tensor,
    labels: tf.Tensor,
    sigma: float,
    gamma: float = 8.0,
    beta: float = 16.0,
    average_cross_entropy: bool = False,
) -> MACERTerms:
    """The classification and robustness terms of Eq. (17) for each example.

    beta acts on the robustness term only (Section 5.3). An example counts as correctly classified if its label's
    mean probability is at least every other class's (Eq. 15), so a tie is correct, with xi = 0.

    For every finite logit the terms and their gradients are finite. Phi^-1 of the label's probability is
    computed from the summed probability of the other classes, which keeps its digits where the label's own
    probability rounds to 1. Logits beyond +-1e30 are taken as +-1e30. A NaN or infinite logit makes the example's
    classification term NaN, so that divergence shows.

    Args:
        logits: float32 or float64 [batch, num_samples, classes], the base classifier on the noisy copies.
        labels: integer [batch], in [0, classes).
        sigma: noise level, in units of a pixel in [0, 1].
        gamma: hinge on xi (dimensionless), above 0, at most 24.
        beta: inverse temperature of the robustness term's softmax, above 0.
        average_cross_entropy: the classification term is `averaged_cross_entropy` in place of `-log z_y`.

    Returns:
        `MACERTerms`, in the dtype of `logits`.

    Raises:
        ValueError: unless `logits` has three dimensions and two classes or more.
    """
    if logits.shape.rank != 3 or logits.shape[-1] is None or logits.shape[-1] < 2:
        raise ValueError(f"logits must be [batch, num_samples, classes], 2 classes or more. Received: {logits.shape}")
    dtype = logits.dtype
    num_classes = logits.shape[-1]
    logits = _clipped(logits)
    # Softmax is shift-invariant; shifted first, beta * logits cannot overflow.
    logits -= tf.stop_gradient(tf.reduce_max(logits, axis=-1, keepdims=True))
    is_label = tf.one_hot(labels, num_classes, on_value=True, off_value=False)

    mean_probability = tf.reduce_mean(tf.nn.softmax(beta * logits), axis=1)
    others = tf.where(is_label, tf.zeros([], dtype), mean_probability)
    label_probability = tf.reduce_sum(tf.where(is_label, mean_probability, 0), axis=-1)
    runner_up = tf.reduce_max(others, axis=-1)
    correct = label_probability >= runner_up
    xi = _xi(tf.reduce_sum(others, axis=-1), runner_up, correct, gamma, num_classes)
    in_hinge = correct & (xi < gamma)
    hinge = tf.where(in_hinge, gamma - xi, 0)
    cross_entropy = averaged_cross_entropy if average_cross_entropy else smoothed_cross_entropy
    return MACERTerms(
        classification=cross_entropy(logits, labels),
        robustness=sigma / 2 * hinge,
        radius=sigma / 2 * tf.where(correct, tf.minimum(xi, gamma), 0),
        in_hinge=in_hinge,
        probabilities=tf.reduce_mean(tf.nn.softmax(logits), axis=1),
    )


def smoothed_cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """-log of the label's mean softmax over the noisy copies, [batch] (first term of Eq. 17), without underflow.

    Args:
        logits: float [batch, num_samples, classes].
        labels: integer [batch].
    """
    num_samples = tf.cast(tf.shape(logits)[1], logits.dtype)
    return tf.math.log(num_samples) - tf.reduce_logsumexp(_label_log_probability(logits, labels), axis=-1)


def averaged_cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """The cross-entropy averaged over the noisy copies, `mean_j -log p_jy`, [batch].

    By Jensen's inequality it is at least `smoothed_cross_entropy`, `-log mean_j p_jy`, so the bound that Eq. (17) rests
    on holds with it too. Its gradient weights all copies alike, whereas that of the other weights a copy by p_jy and so
    hardly sees a wrong one (Cohen et al. 2019 train with it, one copy per step).

    Args:
        logits: float [batch, num_samples, classes].
        labels: integer [batch].
    """
    return -tf.reduce_mean(_label_log_probability(logits, labels), axis=1)


class Consistency(NamedTuple):
    """The terms of consistency regularisation; both fields have shape [batch].

    Attributes:
        divergence: `mean_j KL(pbar || p_j)`, in nats: how far the copies' predictions are from their mean.
        entropy: `H(pbar)`, in nats.
    """

    divergence: tf.Tensor
    entropy: tf.Tensor


def consistency(logits: tf.Tensor) -> Consistency:
    """Consistency regularisation (Jeong and Shin 2020), where p_j is the softmax of copy j and pbar their mean.

    The gradient flows through pbar as well as through p_j. Both terms and their gradients are finite for every finite
    logit.

    Args:
        logits: float32 or float64 [batch, num_samples, classes], the base classifier on the noisy copies.
    """
    log_p = tf.nn.log_softmax(_clipped(logits))
    num_samples = tf.cast(tf.shape(logits)[1], logits.dtype)
    log_mean = tf.reduce_logsumexp(log_p, axis=1) - tf.math.log(num_samples)
    mean = tf.exp(log_mean)
    return Consistency(
        divergence=tf.reduce_sum(mean * (log_mean - tf.reduce_mean(log_p, axis=1)), axis=-1),
        entropy=-tf.reduce_sum(mean * log_mean, axis=-1),
    )


def _label_log_probability(logits, labels):
    """log of the label's softmax on each copy, [batch, num_samples]."""
    is_label = tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False)
    return tf.reduce_sum(tf.where(is_label[:, None], tf.nn.log_softmax(logits), 0), axis=-1)


def _clipped(logits):
    """Logits within +-1e30, NaN where they are not finite."""
    clipped = tf.clip_by_value(logits, -_LOGIT_LIMIT, _LOGIT_LIMIT)
    return tf.where(tf.math.is_finite(logits), clipped, tf.constant(math.nan, logits.dtype))


def _xi(others_sum, runner_up, correct, gamma, num_classes):
    """xi = Phi^-1(z_y) - Phi^-1(runner-up) where `correct` and within the hinge's reach, gamma elsewhere."""
    import tensorflow_probability as tfp  # takes a second to import, and certifying does not need it

    standard_normal = tfp.distributions.Normal(tf.zeros([], tf.float64), tf.ones([], tf.float64))
    reachable = correct & (runner_up >= _smallest_runner_up(gamma, num_classes))

    def quantile(probability):
        # Masked before the quantile and after it: a `where` only after it would turn inf into NaN in the gradient.
        safe = tf.where(reachable, probability, tf.constant(0.5, probability.dtype))
        return tf.cast(standard_normal.quantile(tf.cast(safe, tf.float64)), probability.dtype)

    return tf.where(reachable, -quantile(others_sum) - quantile(runner_up), gamma)


def _smallest_runner_up(gamma, num_classes):
    """A probability of the runner-up below which xi >= gamma for certain.

    Let a = -Phi^-1(runner-up) and b = -Phi^-1(the others' sum), so xi = a + b, and the sum is at most (C - 1) times
    the runner-up. The normal hazard rate exceeds x, so log(C - 1) >= (a^2 - b^2) / 2: if xi < gamma, then
    a <= gamma / 2 + log(C - 1) / gamma. And the sum is at most 1 - 1/C for a correct prediction, so
    a <= gamma + Phi^-1(1 - 1/C).
    """
    reach = min(gamma / 2 + math.log(num_classes - 1) / gamma, gamma + special.ndtri(1 - 1 / num_classes))
    return float(special.ndtr(-reach - 0.01))
