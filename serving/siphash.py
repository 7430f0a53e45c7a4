"""SipHash-2-4 (Aumasson and Bernstein, 2012) of two words, in TensorFlow operations: a keyed pseudorandom function.

TensorFlow's own fresh random numbers come from one Mersenne twister per process, seeded with 32 bits: whoever sees some
of them can predict the next. Their hash tells nothing to anyone without the key.
"""

import tensorflow as tf

_START = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
_LENGTH = 16 << 56  # bytes of the message, in the highest byte of its last word


def siphash(key: tuple[int, int], first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """uint64 words, of one shape -> uint64 of that shape: the hash of each pair.

    Args:
        key: two whole numbers below 2^64, secret.
        first, second: the words of the message, 8 bytes each, little-endian.
    """
    xor = tf.bitwise.bitwise_xor
    v0, v1, v2, v3 = (tf.fill(tf.shape(first), _word(key[i % 2] ^ start)) for i, start in enumerate(_START))
    for word in (first, second, tf.fill(tf.shape(first), _word(_LENGTH))):
        v0, v1, v2, v3 = _rounds(2, v0, v1, v2, xor(v3, word))
        v0 = xor(v0, word)
    v0, v1, v2, v3 = _rounds(4, v0, v1, xor(v2, _word(0xFF)), v3)
    return xor(xor(v0, v1), xor(v2, v3))


def _rounds(number, v0, v1, v2, v3):
    xor = tf.bitwise.bitwise_xor
    for _ in range(number):
        v0, v2 = v0 + v1, v2 + v3
        v1, v3 = xor(_rotated(v1, 13), v0), xor(_rotated(v3, 16), v2)
        v2, v0 = v2 + v1, _rotated(v0, 32) + v3
        v1, v3 = xor(_rotated(v1, 17), v2), xor(_rotated(v3, 21), v0)
        v2 = _rotated(v2, 32)
    return v0, v1, v2, v3


def _rotated(words, bits):
    high = tf.bitwise.left_shift(words, _word(bits))
    return tf.bitwise.bitwise_or(high, tf.bitwise.right_shift(words, _word(64 - bits)))


def _word(number):
    return tf.constant(number, tf.uint64)
