"""StabilityModel: stability training (Li et al. 2019), a method that MACER is compared with."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

from typing import Any

import keras
import tensorflow as tf

from macer_tf import checks
from macer_tf.noisy_training import LossTerms, NoisyTrainingModel, fixed, registered


@registered
class StabilityModel(NoisyTrainingModel):
    """Trains `classifier` on clean images and keeps its predictions on noisy copies close to those on the clean ones.

    The loss is `-log f(x)_y + stability * mean_j CE(f(x), f(x + eps_j))`, where f is the softmax and
    CE(q, p) = -sum_c q_c log p_c; the gradient flows through both predictions (Li et al. 2019, Certified Adversarial
    Robustness with Additive Noise). `fit` reports `loss`, its two parts `classification_loss` and `stability_loss`, and
    `smoothed_accuracy`.

    Images, labels, noise and metrics are as in `MACERModel`.

    Examples:
        >>> import tensorflow as tf
        >>> from macer_tf import StabilityModel, networks
        >>> model = StabilityModel(networks.small_cnn(), sigma=0.25, stability=2.0, seed=0)
        >>> model.compile("sgd")
        >>> sorted(model.train_on_batch(tf.zeros([4, 8, 8, 1]), tf.range(4), return_dict=True))
        ['classification_loss', 'loss', 'smoothed_accuracy', 'stability_loss']

    Args:
        classifier: a Keras model, float images -> logits [batch, classes], without a softmax.
        sigma: noise level, the standard deviation of the noise in units of a pixel in [0, 1].
        stability: weight of the stability term.
        num_samples: noisy copies of each image.
        seed: as in `MACERModel`.
        microbatch: as in `MACERModel`.

    Raises:
        ValueError: for a hyper-parameter out of range or a classifier that does not return logits.
    """

    LOSSES = ("classification_loss", "stability_loss")

    stability = fixed("stability", "Weight of the stability term.")

    def __init__(
        self,
        classifier: keras.Model,
        sigma: float,
        stability: float = 2.0,
        num_samples: int = 1,
        seed: int | None = None,
        microbatch: int | None = None,
        **kwargs: Any,
    ) -> None:
        checks.check(stability=stability)
        super().__init__(classifier, sigma, num_samples, microbatch=microbatch, seed=seed, **kwargs)
        self._stability = float(stability)

    def loss_terms(self, images: tf.Tensor, labels: tf.Tensor, noise: tf.Tensor, training: bool) -> LossTerms:
        clean = tf.cast(self.classifier(images, training=training), tf.float32)
        logits = self.noisy_logits(images, noise, training)
        cross_entropies = tf.nn.log_softmax(logits) * tf.nn.softmax(clean)[:, None]
        return LossTerms(
            losses={
                "classification_loss": tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=clean),
                "stability_loss": -self.stability * tf.reduce_mean(tf.reduce_sum(cross_entropies, axis=-1), axis=1),
            },
            reports={},
            probabilities=tf.reduce_mean(tf.nn.softmax(logits), axis=1),
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stability": self.stability}
