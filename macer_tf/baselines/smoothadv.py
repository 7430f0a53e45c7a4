"""SmoothAdvModel: adversarial training of smoothed classifiers (Salman et al. 2019), which the paper compares with."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

from typing import Any

import keras
import tensorflow as tf

from macer_tf import checks
from macer_tf.baselines import attacks
from macer_tf.noisy_training import LossTerms, NoisyTrainingModel, fixed, registered

_ATTACKS = {"pgd": attacks.pgd, "ddn": attacks.ddn}


@registered
class SmoothAdvModel(NoisyTrainingModel):
    """Trains `classifier` on noisy copies of images that were attacked within an l2 ball.

    For each image, `num_samples` noise samples are drawn. The attack moves the image to raise the smoothed classifier's
    cross-entropy on them, with the classifier in inference mode. The loss is the cross-entropy of the attacked image's
    copies, averaged over the same noise samples. `fit` reports `loss`, `classification_loss`, `smoothed_accuracy` (on
    the attacked images) and `perturbation`, the mean l2 norm of the attack's perturbation. `evaluate` attacks as well.
    With epsilon=0 this is Gaussian training on `num_samples` copies.

    Images, labels, noise and metrics are as in `MACERModel`.

    Examples:
        >>> import numpy as np
        >>> from macer_tf import SGD, SmoothAdvModel, networks
        >>> images, labels = np.random.default_rng(0).random((8, 8, 8, 1)), np.arange(8)
        >>> model = SmoothAdvModel(networks.small_cnn(), sigma=0.25, epsilon=0.5, attack_steps=2, num_samples=2, seed=0)
        >>> model.compile(SGD(0.01))
        >>> history = model.fit(images, labels, verbose=0)
        >>> sorted(history.history)
        ['classification_loss', 'loss', 'perturbation', 'smoothed_accuracy']

    Args:
        classifier: a Keras model, float images -> logits [batch, classes], without a softmax.
        sigma: noise level, the standard deviation of the noise in units of a pixel in [0, 1].
        epsilon: l2 radius of the attack, in [0, 1] pixel units. May be changed while training (warm-up); no other
            argument may.
        attack: "pgd" or "ddn".
        attack_steps: gradient steps of the attack.
        num_samples: noise samples of each image (m in Salman et al.).
        seed: as in `MACERModel`.
        microbatch: as in `MACERModel`.

    Raises:
        ValueError: for a hyper-parameter out of range or a classifier that does not return logits.
    """

    LOSSES = ("classification_loss",)
    REPORTS = ("perturbation",)

    attack = fixed("attack", "Name of the attack.")
    attack_steps = fixed("attack_steps", "Gradient steps of the attack.")

    def __init__(
        self,
        classifier: keras.Model,
        sigma: float,
        epsilon: float,
        attack: str = "pgd",
        attack_steps: int = 10,
        num_samples: int = 8,
        seed: int | None = None,
        microbatch: int | None = None,
        **kwargs: Any,
    ) -> None:
        checks.check(epsilon=epsilon, attack=attack, attack_steps=attack_steps)
        super().__init__(classifier, sigma, num_samples, microbatch=microbatch, seed=seed, **kwargs)
        self._attack = attack
        self._attack_steps = int(attack_steps)
        # A TensorFlow variable, not a weight: it changes without a retrace, and `load_weights` leaves it alone.
        self._epsilon = tf.Variable(float(epsilon), trainable=False, dtype=tf.float32, name="epsilon")

    @property
    def epsilon(self) -> float:
        """l2 radius of the attack, in [0, 1] pixel units."""
        return float(self._epsilon.numpy())

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        checks.check(epsilon=value)
        self._epsilon.assign(value)

    def loss_terms(self, images: tf.Tensor, labels: tf.Tensor, noise: tf.Tensor, training: bool) -> LossTerms:
        attacked = _ATTACKS[self.attack](self.inference, images, labels, noise, self._epsilon, self.attack_steps)
        logits = self.noisy_logits(attacked, noise, training)
        copies = tf.repeat(labels[:, None], self.num_samples, axis=1)
        return LossTerms(
            losses={
                "classification_loss": tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(labels=copies, logits=logits), axis=1
                )
            },
            reports={"perturbation": tf.sqrt(tf.reduce_sum((attacked - images) ** 2, axis=(1, 2, 3)))},
            probabilities=tf.reduce_mean(tf.nn.softmax(logits), axis=1),
        )

    def get_config(self) -> dict[str, Any]:
        names = ("epsilon", "attack", "attack_steps")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
