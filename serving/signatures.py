"""The smoothed classifier as TensorFlow graphs: checks, fresh noise, votes, a certificate or a prediction."""

import functools
import secrets

import numpy as np
import tensorflow as tf

from macer_tf import early_exit, noise
from macer_tf.certificates import ABSTAIN, check_can_certify
from macer_tf.checks import rounding_of
from macer_tf.grid_noise import GridNoise
from macer_tf.inference import InferenceGraph
from macer_tf.probing import probe
from macer_tf.smoothing import count_block, default_microbatch
from serving.bounds import anytime_p_value, certified_radius, clopper_pearson_lower
from serving.card import ALPHA_RANGE, MOST_N
from serving.siphash import siphash

# `predict` gives up after this many times n: by then it decides margins as narrow as the binomial test of n samples.
PREDICT_LIMIT = 2
_HALF_KEY = 2**32 - 1


class SmoothedSignatures(tf.Module):
    """CERTIFY and PREDICT (Cohen et al. 2019) for a batch of images, in the graph, and what they were exported with.

    Noise is new for every image and every call: its seed is a keyed hash of TensorFlow's next random number and the
    time. The hash's own key is drawn from the operating system at export, so no client can predict or choose the seed
    as long as the graph's file is kept from whoever chooses images. The seed is returned as `seed`, and with it the
    library can repeat the votes:
    `SmoothedClassifier(model, seed=seed[0], levels=levels).count(image, seed[1], noise.ESTIMATION, 0, n)`.

    Args:
        classifier: a built Keras model, images [batch, H, W, C] -> [batch, classes].
        sigma, levels, n0, n, alpha: see `SmoothedClassifier`; fixed at export.
        max_n: largest n that `certify_custom` takes.
        max_batch_size: most images in one call.
        model_card: text that `metadata` returns.

    Raises:
        ValueError: if n and alpha could never certify an image, alpha is outside ALPHA_RANGE, n is above max_n, max_n
            is above MOST_N, or the classifier has fewer than two classes or is not a function of one image,
            or if it reads a variable or a table that is not among its weights.
    """

    def __init__(self, classifier, sigma, levels, n0, n, alpha, max_n, max_batch_size, model_card):
        super().__init__()
        check_can_certify(n, alpha)
        if n > max_n:
            raise ValueError(f"n must be at most max_n. Received: n={n}, max_n={max_n}")
        if max_n > MOST_N:
            raise ValueError(f"n and max_n must be at most {MOST_N:,} to be served. Received: n={n}, max_n={max_n}")
        self._image_shape = tuple(classifier.input_shape[1:])
        self._num_classes = classifier.output_shape[-1]
        if self._num_classes < 2:
            # With a single output, the largest is always class 0, and everything would be certified.
            raise ValueError(f"The classifier must have two classes or more. Received: {self._num_classes}")
        early_exit.check_can_decide(PREDICT_LIMIT * n, self._num_classes, alpha)
        if not ALPHA_RANGE[0] <= alpha <= ALPHA_RANGE[1]:
            raise ValueError(f"alpha must lie in {list(ALPHA_RANGE)} to be served. Received: alpha={alpha!r}")
        self._secret = secrets.randbits(64), secrets.randbits(64)
        self._noise = GridNoise(float(sigma), levels)
        self._n0, self._n, self._alpha = n0, n, float(alpha)
        self._max_n, self._max_batch_size = max_n, max_batch_size
        self._model_card = model_card
        self._microbatch = default_microbatch(self._image_shape)
        # A Keras model that is tracked here loads in Python but fails in C++; its plain variables do not.
        self._classifier = InferenceGraph(classifier)
        probe(self._classifier, self._image_shape, self._classifier.precision, self._microbatch)
        self._classifier.check_all_kept(self._image_shape)
        # The weights in a list of their own, in order: `serving.weights` finds them by this name.
        self.model_variables = [weight.value for weight in classifier.weights]
        weights = {id(variable) for variable in self.model_variables}
        self.other_variables = [variable for variable in self._classifier.variables if id(variable) not in weights]

    def signatures(self):
        """Name -> `tf.function`, as `tf.saved_model.save` takes them. Every output is batch-major."""
        images = tf.TensorSpec([None, *self._image_shape], tf.float32, name="images")
        # Of any rank, so that they may be left out, be scalars, or one per image, as server-side batching requires.
        n = tf.TensorSpec(None, tf.int64, name="n")
        alpha = tf.TensorSpec(None, tf.float64, name="alpha")
        # A tensor as default makes an input optional.
        default_n, default_alpha = tf.constant(self._n, tf.int64), tf.constant(self._alpha, tf.float64)
        no_query = tf.constant([""])
        # Nothing here needs autograph, which would take most of the time of an export.
        in_graph = functools.partial(tf.function, autograph=False)
        # None uses jit_compile: XLA's noise is not what the library replays, and on a CPU, certifying took 1.9 times as
        # long with LeNet and with `small_cnn`. On a GPU its speed was not measured.

        @in_graph(input_signature=[images, n, alpha])
        def certify_custom(images, n=default_n, alpha=default_alpha):
            return self.certify_custom(images, n, alpha)

        @in_graph(input_signature=[tf.TensorSpec([None], tf.string, name="query")])
        def metadata(query=no_query):
            with tf.control_dependencies([self._has_few(query, "queries")]):
                return {"model_card": tf.fill(tf.shape(query), self._model_card)}

        return {
            "serving_default": in_graph(self.certify, input_signature=[images]),
            "certify_custom": certify_custom,
            "predict": in_graph(self.predict, input_signature=[images]),
            "metadata": metadata,
        }

    def certify(self, images):
        """CERTIFY with the n and alpha of the export.

        Args:
            images: float32 [batch, H, W, C] in [0, 1], multiples of 1 / levels.

        Returns:
            predicted_class, int64 [batch], ABSTAIN (-1) or the class that is certified; radius, float32 [batch], its
            l2 radius in units of a pixel in [0, 1], rounded down, 0 where it abstains; p_lower, float64 [batch], the
            bound on the selected class's probability; votes, int64 [batch, classes], of the n estimation samples;
            seed, int64 [batch, 2].

        Raises:
            tf.errors.InvalidArgumentError: for more images than max_batch_size, another shape, or pixels that are not
                finite, are outside [0, 1] or are not multiples of 1 / levels; if the classifier returns NaN or
                infinity. The message contains no pixel.
        """
        images = self._checked(images)
        batch = tf.shape(images)[:1]
        n = tf.fill(batch, tf.constant(self._n, tf.int64))
        return self._certify(images, n, tf.fill(batch, tf.constant(self._alpha, tf.float64)))

    def certify_custom(self, images, n, alpha):
        """CERTIFY with the caller's n, int64, and alpha, float64, each a scalar or [batch]; otherwise as `certify`.

        Raises:
            tf.errors.InvalidArgumentError: also for n above max_n, alpha outside ALPHA_RANGE, and an n too
                small to certify anything at that alpha.
        """
        images = self._checked(images)
        batch = tf.shape(images)[:1]
        n = tf.broadcast_to(tf.reshape(n, [-1]), batch)
        alpha = tf.broadcast_to(tf.reshape(alpha, [-1]), batch)
        low, high = ALPHA_RANGE
        n_in_range = tf.reduce_all((n >= 1) & (n <= self._max_n))
        checks = [
            tf.debugging.Assert(n_in_range, [f"n must lie in [1, {self._max_n}]"]),
            tf.debugging.Assert(
                tf.reduce_all((alpha >= low) & (alpha <= high)), [f"alpha must lie in [{low}, {high}]"]
            ),
        ]
        with tf.control_dependencies(checks):
            can_certify = tf.reduce_all(clopper_pearson_lower(tf.identity(n), n, alpha) > 0.5)
        too_few = "n is too small to certify an image at this alpha"
        with tf.control_dependencies([tf.debugging.Assert(can_certify, [too_few])]):
            return self._certify(tf.identity(images), n, alpha)

    def predict(self, images):
        """PREDICT with early exit (`macer_tf.early_exit`): the class without a radius, usually after few samples.

        Args:
            images: see `certify`.

        Returns:
            predicted_class, int64 [batch], wrong with probability at most alpha, or ABSTAIN (-1) after 2n samples;
            p_value, float64 [batch], anytime-valid; samples, int64 [batch], drawn until then; seed, int64 [batch, 2].

        Raises:
            tf.errors.InvalidArgumentError: see `certify`.
        """
        images = self._checked(images)
        seed = _fresh_seeds(images, self._secret)
        predicted, p_value, samples = tf.map_fn(
            lambda element: self._predict_image(*element),
            (images, seed),
            fn_output_signature=(tf.int64, tf.float64, tf.int64),
            parallel_iterations=1,
        )
        return {"predicted_class": predicted, "p_value": p_value, "samples": samples, "seed": seed}

    def _has_few(self, values, name):
        few = tf.shape(values)[0] <= self._max_batch_size
        return tf.debugging.Assert(few, [f"one request takes at most {self._max_batch_size} {name}"])

    def _checked(self, images):
        """The images as whole numbers of 1 / levels, once they have passed the checks that `certify` promises."""
        # The messages are constants: an assertion that prints values would show one client another's pixels.
        images = tf.ensure_shape(images, [None, *self._image_shape])
        checks = [
            self._has_few(images, "images"),
            tf.debugging.Assert(
                tf.reduce_all((images >= 0) & (images <= 1)), ["images must be finite and lie in [0, 1]"]
            ),
        ]
        levels = self._noise.levels
        with tf.control_dependencies(checks):
            exact = tf.cast(images, tf.float64) * levels
        on_grid = tf.round(exact)
        is_on_grid = tf.reduce_all(tf.abs(exact - on_grid) <= levels * rounding_of(np.float32))
        with tf.control_dependencies(
            [tf.debugging.Assert(is_on_grid, [f"pixels must be multiples of 1/{levels}, where the noise is drawn"])]
        ):
            return tf.cast(on_grid, tf.float32)

    def _certify(self, images, n, alpha):
        seed = _fresh_seeds(images, self._secret)
        selected, votes = tf.map_fn(
            lambda element: self._votes(*element),
            (images, seed, n),
            fn_output_signature=(tf.int64, tf.TensorSpec([self._num_classes], tf.int64)),
            parallel_iterations=1,
        )
        p_lower, radius = certified_radius(tf.gather(votes, selected, batch_dims=1), n, alpha, self._noise.sigma)
        return {
            "predicted_class": tf.where(p_lower > 0.5, selected, ABSTAIN),
            "radius": radius,
            "p_lower": p_lower,
            "votes": votes,
            "seed": seed,
        }

    def _votes(self, image, seed, n):
        """The class that n0 samples select, and the votes of n others, int64 [classes]."""
        n0 = tf.constant(self._n0, tf.int64)
        return tf.argmax(self._count(image, seed, noise.SELECTION, n0)), self._count(image, seed, noise.ESTIMATION, n)

    def _count(self, image, seed, stream, samples):
        """int64 [classes], adding up to `samples`. Drawn one microbatch at a time, so memory does not grow with it."""

        def add_block(start, counts):
            size = tf.minimum(samples - start, self._microbatch)
            return start + size, counts + self._count_block(image, seed, stream, start, size)

        _, counts = tf.while_loop(
            lambda start, counts: start < samples,
            add_block,
            (tf.constant(0, tf.int64), tf.zeros([self._num_classes], tf.int64)),
            parallel_iterations=1,
        )
        return counts

    def _predict_image(self, image, seed):
        """predicted_class, p_value and the samples drawn, scalars."""
        ends = tf.constant([0, *early_exit.looks(PREDICT_LIMIT * self._n, self._microbatch)], tf.int64)
        last = ends.shape[0] - 1

        def draw_and_look(look, counts, _):
            block = self._count_block(image, seed, noise.ESTIMATION, ends[look], ends[look + 1] - ends[look])
            return look + 1, counts + block, anytime_p_value(counts + block)

        look, counts, p_value = tf.while_loop(
            lambda look, counts, p_value: (look < last) & (p_value > self._alpha),
            draw_and_look,
            (0, tf.zeros([self._num_classes], tf.int64), tf.constant(1, tf.float64)),
            parallel_iterations=1,
        )
        return tf.where(p_value <= self._alpha, tf.argmax(counts), ABSTAIN), p_value, ends[look]

    def _count_block(self, image, seed, stream, start, size):
        counts, finite = count_block(self._classifier, image, self._noise, *tf.unstack(seed), stream, start, size)
        with tf.control_dependencies([tf.debugging.Assert(finite, ["the classifier returned NaN or infinity"])]):
            return tf.identity(counts)


def _fresh_seeds(images, secret):
    """int64 [batch, 2] in [0, 2**32), fresh: what `noise.gaussian` takes as seed and example id."""
    drawn = tf.raw_ops.NonDeterministicInts(shape=tf.shape(images)[:1], dtype=tf.int64)
    # After a restart the first number may be the same again, but the time is not.
    time = tf.fill(tf.shape(drawn), tf.bitcast(tf.timestamp(), tf.uint64))
    keys = tf.bitcast(siphash(secret, tf.bitcast(drawn, tf.uint64), time), tf.int64)
    half = tf.constant(_HALF_KEY, tf.int64)
    halves = keys, tf.bitwise.right_shift(keys, tf.constant(32, tf.int64))
    return tf.bitwise.bitwise_and(tf.stack(halves, axis=1), half)
