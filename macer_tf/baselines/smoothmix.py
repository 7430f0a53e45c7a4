"""SmoothMixModel: SmoothMix training (Jeong et al. 2021), a method that MACER is compared with."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

from typing import Any

import keras
import tensorflow as tf

from macer_tf import checks, objective
from macer_tf import noise as noise_lib
from macer_tf.baselines import attacks
from macer_tf.noisy_training import LossTerms, NoisyTrainingModel, fixed, registered


@registered
class SmoothMixModel(NoisyTrainingModel):
    """Trains `classifier` on noisy copies of images, and of mixtures of each image with its attacked version.

    Let p_j be the softmax on copy j of x, and pbar their mean. `attack_steps` unconstrained steps of `step_size` on
    -log pbar_y turn x into x~ (`attacks.free_ascent`, with the classifier in inference mode). With t ~ U(0, 1/2),
    x_mix = (1 - t) x + t x~ and y_mix = (1 - t) pbar + t / classes, the loss is
    `mean_j -log p_jy + mixup * 1[argmax pbar = y] * mean_j KL(y_mix || f(x_mix + eps_j))`, on the same noise; the
    gradient flows through y_mix (Jeong et al. 2021, SmoothMix; without its one-step adversary in place of x). `fit`
    reports `loss`, its two parts `classification_loss` and `mixup_loss`, `smoothed_accuracy`, and `perturbation`, the
    mean l2 norm of x~ - x.

    Images, labels, noise and metrics are as in `MACERModel`.

    Examples:
        >>> import tensorflow as tf
        >>> from macer_tf import SmoothMixModel, networks
        >>> model = SmoothMixModel(networks.small_cnn(), sigma=0.25, attack_steps=2, num_samples=2, seed=0)
        >>> model.compile("sgd")
        >>> sorted(model.train_on_batch(tf.zeros([4, 8, 8, 1]), tf.range(4), return_dict=True))
        ['classification_loss', 'loss', 'mixup_loss', 'perturbation', 'smoothed_accuracy']

    Args:
        classifier: a Keras model, float images -> logits [batch, classes], without a softmax.
        sigma: noise level, the standard deviation of the noise in units of a pixel in [0, 1].
        mixup: weight of the mixed images' term (eta in the paper). May be changed while training (warm-up); no other
            argument may.
        attack_steps: gradient steps of the attack (T in the paper).
        step_size: length of each step, in [0, 1] pixel units (alpha in the paper).
        num_samples: noisy copies of each image (m in the paper).
        seed: as in `MACERModel`.
        microbatch: as in `MACERModel`.

    Raises:
        ValueError: for a hyper-parameter out of range or a classifier that does not return logits.
    """

    LOSSES = ("classification_loss", "mixup_loss")
    REPORTS = ("perturbation",)

    attack_steps = fixed("attack_steps", "Gradient steps of the attack.")
    step_size = fixed("step_size", "Size of the attack's steps, in [0, 1] pixel units.")

    def __init__(
        self,
        classifier: keras.Model,
        sigma: float,
        mixup: float = 5.0,
        attack_steps: int = 4,
        step_size: float = 1.0,
        num_samples: int = 4,
        seed: int | None = None,
        microbatch: int | None = None,
        **kwargs: Any,
    ) -> None:
        checks.check(mixup=mixup, attack_steps=attack_steps, step_size=step_size)
        super().__init__(classifier, sigma, num_samples, microbatch=microbatch, seed=seed, **kwargs)
        self._attack_steps, self._step_size = int(attack_steps), float(step_size)
        # A TensorFlow variable, not a weight: it changes without a retrace, and `load_weights` leaves it alone.
        self._mixup = tf.Variable(float(mixup), trainable=False, dtype=tf.float32, name="mixup")

    @property
    def mixup(self) -> float:
        """Weight of the mixed images' term."""
        return float(self._mixup.numpy())

    @mixup.setter
    def mixup(self, value: float) -> None:
        checks.check(mixup=value)
        self._mixup.assign(value)

    def loss_terms(self, images: tf.Tensor, labels: tf.Tensor, noise: tf.Tensor, training: bool) -> LossTerms:
        attacked = attacks.free_ascent(self.inference, images, labels, noise, self.step_size, self.attack_steps)
        logits = self.noisy_logits(images, noise, training)
        mean = tf.reduce_mean(tf.nn.softmax(logits), axis=1)
        share = (noise_lib.uniforms_of_noise(noise, self.sigma) / 2)[:, None]
        targets = (1 - share) * mean + share / mean.shape[-1]
        mixed = images + tf.reshape(share, [-1, 1, 1, 1]) * (attacked - images)
        log_mixed = tf.reduce_mean(tf.nn.log_softmax(self.noisy_logits(mixed, noise, training)), axis=1)
        divergence = tf.reduce_sum(targets * (tf.math.log(tf.maximum(targets, 1e-37)) - log_mixed), axis=-1)
        correct = tf.cast(tf.argmax(mean, axis=-1) == labels, tf.float32)
        return LossTerms(
            losses={
                "classification_loss": objective.averaged_cross_entropy(logits, labels),
                "mixup_loss": self._mixup * correct * divergence,
            },
            reports={"perturbation": tf.sqrt(tf.reduce_sum((attacked - images) ** 2, axis=(1, 2, 3)))},
            probabilities=mean,
        )

    def get_config(self) -> dict[str, Any]:
        names = ("mixup", "attack_steps", "step_size")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
