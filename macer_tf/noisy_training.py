"""NoisyTrainingModel: what the Keras models of MACER and of the methods it is compared with have in common.

This is addressed noise, checks of each batch, metrics, saving, and gradients that are right under a strategy, in mixed
precision and over slices of a batch. A method adds its loss.
"""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

import contextlib
import functools
import inspect
import numbers
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np
import tensorflow as tf

# Layers and optimizers are imported so that loading a saved model by its class also finds the classes inside it.
from macer_tf import base_classifier, checks, layers, optimizers  # noqa: F401
from macer_tf import noise as noise_lib

_Class = TypeVar("_Class", bound=type)
_BAD_BATCH = "Bad batch: "
_PROBABILITIES = "the classifier returned probabilities instead of logits; remove its softmax."
_UNLIKE = "labels, and sample weights if there are any, must be one per image."
_NO_WEIGHTS = "sample weights and class weights must be finite numbers from 0."
_ROWS_THAT_TELL = 8
# Addresses of noise that each step owns: more than a replica's share of any batch.
_IMAGES_PER_STEP = 2**20


class LossTerms(NamedTuple):
    """What a method computes for images [batch]; a term of another shape, or not under its name, is refused.

    Attributes:
        losses: name -> [batch]; they add up to the loss.
        reports: name -> [batch]; their means are reported beside those of the losses.
        probabilities: [batch, classes], the smoothed prediction, which metrics see.
    """

    losses: Mapping[str, tf.Tensor]
    reports: Mapping[str, tf.Tensor]
    probabilities: tf.Tensor


class _Batch(NamedTuple):
    images: tf.Tensor
    # Class indices, and the labels as metrics see them: the same, or one-hot if they were one-hot.
    labels: tf.Tensor
    targets: tf.Tensor
    weights: tf.Tensor
    # 1, or 0 for an image that only pads an empty replica.
    present: tf.Tensor


def fixed(name: str, meaning: str) -> property:
    """A read-only property of `_<name>`, which cannot change after the model is made: traced steps have read it."""

    def read(self: Any) -> Any:
        return getattr(self, "_" + name)

    def refuse(self: Any, value: Any) -> None:
        raise AttributeError(
            f"{name} cannot change once the {type(self).__name__} is made; make another one from the same classifier. "
            f"Received: {name}={value}"
        )

    return property(read, refuse, doc=meaning)


def registered(model: _Class) -> _Class:
    """Decorator: Keras finds the class when it loads a saved model; in an .h5 file, by its bare name."""
    keras.saving.get_custom_objects()[model.__name__] = model
    return keras.saving.register_keras_serializable(package="macer_tf")(model)


class NoisyTrainingModel(keras.Model):
    """Trains `classifier` on noisy copies of images; a subclass defines `loss_terms` and lists the names of its terms.

    Images are floats in [0, 1], [batch, height, width, channels]; noise is added to them as they come in, so
    normalisation belongs inside `classifier`. Labels are class indices, [batch] or [batch, 1], or one-hot rows,
    [batch, classes], of any type of number.

    Training and evaluation draw different noise. Training noise never repeats; each evaluation begins with the same
    noise, so evaluating changes neither training nor the next evaluation.

    Examples:
        Gaussian training, whose loss is the mean cross-entropy of an image's noisy copies:

        >>> import keras
        >>> import tensorflow as tf
        >>> from macer_tf import NoisyTrainingModel, networks
        >>> from macer_tf.noisy_training import LossTerms
        >>> class GaussianModel(NoisyTrainingModel):
        ...     LOSSES = ("classification_loss",)
        ...
        ...     def loss_terms(self, images, labels, noise, training):
        ...         logits = self.noisy_logits(images, noise, training)
        ...         copies = tf.repeat(labels[:, None], self.num_samples, axis=1)
        ...         losses = keras.losses.sparse_categorical_crossentropy(copies, logits, from_logits=True)
        ...         probabilities = tf.reduce_mean(tf.nn.softmax(logits), axis=1)
        ...         return LossTerms({"classification_loss": tf.reduce_mean(losses, axis=1)}, {}, probabilities)
        >>> model = GaussianModel(networks.small_cnn(), sigma=0.25, num_samples=2, seed=0)
        >>> model.compile("sgd")
        >>> sorted(model.train_on_batch(tf.zeros([4, 8, 8, 1]), tf.range(4), return_dict=True))
        ['classification_loss', 'loss', 'smoothed_accuracy']

    Args:
        classifier: a Keras model, float images -> logits [batch, classes], without a softmax.
        sigma: noise level, the standard deviation of the noise in units of a pixel in [0, 1].
        num_samples: noisy copies of each image.
        microbatch: the gradient is accumulated over slices of this many images of a replica's batch, to save memory;
            None takes the whole batch at once.
        seed: whole number in [0, 2**32) that fixes the training noise; drawn from NumPy's global generator if None.

    Raises:
        ValueError: for an argument out of range, or a classifier that does not take float images or return logits.
    """

    # Names of the `losses` and the `reports` of `loss_terms`; besides them, loss and smoothed_accuracy are reported.
    LOSSES: tuple[str, ...] = ()
    REPORTS: tuple[str, ...] = ()
    # Which of the reported figures are better when higher; losses are better when lower.
    HIGHER_IS_BETTER: tuple[str, ...] = ("smoothed_accuracy",)

    sigma = fixed("sigma", "Noise level, the standard deviation of the noise in units of a pixel in [0, 1].")
    num_samples = fixed("num_samples", "Noisy copies of each image.")
    microbatch = fixed("microbatch", "Images in a slice of the batch, or None.")
    seed = fixed("seed", "What fixes the noise.")

    _may_lack_labels = False

    def __init__(
        self,
        classifier: keras.Model,
        sigma: float,
        num_samples: int,
        microbatch: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        checks.check(sigma=sigma, num_samples=num_samples, microbatch=microbatch)
        if isinstance(classifier, NoisyTrainingModel):
            raise ValueError(
                f"classifier must be a base classifier; pass that of this {type(classifier).__name__}, its .classifier."
            )
        base_classifier.check(classifier)
        base_classifier.check_returns_logits(classifier)
        self._check_names()
        # A mixed_float16 classifier needs `compile` to scale the loss, and compile looks at this policy.
        kwargs.setdefault("dtype", classifier.dtype_policy)
        super().__init__(**kwargs)
        self.classifier = classifier
        self._sigma = float(sigma)
        self._num_samples = int(num_samples)
        self._microbatch = None if microbatch is None else int(microbatch)
        self._seed = checks.check_seed(np.random.randint(2**31) if seed is None else seed)
        # How many batches of noise were drawn. A weight, so that a restored model continues with fresh noise.
        self._noise_step = self.add_weight(
            name="noise_step", shape=(), dtype="int64", initializer="zeros", trainable=False,
            aggregation="only_first_replica",
        )  # fmt: skip
        # How many images this evaluation has seen. Not a weight: each evaluation begins at 0.
        self._evaluated = tf.Variable(
            0, trainable=False, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, name="evaluated"
        )
        self._means = [keras.metrics.Mean(name=name) for name in (*self.LOSSES, "smoothed_accuracy", *self.REPORTS)]
        shape = base_classifier.image_shape(classifier)
        if classifier.built and shape is not None:
            self.build(shape)

    def _check_names(self):
        """Refuses names of terms that are none, or under which another figure would be reported."""
        for kind in ("LOSSES", "REPORTS", "HIGHER_IS_BETTER"):
            names = getattr(self, kind)
            # A text would be taken for a tuple of its letters: ("a_loss") without the comma is one.
            if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
                raise ValueError(
                    f"{type(self).__name__}'s {kind} must be a tuple of names, such as ('my_loss',). "
                    f"Received: {names!r}"
                )
        if not self.LOSSES:
            raise ValueError(f"{type(self).__name__}'s LOSSES must name one loss or more. Received: {self.LOSSES!r}")
        names = ["loss", "smoothed_accuracy", *self.LOSSES, *self.REPORTS]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(
                f"The names in {type(self).__name__}'s LOSSES and REPORTS must all be different, and neither loss nor "
                f"smoothed_accuracy, which are always reported. Received: {twice}"
            )

    def loss_terms(self, images: tf.Tensor, labels: tf.Tensor, noise: tf.Tensor, training: bool) -> LossTerms:
        """The method's `LossTerms`.

        Args:
            images: float32 [batch, height, width, channels] in [0, 1].
            labels: int64 [batch].
            noise: float32 [batch, num_samples, height, width, channels], scaled by sigma.
            training: Python bool.
        """
        raise NotImplementedError

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if not self.classifier.built:
            self.classifier.build(input_shape)
        self.built = True

    def call(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The base classifier's logits, [batch, classes], without noise."""
        return self.classifier(images, training=training)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return self.classifier.compute_output_shape(input_shape)

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "rmsprop",
        loss: None = None,
        *,
        jit_compile: bool | str = False,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`, but without a loss, because the method has its own.

        `jit_compile` is off unless it is True ("auto" is off): on a CPU, XLA makes this training step several times
        slower. XLA also drops the checks of each batch's pixels and labels, and draws other noise from the same seed.

        Raises:
            ValueError: if a loss is given, or `jit_compile=True` where it cannot work.
        """
        if loss is not None:
            raise ValueError(f"{type(self).__name__} has its own loss; do not pass one. Received: loss={loss}")
        if optimizer is None:
            raise ValueError('compile needs an optimizer, such as macer_tf.SGD(0.01) or "adam". Received: None')
        if jit_compile is True and self.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "jit_compile=True does not work under a distribution strategy with several replicas; do not set it."
            )
        if jit_compile is True and self.microbatch is not None:
            raise ValueError(
                "jit_compile=True does not work with a microbatch, whose last slice may have another size; leave one "
                f"of them out. Received: microbatch={self.microbatch}"
            )
        super().compile(optimizer=optimizer, loss=None, jit_compile=jit_compile is True, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    @functools.wraps(keras.Model.make_train_function)
    def make_train_function(self, force: bool = False) -> Any:
        # A step that creates the optimizer's variables is traced twice: once to create them, and once to be kept.
        if self.built and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if self._distribute_strategy is not None and iterator is not None:
            # Keras averages the replicas' parts of the first batch, which fails where these differ in size.
            _, _, batches = next(iter(iterator))
            if (first := next(batches, None)) is None:
                raise ValueError("Expected one or more images. Received: a dataset without any")
            parts_of = self.distribute_strategy.experimental_local_results
            data_batch = keras.tree.map_structure(lambda values: parts_of(values)[0], first)
        super()._maybe_symbolic_build(data_batch=data_batch)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        arguments = _checked_arguments(keras.Model.fit, self, *args, **kwargs)
        self._set_modes(arguments.get("callbacks"))
        if isinstance(validation := arguments.get("validation_data"), tuple | list) and len(validation) > 1:
            _check_arrays(*validation[:3])
        _check_class_weight(arguments.get("class_weight"))
        with _one_line_errors(arguments.get("class_weight")):
            return super().fit(*args, **kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        _checked_arguments(keras.Model.evaluate, self, *args, **kwargs)
        with _one_line_errors():
            return super().evaluate(*args, **kwargs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        arguments = _checked_arguments(keras.Model.train_on_batch, self, *args, **kwargs)
        _check_class_weight(arguments.get("class_weight"))
        with _one_line_errors(arguments.get("class_weight")):
            return super().train_on_batch(*args, **kwargs)

    @functools.wraps(keras.Model.test_on_batch)
    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        _checked_arguments(keras.Model.test_on_batch, self, *args, **kwargs)
        with _one_line_errors():
            return super().test_on_batch(*args, **kwargs)

    @functools.wraps(keras.Model.export)
    def export(self, *args: Any, **kwargs: Any) -> None:
        # What `call` computes. Keras exports a subclassed model only after a call, and `fit` never calls this one.
        return self.classifier.export(*args, **kwargs)

    def reset_metrics(self) -> None:
        """As `keras.Model.reset_metrics`, with which every evaluation begins; also restarts the evaluation's noise."""
        super().reset_metrics()
        self._evaluated.assign(0)

    def _set_modes(self, callbacks):
        """Tells callbacks in automatic mode whether our figures should rise or fall; Keras knows only its metrics."""
        modes = dict.fromkeys(self.LOSSES, "min") | dict.fromkeys(self.HIGHER_IS_BETTER, "max")
        for callback in keras.tree.flatten(getattr(callbacks, "callbacks", callbacks)):
            name = str(getattr(callback, "monitor", "")).removeprefix("val_")
            if name in modes and getattr(callback, "mode", None) == "auto":
                callback.mode = modes[name]

    def draw_noise(self, images: tf.Tensor, start: int | tf.Tensor, training: bool = True) -> tf.Tensor:
        """The step's noise, sigma * N(0, 1), for images `start` to `start + batch - 1` of this replica's batch.

        Returns:
            float32 [batch, num_samples, *image shape].
        """
        return self._draw(images, start, self.num_samples, noise_lib.TRAINING if training else noise_lib.EVALUATION)

    def _draw(self, images, start, num_samples, stream):
        """As `draw_noise`, but with this number of samples and from this stream of the noise."""
        begun = self._evaluated if stream == noise_lib.EVALUATION else self._noise_step.value * _IMAGES_PER_STEP
        first = (begun + tf.cast(start, tf.int64)) * num_samples
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        count = tf.shape(images, tf.int64)[0] * num_samples
        # Each side is a number where the data set gives it, otherwise a tensor.
        shape = [side or tf.shape(images, tf.int64)[i + 1] for i, side in enumerate(images.shape[1:])]
        noise = noise_lib.gaussian(shape, self.seed, replica, stream, first, count)
        return self.sigma * tf.reshape(noise, [-1, num_samples, *shape])

    def inference(self, images: tf.Tensor) -> tf.Tensor:
        """The classifier on images [N, height, width, channels] in inference mode, as attacks see it: [N, classes]."""
        return self.classifier(images, training=False)

    def noisy_logits(self, images: tf.Tensor, noise: tf.Tensor, training: bool) -> tf.Tensor:
        """The classifier on the noisy copies, float32 [batch, num_samples, classes]."""
        logits = self.classifier(noise_lib.noisy_copies(images, noise), training=training)
        if not tf.is_tensor(logits) or logits.shape.rank != 2:
            received = f"output shape {tuple(logits.shape)}" if tf.is_tensor(logits) else type(logits).__name__
            raise ValueError(f"The classifier must return logits [batch, classes]. Received: {received}")
        if not self.built:
            # A subclassed classifier is built by its first call; an unbuilt model would be saved without the rest.
            self.build(images.shape)
        logits = tf.cast(logits, tf.float32)
        # Before the first step, when rows of logits do not add up to 1 by chance. Needed because a subclassed
        # classifier does not say what its last layer is.
        are_probabilities = (
            (self._noise_step.value == 0)
            & (tf.shape(logits)[0] >= _ROWS_THAT_TELL)
            & tf.reduce_all(logits >= 0)
            & tf.reduce_all(tf.abs(tf.reduce_sum(logits, axis=-1) - 1) < 0.01)
        )
        with tf.control_dependencies([_batch_check(~are_probabilities, _PROBABILITIES)]):
            # Keeps the batch's size if it is known: beside labels that know theirs, `tf.where` would lose all shapes.
            return tf.reshape(logits, [images.shape[0] or -1, self.num_samples, logits.shape[-1]])

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        batch = self._unpack(data)
        # Gradients are summed over the replicas, so each divides by the size of the global batch.
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
            # sums over the replicas later. Variables that the loss does not depend on have no gradient.
            found = [gradient for gradient in summed if gradient is not None]
            means = iter(replica.all_reduce(tf.distribute.ReduceOp.MEAN, found) if found else ())
            summed = [None if gradient is None else next(means) for gradient in summed]
        if self.trainable_variables:
            self.optimizer.apply_gradients(zip(summed, self.trainable_variables, strict=True))
        else:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
        self._noise_step.assign_add(1)
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        def update_metrics(batch, start):
            self._losses_of(batch, start, training=False)
            return []

        batch = self._unpack(data)
        self._sum_over_slices(batch, update_metrics)
        self._evaluated.assign_add(tf.shape(batch.images, tf.int64)[0])
        return self.get_metrics_result()

    def _unpack(self, data):
        images, labels, weights = map(_only_tensor, keras.utils.unpack_x_y_sample_weight(data))
        if labels is None:
            raise ValueError(f"{type(self).__name__} needs labels: fit(images, labels) or a dataset of both.")
        images = self._as_images(images)
        labels, targets = _as_classes(labels)
        present = tf.ones_like(labels, tf.float32)
        weights = present if weights is None else _as_weights(weights)
        if len({tensor.shape[0] for tensor in (images, labels, weights)} - {None}) > 1:
            raise ValueError(_BAD_BATCH + _UNLIKE)
        counts = [tf.shape(tensor)[0] for tensor in (images, labels, weights)]
        are_alike = (counts[0] == counts[1]) & (counts[0] == counts[2])
        with tf.control_dependencies([_batch_check(are_alike, _UNLIKE)]):
            images = tf.identity(images)
        batch = _Batch(images, labels, targets, weights, present)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            # A replica left without an image by a small last batch would crash in the convolution.
            missing = tf.cast(tf.equal(tf.shape(images)[0], 0), tf.int32)
            batch = _Batch(*(tf.pad(tensor, [[0, missing]] + [[0, 0]] * (tensor.shape.rank - 1)) for tensor in batch))
        return batch

    def _as_images(self, images):
        """Images as float32; the classifier gives their shape where the data set does not."""
        images = tf.convert_to_tensor(images)
        if not images.dtype.is_floating:
            raise ValueError(
                f"Images must be floats in [0, 1]; divide bytes by 255. Received: dtype={images.dtype.name}"
            )
        images = tf.cast(images, tf.float32)
        shape = base_classifier.image_shape(self.classifier)
        if shape is None:
            return images
        if images.shape.rank == len(shape) - 1 and shape[-1] == 1:
            # Keras' functional models also take grey images without a channel axis.
            images = images[..., None]
        # Where the shapes contradict each other, the classifier reports it.
        return tf.ensure_shape(images, shape) if images.shape.is_compatible_with(shape) else images

    def _sum_over_slices(self, batch, function):
        """Sums, over slices of the batch, the tensors that `function(slice, place of its first image)` returns."""
        if self.microbatch is None:
            return function(batch, 0)

        def of_slice(start):
            return function(_Batch(*(tensor[start : start + self.microbatch] for tensor in batch)), start)

        def add_slice(start, *sums):
            parts = [part for part in of_slice(start) if part is not None]
            return start + self.microbatch, *(a + b for a, b in zip(sums, parts, strict=True))

        size = tf.shape(batch.images)[0]
        first = of_slice(0)
        # None is the gradient of a variable that the loss does not depend on; that of an embedding is sparse.
        dense = [tf.convert_to_tensor(part) for part in first if part is not None]
        loop_variables = (tf.constant(self.microbatch), *dense)
        _, *sums = tf.while_loop(lambda start, *_: start < size, add_slice, loop_variables, parallel_iterations=1)
        return [None if part is None else sums.pop(0) for part in first]

    def _losses_of(self, batch, start, training):
        """Each image's weighted loss, regularisation included. Updates the metrics."""
        images, labels, targets, weights, present = batch
        pixels_ok = tf.reduce_all((images >= 0) & (images <= 1))
        # Before the classifier sees them: a NaN would stay in its batch norm's moving averages.
        with tf.control_dependencies([_batch_check(pixels_ok, "pixels must lie in [0, 1]; scale the images first.")]):
            noise = self.draw_noise(images, start, training)
        terms = self._checked(self.loss_terms(images, labels, noise, training), images)
        num_classes = terms.probabilities.shape[-1]
        if targets.shape.rank == 2 and targets.shape[-1] != num_classes:
            raise ValueError(
                f"One-hot labels must have as many columns as the classifier has outputs, {num_classes}. "
                f"Received: shape={tuple(targets.shape)}"
            )
        labels_ok = tf.reduce_all((labels >= 0) & (labels < num_classes))
        others = ", or be -1 for an image without one" if training and self._may_lack_labels else ""
        message = f"labels must lie in 0..{num_classes - 1}{others}; the classifier has {num_classes} outputs."
        with tf.control_dependencies([_batch_check(labels_ok, message)]):
            losses = {name: weights * values for name, values in terms.losses.items()}
        total = tf.add_n(list(losses.values()))
        if self.classifier.losses:
            total += tf.cast(tf.add_n(self.classifier.losses), tf.float32)
        total *= present

        # Weighted losses are averaged over the number of images, as Keras reports them: weights do not renormalise.
        correct = tf.cast(tf.argmax(terms.probabilities, axis=-1) == labels, tf.float32)
        values = {"loss": total, **losses, "smoothed_accuracy": correct, **terms.reports}
        for metric in (self._loss_tracker, *self._means):
            metric.update_state(values[metric.name], sample_weight=present)
        seen = (images, targets, terms.probabilities, weights)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            seen = [tf.boolean_mask(tensor, present > 0) for tensor in seen]
        images, targets, probabilities, weights = seen
        self.compute_metrics(images, targets, probabilities, sample_weight=weights)
        return total

    def _checked(self, terms, images):
        """What a subclass' `loss_terms` returned; a term [batch, 1] or [1] would be broadcast over the batch unseen."""
        method = f"{type(self).__name__}.loss_terms"
        if not isinstance(terms, LossTerms):
            raise ValueError(f"{method} must return LossTerms. Received: {type(terms).__name__}")
        for kind, found, declared in (("losses", terms.losses, self.LOSSES), ("reports", terms.reports, self.REPORTS)):
            if not isinstance(found, Mapping):
                raise ValueError(f"{method} must return its {kind} as a dict. Received: {type(found).__name__}")
            if set(found) != set(declared):
                raise ValueError(
                    f"{method} must return the {kind} that {kind.upper()} names: {', '.join(declared) or 'none'}. "
                    f"Received: {', '.join(map(str, found)) or 'none'}"
                )
        named = {**terms.losses, **terms.reports, "probabilities": terms.probabilities}
        tensors = {name: _as_term(method, name, value) for name, value in named.items()}
        for name in terms.losses:
            if tensors[name].dtype != tf.float32:
                raise ValueError(f"{method} must return {name} as float32. Received: {tensors[name].dtype.name}")
        a_row_each = f"{method} must return a value for each image, and no others."
        for name, tensor in tensors.items():
            if not tensor.shape[:1].is_compatible_with(images.shape[:1]):
                received = f"{name} of shape {tuple(tensor.shape)} for images {tuple(images.shape)}"
                raise ValueError(f"{a_row_each} Received: {received}")
        rows = tf.stack([tf.shape(tensor)[0] for tensor in tensors.values()])
        with tf.control_dependencies([_batch_check(tf.reduce_all(rows == tf.shape(images)[0]), a_row_each)]):
            tensors = {name: tf.identity(tensor) for name, tensor in tensors.items()}
        for tensor in tensors.values():
            # Comparing them with labels that alone know their number would lose all shapes.
            tensor.set_shape(images.shape[:1].concatenate(tensor.shape[1:]))
        losses, reports = ({name: tensors[name] for name in names} for names in (terms.losses, terms.reports))
        return LossTerms(losses, reports, tensors["probabilities"])

    def get_config(self) -> dict[str, Any]:
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
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> "NoisyTrainingModel":
        config = dict(config)
        config["classifier"] = keras.saving.deserialize_keras_object(
            config["classifier"], custom_objects=custom_objects
        )
        return cls(**config)


def _as_term(method, name, value):
    """What `loss_terms` returned under a name, as a tensor, unless it is seen to have another number of axes."""
    expected = "[batch, classes]" if name == "probabilities" else "[batch]"
    try:
        tensor = tf.convert_to_tensor(value)
    except (TypeError, ValueError):  # such as None
        raise ValueError(f"{method} must return {name} of shape {expected}. Received: {type(value).__name__}") from None
    rank = len(expected.split(","))
    if tensor.shape.rank not in (None, rank):
        raise ValueError(f"{method} must return {name} of shape {expected}. Received: {tuple(tensor.shape)}")
    # Keras' metrics need the rank, also where TensorFlow does not know it, as behind tf.py_function.
    return tf.ensure_shape(tensor, [None] * rank)


def _only_tensor(value):
    """The one tensor in a structure, as Keras takes it for a model with one input and one output."""
    tensors = keras.tree.flatten(value)
    if len(tensors) != 1:
        received = f"a dict of {', '.join(map(str, value))}" if isinstance(value, dict) else f"{len(tensors)} tensors"
        raise ValueError(
            "A batch must hold one tensor of images, one of labels and, if any, one of sample weights, in this order. "
            f"Received: {received} in place of one"
        )
    return tensors[0]


def _checked_arguments(method, *args, **kwargs):
    """The arguments of a call of one of Keras' methods by name, after `_check_arrays`."""
    arguments = inspect.signature(method).bind(*args, **kwargs).arguments
    _check_arrays(*map(arguments.get, ("x", "y", "sample_weight")))
    return arguments


def _check_arrays(images, labels, weights=None):
    """Refuses arrays about which Keras would say nothing, or something misleading."""
    for name, values in (("Pixels", images), ("Labels", labels), ("Sample weights", weights)):
        checks.check_unmasked(name, values)
    if isinstance(images, np.ndarray) and not len(images):
        raise ValueError(f"Expected one or more images. Received: images {images.shape}")
    if isinstance(labels, np.ndarray | list) and (dtype := np.asarray(labels).dtype).kind in "OSUMm":
        raise ValueError(f"Labels must be class indices or one-hot rows. Received: dtype={dtype}")
    for name, values in (("Images", images), ("Labels", labels), ("Sample weights", weights)):
        # Keras takes a list for several inputs, and would print all that is in it.
        if isinstance(values, list | tuple) and _is_bare(values):
            raise ValueError(
                f"{name} must be an array, such as np.array(...) of them. Received: a {type(values).__name__}"
            )


def _is_bare(values):
    """Whether lists in lists hold Python's numbers or texts rather than arrays."""
    while isinstance(values, list | tuple) and values:
        values = values[0]
    return isinstance(values, numbers.Number | str)


def _check_class_weight(weights):
    if weights is not None and not isinstance(weights, Mapping):
        raise ValueError(
            "class_weight must be a dict of classes and their weights, such as {0: 1.0, 1: 2.5}. Received: "
            f"{type(weights).__name__}"
        )
    # Keras looks up weights by number, so that one under another key, such as JSON's "0", would do nothing.
    if other := [key for key in weights or () if not (isinstance(key, numbers.Real) and float(key).is_integer())]:
        raise ValueError(f"The keys of class_weight must be classes, whole numbers from 0. Received: {other[0]!r}")


def _as_classes(labels):
    """Labels as class indices, int64 [batch], and as metrics see them: those, or one-hot, float32 [batch, classes]."""
    labels = tf.convert_to_tensor(labels)
    if not (labels.dtype.is_floating or labels.dtype.is_integer or labels.dtype.is_bool):
        raise ValueError(f"Labels must be class indices or one-hot rows. Received: dtype={labels.dtype.name}")
    rank, columns = labels.shape.rank, labels.shape[-1] if labels.shape.rank else None
    if rank == 1 or (rank == 2 and columns == 1):
        labels = tf.reshape(labels, [-1])
        classes = targets = tf.cast(labels, tf.int64)
        labels_ok = tf.reduce_all(tf.cast(classes, labels.dtype) == labels)
        message = "labels must be whole numbers, class indices."
    elif rank == 2 and columns:
        targets = tf.cast(labels, tf.float32)
        classes = tf.argmax(targets, axis=-1)
        labels_ok = tf.reduce_all(tf.one_hot(classes, columns) == targets)
        message = "rows of one-hot labels must hold one 1 and 0 elsewhere; mixed and smoothed labels have no class."
    else:
        raise ValueError(
            "Labels must be class indices, [batch] or [batch, 1], or one-hot rows, [batch, classes]. "
            f"Received: shape={'unknown' if rank is None else tuple(labels.shape)}"
            + (", a single label; `batch` the data set" if rank == 0 else "")
        )
    with tf.control_dependencies([_batch_check(labels_ok, message)]):
        return tf.identity(classes), targets


def _as_weights(weights):
    """Sample weights as float32 [batch]."""
    weights = tf.cast(weights, tf.float32)
    shape = weights.shape
    if shape.rank is not None and shape.rank != 1 and not (shape.rank == 2 and shape[1] in (1, None)):
        raise ValueError(f"sample_weight must be one number per image, [batch] or [batch, 1]. Received: shape={shape}")
    weights_ok = tf.reduce_all((weights >= 0) & tf.math.is_finite(weights))
    # With a weight below 0, the loss of its image would be maximised, and the total would fall for ever.
    with tf.control_dependencies([_batch_check(weights_ok, _NO_WEIGHTS)]):
        return tf.reshape(weights, [-1])


def _sum_over_replicas(value):
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return value
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _batch_check(condition, message):
    """An assertion whose message contains no data from the batch."""
    # The raw operation: tf.debugging.Assert wraps it in a tf.cond, which costs more time to trace than it ever saves.
    return tf.raw_ops.Assert(condition=condition, data=[_BAD_BATCH + message])


@contextlib.contextmanager
def _one_line_errors(class_weight=None):
    """Turns TensorFlow's page about a failed batch check, or a label without a weight, into a one-line ValueError."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        without = re.search(rf" = (-?\d+) is not in \[0, {len(class_weight or ())}\)", error.message)
        if class_weight and without:
            raise ValueError(
                "class_weight must have a weight for each class of the labels. "
                f"Received: weights for 0 to {len(class_weight) - 1}, and a label {without[1]}"
            ) from None
        if _BAD_BATCH not in error.message:
            raise
        line = error.message[error.message.index(_BAD_BATCH) :].split("\n")[0].split("] [Op:")[0]
        raise ValueError(line.rstrip("]'\" ")) from None
    except ValueError as error:  # Keras does not say what of a table, a generator or the like holds no numbers
        if not (dtype := re.fullmatch(r"Invalid dtype: (.+)", str(error))):
            raise
        raise ValueError(f"Images, labels and sample weights must be numbers. Received: dtype={dtype[1]}") from None
