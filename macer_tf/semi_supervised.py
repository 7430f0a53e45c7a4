"""SemiSupervisedMACERModel: MACER on unlabelled images too, with pseudo-labels from the votes of averaged weights."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

from typing import Any

import keras
import tensorflow as tf

from macer_tf import checks
from macer_tf import noise as noise_lib
from macer_tf.model import MACERModel
from macer_tf.noisy_training import fixed, registered


@registered
class SemiSupervisedMACERModel(MACERModel):
    """`MACERModel` whose training images may lack a label; their label is then -1.

    The teacher is the moving average of the weights that the optimizer keeps, so `use_ema=True` is needed. An image
    without a label takes the majority class of `teacher_samples` noisy copies of it under the teacher, and counts only
    where that class's share of them is above `threshold`; then it enters the same two terms of Eq. (17) as an image
    with this label, weighted by `consistency_share`. (Zhai et al. 2020 name semi-supervised training as future work;
    Carmon et al. 2019 showed that unlabelled images raise certified radii, with a teacher trained beforehand.)

    Before the first step the average is empty, and no image without a label counts. Labels are class indices, not
    one-hot rows; `evaluate` needs all of them. In `smoothed_accuracy`, a class that was taken counts as the label.

    Examples:
        >>> import numpy as np
        >>> from macer_tf import SGD, SemiSupervisedMACERModel, networks
        >>> images, labels = np.random.default_rng(0).random((8, 8, 8, 1)), np.array([0, 1, 2, 3, -1, -1, -1, -1])
        >>> model = SemiSupervisedMACERModel(networks.small_cnn(), sigma=0.25, num_samples=2, seed=0)
        >>> model.compile(SGD(0.01, use_ema=True, ema_momentum=0.99))
        >>> history = model.fit(images, labels, verbose=0)

    Args:
        classifier: as in `MACERModel`.
        sigma: as in `MACERModel`.
        *args: further arguments of `MACERModel`, by position.
        **kwargs: further arguments of `MACERModel`, by name.
        threshold: share, in [0, 1], that the majority class must exceed.
        teacher_samples: noisy copies of each image that the teacher sees.

    Raises:
        ValueError: for a hyper-parameter out of range or a classifier that does not return logits.
    """

    threshold = fixed("threshold", "Share that the majority class must exceed.")
    teacher_samples = fixed("teacher_samples", "Noisy copies of each image that the teacher sees.")
    _may_lack_labels = True

    def __init__(
        self,
        classifier: keras.Model,
        sigma: float,
        *args: Any,
        threshold: float = 0.8,
        teacher_samples: int = 16,
        **kwargs: Any,
    ) -> None:
        checks.check(threshold=threshold, teacher_samples=teacher_samples)
        super().__init__(classifier, sigma, *args, **kwargs)
        self._threshold, self._teacher_samples = float(threshold), int(teacher_samples)

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "rmsprop",
        loss: None = None,
        *,
        jit_compile: bool | str = False,
        **kwargs: Any,
    ) -> None:
        optimizer = keras.optimizers.get(optimizer)
        if not getattr(optimizer, "inner_optimizer", optimizer).use_ema:
            raise ValueError(
                "The teacher is the moving average of the weights: make the optimizer with use_ema=True. "
                f"Received: {type(optimizer).__name__} with use_ema=False"
            )
        super().compile(optimizer, loss, jit_compile=jit_compile, **kwargs)

    compile.__doc__ = MACERModel.compile.__doc__

    def teacher_votes(self, images: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The majority class of each image's noisy copies under the averaged weights, and its share of them.

        Args:
            images: float32 [batch, height, width, channels] in [0, 1].
            noise: float32 [batch, copies, height, width, channels], scaled by sigma.

        Returns:
            int64 [batch], the first class on a tie, and float32 [batch].
        """
        optimizer: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if not self.built:
            self.build(images.shape)
        if not optimizer.built:
            self.optimizer.build(self.trainable_variables)
        averages = optimizer._model_variables_moving_average
        logits, _ = self.classifier.stateless_call(
            averages, self.classifier.non_trainable_variables, noise_lib.noisy_copies(images, noise), training=False
        )
        votes = tf.one_hot(tf.argmax(logits, axis=-1), logits.shape[-1])
        shares = tf.reduce_mean(tf.reshape(votes, [-1, tf.shape(noise)[1], logits.shape[-1]]), axis=1)
        return tf.argmax(shares, axis=-1), tf.reduce_max(shares, axis=-1)

    def _losses_of(self, batch, start, training):
        if training:
            noise = self._draw(batch.images, start, self.teacher_samples, noise_lib.TEACHER)
            classes, shares = self.teacher_votes(batch.images, noise)
            unlabelled = batch.labels == -1
            counts = (shares > self.threshold) & (self.optimizer.iterations > 0)
            labels = tf.where(unlabelled, classes, batch.labels)
            weight = tf.where(counts, self._consistency_share, 0.0)
            weights = tf.where(unlabelled, batch.weights * weight, batch.weights)
            batch = batch._replace(labels=labels, targets=labels, weights=weights)
        return super()._losses_of(batch, start, training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "threshold": self.threshold, "teacher_samples": self.teacher_samples}
