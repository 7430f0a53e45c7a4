"""MACERModel: wraps any Keras classifier and trains it by Algorithm 1 of Zhai et al. (ICLR 2020)."""

import contextlib
import functools

import keras
import numpy as np
import tensorflow as tf

from macer_tf import checks, objective
from macer_tf import noise as noise_lib

_BAD_BATCH = "MACERModel got a bad batch: "


@keras.saving.register_keras_serializable(package="macer_tf")
class MACERModel(keras.Model):
    """Trains `classifier` to maximise the certified l2 radius of its Gaussian-smoothed version.

    For each image, `num_samples` noisy copies are drawn; the loss is Eq. (17): the cross-entropy of their mean
    softmax plus `lam` times a hinge on the soft certified radius. `fit` and `evaluate` report `loss`,
    `classification_loss` and `robustness_loss` (which includes lam; with the classifier's own regularisation
    losses the two add up to `loss`), `smoothed_accuracy`, `hinge_fraction` (the share of images that the robustness
    term acts on) and `soft_radius` (mean of Eq. 16 capped at the hinge, 0 for wrong images). Metrics given to
    `compile` see the mean softmax, [batch, classes].

    These are estimates from a few samples. They certify nothing: that is `SmoothedClassifier.certify`.

    Images are floats in [0, 1], [batch, height, width, channels]; noise is added to them as they come in, so
    normalisation belongs inside `classifier`. Labels are integers, [batch] or [batch, 1].

    With lam=0 and num_samples=1 this is the Gaussian training of Cohen et al. (2019).

    Args:
        classifier: a Keras model, images -> logits [batch, classes], without a softmax.
        sigma: noise level, the standard deviation of the noise in units of a pixel in [0, 1].
        num_samples: noisy copies of each image (k in the paper).
        lam: weight of the robustness term. May be changed while training: `model.lam = 12.0`.
        gamma: hinge on xi = Phi^-1(z_y) - Phi^-1(max other z); above 0, at most 24.
        beta: inverse temperature of the softmax in the robustness term.
        seed: whole number in [0, 2**32) that fixes the training noise; drawn from NumPy's global generator if None.

    Raises:
        ValueError: for a hyper-parameter out of range or a classifier that does not return logits.
    """

    def __init__(self, classifier, sigma, num_samples=16, lam=12.0, gamma=8.0, beta=16.0, seed=None, **kwargs):
        checks.check_hyperparameters(sigma, gamma, beta, lam, num_samples)
        _check_returns_logits(classifier)
        # A mixed_float16 classifier needs `compile` to scale the loss, and compile looks at this policy.
        kwargs.setdefault("dtype", classifier.dtype_policy)
        super().__init__(**kwargs)
        self.classifier = classifier
        self.sigma = float(sigma)
        self.num_samples = int(num_samples)
        self.gamma = float(gamma)
        self.beta = float(beta)
        self.seed = checks.check_seed(np.random.randint(2**31) if seed is None else seed)
        # A TensorFlow variable, not a weight: it changes without a retrace, and `load_weights` leaves it alone.
        self._lam = tf.Variable(float(lam), trainable=False, dtype=tf.float32, name="lam")
        # How many batches of noise were drawn. A weight, so that a restored model goes on with fresh noise.
        self._noise_step = self.add_weight(
            name="noise_step", shape=(), dtype="int64", initializer="zeros", trainable=False,
            aggregation="only_first_replica",
        )  # fmt: skip
        self._classification_loss = keras.metrics.Mean(name="classification_loss")
        self._robustness_loss = keras.metrics.Mean(name="robustness_loss")
        self._smoothed_accuracy = keras.metrics.Mean(name="smoothed_accuracy")
        self._hinge_fraction = keras.metrics.Mean(name="hinge_fraction")
        self._soft_radius = keras.metrics.Mean(name="soft_radius")
        if classifier.built and getattr(classifier, "input_shape", None) is not None:
            self.build(classifier.input_shape)

    @property
    def lam(self):
        """Weight of the robustness term."""
        return float(self._lam.numpy())

    @lam.setter
    def lam(self, value):
        checks.check_hyperparameters(self.sigma, self.gamma, self.beta, value)
        self._lam.assign(value)

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
        """As `keras.Model.compile`, without a loss, which is Eq. (17).

        `jit_compile` is off unless it is True ("auto" is off): on a CPU, XLA makes this training step several times
        slower. XLA also drops the checks of each batch's pixels and labels, and draws other noise from the same seed.

        Raises:
            ValueError: if a loss is given, or `jit_compile=True` where it cannot work.
        """
        if loss is not None:
            raise ValueError(f"MACERModel brings its own loss, Eq. (17); leave loss out. Received: loss={loss}")
        if jit_compile is True and self.gamma > checks.MAX_GAMMA_XLA:
            raise ValueError(
                f"jit_compile=True needs gamma <= {checks.MAX_GAMMA_XLA:g}: XLA's normal quantile resolves no more. "
                f"Received: gamma={self.gamma:g}"
            )
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

    def draw_noise(self, images):
        """Training noise: sigma * N(0, 1), float32 [batch, num_samples, *image shape], new at every call."""
        replica = tf.distribute.get_replica_context()
        call = tf.identity(self._noise_step.value) * replica.num_replicas_in_sync
        call += tf.cast(replica.replica_id_in_sync_group, tf.int64)
        self._noise_step.assign_add(1)
        shape = tf.concat([[tf.shape(images)[0], self.num_samples], tf.shape(images)[1:]], axis=0)
        return self.sigma * tf.random.stateless_normal(shape, seed=tf.stack([self.seed, call]), alg="philox")

    def train_step(self, data):
        images, labels, weights, present = self._unpack(data)
        with tf.GradientTape() as tape:
            losses, terms = self._loss_terms(images, labels, weights, present, training=True)
            # Gradients are summed over the replicas: each divides by the size of the global batch.
            loss = tf.reduce_sum(losses) / _sum_over_replicas(tf.reduce_sum(present))
            scaled_loss = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(scaled_loss, variables), variables, strict=True))
        return self._update_metrics(images, labels, weights, present, losses, terms)

    def test_step(self, data):
        images, labels, weights, present = self._unpack(data)
        losses, terms = self._loss_terms(images, labels, weights, present, training=False)
        return self._update_metrics(images, labels, weights, present, losses, terms)

    def _unpack(self, data):
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        if labels is None:
            raise ValueError("MACERModel needs labels: fit(images, labels) or a dataset of (images, labels).")
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
        if self.distribute_strategy.num_replicas_in_sync > 1:
            # A replica left without an image by a small last batch would crash in the convolution.
            missing = tf.cast(tf.equal(tf.shape(images)[0], 0), tf.int32)
            images, labels, weights, present = (
                tf.pad(tensor, [[0, missing]] + [[0, 0]] * (tensor.shape.rank - 1))
                for tensor in (images, labels, weights, present)
            )
        return images, labels, weights, present

    def _loss_terms(self, images, labels, weights, present, training):
        """Weighted per-example losses [batch] (Eq. 17 plus regularisation), and the terms they are made of."""
        pixels_ok = tf.reduce_all((images >= 0) & (images <= 1))
        # Before the classifier sees them: a NaN would stay in its batch norm's moving averages.
        with tf.control_dependencies([_batch_check(pixels_ok, "pixels must lie in [0, 1]; scale the images first.")]):
            noisy = noise_lib.noisy_copies(images, self.draw_noise(images))
        logits = self.classifier(noisy, training=training)
        if logits.shape.rank != 2:
            raise ValueError(
                f"The classifier must return logits [batch, classes]. Received: output shape {tuple(logits.shape)}"
            )
        if not self.built:
            # A subclassed classifier is built by its first call; an unbuilt model would be saved without the rest.
            self.build(images.shape)
        num_classes = logits.shape[-1]
        labels_ok = tf.reduce_all((labels >= 0) & (labels < num_classes))
        message = f"labels must lie in 0..{num_classes - 1}, the classifier has {num_classes} outputs."
        with tf.control_dependencies([_batch_check(labels_ok, message)]):
            logits = tf.reshape(tf.cast(logits, tf.float32), [-1, self.num_samples, num_classes])
        terms = objective.macer_terms(logits, labels, self.sigma, self.gamma, self.beta)
        losses = weights * (terms.classification + self._lam * terms.robustness)
        if self.classifier.losses:
            losses += tf.cast(tf.add_n(self.classifier.losses), tf.float32)
        return losses * present, terms

    def _update_metrics(self, images, labels, weights, present, losses, terms):
        predictions = tf.argmax(terms.probabilities, axis=-1)
        # Losses are weighted sums over the number of images, as Keras reports them: weights do not renormalise.
        for metric, values in (
            (self._loss_tracker, losses),
            (self._classification_loss, weights * terms.classification),
            (self._robustness_loss, weights * self._lam * terms.robustness),
            (self._smoothed_accuracy, tf.cast(predictions == labels, tf.float32)),
            (self._hinge_fraction, tf.cast(terms.in_hinge, tf.float32)),
            (self._soft_radius, terms.radius),
        ):
            metric.update_state(values, sample_weight=present)
        seen = (images, labels, terms.probabilities, weights)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            seen = [tf.boolean_mask(tensor, present > 0) for tensor in seen]
        images, labels, probabilities, weights = seen
        return self.compute_metrics(images, labels, probabilities, sample_weight=weights)

    def get_config(self):
        config = super().get_config()
        config.update(
            classifier=keras.saving.serialize_keras_object(self.classifier),
            sigma=self.sigma,
            num_samples=self.num_samples,
            lam=self.lam,
            gamma=self.gamma,
            beta=self.beta,
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
