"""Certificates and labels -> what the field reports: certified accuracy at radii, ACR with its standard error."""

from dataclasses import dataclass

import numpy as np

from macer_tf.certificates import ABSTAIN


@dataclass(frozen=True)
class Evaluation:
    """Figures over a set of images. Means nothing without n, alpha and the image set: ACR grows with n.

    Attributes:
        num_images: how many.
        acr: average certified radius (Section 5.1), wrong and abstained images counting 0; in [0, 1] pixel units.
        acr_standard_error: of `acr`, over the drawing of the images.
        abstained: fraction of the images that were estimated and then abstained on.
        radii, certified_accuracy: fraction certified, correctly, at each radius or beyond.
        unestimated: fraction of the images without estimation samples, such as `budgets` leaves out where the selected
            class is not the label. They count 0, as they would with samples; whether they would abstain or be
            certified as a wrong class is not known.
    """

    num_images: int
    acr: float
    acr_standard_error: float
    abstained: float
    radii: tuple
    certified_accuracy: tuple
    unestimated: float = 0.0


def correct_radii(certificates, labels):
    """float64 [images]: the radius where the certified class is the label, -1 where it is wrong or abstained.

    Raises:
        ValueError: if there are not as many labels as certificates.
    """
    labels = np.asarray(labels)
    if labels.shape != certificates.predictions.shape:
        raise ValueError(f"One label an image is needed. Received: {labels.shape} for {certificates.predictions.shape}")
    # Data without labels is often labelled -1, which is what abstaining is called.
    correct = (certificates.predictions == labels) & (certificates.predictions != ABSTAIN)
    return np.where(correct, certificates.radii, -1.0)


def evaluate(certificates, labels, radii):
    """The `Evaluation` of certificates against labels [images] at `radii`."""
    correct = correct_radii(certificates, labels)
    # A log does not say how many samples an image had: all count as estimated.
    estimated = np.broadcast_to(getattr(certificates, "n", 1), correct.shape) > 0
    acr, acr_standard_error = mean_and_standard_error(np.maximum(correct, 0))
    return Evaluation(
        num_images=len(correct),
        acr=acr,
        acr_standard_error=acr_standard_error,
        abstained=float(np.mean((certificates.predictions == ABSTAIN) & estimated)),
        radii=tuple(float(radius) for radius in radii),
        certified_accuracy=tuple(float(np.mean(correct >= radius)) for radius in radii),
        unestimated=float(np.mean(~estimated)),
    )


def mean_and_standard_error(values):
    """Mean of `values` [images] and its standard error (NaN for a single image).

    For a paired comparison of two models, give the differences of their radii on the same images.
    """
    values = np.asarray(values, np.float64)
    spread = values.std(ddof=1) if len(values) > 1 else np.nan
    return float(values.mean()), float(spread / np.sqrt(len(values)))
