"""CATRSModel: confidence-aware training (CAT-RS, Jeong et al. 2023), a method that MACER is compared with."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy import stats

from macer_tf import checks
from macer_tf import noise as noise_lib
from macer_tf.baselines import attacks
from macer_tf.noisy_training import LossTerms, NoisyTrainingModel, fixed, registered


@registered
class CATRSModel(NoisyTrainingModel):
    """Trains `classifier` on as many noisy copies of an image as it is sure of, and on worse noise if sure of all.

    Of m copies, a share s is classified correctly, and M ~ max(1, Bin(m, s)). The loss is the sum of the M smallest
    cross-entropies, divided by m, plus `adversarial * 1[M = m] * max_j KL(yhat || f(x + eps'_j))`. Here eps'_j is noise
    within `noise_radius` of eps_j on which copy j is further from yhat (`attacks.worst_noise`, which keeps its mean and
    root mean square, with the classifier in inference mode). yhat is pbar, the mean of the copies' softmax, taken as a
    constant (Jeong et al. 2023, Confidence-aware Training of Smoothed Classifiers; there, yhat comes from another
    model, trained beforehand on Gaussian noise of 0.25). `fit` reports `loss`, its two parts `classification_loss` and
    `adversarial_loss`, `smoothed_accuracy`, and `sure_fraction`, the share of images with M = m.

    Images, labels, noise and metrics are as in `MACERModel`.

    Examples:
        >>> import tensorflow as tf
        >>> from macer_tf import CATRSModel, networks
        >>> model = CATRSModel(networks.small_cnn(), sigma=0.25, attack_steps=2, num_samples=2, seed=0)
        >>> model.compile("sgd")
        >>> sorted(model.train_on_batch(tf.zeros([4, 8, 8, 1]), tf.range(4), return_dict=True))
        ['adversarial_loss', 'classification_loss', 'loss', 'smoothed_accuracy', 'sure_fraction']

    Args:
        classifier: a Keras model, float images -> logits [batch, classes], without a softmax.
        sigma: noise level, the standard deviation of the noise in units of a pixel in [0, 1].
        adversarial: weight of the worst-noise term (lambda in the paper).
        attack_steps: gradient steps on the noise (T in the paper).
        noise_radius: l2 radius within which these steps move the noise, in [0, 1] pixel units.
        num_samples: noisy copies of each image (m here, M in the paper).
        seed: as in `MACERModel`.
        microbatch: as in `MACERModel`.

    Raises:
        ValueError: for a hyper-parameter out of range or a classifier that does not return logits.
    """

    LOSSES = ("classification_loss", "adversarial_loss")
    REPORTS = ("sure_fraction",)

    adversarial = fixed("adversarial", "Weight of the worst noise's term.")
    attack_steps = fixed("attack_steps", "Gradient steps on the noise.")
    noise_radius = fixed("noise_radius", "l2 radius within which they move it, in [0, 1] pixel units.")

    def __init__(
        self,
        classifier: keras.Model,
        sigma: float,
        adversarial: float = 1.0,
        attack_steps: int = 4,
        noise_radius: float = 1.0,
        num_samples: int = 4,
        seed: int | None = None,
        microbatch: int | None = None,
        **kwargs: Any,
    ) -> None:
        checks.check(adversarial=adversarial, attack_steps=attack_steps, noise_radius=noise_radius)
        super().__init__(classifier, sigma, num_samples, microbatch=microbatch, seed=seed, **kwargs)
        self._adversarial, self._attack_steps = float(adversarial), int(attack_steps)
        self._noise_radius = float(noise_radius)

    def loss_terms(self, images: tf.Tensor, labels: tf.Tensor, noise: tf.Tensor, training: bool) -> LossTerms:
        logits = self.noisy_logits(images, noise, training)
        mean = tf.reduce_mean(tf.nn.softmax(logits), axis=1)
        target = tf.stop_gradient(mean)
        moved = attacks.worst_noise(
            self.inference, images, target, noise, self.noise_radius, self.attack_steps, keep_moments=True
        )
        log_worst = tf.nn.log_softmax(self.noisy_logits(images, moved, training))
        log_target = tf.math.log(tf.maximum(target, 1e-37))[:, None]
        divergences = tf.reduce_sum(target[:, None] * (log_target - log_worst), axis=-1)

        copies = tf.repeat(labels[:, None], self.num_samples, axis=1)
        cross_entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=copies, logits=logits)
        taken = self._taken(tf.reduce_sum(tf.cast(tf.argmax(logits, axis=-1) == copies, tf.int32), axis=1), noise)
        is_taken = tf.cast(tf.range(self.num_samples) < taken[:, None], tf.float32)
        sure = tf.cast(taken == self.num_samples, tf.float32)
        return LossTerms(
            losses={
                "classification_loss": tf.reduce_mean(tf.sort(cross_entropies, axis=1) * is_taken, axis=1),
                "adversarial_loss": self.adversarial * sure * tf.reduce_max(divergences, axis=1),
            },
            reports={"sure_fraction": sure},
            probabilities=mean,
        )

    def _taken(self, right, noise):
        """M for each image, given how many of its copies are right: Bin(m, right / m) by inversion, at least 1."""
        m = self.num_samples
        below = [stats.binom.cdf(np.arange(m), m, count / m) for count in range(m + 1)]
        chances = tf.gather(tf.constant(np.array(below), tf.float32), right)
        drawn = tf.reduce_sum(
            tf.cast(noise_lib.uniforms_of_noise(noise, self.sigma)[:, None] > chances, tf.int32), axis=1
        )
        return tf.maximum(drawn, 1)

    def get_config(self) -> dict[str, Any]:
        names = ("adversarial", "attack_steps", "noise_radius")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
