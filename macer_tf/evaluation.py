"""Certificates and labels -> what the field reports: certified accuracy at radii, ACR with its standard error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from macer_tf import bounds
from macer_tf.certificates import ABSTAIN, Certificates, is_correct, max_radius, predictions_and_radii
from macer_tf.checks import as_array, check_labels, is_number
from macer_tf.votes import images_in_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from macer_tf.certification_log import CertificationLog

_RADIUS_STEP = 0.25
_MAX_RADII = 10


@dataclass(frozen=True)
class Evaluation:
    """Figures for a set of images. They mean nothing without n, alpha and the image set: ACR grows with n.

    Examples:
        >>> import numpy as np
        >>> from macer_tf import Votes, certify, evaluate
        >>> votes = Votes(selection=np.array([[99, 1], [60, 40]]), estimation=np.array([[9_900, 100], [5_000, 5_000]]))
        >>> print(evaluate(certify(votes, sigma=0.25, alpha=0.001), labels=[0, 0], radii=(0, 0.25, 0.5, 0.75)))
        2 images: ACR 0.277 ± 0.277, 50.0 % abstained
        l2 radius            0.00   0.25   0.50   0.75
        certified accuracy  0.500  0.500  0.500  0.000

    Attributes:
        num_images: number of images.
        acr: average certified radius (Section 5.1); wrong and abstained images count as 0; in [0, 1] pixel units.
        acr_standard_error: standard error of `acr`, over the drawing of the images.
        abstained: fraction of all images that were estimated and then abstained on.
        radii, certified_accuracy: fraction of the images correctly certified at each radius or beyond.
        unestimated: fraction of the images without estimation samples, such as those that `budgets` leave out because
            the selected class is not the label. They count as 0, as they would with samples; whether they would abstain
            or be certified as a wrong class is not known.
    """

    num_images: int
    acr: float
    acr_standard_error: float
    abstained: float
    radii: tuple[float, ...]
    certified_accuracy: tuple[float, ...]
    unestimated: float = 0.0

    def __str__(self) -> str:
        error = "" if np.isnan(self.acr_standard_error) else f" ± {self.acr_standard_error:.3f}"
        about = f"{images_in_words(self.num_images)}: ACR {self.acr:.3f}{error}, {100 * self.abstained:.1f} % abstained"
        if self.unestimated:
            about += f", {100 * self.unestimated:.1f} % without estimation samples"
        # Two digits, or all of them if that would round the radius: at another one, less may be certified.
        columns = [f"{radius:.2f}" if round(radius, 2) == radius else str(float(radius)) for radius in self.radii]
        width = max([5, *map(len, columns)])
        radii = "".join(f"  {column:>{width}}" for column in columns)
        accuracies = "".join(f"  {accuracy:{width}.3f}" for accuracy in self.certified_accuracy)
        return f"{about}\nl2 radius         {radii}\ncertified accuracy{accuracies}"

    def plot(self, axes: Axes | None = None, label: str | None = None) -> Axes:
        """Draws certified accuracy over the radii with matplotlib, and returns the axes.

        Args:
            axes: where to draw; by default axes of a new figure.
            label: the curve's label in a legend; by default its ACR.
        """
        if axes is None:
            from matplotlib import pyplot

            axes = pyplot.figure().add_subplot()
        axes.plot(self.radii, self.certified_accuracy, "o-", label=f"ACR {self.acr:.3f}" if label is None else label)
        axes.set(xlabel="l2 radius", ylabel="certified accuracy", ylim=(0, 1))
        axes.legend()
        return axes


def correct_radii(certificates: Certificates | CertificationLog, labels: ArrayLike) -> np.ndarray:
    """float64 [images]: the radius where the certified class is the label, -1 where it is wrong or abstained.

    Raises:
        ValueError: if there are not as many labels as certificates, or they are not whole numbers from -1; or unless
            the certificates have one prediction and one radius per image, finite and from 0 where it is correct.
    """
    predictions, radii = predictions_and_radii(certificates)
    correct = is_correct(predictions, check_labels(labels, len(predictions)))
    bad = correct & ~(np.isfinite(radii) & (radii >= 0))
    if bad.any():
        raise ValueError(f"Certified radii must be finite, and from 0. Received: {radii[np.argmax(bad)]}")
    return np.where(correct, radii, -1.0)


def evaluate(
    certificates: Certificates | CertificationLog, labels: ArrayLike, radii: Sequence[float] | None = None
) -> Evaluation:
    """Certified accuracy and ACR of certificates; see `Evaluation` for how they are shown.

    Examples:
        >>> import numpy as np
        >>> from macer_tf import Votes, certify, evaluate
        >>> votes = Votes(selection=np.array([[9, 1]]), estimation=np.array([[990, 10]]))
        >>> round(evaluate(certify(votes, sigma=0.5, alpha=0.001), labels=[0]).acr, 3)
        0.989

    Args:
        certificates: `Certificates`, or a `CertificationLog`.
        labels: the true classes, integers [images] or [images, 1], or one-hot rows.
        radii: l2 radii to report certified accuracy at, in units of a pixel in [0, 1]; by default `default_radii`.

    Returns:
        `Evaluation`.

    Raises:
        ValueError: if there is not one label per image, or no image; if radii are not numbers from 0; or if they are
            left out for a log, which does not say what sigma, n and alpha its certificates are for.
    """
    correct = correct_radii(certificates, labels)
    if len(correct) == 0:
        raise ValueError("There is nothing to evaluate. Received: no images")
    radii = _radii_of(certificates) if radii is None else _checked(radii)
    # A log does not say how many samples an image had: all count as estimated.
    estimated = np.broadcast_to(getattr(certificates, "n", 1), correct.shape) > 0
    acr, acr_standard_error = mean_and_standard_error(np.maximum(correct, 0))
    return Evaluation(
        num_images=len(correct),
        acr=acr,
        acr_standard_error=acr_standard_error,
        abstained=float(np.mean((np.asarray(certificates.predictions) == ABSTAIN) & estimated)),
        radii=tuple(float(radius) for radius in radii),
        certified_accuracy=tuple(float(np.mean(correct >= radius)) for radius in radii),
        unestimated=float(np.mean(~estimated)),
    )


def _checked(radii):
    """Radii as floats; one below 0 would count wrong images."""
    is_scalar = isinstance(radii, np.ndarray) and radii.ndim == 0  # iterable by its type, and by nothing else
    found = list(radii) if isinstance(radii, Iterable) and not is_scalar else [None]
    if not all(is_number(radius) and 0 <= radius < np.inf for radius in found):
        raise ValueError(f"radii must be finite numbers from 0, such as (0, 0.25, 0.5). Received: radii={radii!r}")
    return tuple(map(float, found))


def default_radii(sigma: float, n: int, alpha: float, bound: str = bounds.DEFAULT) -> tuple[float, ...]:
    """Multiples of 0.25 up to the largest radius that n samples can certify, at most ten.

    Examples:
        >>> from macer_tf import evaluation
        >>> evaluation.default_radii(sigma=0.25, n=100_000, alpha=0.001)
        (0.0, 0.25, 0.5, 0.75)
    """
    largest = max_radius(sigma, n, alpha, bound)
    return tuple(_RADIUS_STEP * step for step in range(min(_MAX_RADII, int(largest / _RADIUS_STEP) + 1)))


def _radii_of(certificates: Certificates | CertificationLog) -> tuple[float, ...]:
    if not isinstance(certificates, Certificates):
        raise ValueError(
            f"radii are needed: a {type(certificates).__name__} does not say what sigma, n and alpha it is for."
        )
    n = int(np.max(certificates.n))
    return default_radii(certificates.sigma, n, certificates.alpha, certificates.bound)


def mean_and_standard_error(values: ArrayLike) -> tuple[float, float]:
    """Mean of `values` [images] and its standard error (NaN for a single image).

    For a paired comparison of two models, give the differences of their radii on the same images.

    Raises:
        ValueError: if some values are masked.
    """
    values = as_array("Values", values).astype(np.float64)
    spread = values.std(ddof=1) if len(values) > 1 else np.nan
    return float(values.mean()), float(spread / np.sqrt(len(values)))
