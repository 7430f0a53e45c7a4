"""SGD as in the paper's recipe, which is torch's: momentum, and L2 regularisation added to the gradient."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from macer_tf.checks import is_number


@keras.saving.register_keras_serializable(package="macer_tf")
class SGD(keras.optimizers.Optimizer):
    """Stochastic gradient descent with momentum and L2 regularisation of all trainable variables.

    One step on a variable w with gradient g: `v <- momentum * v + (g + l2 * w)`, `w <- w - learning_rate * v`.
    `keras.optimizers.SGD(weight_decay=...)` is another recipe: its decay is decoupled from the gradient and does
    not pass through the momentum, and its velocity keeps the learning rate that it was made with. Clipping acts on
    g alone, as calling `torch.nn.utils.clip_grad_norm_` before a step does; under a distribution strategy, on the sum
    over the replicas, whereas Keras' own optimizers clip each replica's part.

    Examples:
        >>> import keras
        >>> from macer_tf import SGD
        >>> weight = keras.Variable([1.0])
        >>> optimizer = SGD(learning_rate=0.1, momentum=0.9, l2=0.5)
        >>> optimizer.apply([keras.ops.ones(1)], [weight])  # 1 - 0.1 * (1 + 0.5 * 1)
        >>> round(float(weight.numpy()[0]), 4)
        0.85

    Args:
        learning_rate: float or a `keras.optimizers.schedules.LearningRateSchedule`.
        momentum: in [0, 1).
        l2: coefficient of the gradient of `l2 / 2 * ||w||^2`.
        **kwargs: as in `keras.optimizers.Optimizer`, e.g. `global_clipnorm`.

    Raises:
        ValueError: if `momentum`, `l2`, `learning_rate` or a clipping threshold is out of range.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.01,
        momentum: float = 0.9,
        l2: float = 0.0,
        name: str = "sgd",
        **kwargs: Any,
    ) -> None:
        if not (is_number(momentum) and 0 <= momentum < 1):
            raise ValueError(f"momentum must be at least 0 and below 1. Received: momentum={momentum!r}")
        if not (is_number(l2) and 0 <= l2 < math.inf):
            raise ValueError(f"l2 must be 0 or above, and finite. Received: l2={l2!r}")
        if is_number(learning_rate) and not 0 <= learning_rate < math.inf:
            raise ValueError(f"learning_rate must be 0 or above, and finite. Received: learning_rate={learning_rate!r}")
        for clip in ("clipnorm", "clipvalue", "global_clipnorm"):
            if (value := kwargs.get(clip)) is not None and not (is_number(value) and value > 0):
                raise ValueError(f"{clip} must be above 0. Received: {clip}={value!r}")
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum: float = momentum
        self.l2: float = l2
        self._velocities: list[keras.Variable] = []

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")

    def _clip_gradients(self, grads):
        replica = tf.distribute.get_replica_context()
        clips = self.clipnorm or self.global_clipnorm or self.clipvalue
        if not clips or replica is None or replica.num_replicas_in_sync == 1:
            return super()._clip_gradients(grads)
        clipped = super()._clip_gradients(replica.all_reduce(tf.distribute.ReduceOp.SUM, grads))
        # Keras sums over the replicas after this.
        return [gradient / replica.num_replicas_in_sync for gradient in clipped]

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        velocity = self._velocities[self._get_variable_index(variable)].value
        # One kernel for both lines of the recipe; a network of 110 layers has 333 variables.
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=tf.cast(gradient, variable.dtype) + self.l2 * variable,
            momentum=tf.constant(self.momentum, variable.dtype),
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(momentum=self.momentum, l2=self.l2)
        return config
