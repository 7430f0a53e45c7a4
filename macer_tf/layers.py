"""Batch normalisation by TensorFlow's fused kernels. Keras 3 computes it by elementwise operations, which is slower."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="macer_tf")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation of [batch, H, W, C] over all but the channels, by the fused kernel.

    The same function and the same weights as `keras.layers.BatchNormalization(axis=-1)`, except for the moving
    variance, which is torch's: it averages the unbiased variance of the batches. Statistics are float32 even where
    activations are float16 or bfloat16. Under a distribution strategy, each replica uses the statistics of its own
    images, and the first replica's moving statistics are the ones saved, as with Keras' layer. In float64, which the
    kernel does not support, the same is computed by elementwise operations.

    Raises:
        ValueError: when built, for an input that is not [batch, H, W, C], another axis, `renorm` or `synchronized`.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) != 4 or self.axis not in (-1, 3) or self.renorm or self.synchronized:
            raise ValueError(
                "FusedBatchNormalization takes [batch, H, W, C], axis=-1, without renorm or synchronized; otherwise "
                f"use keras.layers.BatchNormalization. Received: shape={tuple(input_shape)}, axis={self.axis}, "
                f"renorm={self.renorm}, synchronized={self.synchronized}"
            )
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        training = bool(training and self.trainable)
        inputs = tf.cast(inputs, self.compute_dtype)
        dtype = tf.float64 if inputs.dtype == tf.float64 else tf.float32
        mean, variance = tf.cast(self.moving_mean, dtype), tf.cast(self.moving_variance, dtype)
        scale = tf.cast(self.gamma, dtype) if self.scale else tf.ones_like(mean)
        offset = tf.cast(self.beta, dtype) if self.center else tf.zeros_like(mean)
        normalize = self._elementwise if dtype == tf.float64 else self._fused
        outputs, mean, variance = normalize(inputs, scale, offset, mean, variance, training)
        if training:
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
        return outputs

    def _fused(self, inputs, scale, offset, mean, variance, training):
        """Outputs [batch, H, W, C], and the new moving mean and variance [C] when `training`."""
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            exponential_avg_factor=1 - self.momentum,
            is_training=training,
        )[:3]

    def _elementwise(self, inputs, scale, offset, mean, variance, training):
        """What `_fused` computes, by operations that take float64."""
        if training:
            moving_mean, moving_variance = mean, variance
            mean, variance = tf.nn.moments(inputs, [0, 1, 2])
        outputs = tf.nn.batch_normalization(inputs, mean, variance, offset, scale, self.epsilon)
        if training:
            count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), inputs.dtype)
            unbiased = variance * count / tf.maximum(count - 1, 1)
            mean = moving_mean * self.momentum + mean * (1 - self.momentum)
            variance = moving_variance * self.momentum + unbiased * (1 - self.momentum)
        return outputs, mean, variance
