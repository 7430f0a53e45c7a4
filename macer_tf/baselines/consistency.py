"""ConsistencyModel: consistency regularisation (Jeong and Shin 2020), a method that MACER is compared with."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

from typing import Any

import keras
import tensorflow as tf

from macer_tf import checks, objective
from macer_tf.noisy_training import LossTerms, NoisyTrainingModel, fixed, registered


@registered
class ConsistencyModel(NoisyTrainingModel):
    """Trains `classifier` on noisy copies of images so that their predictions agree.

    With p_j the softmax on copy j and pbar their mean, the loss is
    `mean_j -log p_jy + consistency * mean_j KL(pbar || p_j) + entropy * H(pbar)`; the gradient flows through pbar
    (Jeong and Shin 2020, Consistency Regularization for Certified Robustness; `objective.consistency`).
    `fit` reports `loss`, its two parts `classification_loss` and `consistency_loss`, and `smoothed_accuracy`.

    Images, labels, noise and metrics are as in `MACERModel`, which has this loss if lam=0 and
    average_cross_entropy=True.

    Examples:
        >>> import tensorflow as tf
        >>> from macer_tf import ConsistencyModel, networks
        >>> model = ConsistencyModel(networks.small_cnn(), sigma=0.25, consistency=10.0, seed=0)
        >>> model.compile("sgd")
        >>> sorted(model.train_on_batch(tf.zeros([4, 8, 8, 1]), tf.range(4), return_dict=True))
        ['classification_loss', 'consistency_loss', 'loss', 'smoothed_accuracy']

    Args:
        classifier: a Keras model, float images -> logits [batch, classes], without a softmax.
        sigma: noise level, the standard deviation of the noise in units of a pixel in [0, 1].
        consistency: weight of the copies' mean divergence from their mean prediction.
        entropy: weight of the mean prediction's entropy.
        num_samples: noisy copies of each image (m in the paper).
        seed: as in `MACERModel`.
        microbatch: as in `MACERModel`.

    Raises:
        ValueError: for a hyper-parameter out of range or a classifier that does not return logits.
    """

    LOSSES = ("classification_loss", "consistency_loss")

    consistency = fixed("consistency", "Weight of the copies' mean divergence from their mean prediction.")
    entropy = fixed("entropy", "Weight of the mean prediction's entropy.")

    def __init__(
        self,
        classifier: keras.Model,
        sigma: float,
        consistency: float = 10.0,
        entropy: float = 0.5,
        num_samples: int = 2,
        seed: int | None = None,
        microbatch: int | None = None,
        **kwargs: Any,
    ) -> None:
        checks.check(consistency=consistency, entropy=entropy)
        super().__init__(classifier, sigma, num_samples, microbatch=microbatch, seed=seed, **kwargs)
        self._consistency, self._entropy = float(consistency), float(entropy)

    def loss_terms(self, images: tf.Tensor, labels: tf.Tensor, noise: tf.Tensor, training: bool) -> LossTerms:
        logits = self.noisy_logits(images, noise, training)
        parts = objective.consistency(logits)
        return LossTerms(
            losses={
                "classification_loss": objective.averaged_cross_entropy(logits, labels),
                "consistency_loss": self.consistency * parts.divergence + self.entropy * parts.entropy,
            },
            reports={},
            probabilities=tf.reduce_mean(tf.nn.softmax(logits), axis=1),
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "consistency": self.consistency, "entropy": self.entropy}
