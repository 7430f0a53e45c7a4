"""Checks of hyper-parameters; each value out of range is refused in one line. Imports no TensorFlow."""

import math
import numbers
import re
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# float32 flushes probabilities below 1.2e-38 = Phi(-12.9) to zero; a hinge at 24 reaches down to about Phi(-12.4).
MAX_GAMMA = 24.0
# XLA evaluates the quantile as erfinv(2p - 1), which in float64 resolves no p below about 1e-15 = Phi(-7.9).
MAX_GAMMA_XLA = 14.0
# Limits of the noise in steps of the grid. At the widest, 370,000 thresholds take ten seconds to compute.
_WIDEST = 2**14
# Less noise than this leaves all but one pixel in 1e23 unchanged.
_NARROWEST = 0.05

ATTACKS = ("pgd", "ddn")

# The names in `networks.BUILDERS`.
NETWORKS = ("small_cnn", "lenet", "cifar_resnet<depth>", "resnet50")


def is_number(value: Any) -> bool:
    """Whether a value is a real number, Python's or NumPy's, within the range of floats, and not a bool."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:  # of an int such as 10**400
        return False
    return True


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python's or NumPy's type for them, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_from_0(value):
    return is_number(value) and 0 <= value < math.inf


def _is_above_0(value):
    return _is_from_0(value) and value > 0


def _is_count_from_0(value):
    return _is_from_0(value) and value == int(value)


def _is_count(value):
    return _is_count_from_0(value) and value > 0


def _is_share(value):
    return is_number(value) and 0 <= value <= 1


_RULES = {
    "sigma": (_is_above_0, "sigma, the noise level in [0, 1] pixel units, must be above 0."),
    "num_samples": (_is_count, "num_samples, the noisy copies of each image, must be a whole number from 1."),
    "microbatch": (
        lambda value: value is None or _is_count(value),
        "microbatch, a number of images, must be a whole number from 1, or None.",
    ),
    "lam": (_is_from_0, "lam must be 0 or above."),
    "consistency": (_is_from_0, "consistency, the weight of the copies' divergence, must be 0 or above."),
    "entropy": (_is_from_0, "entropy, the weight of the mean prediction's entropy, must be 0 or above."),
    "stability": (_is_from_0, "stability, the weight of the stability term, must be 0 or above."),
    "mixup": (_is_from_0, "mixup, the weight of the mixed images' term, must be 0 or above."),
    "step_size": (_is_above_0, "step_size, the size of the attack's steps in [0, 1] pixel units, must be above 0."),
    "adversarial": (_is_from_0, "adversarial, the weight of the worst noise's term, must be 0 or above."),
    "threshold": (_is_share, "threshold, for the majority class's share, must be from 0 to 1."),
    "teacher_samples": (
        _is_count,
        "teacher_samples, the noisy copies that the teacher sees, must be a whole number from 1.",
    ),
    "consistency_share": (_is_share, "consistency_share must be from 0 to 1."),
    "noise_steps": (_is_count_from_0, "noise_steps, gradient steps on the noise, must be a whole number from 0."),
    "noise_radius": (_is_above_0, "noise_radius, how far the noise may move, in [0, 1] pixel units, must be above 0."),
    "gamma": (
        lambda value: is_number(value) and 0 < value <= MAX_GAMMA,
        f"gamma must be above 0 and at most {MAX_GAMMA:g}, the most that float32 can resolve.",
    ),
    "beta": (_is_above_0, "beta, the inverse temperature, must be above 0."),
    "epsilon": (_is_from_0, "epsilon, the attack's l2 radius in [0, 1] pixel units, must be 0 or above."),
    "attack_steps": (_is_count, "attack_steps must be a whole number from 1."),
    "attack": (lambda value: value in ATTACKS, f"attack must be {' or '.join(ATTACKS)}."),
}


def check(**hyperparameters: Any) -> None:
    """Raises a one-line ValueError for the first value outside its range: `check(sigma=0.25, lam=12.0)`."""
    for name, value in hyperparameters.items():
        accepts, line = _RULES[name]
        if not accepts(value):
            raise ValueError(f"{line} Received: {name}={value!r}")


def check_network(name: str, accepted: Collection[str] = NETWORKS) -> tuple[str, tuple[int, ...]]:
    """The entry of `accepted` that a network's name matches, and the whole numbers in place of <depth> or the like.

    Raises:
        ValueError: in one line, if there is none.
    """
    if not isinstance(name, str):
        raise ValueError(f"A network is chosen by its name, e.g. 'lenet'. Received: {name!r}")
    for registered in accepted:
        pattern = r"(\d+)".join(map(re.escape, re.split(r"<\w+>", registered)))
        if found := re.fullmatch(pattern, name):
            return registered, tuple(map(int, found.groups()))
    raise ValueError(f"Unknown network. Received: {name}; accepted: {', '.join(accepted)}, e.g. cifar_resnet20.")


def check_depth(depth: int) -> None:
    """Raises a one-line ValueError unless a cifar_resnet can have this depth."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"The depth of a cifar_resnet must be 6n + 2, e.g. 20 or 110. Received: depth={depth}")


def check_seed(seed: int) -> int:
    """Returns `seed` as an int. Raises ValueError unless it is a whole number in [0, 2**32)."""
    if not (_is_count_from_0(seed) and seed < 2**32):
        raise ValueError(f"seed must be a whole number from 0 to 4294967295. Received: seed={seed!r}")
    return int(seed)


def check_unmasked(name: str, values: Any) -> None:
    """Raises ValueError if some values are masked: NumPy's functions may ignore the mask."""
    if masked := _count_masked(values):
        raise ValueError(f"{name} must not be masked; leave masked ones out. Received: {masked:,} masked")


def _count_masked(values):
    if isinstance(values, (list, tuple)):  # of masked arrays, too
        return sum(map(_count_masked, values))
    return int(np.ma.count_masked(values)) if np.ma.is_masked(values) else 0


def as_array(name: str, values: ArrayLike) -> np.ndarray:
    """`values` as a plain NumPy array. Raises ValueError if some are masked."""
    check_unmasked(name, values)
    return np.asarray(values)


def check_labels(labels: ArrayLike, num_images: int) -> np.ndarray:
    """Labels as `class_indices` takes them, as [images].

    Raises:
        ValueError: if there is not one label per image, or they are not whole numbers from -1.
    """
    labels = class_indices(labels)
    is_number = labels.dtype.kind in "biuf"
    if not is_number or not np.isfinite(labels).all() or (labels != np.rint(labels)).any() or (labels < -1).any():
        received = labels.dtype if not is_number else f"{labels.min()} to {labels.max()}"
        raise ValueError(f"Labels must be whole numbers from 0, or -1 where there is none. Received: {received}")
    if labels.shape != (num_images,):
        raise ValueError(f"Expected one label per image. Received: {labels.shape} for {(num_images,)}")
    return labels


def class_indices(labels: ArrayLike) -> np.ndarray:
    """Labels as training takes them, [images], [images, 1] or one-hot rows, as [images]; any others as they are."""
    labels = as_array("Labels", labels)
    if labels.ndim != 2 or labels.dtype.kind not in "biuf":
        return labels
    if labels.shape[1] == 1:
        return labels[:, 0]
    is_one_hot = np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()
    return labels.argmax(axis=1) if is_one_hot else labels


def check_levels(levels: int) -> None:
    """Raises ValueError unless `levels` is a whole number from 1 to 65535."""
    if not (_is_count(levels) and levels < 2**16):
        raise ValueError(
            f"levels, the steps from pixel 0 to 1, must be a whole number from 1 to 65535. Received: levels={levels!r}"
        )


def check_grid_noise(sigma: float, levels: int) -> None:
    """Raises ValueError unless noise of this sigma can be drawn on the grid of 1 / levels."""
    check_levels(levels)
    if not _NARROWEST <= int(levels) * float(sigma) <= _WIDEST:
        raise ValueError(
            f"levels * sigma, the noise in steps of the grid, must lie in [{_NARROWEST}, {_WIDEST:,}]. Received: "
            f"levels={levels}, sigma={sigma}"
        )


def rounding_of(dtype: np.dtype) -> float:
    """How far a pixel in [0, 1] of this float type may be from a multiple of 1 / levels and still stand for it."""
    return max(float(np.finfo(dtype).eps), float(np.finfo(np.float32).eps))


def levels_of(pixel_max: int) -> int:
    """The grid for images whose bytes go up to `pixel_max`: the smallest multiple of it that is 255 or more.

    Raises:
        ValueError: unless `pixel_max` is a whole number from 1 to 65535.
    """
    if not (_is_count(pixel_max) and pixel_max < 2**16):
        raise ValueError(
            "pixel_max, what a stored pixel is divided by, must be a whole number from 1 to 65535. Received: "
            f"pixel_max={pixel_max!r}"
        )
    return pixel_max * -(-255 // pixel_max)
