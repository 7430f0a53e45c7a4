"""SmoothedClassifier: draws noise, runs the base classifier and counts its votes (SAMPLEUNDERNOISE, Cohen et al.)."""

import math
import numbers
import secrets

import keras
import numpy as np
import tensorflow as tf

from macer_tf import certificates, noise
from macer_tf.checks import check_seed
from macer_tf.noisy_training import NoisyTrainingModel
from macer_tf.votes import Votes


class SmoothedClassifier:
    """g(x) = the class that the base classifier most often returns on x + N(0, sigma^2 I).

    The guarantee: each certificate of `certify` holds with probability at least 1 - alpha over the noise, each image
    by itself. Of 1,000 certified images, at alpha=0.001, one false certificate is to be expected at most. The guarantee
    is about g at this sigma and this numeric precision, not about the base classifier, and about l2 perturbations of
    images in [0, 1]. It does not hold if n, alpha or the seed were chosen after looking at results, if who chose the
    image knew the seed, or if the classifier's output for an image depends on the rest of its batch.

    Noise is addressed by (seed, example id, sample offset): the same image under the same id gets the same noise,
    however images are batched. (Outputs that are level to the last bit may fall to another class in another batch
    size: floating-point sums are not associative.) `count` may be called from several threads at once.

    Args:
        classifier: a `MACERModel` or another `NoisyTrainingModel` (its base classifier is taken), or any Keras model,
            images -> [batch, classes], two classes or more, whose largest output is its class.
        sigma: noise level in units of a pixel in [0, 1]; by default that of the model it was trained in.
        seed: whole number in [0, 2**32); drawn from the operating system if None.
        micro_batch: noisy copies in one forward pass; by default 500, and fewer where images are large.

    Raises:
        ValueError: for a sigma or a seed out of range, or an output that is not [batch, classes].
    """

    def __init__(self, classifier, sigma=None, seed=None, micro_batch=None):
        if isinstance(classifier, NoisyTrainingModel):
            sigma = classifier.sigma if sigma is None else sigma
            classifier = classifier.classifier
        if not isinstance(classifier, keras.Model):
            raise ValueError(f"classifier must be a keras.Model. Received: {type(classifier).__name__}")
        if sigma is None or not (np.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma, the noise level in [0, 1] pixel units, must be above 0. Received: sigma={sigma}")
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1. Received: micro_batch={micro_batch}")
        self._classifier = classifier
        self._sigma = float(sigma)
        self._seed = secrets.randbits(32) if seed is None else check_seed(seed)
        self.micro_batch = micro_batch
        # Traced once for each image shape: reduce_retracing would trace a shape that is not known.
        self._count_block = tf.function(self._count_block_eagerly)

    # Read-only: a traced graph holds them, and another sigma in the radius than in the noise is a false certificate.
    @property
    def classifier(self):
        """The base classifier."""
        return self._classifier

    @property
    def sigma(self):
        """Noise level in units of a pixel in [0, 1]."""
        return self._sigma

    @property
    def seed(self):
        """What fixes the noise, together with example ids."""
        return self._seed

    def count(self, image, example_id, stream, start, count):
        """Class counts of one image's samples `start` to `start + count - 1`.

        Args:
            image: float32 [height, width, channels] in [0, 1], which is not checked again here.
            example_id: whole number in [0, 2**32), the image's own.
            stream: `noise.SELECTION` or `noise.ESTIMATION`.
            start: whole number from 0.
            count: whole number from 1.

        Returns:
            int64 [classes], adding up to `count`.

        Raises:
            ValueError: if the classifier returns NaN or infinite outputs, or not [batch, classes] of two classes or
                more; if example_id, stream, start or count is out of range.
        """
        if not 0 <= example_id < 2**32 or stream not in noise.STREAMS or start < 0:
            # Beyond these ranges, noise would be that of another seed, stream or sample.
            raise ValueError(f"Received: example_id={example_id}, stream={stream}, start={start}; out of range.")
        _check_samples("count", count)
        image = tf.constant(image, tf.float32)
        counts = 0
        micro_batch = self.micro_batch or default_micro_batch(image.shape)
        for offset in range(start, start + count, micro_batch):
            size = min(micro_batch, start + count - offset)
            block, finite = self._count_block(
                image, *(tf.constant(value, tf.int64) for value in (example_id, stream, offset, size))
            )
            if not finite:
                raise ValueError(
                    f"The classifier returned NaN or infinite outputs for image {example_id}; it cannot be certified."
                )
            counts = counts + block.numpy()
        return counts

    def votes(self, images, n0, n, example_ids=None):
        """`Votes` of n0 selection and n estimation samples for each image.

        Args:
            images: float [images, height, width, channels] in [0, 1].
            n0, n: whole numbers from 1.
            example_ids: one whole number in [0, 2**32) an image, all different; by default 0, 1, 2, ...

        Raises:
            ValueError: before any sampling, for bad images, ids or numbers of samples; see also `count`.
        """
        _check_samples("n0", n0)
        _check_samples("n", n)
        images, example_ids = check_images(images, example_ids)
        selection, estimation = (
            [
                self.count(image, example_id, stream, 0, samples)
                for image, example_id in zip(images, example_ids, strict=True)
            ]
            for stream, samples in ((noise.SELECTION, n0), (noise.ESTIMATION, n))
        )
        return Votes(np.stack(selection), np.stack(estimation))

    def certify(self, images, n0=100, n=100_000, alpha=0.001, example_ids=None):
        """CERTIFY (Cohen et al. 2019): a class and a certified l2 radius for each image, or ABSTAIN (-1).

        Args:
            images: float [images, height, width, channels] in [0, 1].
            n0: samples that choose the class.
            n: independent samples that bound its probability.
            alpha: probability that an image's certificate is false, at most.
            example_ids: see `votes`.

        Returns:
            `certificates.Certificates`.

        Raises:
            ValueError: before any sampling, for bad images or numbers of samples that could never certify.
        """
        certificates.check_can_certify(n, alpha)
        return certificates.certify(self.votes(images, n0, n, example_ids), self.sigma, alpha)

    def predict(self, images, n=1000, alpha=0.001, example_ids=None):
        """PREDICT (Cohen et al. 2019): the smoothed classifier's class, or ABSTAIN (-1), without a radius.

        Returns:
            int64 [images]; a class is not the smoothed classifier's with probability at most alpha an image.

        Raises:
            ValueError: before any sampling, as `certify`.
        """
        certificates.check_can_predict(n, alpha)
        _check_samples("n", n)
        images, example_ids = check_images(images, example_ids)
        counts = [
            self.count(image, example_id, noise.ESTIMATION, 0, n)
            for image, example_id in zip(images, example_ids, strict=True)
        ]
        return certificates.predict(np.stack(counts), alpha)[0]

    def _count_block_eagerly(self, image, *address):
        return count_block(self.classifier, image, self.sigma, self.seed, *address)


def count_block(classifier, image, sigma, seed, example_id, stream, start, count):
    """Class counts of `count` noisy copies in one forward pass, in the graph.

    Args:
        classifier: callable as a Keras model, in inference mode.
        image: float32 tensor of known shape [height, width, channels].
        sigma, seed, example_id, stream, start, count: see `noise.gaussian`; sigma scales the noise.

    Returns:
        int64 [classes], and a bool: whether all outputs were finite. If not, the counts mean nothing.

    Raises:
        ValueError: while tracing, if the output is not [batch, classes] of two classes or more.
    """
    noisy = image + sigma * noise.gaussian(image.shape, seed, example_id, stream, start, count)
    outputs = classifier(noisy, training=False)
    if outputs.shape.rank != 2 or outputs.shape[-1] is None or outputs.shape[-1] < 2:
        # The largest of a single output is always class 0: everything would be certified.
        raise ValueError(
            f"The classifier must return [batch, classes] for two classes or more. "
            f"Received: output shape {outputs.shape}"
        )
    classes = tf.argmax(outputs, axis=-1, output_type=tf.int64)
    counts = tf.math.bincount(classes, minlength=outputs.shape[-1], maxlength=outputs.shape[-1], dtype=tf.int64)
    return counts, tf.reduce_all(tf.math.is_finite(outputs))


def default_micro_batch(image_shape):
    """Noisy copies in one forward pass: 500 up to 32x32x3 pixels, fewer for larger images, at least 16."""
    return int(np.clip(500 * 32 * 32 * 3 // math.prod(image_shape), 16, 500))


def check_images(images, example_ids=None):
    """Images as float32 and their ids.

    Raises:
        ValueError: unless images are finite floats [images, height, width, channels] in [0, 1], at least one, and the
            ids are as many different whole numbers in [0, 2**32).
    """
    images = np.asarray(images)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"Images must have shape [images, height, width, channels]. Received: {images.shape}")
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"Images must be floats in [0, 1]; divide bytes by 255. Received: dtype={images.dtype}")
    if not np.isfinite(images).all() or images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"Pixels must be finite and lie in [0, 1]. Received: values from {images.min()} to {images.max()}"
        )
    example_ids = np.arange(len(images)) if example_ids is None else np.asarray(example_ids)
    if example_ids.shape != (len(images),) or not np.issubdtype(example_ids.dtype, np.integer):
        raise ValueError(
            f"example_ids must be one whole number an image. Received: {example_ids.dtype} {example_ids.shape}"
        )
    if len(np.unique(example_ids)) < len(images) or example_ids.min() < 0 or example_ids.max() >= 2**32:
        raise ValueError("example_ids must be different whole numbers from 0 to 4294967295.")
    return images.astype(np.float32), example_ids.tolist()


def _check_samples(name, value):
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name}, a number of samples, must be a whole number from 1. Received: {name}={value}")
