"""Gaussian noise on the grid of the pixels, drawn exactly: what a certificate rests on.

Images lie on the grid i / levels, i a whole number; levels is 255 for 8-bit pixels. Their noise is the whole number

    K = floor(levels * sigma * N + 1/2),    N standard normal,

and a noisy image is (i + K) / levels. Because floor(i + levels * sigma * N + 1/2) = i + K, the votes on noisy images
are those of the classifier y -> f(floor(levels * y + 1/2) / levels) on y = x + N(0, sigma^2 I) in exact arithmetic, and
Cohen's theorem holds for that classifier as it stands. This avoids two faults of float noise: TensorFlow's normals end
at 5.68 standard deviations, and the last bits of a float32 sum tell which image it was (Jin et al., arXiv 2205.10159;
Voracek and Hein, ICLR 2023). docs/guarantee.md has the proof, step by step.

A 96-bit word of Philox decides K: it is the lowest value plus the number of thresholds 2^96 * Phi((k - 1/2) / (levels *
sigma)), rounded, that the word reaches. The first 32 bits nearly always suffice; the rest is drawn where they leave K
open.
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import mpmath
import numpy as np
import tensorflow as tf

from macer_tf.checks import check_grid_noise, rounding_of

# Added to the stream in the high half of Philox's counter, see `noise`: where a stream's further bits are.
_FURTHER_BITS = 2**32
_PHILOX = 1
_WORDS_PER_BLOCK = 4
# A table of a word's first bits gives K, unless a threshold falls among the words that begin with them.
_TABLE_BITS = range(16, 19)
_ENTRIES_PER_THRESHOLD = 60
_OPEN = np.float32(2**24)
_WORD = 96
# Thresholds are sums of Taylor series, each over this many standard deviations, in fixed point with so many bits. What
# n derivatives leave out is below _REACH^n / sqrt(n!), here 2^-180, and rounding adds less than 2^-150.
_REACH = Fraction(1, 2)
_DERIVATIVES = 56
_FIXED = _WORD + 64
# In steps of the grid: a pixel further than this from the grid's points is off it, whatever the float type.
_COARSEST = 0.25
_LOWEST = np.iinfo(np.int64).min


class GridNoise:
    """The noise K of the module's docstring, addressed by (seed, example id, stream, sample) as `noise.gaussian` is.

    Each of some 23 * levels * sigma thresholds is off by at most 2^-97, so a sample of d pixels is off by at most
    d * 2^-97 * (24 * levels * sigma + 4) in total variation: for d up to 2^24, below 2^-54, which is half the spacing
    of float64 below 1. `certificates` rounds p_lower down by more than that.

    Examples:
        >>> from macer_tf.grid_noise import GridNoise
        >>> GridNoise(sigma=0.25).draw((2, 2, 1), seed=0, example_id=7, stream=1, start=0, count=1000).shape
        TensorShape([1000, 2, 2, 1])

    Args:
        sigma: standard deviation, in units of a pixel in [0, 1].
        levels: steps of the pixel grid from 0 to 1, a whole number from 1; images lie on the multiples of 1 / levels.

    Raises:
        ValueError: if sigma or levels is out of range, or levels * sigma lies outside [0.05, 16384].
    """

    def __init__(self, sigma: float, levels: int = 255) -> None:
        check_grid_noise(sigma, levels)
        self._levels, self._sigma = int(levels), float(sigma)
        self._lowest, self._high, self._low = _thresholds(self._levels, self._sigma)
        self._bits = int(np.clip(math.log2(_ENTRIES_PER_THRESHOLD * len(self._high)), _TABLE_BITS[0], _TABLE_BITS[-1]))
        self._table = _table(self._lowest, self._high, self._low, self._bits)

    @property
    def levels(self) -> int:
        """Steps of the pixel grid from 0 to 1: images lie on the multiples of 1 / levels."""
        return self._levels

    @property
    def sigma(self) -> float:
        """Standard deviation, in units of a pixel in [0, 1]."""
        return self._sigma

    def probabilities(self) -> tuple[np.ndarray, np.ndarray]:
        """The values that K takes, int64 [values] rising, and their probabilities, float64 [values]."""
        thresholds = [(int(high) << 64) + int(low) + 2**63 for high, low in zip(self._high, self._low, strict=True)]
        shares = [
            (stop - start) / 2**_WORD for start, stop in zip([0, *thresholds], [*thresholds, 2**_WORD], strict=True)
        ]
        return self._lowest + np.arange(len(shares)), np.array(shares)

    def draw(
        self,
        shape: Sequence[int],
        seed: int | tf.Tensor,
        example_id: int | tf.Tensor,
        stream: int | tf.Tensor,
        start: int | tf.Tensor,
        count: int | tf.Tensor,
    ) -> tf.Tensor:
        """K of samples `start` to `start + count - 1` of one image: see `noise.gaussian` for the arguments.

        Returns:
            float32 [count, *shape], whole numbers, in units of 1 / levels.
        """
        size = math.prod(shape)
        blocks = -(-size // _WORDS_PER_BLOCK)
        start, count = tf.cast(start, tf.int64), tf.cast(count, tf.int64)
        key = tf.bitwise.left_shift(tf.cast(seed, tf.int64), 32) + tf.cast(example_id, tf.int64)
        words = _words(tf.stack([count, blocks * _WORDS_PER_BLOCK]), key, start * blocks, stream, tf.uint32)
        words = tf.reshape(words, [-1])
        entries = tf.bitcast(tf.bitwise.right_shift(words, tf.constant(32 - self._bits, tf.uint32)), tf.int32)
        values = tf.gather(self._table, entries)
        still_open = tf.where(tf.equal(values, _OPEN))[:, 0]
        closed = self._decide(tf.gather(words, still_open), still_open, key, start * blocks, stream)
        values = tf.tensor_scatter_nd_update(values, still_open[:, None], closed)
        values = tf.reshape(values, [count, blocks * _WORDS_PER_BLOCK])
        return tf.reshape(values[:, :size], [count, *shape])

    def _decide(self, words, places, key, first_block, stream):
        """K, float32, of 32-bit words at these places after the first block, using further bits where needed."""
        words = tf.cast(words, tf.int64)
        # The thresholds that the word reaches if its further bits are all 0, and if they are all 1.
        least = tf.searchsorted(self._high + (self._low > _LOWEST), words, side="right")
        most = tf.searchsorted(self._high, words, side="right")
        undecided = tf.where(least != most)[:, 0]

        def decide(i, reached):
            place, word = places[undecided[i]], words[undecided[i]]
            # Each place has a block of its own, whose first half is the rest of the word.
            block = first_block * _WORDS_PER_BLOCK + place
            rest = _words([1], key, block, tf.cast(stream, tf.int64) + _FURTHER_BITS, tf.int64)
            is_reached = (self._high < word) | ((self._high == word) & (self._low <= rest))
            total = tf.reduce_sum(tf.cast(is_reached, tf.int32))
            return i + 1, tf.tensor_scatter_nd_update(reached, [[undecided[i]]], [total])

        _, reached = tf.while_loop(lambda i, _: i < tf.shape(undecided)[0], decide, (0, least))
        return tf.cast(reached + self._lowest, tf.float32)


def to_grid(images: np.ndarray, levels: int) -> np.ndarray:
    """Images in [0, 1] as whole numbers of 1 / levels.

    Args:
        images: NumPy floats of any shape.
        levels: see `GridNoise`.

    Returns:
        float32 of that shape.

    Raises:
        ValueError: for a pixel that is not a multiple of 1 / levels from 0 to 1, beyond float rounding.
    """
    check_floats(images.dtype)
    allowed = levels * rounding_of(images.dtype)
    if allowed > _COARSEST:
        raise ValueError(f"Images in {images.dtype} cannot resolve levels of 1/{levels}; use float32.")
    exact = np.asarray(images, np.float64) * levels
    nearest = np.rint(exact)
    # Outside [0, 1] the sum of a pixel and its noise may be one that float32 cannot represent.
    is_inside = (nearest >= 0) & (nearest <= levels)  # NaN fails both
    if not is_inside.all():
        outside = images.flat[np.argmin(is_inside)]
        raise ValueError(f"Pixels must be finite and lie in [0, 1]. Received: {float(outside)!r}")
    off = np.abs(exact - nearest)
    if (off > allowed).any():
        worst = images.flat[np.argmax(off)]
        raise ValueError(
            f"Pixels must be multiples of 1/{levels}, the grid that noise is drawn on. Received: {float(worst)!r}. "
            "Round the images to that grid, or pass the levels of their grid."
        )
    return nearest.astype(np.float32)


def check_floats(dtype: np.dtype) -> None:
    """Raises a one-line ValueError unless images of this NumPy type are floats that NumPy knows."""
    if not np.issubdtype(dtype, np.floating):
        remedy = "divide bytes by 255" if dtype.kind in "biu" else "convert them to float32"
        raise ValueError(f"Images must be floats in [0, 1]; {remedy}. Received: dtype={dtype}")


def _words(shape, key, block, stream, dtype):
    counter = tf.stack([tf.cast(block, tf.int64), tf.cast(stream, tf.int64)])
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=shape,
        key=tf.bitcast(key[None], tf.uint64),
        counter=tf.bitcast(counter, tf.uint64),
        alg=_PHILOX,
        dtype=dtype,
    )


@functools.lru_cache(maxsize=8)
def _thresholds(levels, sigma):
    """The lowest K, and the other values' 96-bit thresholds, rising, as their first 32 bits and the rest minus 2^63."""
    lower = _lower_thresholds(levels * Fraction(sigma))
    thresholds = lower[::-1] + [2**_WORD - threshold for threshold in lower]
    high = np.array([threshold >> 64 for threshold in thresholds], np.int64)
    low = np.array([(threshold & (2**64 - 1)) - 2**63 for threshold in thresholds], np.int64)
    return -len(lower), high, low


def _lower_thresholds(width):
    """The 96-bit thresholds 2^96 * Phi(-(k + 1/2) / width), rounded, of k = 0, 1, ... as long as they are above 0."""
    steps, lower = max(int(width * _REACH), 1), []
    while True:
        series = _tail_series((len(lower) + Fraction(1, 2)) / width)
        for step in range(steps):
            offset = (step << _FIXED) // (width * _REACH)
            share = 0
            for coefficient in reversed(series):
                share = coefficient + (share * offset >> _FIXED)
            threshold = (share + (1 << _FIXED - _WORD - 1)) >> _FIXED - _WORD
            if threshold == 0:
                return lower
            lower.append(threshold)


def _tail_series(x):
    """Coefficients c, whole numbers of 2^-_FIXED: Phi(-x - _REACH * t) is the sum of c[n] * t^n, for t from 0 to 1."""
    with mpmath.workprec(_FIXED + 64):
        x, reach = (mpmath.mpf(one.numerator) / one.denominator for one in (x, _REACH))
        coefficients, factor = [mpmath.ncdf(-x)], -mpmath.npdf(x)
        # The nth derivative of Phi(-x) is (-1)^n times the density and the Hermite polynomial He_(n-1)(x).
        hermite, before = mpmath.mpf(1), mpmath.mpf(0)
        for n in range(1, _DERIVATIVES):
            factor *= reach / n
            coefficients.append(factor * hermite)
            hermite, before, factor = x * hermite - (n - 1) * before, hermite, -factor
        return [int(mpmath.nint(coefficient * 2**_FIXED)) for coefficient in coefficients]


def _table(lowest, high, low, bits):
    """float32 [2^bits]: K of the words that begin with these bits, or _OPEN where a threshold lies among them."""
    first = np.arange(2**bits, dtype=np.int64) << (32 - bits)
    least = np.searchsorted(high + (low > _LOWEST), first, side="right")
    most = np.searchsorted(high, first + (1 << (32 - bits)) - 1, side="right")
    return np.where(least == most, np.float32(lowest + least), _OPEN)
