"""Certified radii of many images as a curve, however it is drawn."""

import numpy as np

# If an axis ended nearer to 0, its numbers could not be read, or even computed.
_NEAREST_END = 1e-6


def checked(radii: np.ndarray) -> np.ndarray:
    """The radii as float64 [num_images]. Raises ValueError if there are none, or not one-dimensional or not finite."""
    radii = np.asarray(radii, dtype=np.float64)
    if radii.ndim != 1 or radii.size == 0 or not np.isfinite(radii).all():
        raise ValueError(f"radii must be finite, of shape [num_images > 0]. Received: shape {radii.shape}, {radii}")
    return radii


def end_of_plot(largest: float) -> float:
    """Where the axis of radii ends in a plot whose curves reach up to `largest`."""
    return 1.06 * largest if largest > _NEAREST_END else 1.0


def steps_of(radii: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Ascending radii from 0 to `end`, and mean(radii >= r) for r up to each of them and above the previous one."""
    steps = np.unique(np.concatenate([[0.0, end], np.maximum(radii, 0.0)]))
    return steps, 1.0 - np.searchsorted(np.sort(radii), steps, side="left") / radii.size


def named(name: str, radii: np.ndarray, mean: str = "ACR") -> str:
    """A curve's name with its area, which is called `mean`, and its number of images."""
    return f"{name}, {mean} {np.maximum(radii, 0.0).mean():.3f} ({radii.size:,} image{'' if radii.size == 1 else 's'})"
