"""NoisyTrainingModel: what MACER and the methods it is compared with have in common as Keras models.

Addressed noise, checks of each batch, gradients that are right under a strategy, in mixed precision and over slices of
a batch, metrics, saving. A method adds its loss.
"""

import contextlib
import functools
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

# Layers and optimizers are imported so that whoever loads a saved model by its class also finds what it holds.
from macer_tf import checks, layers, optimizers  # noqa: F401
from macer_tf import noise as noise_lib

_BAD_BATCH = "Bad batch: "
# More than a replica's share of any batch: so many addresses of noise belong to each step.
_IMAGES_PER_STEP = 2**20


class LossTerms(NamedTuple):
    """What a method computes for images [batch].

    Attributes:
        losses: name -> [batch]; they add up to the loss.
        reports: name -> [batch]; their means are reported beside the losses'.
        probabilities: [batch, classes], the smoothed prediction, which metrics see.
    """

    losses: dict
    reports: dict
    probabilities: tf.Tensor


class _Batch(NamedTuple):
    images: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor
    # 1, or 0 for an image that only pads an empty replica.
    present: tf.Tensor


class NoisyTrainingModel(keras.Model):
    """Trains `classifier` on noisy copies of images; a subclass defines `loss_terms` and names its terms.

    Images are floats in [0, 1], [batch, height, width, channels]; noise is added to them as they come in, so
    normalisation belongs inside `classifier`. Labels are integers, [batch] or [batch, 1].

    Args:
        classifier: a Keras model, images -> logits [batch, classes], without a softmax.
        sigma: noise level, the standard deviation of the noise in units of a pixel in [0, 1].
        num_samples: noisy copies of each image.
        microbatch: the gradient is accumulated over slices of a replica's batch of so many images, to save memory; None
            takes the batch at once.
        seed: whole number in [0, 2**32) that fixes the training noise; drawn from NumPy's global generator if None.

    Raises:
        ValueError: for an argument out of range or a classifier that does not return logits.
    """

    # Names of the `losses` and the `reports` of `loss_terms`.
    LOSSES = ()
    REPORTS = ()

    def __init__(self, classifier, sigma, num_samples, microbatch=None, seed=None, **kwargs):
        checks.check(sigma=sigma, num_samples=num_samples, microbatch=microbatch)
        _check_returns_logits(classifier)
        # A mixed_float16 classifier needs `compile` to scale the loss, and compile looks at this policy.
        kwargs.setdefault("dtype", classifier.dtype_policy)
        super().__init__(**kwargs)
        self.classifier = classifier
        self.sigma = float(sigma)
        self.num_samples = int(num_samples)
        self.microbatch = microbatch
        self.seed = checks.check_seed(np.random.randint(2**31) if seed is None else seed)
        # How many batches of noise were drawn. A weight, so that a restored model goes on with fresh noise.
        self._noise_step = self.add_weight(
            name="noise_step", shape=(), dtype="int64", initializer="zeros", trainable=False,
            aggregation="only_first_replica",
        )  # fmt: skip
        self._means = [keras.metrics.Mean(name=name) for name in (*self.LOSSES, "smoothed_accuracy", *self.REPORTS)]
        if classifier.built and getattr(classifier, "input_shape", None) is not None:
            self.build(classifier.input_shape)

    def loss_terms(self, images, labels, noise, training):
        """The method's `LossTerms`.

        Args:
            images: float32 [batch, height, width, channels] in [0, 1].
            labels: int64 [batch].
            noise: float32 [batch, num_samples, height, width, channels], scaled by sigma.
            training: Python bool.
        """
        raise NotImplementedError

    def build(self, input_shape):
        if not self.classifier.built:
            self.classifier.build(input_shape)
        self.built = True

    def call(self, images, training=None):
        """The base classifier's logits, [batch, classes], without noise."""
        return self.classifier(images, training=training)

    def compute_output_shape(self, input_shape):
        return self.classifier.compute_output_shape(input_shape)

    def compile(self, optimizer="rmsprop", loss=None, *, jit_compile=False, **kwargs):
        """As `keras.Model.compile`, without a loss, which is the method's own.

        `jit_compile` is off unless it is True ("auto" is off): on a CPU, XLA makes this training step several times
        slower. XLA also drops the checks of each batch's pixels and labels, and draws other noise from the same seed.

        Raises:
            ValueError: if a loss is given, or `jit_compile=True` where it cannot work.
        """
        if loss is not None:
            raise ValueError(f"{type(self).__name__} brings its own loss; leave loss out. Received: loss={loss}")
        if jit_compile is True and self.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "jit_compile=True does not work under a distribution strategy with several replicas; leave it out."
            )
        super().compile(optimizer=optimizer, loss=None, jit_compile=jit_compile is True, **kwargs)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        with _one_line_errors():
            return super().fit(*args, **kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        with _one_line_errors():
            return super().evaluate(*args, **kwargs)

    def draw_noise(self, images, start):
        """The step's noise, sigma * N(0, 1), for images `start` to `start + batch - 1` of this replica's batch.

        Returns:
            float32 [batch, num_samples, *image shape].
        """
        first = (self._noise_step.value * _IMAGES_PER_STEP + tf.cast(start, tf.int64)) * self.num_samples
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        count = tf.shape(images, tf.int64)[0] * self.num_samples
        noise = noise_lib.gaussian(images.shape[1:], self.seed, replica, noise_lib.TRAINING, first, count)
        return self.sigma * tf.reshape(noise, [-1, self.num_samples, *images.shape[1:]])

    def noisy_logits(self, images, noise, training):
        """The classifier on the noisy copies, float32 [batch, num_samples, classes]."""
        logits = self.classifier(noise_lib.noisy_copies(images, noise), training=training)
        if logits.shape.rank != 2:
            raise ValueError(
                f"The classifier must return logits [batch, classes]. Received: output shape {tuple(logits.shape)}"
            )
        if not self.built:
            # A subclassed classifier is built by its first call; an unbuilt model would be saved without the rest.
            self.build(images.shape)
        return tf.reshape(tf.cast(logits, tf.float32), [-1, self.num_samples, logits.shape[-1]])

    def train_step(self, data):
        batch = self._unpack(data)
        # Gradients are summed over the replicas: each divides by the size of the global batch.
        num_images = _sum_over_replicas(tf.reduce_sum(batch.present))

        def gradients(batch, start):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(self._losses_of(batch, start, training=True)) / num_images
                loss = self.optimizer.scale_loss(loss)
            return tape.gradient(loss, self.trainable_variables)

        summed = self._sum_over_slices(batch, gradients)
        replica = tf.distribute.get_replica_context()
        if replica.num_replicas_in_sync > 1 and isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # Keras skips the step where the first replica's gradients are not finite, so it must see the others'. It
            # sums over the replicas later.
            summed = replica.all_reduce(tf.distribute.ReduceOp.MEAN, list(summed))
        self.optimizer.apply_gradients(zip(summed, self.trainable_variables, strict=True))
        self._noise_step.assign_add(1)
        return self.get_metrics_result()

    def test_step(self, data):
        def update_metrics(batch, start):
            self._losses_of(batch, start, training=False)
            return []

        self._sum_over_slices(self._unpack(data), update_metrics)
        self._noise_step.assign_add(1)
        return self.get_metrics_result()

    def _unpack(self, data):
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        if labels is None:
            raise ValueError(f"{type(self).__name__} needs labels: fit(images, labels) or a dataset of both.")
        images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
        if not images.dtype.is_floating:
            raise ValueError(
                f"Images must be floats in [0, 1]; divide bytes by 255. Received: dtype={images.dtype.name}"
            )
        if labels.shape.rank == 2 and labels.shape[-1] == 1:
            labels = tf.squeeze(labels, axis=-1)
        if labels.shape.rank != 1:
            raise ValueError(
                f"Labels must be class indices of shape [batch]; give one-hot labels as their argmax. "
                f"Received: shape={tuple(labels.shape)}"
            )
        images, labels = tf.cast(images, tf.float32), tf.cast(labels, tf.int64)
        present = tf.ones_like(labels, tf.float32)
        weights = present if weights is None else tf.reshape(tf.cast(weights, tf.float32), [-1])
        batch = _Batch(images, labels, weights, present)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            # A replica left without an image by a small last batch would crash in the convolution.
            missing = tf.cast(tf.equal(tf.shape(images)[0], 0), tf.int32)
            batch = _Batch(*(tf.pad(tensor, [[0, missing]] + [[0, 0]] * (tensor.shape.rank - 1)) for tensor in batch))
        return batch

    def _sum_over_slices(self, batch, function):
        """Sums of the tensors that `function(slice of the batch, its first image's place)` returns."""
        if self.microbatch is None:
            return function(batch, 0)

        def of_slice(start):
            return function(_Batch(*(tensor[start : start + self.microbatch] for tensor in batch)), start)

        def add_slice(start, *sums):
            return start + self.microbatch, *(a + b for a, b in zip(sums, of_slice(start), strict=True))

        size = tf.shape(batch.images)[0]
        loop_variables = (tf.constant(self.microbatch), *of_slice(0))
        return tf.while_loop(lambda start, *_: start < size, add_slice, loop_variables, parallel_iterations=1)[1:]

    def _losses_of(self, batch, start, training):
        """Each image's weighted loss, regularisation included. Updates the metrics."""
        images, labels, weights, present = batch
        pixels_ok = tf.reduce_all((images >= 0) & (images <= 1))
        # Before the classifier sees them: a NaN would stay in its batch norm's moving averages.
        with tf.control_dependencies([_batch_check(pixels_ok, "pixels must lie in [0, 1]; scale the images first.")]):
            noise = self.draw_noise(images, start)
        terms = self.loss_terms(images, labels, noise, training)
        num_classes = terms.probabilities.shape[-1]
        labels_ok = tf.reduce_all((labels >= 0) & (labels < num_classes))
        message = f"labels must lie in 0..{num_classes - 1}, the classifier has {num_classes} outputs."
        with tf.control_dependencies([_batch_check(labels_ok, message)]):
            losses = {name: weights * values for name, values in terms.losses.items()}
        total = tf.add_n(list(losses.values()))
        if self.classifier.losses:
            total += tf.cast(tf.add_n(self.classifier.losses), tf.float32)
        total *= present

        # Means of weighted losses over the number of images, as Keras reports them: weights do not renormalise.
        correct = tf.cast(tf.argmax(terms.probabilities, axis=-1) == labels, tf.float32)
        values = {"loss": total, **losses, "smoothed_accuracy": correct, **terms.reports}
        for metric in (self._loss_tracker, *self._means):
            metric.update_state(values[metric.name], sample_weight=present)
        seen = (images, labels, terms.probabilities, weights)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            seen = [tf.boolean_mask(tensor, present > 0) for tensor in seen]
        images, labels, probabilities, weights = seen
        self.compute_metrics(images, labels, probabilities, sample_weight=weights)
        return total

    def get_config(self):
        config = super().get_config()
        config.update(
            classifier=keras.saving.serialize_keras_object(self.classifier),
            sigma=self.sigma,
            num_samples=self.num_samples,
            microbatch=self.microbatch,
            seed=self.seed,
        )
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["classifier"] = keras.saving.deserialize_keras_object(
            config["classifier"], custom_objects=custom_objects
        )
        return cls(**config)


def _sum_over_replicas(value):
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return value
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _batch_check(condition, message):
    """An assertion whose message holds no data of the batch."""
    return tf.debugging.Assert(condition, [_BAD_BATCH + message])


@contextlib.contextmanager
def _one_line_errors():
    """Turns TensorFlow's page about a failed batch check into a ValueError of one line."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if _BAD_BATCH not in error.message:
            raise
        line = error.message[error.message.index(_BAD_BATCH) :].split("\n")[0]
        raise ValueError(line.rstrip("]'\" ")) from None


def _check_returns_logits(classifier):
    """Raises unless `classifier` is a Keras model that, as far as it shows, ends in [batch, classes] logits."""
    if not isinstance(classifier, keras.Model):
        raise ValueError(f"classifier must be a keras.Model. Received: {type(classifier).__name__}")
    shape = getattr(classifier, "output_shape", None) if classifier.built else None
    if shape is not None and (not isinstance(shape, tuple) or len(shape) != 2 or shape[-1] is None or shape[-1] < 2):
        raise ValueError(
            f"The classifier must return logits [batch, classes] for two classes or more. "
            f"Received: output shape {shape}"
        )
    last = classifier
    while getattr(last, "layers", None):
        last = last.layers[-1]
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    if isinstance(last, keras.layers.Softmax) or activation in ("softmax", "log_softmax", "sigmoid"):
        raise ValueError(
            f"The classifier must return logits, but its last layer ({last.name}) applies "
            f"{activation or 'softmax'}; remove that activation."
        )
