"""The smoothed classifier as a TensorFlow graph: fresh noise, votes, Clopper-Pearson in float64, a certificate."""

import tensorflow as tf

from macer_tf import noise
from macer_tf.certificates import ABSTAIN, check_can_certify
from macer_tf.inference import InferenceGraph
from macer_tf.smoothing import count_block, default_micro_batch

_BISECTIONS = 60
# Above the error of 60 bisections of float64 `betainc` against SciPy for n up to 1e6: the bound must not overstate.
_SAFETY = 1e-11


class SmoothedSignature(tf.Module):
    """CERTIFY (Cohen et al. 2019) for a batch of images, in the graph.

    Noise is new for every image and every call: its key comes from the operating system, so neither a restart nor a
    client can repeat or choose it.

    Args:
        classifier: a built Keras model, images [batch, H, W, C] -> [batch, classes].
        sigma, n0, n, alpha: see `SmoothedClassifier.certify`; fixed at export.

    Raises:
        ValueError: if n and alpha could never certify an image, or the classifier has fewer than two classes.
    """

    def __init__(self, classifier, sigma, n0, n, alpha):
        super().__init__()
        check_can_certify(n, alpha)
        self._sigma, self._n0, self._n, self._alpha = sigma, n0, n, alpha
        self._classifier = InferenceGraph(classifier)
        self.model_variables = self._classifier.variables
        self._image_shape = tuple(classifier.input_shape[1:])
        self._num_classes = classifier.output_shape[-1]
        images = tf.TensorSpec([None, *self._image_shape], tf.float32, name="images")
        self.certify = tf.function(self._certify, input_signature=[images])

    def _certify(self, images):
        """Images float32 [batch, H, W, C] in [0, 1] -> predicted_class (or -1), radius, vote_share, all [batch]."""
        # The messages are constants: an assertion that prints values would show one client another's pixels.
        in_range = tf.reduce_all((images >= 0) & (images <= 1))
        with tf.control_dependencies([tf.debugging.Assert(in_range, ["images must be finite and lie in [0, 1]"])]):
            images = tf.identity(images)
        keys = tf.raw_ops.NonDeterministicInts(shape=tf.stack([tf.shape(images)[0], 2]), dtype=tf.int64)
        predicted, radius, share = tf.map_fn(
            lambda element: self._certify_image(*element),
            (images, keys),
            fn_output_signature=(tf.int64, tf.float32, tf.float32),
            parallel_iterations=1,
        )
        return {"predicted_class": predicted, "radius": radius, "vote_share": share}

    def _certify_image(self, image, key):
        # `noise.gaussian` takes two 32-bit halves of one key.
        seed, example_id = tf.unstack(tf.bitwise.bitwise_and(key, tf.constant(2**32 - 1, tf.int64)))
        selected = tf.argmax(self._count(image, seed, example_id, noise.SELECTION, self._n0))
        votes = self._count(image, seed, example_id, noise.ESTIMATION, self._n)[selected]
        p_lower = clopper_pearson_lower(votes, self._n, self._alpha)
        certified = p_lower > 0.5
        radius = self._sigma * tf.math.ndtri(tf.where(certified, p_lower, 0.5))
        return (
            tf.where(certified, selected, tf.constant(ABSTAIN, tf.int64)),
            round_down(tf.where(certified, radius, 0)),
            tf.cast(votes / self._n, tf.float32),
        )

    def _count(self, image, seed, example_id, stream, samples):
        """int64 [classes], adding up to `samples`."""

        micro_batch = default_micro_batch(self._image_shape)

        def add_block(start, counts):
            size = tf.minimum(samples - start, micro_batch)
            block, finite = count_block(self._classifier, image, self._sigma, seed, example_id, stream, start, size)
            with tf.control_dependencies([tf.debugging.Assert(finite, ["the classifier returned NaN or infinity"])]):
                return start + size, counts + block

        _, counts = tf.while_loop(
            lambda start, counts: start < samples,
            add_block,
            (tf.constant(0), tf.zeros([self._num_classes], tf.int64)),
            parallel_iterations=1,
        )
        return counts


def clopper_pearson_lower(successes, n, alpha):
    """The exact one-sided lower bound on a binomial proportion, by bisection of the incomplete beta function.

    Args:
        successes: int64 scalar tensor in [0, n].
        n, alpha: Python numbers.

    Returns:
        float64 scalar tensor, at most 1e-10 below SciPy's value and never above it; 0 where there is no success.
    """
    a = tf.cast(tf.maximum(successes, 1), tf.float64)
    b = tf.cast(n - tf.maximum(successes, 1) + 1, tf.float64)

    def halve(low, high):
        middle = (low + high) / 2
        below = tf.math.betainc(a, b, middle) < alpha
        return tf.where(below, middle, low), tf.where(below, high, middle)

    low, high = tf.zeros([], tf.float64), tf.ones([], tf.float64)
    for _ in range(_BISECTIONS):
        low, high = halve(low, high)
    return tf.where(successes > 0, tf.maximum(low - _SAFETY, 0), 0)


def round_down(radius):
    """float64 -> float32 not above it: rounding must not enlarge a certified radius."""
    rounded = tf.cast(radius, tf.float32)
    smaller = tf.maximum(rounded * (1 - 2.0**-23), 0)
    return tf.where(tf.cast(rounded, tf.float64) > radius, smaller, rounded)
