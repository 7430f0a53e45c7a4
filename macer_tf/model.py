"""MACERModel: wraps any Keras classifier and trains it by Algorithm 1 of Zhai et al. (ICLR 2020)."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from macer_tf import checks, objective
from macer_tf.baselines import attacks
from macer_tf.noisy_training import LossTerms, NoisyTrainingModel, fixed, registered


@registered
class MACERModel(NoisyTrainingModel):
    """Trains `classifier` to maximise the certified l2 radius of its Gaussian-smoothed version.

    For each image, `num_samples` noisy copies are drawn; the loss is Eq. (17): the cross-entropy of their mean
    softmax plus `lam` times a hinge on the soft certified radius. `fit` and `evaluate` report `loss`,
    `classification_loss` and `robustness_loss` (which includes lam; with the classifier's own regularisation
    losses the two add up to `loss`), `smoothed_accuracy`, `hinge_fraction` (the share of images that the robustness
    term acts on) and `soft_radius` (mean of Eq. 16 capped at the hinge, 0 for wrong images). Metrics given to
    `compile` see the mean softmax, [batch, classes].

    These are estimates from a few samples and certify nothing; for certificates, see `SmoothedClassifier.certify`.

    Images are floats in [0, 1], [batch, height, width, channels]; noise is added to them as they come in, so
    normalisation belongs inside `classifier`. Labels are class indices, [batch] or [batch, 1], or one-hot rows,
    [batch, classes]. `evaluate` draws its own noise, the same each time, and does not affect training.

    With lam=0 and num_samples=1 this is the Gaussian training of Cohen et al. (2019).

    Extensions of Eq. (17) are off by default (p_j is the softmax of copy j, pbar the mean of these, y the label):

    - `average_cross_entropy`: the first term is `mean_j -log p_jy`, by Jensen's inequality an upper bound on
      `-log pbar_y` (`objective.averaged_cross_entropy`).
    - `consistency`, `entropy`: adds `consistency * mean_j KL(pbar || p_j) + entropy * H(pbar)`, reported as
      `consistency_loss` (Jeong and Shin 2020; `objective.consistency`).
    - `noise_steps`: where all copies are right, the hinge is the larger of those on xi(eps) and on xi(eps'), where
      eps'_j is within `noise_radius` of eps_j and copy j does worse on it (`attacks.worst_noise`, after Jeong et al.
      2023). While lam is 0, the noise stays as it was drawn, for all terms.
    - `noise_for_all`: on these images, cross-entropy and consistency are on eps' too. Metrics, and reports other than
      the losses, stay on eps.
    - `num_samples` may rise during training: few copies first, many at the end.

    Examples:
        >>> import numpy as np
        >>> from macer_tf import MACERModel, SGD, networks
        >>> images, labels = np.random.default_rng(0).random((8, 8, 8, 1)), np.arange(8)
        >>> model = MACERModel(networks.small_cnn(), sigma=0.25, num_samples=2, seed=0)
        >>> model.compile(SGD(0.01))
        >>> history = model.fit(images, labels, verbose=0)
        >>> sorted(history.history)
        ['classification_loss', 'hinge_fraction', 'loss', 'robustness_loss', 'smoothed_accuracy', 'soft_radius']

    Args:
        classifier: a Keras model, float images -> logits [batch, classes], without a softmax.
        sigma: noise level, the standard deviation of the noise in units of a pixel in [0, 1].
        num_samples: noisy copies of each image (k in the paper). May rise during training, preferably at the start of
            an epoch, because the step is traced again.
        lam: weight of the robustness term. May be changed during training: `model.lam = 12.0`; no argument below may.
        gamma: hinge on xi = Phi^-1(z_y) - Phi^-1(max other z); above 0, at most 24.
        beta: inverse temperature of the softmax in the robustness term.
        seed: whole number in [0, 2**32) that fixes the training noise; drawn from NumPy's global generator if None.
        microbatch: the gradient is accumulated over slices of this many images of a replica's batch, to save memory;
            None takes the whole batch at once.
        average_cross_entropy: whether the cross-entropy is averaged over the copies.
        consistency: weight of the copies' mean divergence from their mean prediction; 0: off.
        entropy: weight of the mean prediction's entropy; 0: off.
        noise_steps: gradient steps on the noise for the hinge, each a forward and backward pass of all copies; 0: off.
        noise_radius: l2 radius within which these steps move the noise, in [0, 1] pixel units.
        noise_for_all: whether all terms of the loss use the moved noise, not only the hinge.

    Raises:
        ValueError: for a hyper-parameter out of range or a classifier that does not return logits.
    """

    LOSSES: tuple[str, ...] = ("classification_loss", "robustness_loss")
    REPORTS = ("hinge_fraction", "soft_radius")
    HIGHER_IS_BETTER = ("smoothed_accuracy", "soft_radius")

    gamma = fixed("gamma", "Hinge on xi.")
    beta = fixed("beta", "Inverse temperature of the softmax in the robustness term.")
    average_cross_entropy = fixed("average_cross_entropy", "Whether the cross-entropy is averaged over the copies.")
    consistency = fixed("consistency", "Weight of the copies' mean divergence from their mean prediction.")
    entropy = fixed("entropy", "Weight of the mean prediction's entropy.")
    noise_steps = fixed("noise_steps", "Gradient steps on the noise for the hinge.")
    noise_radius = fixed("noise_radius", "l2 radius within which they move the noise, in [0, 1] pixel units.")
    noise_for_all = fixed("noise_for_all", "Whether the moved noise is for all terms of the loss.")

    def __init__(
        self,
        classifier: keras.Model,
        sigma: float,
        num_samples: int = 16,
        lam: float = 12.0,
        gamma: float = 8.0,
        beta: float = 16.0,
        seed: int | None = None,
        microbatch: int | None = None,
        average_cross_entropy: bool = False,
        consistency: float = 0.0,
        entropy: float = 0.0,
        noise_steps: int = 0,
        noise_radius: float = 1.0,
        noise_for_all: bool = False,
        **kwargs: Any,
    ) -> None:
        checks.check(lam=lam, gamma=gamma, beta=beta)
        checks.check(consistency=consistency, entropy=entropy, noise_steps=noise_steps, noise_radius=noise_radius)
        if consistency or entropy:
            self.LOSSES = (*self.LOSSES, "consistency_loss")
        super().__init__(classifier, sigma, num_samples, microbatch=microbatch, seed=seed, **kwargs)
        self._average_cross_entropy = bool(average_cross_entropy)
        self._consistency, self._entropy = float(consistency), float(entropy)
        self._noise_steps, self._noise_radius = int(noise_steps), float(noise_radius)
        self._noise_for_all = bool(noise_for_all)
        self._gamma = float(gamma)
        self._beta = float(beta)
        # A TensorFlow variable, not a weight: it changes without a retrace, and `load_weights` leaves it alone.
        self._lam = tf.Variable(float(lam), trainable=False, dtype=tf.float32, name="lam")
        self._consistency_share = tf.Variable(1.0, trainable=False, dtype=tf.float32, name="consistency_share")
        self._attacks_noise = bool(noise_steps and lam)

    @property
    def lam(self) -> float:
        """Weight of the robustness term."""
        return float(self._lam.numpy())

    @lam.setter
    def lam(self, value: float) -> None:
        checks.check(lam=value)
        self._lam.assign(value)
        attacks_noise = bool(self.noise_steps and value)
        if attacks_noise != self._attacks_noise:
            # While lam is 0 the steps on the noise would be for nothing.
            self._attacks_noise = attacks_noise
            self._trace_again()

    @property
    def consistency_share(self) -> float:
        """Share of `consistency` and `entropy` that is applied, from 0 to 1; set it to phase them in. 1 by default."""
        return float(self._consistency_share.numpy())

    @consistency_share.setter
    def consistency_share(self, value: float) -> None:
        checks.check(consistency_share=value)
        self._consistency_share.assign(value)

    @property
    def num_samples(self) -> int:
        """Noisy copies of each image."""
        return self._num_samples

    @num_samples.setter
    def num_samples(self, value: int) -> None:
        checks.check(num_samples=value)
        if value < self._num_samples:
            # A step's noise begins at a multiple of num_samples.
            raise ValueError(
                "num_samples may only rise; otherwise noise that was already drawn would be drawn again. "
                f"Received: {value} after {self._num_samples}"
            )
        if value > self._num_samples:
            self._num_samples = int(value)
            self._trace_again()

    def _trace_again(self):
        """Traces the steps again, because they have read values that changed; `fit` uses the new step from then on."""
        if self.train_function is not None:
            self.make_train_function(force=True)
        if self.test_function is not None:
            self.make_test_function(force=True)

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "rmsprop",
        loss: None = None,
        *,
        jit_compile: bool | str = False,
        **kwargs: Any,
    ) -> None:
        if jit_compile is True and self.gamma > checks.MAX_GAMMA_XLA:
            raise ValueError(
                f"jit_compile=True needs gamma <= {checks.MAX_GAMMA_XLA:g}: XLA's normal quantile cannot resolve more. "
                f"Received: gamma={self.gamma}"
            )
        super().compile(optimizer, loss, jit_compile=jit_compile, **kwargs)

    compile.__doc__ = NoisyTrainingModel.compile.__doc__

    def loss_terms(self, images: tf.Tensor, labels: tf.Tensor, noise: tf.Tensor, training: bool) -> LossTerms:
        logits = self.noisy_logits(images, noise, training)
        # Reports are about the noise as it was drawn, because that is what the smoothed classifier sees.
        terms = self._terms(logits, labels)
        classification, robustness, in_hinge = terms.classification, terms.robustness, terms.in_hinge
        if self._attacks_noise:
            all_right = tf.reduce_all(tf.argmax(logits, axis=-1) == labels[:, None], axis=1)
            moved = attacks.worst_noise(self.inference, images, labels, noise, self.noise_radius, self.noise_steps)
            worse_logits = self.noisy_logits(images, moved, training)
            worse = self._terms(worse_logits, labels)
            robustness = tf.where(all_right, tf.maximum(robustness, worse.robustness), robustness)
            in_hinge |= all_right & worse.in_hinge
            if self.noise_for_all:
                classification = tf.where(all_right, worse.classification, classification)
                logits = tf.where(all_right[:, None, None], worse_logits, logits)
        losses = {"classification_loss": classification, "robustness_loss": self._lam * robustness}
        if "consistency_loss" in self.LOSSES:
            parts = objective.consistency(logits)
            losses["consistency_loss"] = self._consistency_share * (
                self.consistency * parts.divergence + self.entropy * parts.entropy
            )
        return LossTerms(
            losses=losses,
            reports={"hinge_fraction": tf.cast(in_hinge, tf.float32), "soft_radius": terms.radius},
            probabilities=terms.probabilities,
        )

    def _terms(self, logits, labels):
        return objective.macer_terms(logits, labels, self.sigma, self.gamma, self.beta, self.average_cross_entropy)

    def get_config(self) -> dict[str, Any]:
        names = (
            *("lam", "gamma", "beta", "average_cross_entropy", "consistency", "entropy"),
            *("noise_steps", "noise_radius", "noise_for_all", "consistency_share"),
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> "MACERModel":
        # Files saved by earlier versions do not have it.
        share = config.get("consistency_share", 1.0)
        others = {name: value for name, value in config.items() if name != "consistency_share"}
        model = super().from_config(others, custom_objects)
        model.consistency_share = share
        return model
