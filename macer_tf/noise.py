"""Addressable Gaussian noise: (seed, example id, stream, sample offset) -> the same noise everywhere.

Philox is a counter-based generator: block i of its output is a function of the key and of (counter + i) alone. Each
noise sample takes a whole number of blocks, so sample j of an image is read from the counter's position
j * blocks, whichever batch, worker or run asks for it. This holds for TensorFlow's own kernels: XLA makes other normals
from the same bits, so do not compile code that draws noise with `jit_compile=True`.
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from macer_tf.checks import check_seed, is_whole

# The high half of Philox's 128-bit counter. These six must never share a sample.
SELECTION, ESTIMATION, TRAINING, EVALUATION, RANDOMIZATION, TEACHER = 0, 1, 2, 3, 4, 5
STREAMS = (SELECTION, ESTIMATION)

_PHILOX = 1
_NORMALS_PER_BLOCK = 4


def gaussian(
    shape: Sequence[int | tf.Tensor],
    seed: int | tf.Tensor,
    example_id: int | tf.Tensor,
    stream: int | tf.Tensor,
    start: int | tf.Tensor,
    count: int | tf.Tensor,
) -> tf.Tensor:
    """Samples `start` to `start + count - 1` of the standard normal noise of one image.

    Args:
        shape: shape of one sample, e.g. (height, width, channels); integers, Python's or int64 scalar tensors.
        seed, example_id: integers in [0, 2**32), Python's or int64 scalar tensors; together Philox's key.
        stream: SELECTION, ESTIMATION, TRAINING, EVALUATION or TEACHER.
        start, count: integers, Python's or int64 scalar tensors.

    Returns:
        float32 [count, *shape], with standard deviation 1.
    """
    size = math.prod(shape)
    blocks = -(-size // _NORMALS_PER_BLOCK)
    start, count = tf.cast(start, tf.int64), tf.cast(count, tf.int64)
    key = tf.bitwise.left_shift(tf.cast(seed, tf.int64), 32) + tf.cast(example_id, tf.int64)
    flat = tf.raw_ops.StatelessRandomNormalV2(
        shape=tf.stack([count, blocks * _NORMALS_PER_BLOCK]),
        key=tf.bitcast(key[None], tf.uint64),
        counter=tf.bitcast(tf.stack([start * blocks, tf.cast(stream, tf.int64)]), tf.uint64),
        alg=_PHILOX,
    )
    return tf.reshape(flat[:, :size], [count, *shape])


def uniforms(seed: int, example_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """U of each image, uniform on [0, 1) and independent of its noise, for a randomised bound.

    Examples:
        >>> from macer_tf import noise
        >>> bool((noise.uniforms(0, [7, 8]) == noise.uniforms(0, [8, 7])[::-1]).all())
        True

    Args:
        seed, example_ids: whole numbers in [0, 2**32), see `gaussian`.

    Returns:
        float64 [images], multiples of 2^-53: always the same for a seed and an id, so that nobody draws twice.

    Raises:
        ValueError: for a seed or an id out of range, which would have the uniform of another.
    """
    seed = check_seed(seed)
    for example_id in example_ids:
        if not (is_whole(example_id) and 0 <= example_id < 2**32):
            raise ValueError(f"example_ids must be whole numbers from 0 to 4294967295. Received: {example_id!r}")
    words = [
        tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=[1],
            key=np.array([(seed << 32) + int(example_id)], np.uint64),
            counter=np.array([0, RANDOMIZATION], np.uint64),
            alg=_PHILOX,
            dtype=tf.uint64,
        ).numpy()[0]
        for example_id in example_ids
    ]
    return (np.array(words, np.uint64) >> np.uint64(11)) * 2.0**-53


def uniforms_of_noise(noise: tf.Tensor, sigma: float) -> tf.Tensor:
    """One draw of U(0, 1) for each image, computed from its noise, so that the same noise gives the same draw.

    It is Phi of the noise's projection onto a checkerboard of +1 and -1, a direction that classifiers hardly see.

    Args:
        noise: float32 [batch, num_samples, height, width, channels], scaled by sigma.
        sigma: its standard deviation.

    Returns:
        float32 [batch].
    """
    shape = tf.shape(noise)
    squares = tf.range(shape[2])[:, None, None] + tf.range(shape[3])[:, None]
    signs = tf.cast(1 - 2 * (squares % 2), tf.float32)
    count = tf.cast(tf.reduce_prod(shape[1:]), tf.float32)
    projection = tf.reduce_sum(noise * signs, axis=(1, 2, 3, 4)) / (sigma * tf.sqrt(count))
    return (1 + tf.math.erf(projection / math.sqrt(2))) / 2


def noisy_copies(images: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """`num_samples` noisy copies of each image, image by image.

    Args:
        images: [batch, height, width, channels].
        noise: [batch, num_samples, height, width, channels], already scaled by sigma.

    Returns:
        [batch * num_samples, height, width, channels]; row i * num_samples + j is image i plus noise[i, j].
    """
    noisy = images[:, None] + noise
    return tf.reshape(noisy, tf.concat([[-1], tf.shape(images)[1:]], axis=0))
