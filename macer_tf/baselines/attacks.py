"""l2 attacks on a smoothed classifier: PGD and DDN on the image (SmoothAdv, Salman et al. 2019), and one on the noise.

PGD and DDN raise J = -log of the mean softmax over the noisy copies (Eq. 5 of Salman et al.), with one set of noise
samples for all steps, and stay within an l2 ball and within [0, 1]. The attack on the noise raises the cross-entropy of
each copy separately (CAT-RS, Jeong et al. 2023).
"""

import math
from collections.abc import Callable

import tensorflow as tf

from macer_tf.noise import noisy_copies
from macer_tf.objective import smoothed_cross_entropy

# DDN's constants (Rony et al. 2019), as Salman et al. use them.
_DDN_NORM_STEP = 0.05
_DDN_FIRST_NORM = 1.0
_DDN_LAST_STEP_SIZE = 0.01


def pgd(
    classifier: Callable[[tf.Tensor], tf.Tensor],
    images: tf.Tensor,
    labels: tf.Tensor,
    noise: tf.Tensor,
    epsilon: float | tf.Tensor,
    num_steps: int,
) -> tf.Tensor:
    """Projected gradient ascent on the smoothed classifier's cross-entropy.

    Each of `num_steps` steps moves `2 * epsilon / num_steps` along the normalised gradient; then the image is clipped
    to [0, 1] and projected onto the ball.

    Args:
        classifier: callable, images [N, H, W, C] -> logits [N, classes].
        images: float32 [batch, H, W, C] in [0, 1].
        labels: integers [batch].
        noise: float32 [batch, num_samples, H, W, C], scaled by sigma.
        epsilon: radius of the l2 ball, in [0, 1] pixel units; a Python number or a scalar tensor.
        num_steps: Python integer.

    Returns:
        float32 [batch, H, W, C] in [0, 1], at most epsilon from `images`.
    """
    step_size = 2 * epsilon / num_steps

    def step(i, delta):
        _, gradient, _ = _ascend(classifier, images, labels, noise, delta)
        return i + 1, _project(images, delta + step_size * gradient, epsilon)

    _, delta = tf.while_loop(
        lambda i, _: i < num_steps, step, (tf.constant(0), tf.zeros_like(images)), parallel_iterations=1
    )
    return tf.stop_gradient(images + delta)


def ddn(
    classifier: Callable[[tf.Tensor], tf.Tensor],
    images: tf.Tensor,
    labels: tf.Tensor,
    noise: tf.Tensor,
    epsilon: float | tf.Tensor,
    num_steps: int,
) -> tf.Tensor:
    """Decoupled direction and norm (Rony et al. 2019): a small perturbation that changes the smoothed prediction.

    The norm shrinks by 5 % where the last perturbation was adversarial and grows by 5 % where it was not. Arguments and
    return value are as in `pgd`; an image whose prediction never changed is returned unchanged.
    """

    def step(i, state):
        delta, norm, best, best_norm = state
        probabilities, gradient, size = _ascend(classifier, images, labels, noise, delta)
        adversarial = tf.argmax(probabilities, axis=-1) != tf.cast(labels, tf.int64)
        better = adversarial & (size < best_norm)
        best = tf.where(_per_image(better), delta, best)
        best_norm = tf.where(better, size, best_norm)
        # Cosine annealing of the step size, from 1.
        turn = tf.cos(math.pi * tf.cast(i, tf.float32) / num_steps)
        step_size = _DDN_LAST_STEP_SIZE + (1 - _DDN_LAST_STEP_SIZE) * (1 + turn) / 2
        delta += step_size * gradient
        norm *= tf.where(adversarial, 1 - _DDN_NORM_STEP, 1 + _DDN_NORM_STEP)
        delta *= _per_image(norm / tf.maximum(_norms(delta), 1e-12))
        return i + 1, (tf.clip_by_value(images + delta, 0, 1) - images, norm, best, best_norm)

    batch = tf.shape(images)[0]
    start = (
        tf.zeros_like(images),
        tf.fill([batch], _DDN_FIRST_NORM),
        tf.zeros_like(images),
        tf.fill([batch], math.inf),
    )
    _, (_, _, best, _) = tf.while_loop(lambda i, _: i < num_steps, step, (tf.constant(0), start), parallel_iterations=1)
    return tf.stop_gradient(images + _project(images, best, epsilon))


def worst_noise(
    classifier: Callable[[tf.Tensor], tf.Tensor],
    images: tf.Tensor,
    targets: tf.Tensor,
    noise: tf.Tensor,
    radius: float,
    num_steps: int,
    keep_moments: bool = False,
) -> tf.Tensor:
    """Noise near the given noise, on which each copy's cross-entropy to `targets` is higher.

    Each of `num_steps` steps moves each noise sample `2 * radius / num_steps` along the normalised gradient, then back
    into the ball around its starting point. A noise sample whose gradient vanishes stays where it is.

    Args:
        classifier: callable, images [N, H, W, C] -> logits [N, classes].
        images: float32 [batch, H, W, C].
        targets: integers [batch], labels; or float32 [batch, classes], probabilities.
        noise: float32 [batch, num_samples, H, W, C], scaled by sigma.
        radius: of the l2 ball, in [0, 1] pixel units.
        num_steps: Python integer, at least 1.
        keep_moments: after each step, a noise sample v that began as u becomes
            `(v - mean(v)) * rms(u) / rms(v) + mean(u)`, so that it still looks like noise (Jeong et al. 2023).

    Returns:
        Float32, shaped as `noise`; each sample is at most `radius` from its starting point, apart from what
        `keep_moments` does to it. No gradient flows through it.
    """
    copies = tf.repeat(targets, tf.shape(noise)[1], axis=0)
    start = tf.stop_gradient(tf.reshape(noise, tf.concat([[-1], tf.shape(noise)[2:]], axis=0)))
    still = noisy_copies(images, tf.zeros_like(noise))
    moved = start
    for _ in range(num_steps):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(moved)
            logits = tf.cast(classifier(tf.ensure_shape(still + moved, [None, *images.shape[1:]])), tf.float32)
            # Not the sparse cross-entropy: it fails on a label out of range before the model can report it.
            rows = tf.one_hot(copies, logits.shape[-1]) if copies.shape.rank == 1 else copies
            loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(labels=rows, logits=logits))
        gradient = tape.gradient(loss, moved)
        step = gradient / _per_image(tf.maximum(_norms(gradient), 1e-30))
        away = moved + 2 * radius / num_steps * step - start
        moved = start + away * _per_image(tf.minimum(1.0, radius / tf.maximum(_norms(away), 1e-30)))
        if keep_moments:
            scale = _per_image(_norms(start) / tf.maximum(_norms(moved), 1e-30))
            moved = (moved - _mean(moved)) * scale + _mean(start)
    return tf.stop_gradient(tf.reshape(moved, tf.shape(noise)))


def free_ascent(
    classifier: Callable[[tf.Tensor], tf.Tensor],
    images: tf.Tensor,
    labels: tf.Tensor,
    noise: tf.Tensor,
    step_size: float,
    num_steps: int,
) -> tf.Tensor:
    """Gradient ascent on the smoothed classifier's cross-entropy without a ball (SmoothMix, Jeong et al. 2021).

    Each of `num_steps` steps moves `step_size`, in [0, 1] pixel units, along the normalised gradient; then the image is
    clipped to [0, 1]. Other arguments are as in `pgd`.

    Returns:
        float32 [batch, H, W, C] in [0, 1]. No gradient flows through it.
    """

    def step(i, delta):
        _, gradient, _ = _ascend(classifier, images, labels, noise, delta)
        return i + 1, tf.clip_by_value(images + delta + step_size * gradient, 0, 1) - images

    _, delta = tf.while_loop(
        lambda i, _: i < num_steps, step, (tf.constant(0), tf.zeros_like(images)), parallel_iterations=1
    )
    return tf.stop_gradient(tf.clip_by_value(images + delta, 0, 1))


def _ascend(classifier, images, labels, noise, delta):
    """Mean softmax at images + delta, the direction of steepest ascent of J (norm 1), and delta's norms."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(delta)
        logits = tf.cast(classifier(noisy_copies(images + delta, noise)), tf.float32)
        logits = tf.reshape(logits, [-1, tf.shape(noise)[1], logits.shape[-1]])
        loss = tf.reduce_sum(smoothed_cross_entropy(logits, labels))
    gradient = tape.gradient(loss, delta)
    # Where the gradient vanishes, any direction will do: the first noise sample's is as good as any.
    gradient = tf.where(_per_image(_norms(gradient) > 0), gradient, noise[:, 0])
    gradient /= _per_image(tf.maximum(_norms(gradient), 1e-30))
    return tf.reduce_mean(tf.nn.softmax(logits), axis=1), gradient, _norms(delta)


def _project(images, delta, epsilon):
    """Clips into [0, 1], then projects into the ball; shrinking towards the image keeps it in [0, 1]."""
    delta = tf.clip_by_value(images + delta, 0, 1) - images
    return delta * _per_image(tf.minimum(1.0, epsilon / tf.maximum(_norms(delta), 1e-30)))


def _norms(delta):
    """l2 norm of each image, [batch]; scaled first, so that tiny or huge gradients neither underflow nor overflow."""
    flat = tf.reshape(delta, [tf.shape(delta)[0], -1])
    largest = tf.reduce_max(tf.abs(flat), axis=1)
    scaled = flat / tf.maximum(largest, 1e-30)[:, None]
    return largest * tf.sqrt(tf.reduce_sum(scaled**2, axis=1))


def _mean(noise):
    return tf.reduce_mean(noise, axis=(1, 2, 3), keepdims=True)


def _per_image(values):
    return tf.reshape(values, [-1, 1, 1, 1])
