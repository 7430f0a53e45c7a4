"""The answers of a served classifier, checked output by output: a broken answer never becomes a certificate."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from macer_tf.certificates import ABSTAIN
from macer_tf.checks import as_array
from macer_tf.confidence import clopper_pearson_lower
from macer_tf.votes import MOST_SAMPLES
from serving.card import ALPHA_RANGE

CERTIFY_OUTPUTS = {
    "predicted_class": np.int64,
    "radius": np.float32,
    "p_lower": np.float64,
    "votes": np.int64,
    "seed": np.int64,
}
PREDICT_OUTPUTS = {"predicted_class": np.int64, "p_value": np.float64, "samples": np.int64, "seed": np.int64}

# Noise of a hundred times the range of pixels leaves nothing of an image: nobody certifies at a larger sigma.
_MAX_SIGMA = 100.0
# float32 radii differ by less than this from the values they were rounded from.
_ROUNDING = 1e-6


class ServingError(RuntimeError):
    """Anything a server does other than answer a request: in one line, what it said and what to do."""


class UnavailableError(ServingError):
    """Nothing, or nothing trusted, listens at the address (raised at once); or the model was still loading."""


class DeadlineError(ServingError):
    """The server did not answer within the time-out."""


class RefusedError(ServingError):
    """The server refused the request, or does not have the model, version or signature that was asked for."""


class AnswerError(ServingError):
    """The server's answer contains no valid certificates: in one line, what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Certified:
    """Certificates, each false with probability at most alpha: that of the export or of the request.

    Attributes:
        predictions: int64 [images], a class or ABSTAIN (-1); the SavedModel calls it predicted_class.
        radii: float32 [images], certified l2 radius in units of a pixel in [0, 1]; 0 where it abstains.
        p_lower: float64 [images], lower confidence bound on the selected class's probability.
        votes: int64 [images, classes], how many estimation samples voted for each class.
        seeds: int64 [images, 2], the seeds of the noise.
    """

    predictions: np.ndarray
    radii: np.ndarray
    p_lower: np.ndarray
    votes: np.ndarray
    seeds: np.ndarray


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions of the smoothed classifier, without a radius.

    Attributes:
        predictions: int64 [images], a class or ABSTAIN (-1); the SavedModel calls it predicted_class.
        p_values: float64 [images], anytime-valid: of the hypothesis that the smoothed classifier returns another class
            than the most frequent one (see `macer_tf.early_exit`).
        samples: int64 [images], noisy copies that were drawn.
        seeds: int64 [images, 2], the seeds of the noise.
    """

    predictions: np.ndarray
    p_values: np.ndarray
    samples: np.ndarray
    seeds: np.ndarray


def check_images(images: ArrayLike) -> np.ndarray:
    """Returns images in the form in which they can be sent.

    Raises:
        ValueError: unless they are float32 [batch, H, W, C], at least one, finite and in [0, 1], none of them masked.
    """
    images = as_array("images", images)
    if images.dtype != np.float32 or images.ndim != 4 or not images.size:
        raise ValueError(
            f"images must be float32 [batch, H, W, C], one image or more. Received: {images.dtype} {list(images.shape)}"
        )
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must be finite and lie in [0, 1]; divide by 255? Received: {low} to {high}")
    return np.ascontiguousarray(images)


def certified(outputs, num_images, n=None, alpha=None):
    """Turns the outputs of certify, name -> array, into `Certified`.

    Args:
        outputs: name -> array.
        num_images: number of images that were sent.
        n, alpha: the requested ones; None if they are the export's, which the answer does not state. No alpha above
            `card.ALPHA_RANGE` is served.

    Raises:
        AnswerError: if an output is of another type or shape, or says what CERTIFY cannot say: something that is not a
            number, a class that does not exist or has no majority, a radius for an image that it abstains on, a number
            of votes that was not requested, bounds above what the votes give at that alpha, or at any that is served,
            or radii that do not follow from the bounds with one sigma.
    """
    _check_types(outputs, CERTIFY_OUTPUTS)
    predictions, radii, p_lower, votes, seeds = (outputs[name] for name in CERTIFY_OUTPUTS)
    for name in ("predicted_class", "radius", "p_lower"):
        _check_shape(name, outputs[name], (num_images,))
    _check_shape("votes", votes, (num_images, votes.shape[-1] if votes.ndim == 2 else "classes"))
    _check_seeds(seeds, num_images)
    num_classes = votes.shape[1]
    _require(num_classes >= 2, "votes for fewer than two classes")
    _require((predictions >= ABSTAIN) & (predictions < num_classes), "an impossible class", predictions)
    # In float64, where no sum of counts overflows. Negative counts and sums of 0 are refused here too.
    totals = votes.sum(axis=1, dtype=np.float64)
    _require((votes >= 0).all(axis=1) & (totals > 0) & (totals <= MOST_SAMPLES), "votes that are not counts", votes)
    asked = totals[0] if n is None else n
    _require(totals == asked, f"a number of votes other than {asked:.0f} for an image", votes)
    _require(np.isfinite(radii) & (radii >= 0), "an impossible radius", radii)
    _require((p_lower >= 0) & (p_lower < 1), "a p_lower that is not a lower bound on a probability", p_lower)
    abstained = predictions == ABSTAIN
    _require(~abstained | (radii == 0), "a radius where it abstains", radii)
    _require(abstained == (p_lower <= 0.5), "a class with p_lower at most 1/2, or ABSTAIN with one above", p_lower)
    successes = np.take_along_axis(votes, np.maximum(predictions, 0)[:, None], axis=1)[:, 0]
    most = ALPHA_RANGE[1] if alpha is None else alpha
    bounds = clopper_pearson_lower(successes, totals.astype(np.int64), most)
    _require(abstained | (p_lower <= bounds), f"a p_lower above Clopper-Pearson's at alpha={most:g}", p_lower)
    _check_radii(radii[~abstained].astype(np.float64), p_lower[~abstained])
    return Certified(predictions, radii, p_lower, votes, seeds)


def _check_radii(radii, p_lower):
    """Raises `AnswerError` unless one sigma explains all radii: radius = sigma * Phi^-1(p_lower), rounded."""
    sigmas = radii / special.ndtri(p_lower)
    _require(sigmas <= _MAX_SIGMA, f"a radius that would need a sigma above {_MAX_SIGMA:g}", radii)
    if sigmas.size:
        _require(
            sigmas <= sigmas.min() * (1 + _ROUNDING), "radii that do not follow from p_lower with one sigma", radii
        )


def predicted(outputs, num_images):
    """Turns the outputs of predict, name -> array, into `Predicted`.

    Raises:
        AnswerError: if an output is of another type or shape, or a row says what PREDICT cannot say at any alpha that
            is served.
    """
    _check_types(outputs, PREDICT_OUTPUTS)
    predictions, p_values, samples, seeds = (outputs[name] for name in PREDICT_OUTPUTS)
    for name in ("predicted_class", "p_value", "samples"):
        _check_shape(name, outputs[name], (num_images,))
    _check_seeds(seeds, num_images)
    _require(predictions >= ABSTAIN, "an impossible class", predictions)
    _require((p_values >= 0) & (p_values <= 1), "a p_value that is not a probability", p_values)
    _require((samples > 0) & (samples <= MOST_SAMPLES), "an impossible number of samples", samples)
    decided = predictions != ABSTAIN
    low, high = ALPHA_RANGE
    _require(~decided | (p_values <= high), f"a class at a p_value above {high:g}, the largest alpha", p_values)
    _require(decided | (p_values > low), f"ABSTAIN at a p_value of at most {low:g}, the smallest alpha", p_values)
    if decided.any() and not decided.all():
        _require(
            ~decided | (p_values < p_values[~decided].min()), "a class at a p_value at which it also abstains", p_values
        )
    return Predicted(predictions, p_values, samples, seeds)


def _check_seeds(seeds, num_images):
    _check_shape("seed", seeds, (num_images, 2))
    _require(((seeds >= 0) & (seeds < 2**32)).all(axis=1), "a seed that cannot be replayed", seeds)


def _check_types(outputs, expected):
    for name, dtype in expected.items():
        if outputs[name].dtype != dtype:
            raise AnswerError(f"The server returned {name} as {outputs[name].dtype}; expected {np.dtype(dtype)}.")


def _check_shape(name, array, expected):
    if array.shape != expected:
        shape = ", ".join(str(size) for size in expected)
        raise AnswerError(f"The server returned {name} of shape {list(array.shape)}; expected [{shape}].")


def _require(holds, what, values=None):
    """Raises `AnswerError` for the first row where `holds` is false."""
    if not np.all(holds):
        row = "" if values is None else f" Received: {values[np.flatnonzero(~holds)[0]]}"
        raise AnswerError(f"The server returned {what}; no part of this answer is a certificate.{row}")
