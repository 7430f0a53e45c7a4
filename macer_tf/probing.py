"""Runs a base classifier on a few images: is it a function of each image alone, and what does it return?"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

_ROWS = 16
# Relative to the largest output. The same rows in as many rows give the same bits on a CPU; a GPU may take another
# algorithm the next time, whose rounding is that of 11 binary digits (TF32) or, in 16-bit numbers, of 8, through many
# layers. Batch statistics and dropout change outputs by more.
_TOLERANCES = {"float32": 2e-3, "float64": 2e-3}
_TOLERANCE_16_BITS = 0.05


def probe(
    classifier: Callable[[tf.Tensor], tf.Tensor], image_shape: Sequence[int], precision: str = "float32"
) -> np.ndarray:
    """What a classifier returns for a few random images, after checking that it is a function of each image alone.

    Randomised smoothing needs that: votes of a classifier that is random, or whose output for an image depends on the
    rest of its batch, certify nothing. A dependence smaller than rounding, or one that these images do not show, is not
    found.

    Args:
        classifier: images [batch, H, W, C] -> [batch, classes].
        image_shape: (H, W, C).
        precision: what it computes in, e.g. "bfloat16".

    Returns:
        float32 [16, classes].

    Raises:
        ValueError: in one line, if it is not a function of one image or does not return [batch, classes] of two classes
            or more.
    """
    rng = np.random.default_rng(0)
    # Brightness and contrast differ from image to image, as batch statistics do then.
    images, others = (
        rng.random((_ROWS, *image_shape)) * rng.random((_ROWS, 1, 1, 1)) + rng.normal(0, 0.25, (_ROWS, *image_shape))
        for _ in range(2)
    )
    others *= 3  # so that the largest and smallest of a batch are not among those that both have
    kept, places = np.arange(1, _ROWS, 2), np.arange(_ROWS - 2, -1, -2)
    others[places] = images[kept]
    tolerance = _TOLERANCES.get(precision, _TOLERANCE_16_BITS)

    def outputs_of(batch):
        outputs = classifier(tf.constant(batch, tf.float32))
        check_outputs(outputs)
        return np.asarray(tf.cast(outputs, tf.float32))

    def are_level(first, second):
        finite = np.isfinite(first) & np.isfinite(second)
        largest = np.abs(first[finite]).max(initial=0)
        return np.array_equal(np.isfinite(first), np.isfinite(second)) and np.allclose(
            first[finite], second[finite], rtol=0, atol=tolerance * largest
        )

    outputs = outputs_of(images)
    if not are_level(outputs, outputs_of(images)):
        raise ValueError(
            "The classifier returns different outputs for the same images, as dropout at inference does; only a "
            "deterministic one can be certified."
        )
    if not are_level(outputs[kept], outputs_of(others)[places]):
        raise ValueError(
            "The classifier's output for an image depends on the rest of its batch, as batch norm in training mode "
            "makes it; only a function of one image can be certified."
        )
    return outputs


def check_outputs(outputs: tf.Tensor) -> None:
    """Raises ValueError, in one line, unless they are one tensor [batch, classes] of two classes or more."""
    if not tf.is_tensor(outputs):
        names = f" of {', '.join(outputs)}" if isinstance(outputs, dict) else ""
        raise ValueError(
            "The classifier must return one tensor [batch, classes]. Received: "
            f"{type(outputs).__name__}{names}, {len(outputs)} outputs"
        )
    if outputs.shape.rank != 2 or outputs.shape[-1] is None or outputs.shape[-1] < 2:
        # With a single output, the largest is always class 0, and everything would be certified.
        raise ValueError(
            f"The classifier must return [batch, classes] for two classes or more. "
            f"Received: output shape {outputs.shape}"
        )


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether each row of outputs [batch, classes] is a distribution, but for the rounding of 8 binary digits."""
    return bool((outputs >= 0).all() and (np.abs(outputs.sum(axis=1) - 1) < 0.02).all())
