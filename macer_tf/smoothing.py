"""SmoothedClassifier: draws noise, runs the base classifier and counts its votes (SAMPLEUNDERNOISE, Cohen et al.)."""

import secrets

import keras
import numpy as np
import tensorflow as tf

from macer_tf import certificates, noise
from macer_tf.checks import check_seed
from macer_tf.model import MACERModel
from macer_tf.votes import Votes


class SmoothedClassifier:
    """g(x) = the class that the base classifier most often returns on x + N(0, sigma^2 I).

    The guarantee: each certificate of `certify` holds with probability at least 1 - alpha over the noise, each image
    by itself. Of 1,000 certified images, at alpha=0.001, one false certificate is to be expected at most. The guarantee
    is about g at this sigma and this numeric precision, not about the base classifier, and about l2 perturbations of
    images in [0, 1]. It does not hold if n, alpha or the seed were chosen after looking at results.

    Noise is addressed by (seed, example id, sample offset): the same image under the same id gets the same noise,
    however images are batched.

    Args:
        classifier: a `MACERModel` (its base classifier is taken) or any Keras model, images -> [batch, classes], whose
            largest output is its class.
        sigma: noise level in units of a pixel in [0, 1]; by default that of the `MACERModel`.
        seed: whole number in [0, 2**32); drawn from the operating system if None. Kept as `.seed`.
        micro_batch: noisy copies in one forward pass.

    Raises:
        ValueError: for a sigma or a seed out of range, or an output that is not [batch, classes].
    """

    def __init__(self, classifier, sigma=None, seed=None, micro_batch=500):
        if isinstance(classifier, MACERModel):
            sigma = classifier.sigma if sigma is None else sigma
            classifier = classifier.classifier
        if not isinstance(classifier, keras.Model):
            raise ValueError(f"classifier must be a keras.Model. Received: {type(classifier).__name__}")
        if sigma is None or not (np.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma, the noise level in [0, 1] pixel units, must be above 0. Received: sigma={sigma}")
        if micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1. Received: micro_batch={micro_batch}")
        self.classifier = classifier
        self.sigma = float(sigma)
        self.seed = secrets.randbits(32) if seed is None else check_seed(seed)
        self.micro_batch = int(micro_batch)
        self._count_block = tf.function(self._count_block_eagerly, reduce_retracing=True)

    def count(self, image, example_id, stream, start, count):
        """Class counts of one image's samples `start` to `start + count - 1`.

        Args:
            image: float32 [height, width, channels] in [0, 1].
            example_id: whole number in [0, 2**32), the image's own.
            stream: `noise.SELECTION` or `noise.ESTIMATION`.

        Returns:
            int64 [classes], adding up to `count`.

        Raises:
            ValueError: if the classifier returns NaN or infinite outputs, or not [batch, classes].
        """
        image = tf.constant(image, tf.float32)
        counts = 0
        for offset in range(start, start + count, self.micro_batch):
            size = min(self.micro_batch, start + count - offset)
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
            example_ids: one whole number in [0, 2**32) an image, all different; by default 0, 1, 2, ...
        """
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
        _check_n0(n0)
        return certificates.certify(self.votes(images, n0, n, example_ids), self.sigma, alpha)

    def predict(self, images, n=1000, alpha=0.001, example_ids=None):
        """PREDICT (Cohen et al. 2019): the smoothed classifier's class, or ABSTAIN (-1), without a radius.

        Returns:
            int64 [images]; a class is not the smoothed classifier's with probability at most alpha an image.

        Raises:
            ValueError: before any sampling, as `certify`.
        """
        certificates.check_can_predict(n, alpha)
        images, example_ids = check_images(images, example_ids)
        counts = [
            self.count(image, example_id, noise.ESTIMATION, 0, n)
            for image, example_id in zip(images, example_ids, strict=True)
        ]
        return certificates.predict(np.stack(counts), alpha)[0]

    def _count_block_eagerly(self, image, example_id, stream, start, count):
        noisy = image + self.sigma * noise.gaussian(image.shape, self.seed, example_id, stream, start, count)
        outputs = self.classifier(noisy, training=False)
        if outputs.shape.rank != 2:
            raise ValueError(
                f"The classifier must return [batch, classes]. Received: output shape {tuple(outputs.shape)}"
            )
        classes = tf.argmax(outputs, axis=-1, output_type=tf.int64)
        counts = tf.math.bincount(classes, minlength=outputs.shape[-1], maxlength=outputs.shape[-1], dtype=tf.int64)
        return counts, tf.reduce_all(tf.math.is_finite(outputs))


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


def _check_n0(n0):
    if n0 < 1:
        raise ValueError(f"n0, the number of selection samples, must be at least 1. Received: n0={n0}")
