"""PREDICT with early exit: an anytime-valid test that stops as soon as the top class is beyond doubt.

For a class t, let H_t be the hypothesis that no class is more probable than t. To test it, bet on a class c: a vote for
c multiplies the stake by 2q and a vote for t by 2(1 - q), with q drawn once, uniformly from [1/2, 1]; other votes leave
it unchanged. After s votes for c and f for t, the stake is, on average over q,

    E(s, f) = 2 * integral from 1/2 to 1 of (2q)^s (2 (1 - q))^f dq
            = 2^(s + f + 1) B(s + 1, f + 1) I_{1/2}(f + 1, s + 1).

Under H_t a vote multiplies it in expectation by 1 - (2q - 1)(p_t - p_c) <= 1, so it is a non-negative supermartingale
that starts at 1, and so is its mean over the K - 1 classes c other than t. By Ville's inequality, this mean ever
reaches 1/alpha with probability at most alpha, however often it is looked at and whenever sampling stops.

The test returns the top class c once E(votes of c, votes of the runner-up) >= (K - 1) / alpha. If c is not the most
probable class, let t be the one that is: E falls as f rises, so E(c, t) >= (K - 1) / alpha too, and the mean for t has
reached 1/alpha. So **a returned class is wrong with probability at most alpha**, with no class chosen beforehand and no
samples set aside to choose it. ABSTAIN is never wrong, whenever it is returned.

Mixture martingales: Robbins (1970), "Statistical methods related to the law of the iterated logarithm"; the test of the
two highest counts: Hung and Fithian (2019). Compared with theirs, the factor K - 1 is the price of repeated looks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from macer_tf.certificates import ABSTAIN, check_predict_alpha
from macer_tf.checks import as_array
from macer_tf.confidence import SAMPLES_OFF, check_alpha

# Samples before the first look; before each later look, half of what was drawn is added. On MNIST a first look at 16
# saves 2 % of the samples but needs one more pass; one at 48 costs 20 % more samples.
_FIRST_LOOK = 32
# Taken off every log E: more than the rounding error of its terms for up to this many samples, so that none is
# overstated: 2e-7, against mpmath. For 2^40 samples it is 0.004, for 2^52 it is 60.
ROUNDING = 1e-6
_MOST_SAMPLES = 2**25


@dataclass(frozen=True, eq=False)
class AnytimePrediction:
    """Where the test stopped, for each image.

    Attributes:
        predictions: int64 [images], a class or ABSTAIN (-1).
        p_values: float64 [images], at the look where it stopped: at most alpha where a class is returned.
        samples: int64 [images], drawn until then.
    """

    predictions: np.ndarray
    p_values: np.ndarray
    samples: np.ndarray


def anytime_predict(counts: ArrayLike, alpha: float) -> AnytimePrediction:
    """The smoothed classifier's class, or ABSTAIN if no look decides.

    Args:
        counts: int64 [images, looks, classes], votes so far at each look, of one stream of samples.
        alpha: largest probability that a returned class is wrong, for each image.

    Returns:
        `AnytimePrediction`.

    Raises:
        ValueError: if alpha is out of range, or counts are not [images, looks, classes] for two classes or more, fall
            from one look to the next, or are of more than 2^25 samples.
    """
    alpha = check_alpha(alpha)
    counts = as_array("Votes", counts)
    is_shaped = counts.ndim == 3 and counts.shape[1] >= 1 and counts.shape[2] >= 2
    if counts.dtype != np.int64 or not is_shaped or (np.diff(counts, axis=1, prepend=0) < 0).any():
        raise ValueError(
            "counts must be votes so far, int64 [images, looks, classes], 2 classes or more, and never fall. "
            f"Received: {counts.dtype} {counts.shape}"
        )
    p_values = anytime_p_values(counts)
    decided = p_values <= alpha
    looks = np.where(decided.any(axis=1), decided.argmax(axis=1), counts.shape[1] - 1)
    at = (np.arange(len(counts)), looks)
    return AnytimePrediction(
        predictions=np.where(decided[at], counts[at].argmax(axis=1), ABSTAIN),
        p_values=p_values[at],
        samples=counts[at].sum(axis=1),
    )


def anytime_p_values(counts: np.ndarray) -> np.ndarray:
    """float64 [...]: the evidence in votes [..., classes] that the top class is not the smoothed classifier's.

    However often one looks, the chance that it is ever at most alpha for a wrong class is at most alpha.

    Raises:
        ValueError: unless they are whole numbers from 0, for two classes or more; for more than 2^25 votes.
    """
    counts = as_array("Votes", counts)
    if counts.dtype.kind not in "iu" or counts.ndim < 1 or counts.shape[-1] < 2 or (counts < 0).any():
        raise ValueError(
            "counts must be votes, whole numbers from 0, [..., classes] for 2 classes or more. "
            f"Received: {counts.dtype} {counts.shape}{f' from {counts.min()}' if counts.size else ''}"
        )
    most = counts.sum(axis=-1, dtype=np.float64).max(initial=0)
    if most > _MOST_SAMPLES:
        raise ValueError(
            f"The test with early exit takes up to {_MOST_SAMPLES:,} samples per image; `certificates.predict` takes "
            f"more. Received: {most:,.0f}"
        )
    runner_up, top = np.sort(counts, axis=-1)[..., -2:].astype(np.float64).T
    return np.minimum(1.0, (counts.shape[-1] - 1) * np.exp(-log_e_values(top.T, runner_up.T)) + SAMPLES_OFF)


def log_e_values(successes: float | np.ndarray, failures: float | np.ndarray) -> np.ndarray:
    """float64: log E(successes, failures) of the module's docstring, of broadcast shape."""
    with np.errstate(divide="ignore"):  # E may be 0
        tail = np.log(special.betainc(failures + 1, successes + 1, 0.5))
    whole = special.betaln(successes + 1, failures + 1) + (successes + failures + 1) * np.log(2)
    return whole + tail - ROUNDING


def looks(limit: int, largest_batch: int) -> list[int]:
    """Numbers of samples at which the test looks, rising to `limit`; no two are further apart than `largest_batch`."""
    ends = [0]
    while ends[-1] < limit:
        ends.append(min(limit, ends[-1] + min(largest_batch, max(_FIRST_LOOK, ends[-1] // 2))))
    return ends[1:]


def check_can_decide(limit: int, num_classes: int, alpha: float) -> None:
    """Raises ValueError if not even unanimous votes in `limit` samples would decide for one of `num_classes`."""
    alpha = check_predict_alpha(alpha)
    unanimous = log_e_values(np.arange(1.0, 2000.0), 0.0)
    smallest = 1 + int(np.argmax(np.exp(-unanimous) * (num_classes - 1) + SAMPLES_OFF <= alpha))
    if limit < smallest:
        raise ValueError(
            f"Every image would be abstained on: with alpha={alpha:g} and {num_classes} classes, not even unanimous "
            f"votes decide. Received: at most {limit} samples; {smallest} are needed."
        )
