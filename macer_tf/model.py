"""MACERModel: wraps any Keras classifier and trains it by Algorithm 1 of Zhai et al. (ICLR 2020)."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

from typing import Any

import keras
import tensorflow as tf

from macer_tf import checks, objective
from macer_tf.noisy_training import LossTerms, NoisyTrainingModel, fixed


@keras.saving.register_keras_serializable(package="macer_tf")
class MACERModel(NoisyTrainingModel):
    """Trains `classifier` to maximise the certified l2 radius of its Gaussian-smoothed version.

    For each image, `num_samples` noisy copies are drawn; the loss is Eq. (17): the cross-entropy of their mean
    softmax plus `lam` times a hinge on the soft certified radius. `fit` and `evaluate` report `loss`,
    `classification_loss` and `robustness_loss` (which includes lam; with the classifier's own regularisation
    losses the two add up to `loss`), `smoothed_accuracy`, `hinge_fraction` (the share of images that the robustness
    term acts on) and `soft_radius` (mean of Eq. 16 capped at the hinge, 0 for wrong images). Metrics given to
    `compile` see the mean softmax, [batch, classes].

    These are estimates from a few samples. They certify nothing: that is `SmoothedClassifier.certify`.

    Images are floats in [0, 1], [batch, height, width, channels]; noise is added to them as they come in, so
    normalisation belongs inside `classifier`. Labels are class indices, [batch] or [batch, 1], or one-hot rows,
    [batch, classes]. `evaluate` draws noise of its own, the same each time, and changes nothing of the training.

    With lam=0 and num_samples=1 this is the Gaussian training of Cohen et al. (2019).

    Example:
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
        num_samples: noisy copies of each image (k in the paper).
        lam: weight of the robustness term. May be changed while training: `model.lam = 12.0`; no other argument may.
        gamma: hinge on xi = Phi^-1(z_y) - Phi^-1(max other z); above 0, at most 24.
        beta: inverse temperature of the softmax in the robustness term.
        seed: whole number in [0, 2**32) that fixes the training noise; drawn from NumPy's global generator if None.
        microbatch: the gradient is accumulated over slices of this many images of a replica's batch, to save memory;
            None takes the whole batch at once.

    Raises:
        ValueError: for a hyper-parameter out of range or a classifier that does not return logits.
    """

    LOSSES = ("classification_loss", "robustness_loss")
    REPORTS = ("hinge_fraction", "soft_radius")
    HIGHER_IS_BETTER = ("smoothed_accuracy", "soft_radius")

    gamma = fixed("gamma", "Hinge on xi.")
    beta = fixed("beta", "Inverse temperature of the softmax in the robustness term.")

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
        **kwargs: Any,
    ) -> None:
        checks.check(lam=lam, gamma=gamma, beta=beta)
        super().__init__(classifier, sigma, num_samples, microbatch=microbatch, seed=seed, **kwargs)
        self._gamma = float(gamma)
        self._beta = float(beta)
        # A TensorFlow variable, not a weight: it changes without a retrace, and `load_weights` leaves it alone.
        self._lam = tf.Variable(float(lam), trainable=False, dtype=tf.float32, name="lam")

    @property
    def lam(self) -> float:
        """Weight of the robustness term."""
        return float(self._lam.numpy())

    @lam.setter
    def lam(self, value: float) -> None:
        checks.check(lam=value)
        self._lam.assign(value)

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
                f"jit_compile=True needs gamma <= {checks.MAX_GAMMA_XLA:g}: XLA's normal quantile resolves no more. "
                f"Received: gamma={self.gamma}"
            )
        super().compile(optimizer, loss, jit_compile=jit_compile, **kwargs)

    compile.__doc__ = NoisyTrainingModel.compile.__doc__

    def loss_terms(self, images: tf.Tensor, labels: tf.Tensor, noise: tf.Tensor, training: bool) -> LossTerms:
        logits = self.noisy_logits(images, noise, training)
        terms = objective.macer_terms(logits, labels, self.sigma, self.gamma, self.beta)
        return LossTerms(
            losses={"classification_loss": terms.classification, "robustness_loss": self._lam * terms.robustness},
            reports={"hinge_fraction": tf.cast(terms.in_hinge, tf.float32), "soft_radius": terms.radius},
            probabilities=terms.probabilities,
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "lam": self.lam, "gamma": self.gamma, "beta": self.beta}


# In a .h5 file Keras looks for a model's class by its bare name.
keras.saving.get_custom_objects()["MACERModel"] = MACERModel
