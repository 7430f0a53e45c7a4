"""A small SavedModel with the three signatures of a served classifier, whose answers can be computed by hand."""

import json

import tensorflow as tf

SIGMA, N, ALPHA = 0.25, 1000, 0.001


def write(directory):
    """Writes a SavedModel on 2x2x1 images: of n votes, class 1 gets round(n * mean pixel) and class 0 the others.

    p_lower is Hoeffding's bound, share - sqrt(ln(1 / alpha) / (2 n)), and radius = 0.25 Phi^-1(p_lower).
    """
    images = tf.TensorSpec([None, 2, 2, 1], tf.float32, name="images")

    def votes_of(images, n):
        in_range = tf.reduce_all((images >= 0) & (images <= 1))
        with tf.control_dependencies([tf.debugging.Assert(in_range, ["images must be finite and lie in [0, 1]"])]):
            means = tf.reduce_mean(tf.cast(images, tf.float64), axis=(1, 2, 3))
        ones = tf.cast(tf.round(means * tf.cast(n, tf.float64)), tf.int64)
        seed = tf.raw_ops.NonDeterministicInts(shape=tf.stack([tf.shape(images)[0], 2]), dtype=tf.int64)
        seed = tf.bitwise.bitwise_and(seed, tf.constant(2**32 - 1, tf.int64))
        return tf.stack([n - ones, ones], axis=1), seed

    def certify(images, n, alpha):
        votes, seed = votes_of(images, n)
        n = tf.cast(n, tf.float64)
        share = tf.cast(tf.reduce_max(votes, axis=1), tf.float64) / n
        p_lower = tf.maximum(share - tf.sqrt(-tf.math.log(alpha) / (2 * n)), 0)
        certified = p_lower > 0.5
        radius = SIGMA * tf.math.ndtri(tf.where(certified, p_lower, 0.5))
        return {
            "predicted_class": tf.where(certified, tf.argmax(votes, axis=1), tf.constant(-1, tf.int64)),
            "radius": tf.cast(radius, tf.float32),
            "p_lower": p_lower,
            "votes": votes,
            "seed": seed,
        }

    default_n, default_alpha = tf.constant(N, tf.int64), tf.constant(ALPHA, tf.float64)

    class Served(tf.Module):
        @tf.function(input_signature=[images])
        def certify(self, images):
            return certify(images, default_n, default_alpha)

        @tf.function(input_signature=[images, tf.TensorSpec([], tf.int64, "n"), tf.TensorSpec([], tf.float64, "alpha")])
        def certify_custom(self, images, n=default_n, alpha=default_alpha):
            return certify(images, n, alpha)

        @tf.function(input_signature=[images])
        def predict(self, images):
            votes, seed = votes_of(images, tf.constant(100, tf.int64))
            decided = tf.reduce_max(votes, axis=1) >= 70
            return {
                "predicted_class": tf.where(decided, tf.argmax(votes, axis=1), tf.constant(-1, tf.int64)),
                "p_value": tf.where(decided, tf.constant(1e-5, tf.float64), 0.5),
                "samples": tf.reduce_sum(votes, axis=1),
                "seed": seed,
            }

    served = Served()
    signatures = {
        "serving_default": served.certify, "certify_custom": served.certify_custom, "predict": served.predict,
    }  # fmt: skip
    tf.saved_model.save(served, str(directory), signatures=signatures)
    (directory / "assets.extra").mkdir()
    card = {"sigma": SIGMA, "n0": 100, "n": N, "alpha": ALPHA, "image_shape": [2, 2, 1], "classes": 2}
    (directory / "assets.extra" / "model_card.json").write_text(json.dumps(card))
