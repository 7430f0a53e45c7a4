"""What training needs around `MACERModel.fit`: batches that depend on (seed, epoch, step) alone, and schedules."""

import math

import keras
import tensorflow as tf

from pipeline.console import Progress


def batches(examples, ids, *, batch_size, seed, first_step, epochs, crop_padding, flip):
    """Shuffled and augmented training batches from step `first_step` to the end of `epochs` epochs, one after another.

    Order and augmentation are functions of (seed, epoch, step), so training that starts at a step sees what
    uninterrupted training sees there.

    Args:
        examples: `Examples`, whose training split is read.
        ids: integers [N], the examples to train on.
        first_step: counted from 0 through all epochs.
        crop_padding: random crops after zero-padding by so many pixels; 0 for none.
        flip: random horizontal flips.

    Returns:
        A `tf.data.Dataset` of float32 [batch, H, W, C] in [0, 1] and int64 [batch], ceil(N / batch_size) an epoch.
    """
    steps = math.ceil(len(ids) / batch_size)
    images, labels = examples.images["train"], tf.constant(examples.labels["train"][ids])

    def epoch_batches(epoch):
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(ids)), seed=tf.stack([tf.cast(seed, tf.int64), epoch])
        )
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size).enumerate(epoch * steps)

    def load(step, indices):
        batch = tf.numpy_function(lambda chosen: images[ids[chosen]], [indices], tf.uint8, stateful=False)
        batch = tf.ensure_shape(batch, [None, *images.shape[1:]])
        batch = tf.cast(batch, tf.float32) / examples.pixel_max
        if crop_padding or flip:
            batch = augment(batch, tf.stack([tf.cast(seed, tf.int64), step]), crop_padding, flip)
        return batch, tf.gather(labels, indices)

    dataset = tf.data.Dataset.range(first_step // steps, epochs).flat_map(epoch_batches).skip(first_step % steps)
    return dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(4)


def augment(images, seed, crop_padding, flip):
    """Random crops (after zero-padding) and horizontal flips of images [batch, H, W, C], one draw an image.

    Args:
        seed: int64 [2].
    """
    batch, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    draw = tf.random.stateless_uniform([3, batch], seed)
    shift = tf.floor(draw[:2] * (2 * crop_padding + 1)) - crop_padding
    flipped = tf.cast(draw[2] < 0.5, tf.float32) if flip else tf.zeros([batch])
    # Output pixel (x, y) is input pixel (a * x + b, y + c); outside the image it is 0.
    zero, one = tf.zeros([batch]), tf.ones([batch])
    a, b, c = 1 - 2 * flipped, shift[0] + flipped * (width - 1), shift[1]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, zero, b, zero, one, c, zero, zero], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="NEAREST",
    )


class DeferLam(keras.callbacks.Callback):
    """lam is 0 before epoch `start` (counted from 0) and `lam` from there on (the paper's dynamic lam, Table 4)."""

    def __init__(self, lam, start):
        super().__init__()
        self._lam, self._start = lam, start

    def on_epoch_begin(self, epoch, logs=None):
        self.model.lam = self._lam if epoch >= self._start else 0.0


class WarmUpEpsilon(keras.callbacks.Callback):
    """The attack's epsilon rises linearly over the first `epochs` epochs (Salman et al. 2019); 0 epochs: at once."""

    def __init__(self, epsilon, epochs):
        super().__init__()
        self._epsilon, self._epochs = epsilon, epochs

    def on_epoch_begin(self, epoch, logs=None):
        self.model.epsilon = self._epsilon * min(1.0, (epoch + 1) / max(1, self._epochs))


class TrainingProgress(keras.callbacks.Callback):
    """Says live how far training is, how it goes and how long it will take.

    Args:
        record: the `Record`, which comes before this callback.
        epochs: how many there will be.
    """

    def __init__(self, record, epochs):
        super().__init__()
        self._record, self._epochs, self._epoch = record, epochs, 0
        self._progress = Progress("Training", epochs * record.steps, record.done)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._progress.update(self._record.done, self._details(logs))

    def on_train_end(self, logs=None):
        # Training that goes on in the middle of an epoch has an end at this epoch's end too.
        if self._record.epoch == self._epochs:
            self._progress.finish(self._record.done, self._details(logs))

    def say(self, line):
        """Prints a line of its own."""
        self._progress.say(line)

    def _details(self, logs):
        terms = " + ".join(f"{value:.3f}" for name, value in logs.items() if name.endswith("_loss"))
        return (
            f"epoch {self._epoch + 1}/{self._epochs}, loss {logs['loss']:.3f} = {terms}, "
            f"smoothed accuracy {logs['smoothed_accuracy']:.3f}"
        )


def learning_rate(model):
    """The learning rate that the model's optimizer is at."""
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


def schedule(settings, steps):
    """The learning rate as a function of the step, `steps` of them an epoch."""
    rate = settings["learning_rate"]
    if settings["lr_schedule"] == "cosine":
        return keras.optimizers.schedules.CosineDecay(rate, settings["epochs"] * steps)
    drops = settings["lr_drop_epochs"]
    if not drops:
        return rate
    values = [rate * settings["lr_drop_factor"] ** i for i in range(len(drops) + 1)]
    # Keras applies a value up to and including its boundary; the drop belongs to the epoch's first step.
    return keras.optimizers.schedules.PiecewiseConstantDecay([drop * steps - 1 for drop in drops], values)
