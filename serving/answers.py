"""What a served classifier answers, checked output by output: a broken answer never becomes a certificate."""

from dataclasses import dataclass

import numpy as np

from macer_tf.certificates import ABSTAIN

CERTIFY_OUTPUTS = {
    "predicted_class": np.int64,
    "radius": np.float32,
    "p_lower": np.float64,
    "votes": np.int64,
    "seed": np.int64,
}
PREDICT_OUTPUTS = {"predicted_class": np.int64, "p_value": np.float64, "samples": np.int64, "seed": np.int64}


class ServingError(RuntimeError):
    """The server cannot be reached, or it refused: in one line, what it said and what to do."""


class AnswerError(ServingError):
    """The server answered what no certificate can be read from: in one line, what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Certified:
    """Certificates, each false with probability at most the alpha that the model was exported or asked with.

    Attributes:
        classes: int64 [images], a class or ABSTAIN (-1).
        radii: float32 [images], certified l2 radius in units of a pixel in [0, 1]; 0 where it abstains.
        p_lower: float64 [images], lower confidence bound on the selected class' probability.
        votes: int64 [images, classes], how often the noisy copies of estimation went to each class.
        seeds: int64 [images, 2], what the noise was drawn from.
    """

    classes: np.ndarray
    radii: np.ndarray
    p_lower: np.ndarray
    votes: np.ndarray
    seeds: np.ndarray


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions of the smoothed classifier, without a radius.

    Attributes:
        classes: int64 [images], a class or ABSTAIN (-1).
        p_values: float64 [images], of the test that the two most frequent classes are equally likely.
        samples: int64 [images], noisy copies that were drawn.
        seeds: int64 [images, 2], what the noise was drawn from.
    """

    classes: np.ndarray
    p_values: np.ndarray
    samples: np.ndarray
    seeds: np.ndarray


def check_images(images):
    """Returns images as they can be sent.

    Raises:
        ValueError: unless they are float32 [batch, H, W, C], at least one, finite and in [0, 1].
    """
    images = np.asarray(images)
    if images.dtype != np.float32 or images.ndim != 4 or not images.size:
        raise ValueError(
            "images must be float32 [batch, H, W, C], at least one of them. "
            f"Received: {images.dtype} {list(images.shape)}"
        )
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must be finite and lie in [0, 1]; divide by 255? Received: {low} to {high}")
    return np.ascontiguousarray(images)


def certified(outputs, num_images):
    """Outputs of certify, name -> array -> `Certified`.

    Raises:
        AnswerError: if an output is missing or of another type or shape, or a row says what CERTIFY cannot say: no
            number, a class that is not there, a class without a majority, a radius where it abstains.
    """
    _check_types(outputs, CERTIFY_OUTPUTS)
    classes, radii, p_lower, votes, seeds = (outputs[name] for name in CERTIFY_OUTPUTS)
    for name in ("predicted_class", "radius", "p_lower"):
        _check_shape(name, outputs[name], (num_images,))
    _check_shape("votes", votes, (num_images, votes.shape[-1] if votes.ndim == 2 else "classes"))
    _check_shape("seed", seeds, (num_images, 2))
    num_classes = votes.shape[1]
    _require(num_classes >= 2, "votes for fewer than two classes")
    _require((classes >= ABSTAIN) & (classes < num_classes), "a class that is not one of those voted for", classes)
    # In float64, where no sum of counts overflows: negative counts and sums of 0 are refused on the way.
    totals = votes.sum(axis=1, dtype=np.float64)
    _require((votes >= 0).all(axis=1) & (totals > 0), "votes that are no counts", votes)
    _require(np.isfinite(radii) & (radii >= 0), "a radius that is no radius", radii)
    _require((p_lower >= 0) & (p_lower <= 1), "a p_lower that is no probability", p_lower)
    abstained = classes == ABSTAIN
    _require(~abstained | (radii == 0), "a radius where it abstains", radii)
    _require(abstained | (p_lower > 0.5), "a class with p_lower not above 1/2", p_lower)
    shares = np.take_along_axis(votes, np.maximum(classes, 0)[:, None], axis=1)[:, 0] / totals
    _require(abstained | (p_lower <= shares), "a p_lower above the class' share of the votes", p_lower)
    return Certified(classes, radii, p_lower, votes, seeds)


def predicted(outputs, num_images):
    """Outputs of predict, name -> array -> `Predicted`.

    Raises:
        AnswerError: if an output is missing or of another type or shape, or a row says what PREDICT cannot say.
    """
    _check_types(outputs, PREDICT_OUTPUTS)
    classes, p_values, samples, seeds = (outputs[name] for name in PREDICT_OUTPUTS)
    for name in ("predicted_class", "p_value", "samples"):
        _check_shape(name, outputs[name], (num_images,))
    _check_shape("seed", seeds, (num_images, 2))
    _require(classes >= ABSTAIN, "a class that is none", classes)
    _require((p_values >= 0) & (p_values <= 1), "a p_value that is no probability", p_values)
    _require(samples > 0, "a number of samples that is none", samples)
    return Predicted(classes, p_values, samples, seeds)


def _check_types(outputs, expected):
    for name, dtype in expected.items():
        if name not in outputs:
            raise AnswerError(
                f"The server answered without {name}; does it serve a model exported by serving.export? "
                f"Received: {', '.join(sorted(outputs)) or 'nothing'}"
            )
        if outputs[name].dtype != dtype:
            raise AnswerError(f"The server answered {name} as {outputs[name].dtype}; expected {np.dtype(dtype)}.")


def _check_shape(name, array, expected):
    if array.shape != expected:
        shape = ", ".join(str(size) for size in expected)
        raise AnswerError(f"The server answered {name} of shape {list(array.shape)}; expected [{shape}].")


def _require(holds, what, values=None):
    """Raises `AnswerError` for the first row where it does not hold."""
    if not np.all(holds):
        row = "" if values is None else f" Received: {values[np.flatnonzero(~holds)[0]]}"
        raise AnswerError(f"The server answered {what}; nothing of this answer is a certificate.{row}")
