"""What training needs around `MACERModel.fit`: batches that depend on (seed, epoch, step) alone, and callbacks."""

import json
import math
import os
import shutil
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipeline.artifacts import finish_directory, write_text
from pipeline.console import Progress
from pipeline.errors import InputError


def batches(examples, ids, *, batch_size, seed, first_epoch, epochs, crop_padding, flip):
    """Shuffled and augmented training batches of the epochs `first_epoch` to `epochs - 1`, one after another.

    Order and augmentation are functions of (seed, epoch, step), so training that starts at an epoch sees what
    uninterrupted training sees there.

    Args:
        examples: `Examples`, whose training split is read.
        ids: integers [N], the examples to train on.
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

    dataset = tf.data.Dataset.range(first_epoch, epochs).flat_map(epoch_batches)
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


class Backup(keras.callbacks.Callback):
    """Keeps the model, its optimizer and the history so far after each epoch; a kill loses at most one epoch.

    Args:
        directory: where; the backup of the last finished epoch is in a folder of its own, renamed into place.
    """

    def __init__(self, directory):
        super().__init__()
        self._directory = Path(directory)
        self.history = []

    def restore(self, model):
        """Brings a built and compiled model to the last finished epoch. Returns how many epochs that makes."""
        latest = self.latest()
        if latest is None:
            return 0
        try:
            state = json.loads((latest / "history.json").read_text())
            model.load_weights(latest / "model.weights.h5")
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(
                f"Cannot read the training backup {latest} ({type(error).__name__}); delete it to train again from "
                "the start."
            ) from None
        self.history = state
        return len(self.history)

    def latest(self):
        """The folder of the last finished epoch, or None."""
        return max(self._directory.glob("epoch-[0-9][0-9][0-9][0-9][0-9]"), default=None)

    def on_epoch_end(self, epoch, logs=None):
        self.history.append({name: float(value) for name, value in logs.items()})
        folder = self._directory / f"epoch-{epoch + 1:05d}"
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        self.model.save_weights(unfinished / "model.weights.h5")
        write_text(unfinished / "history.json", json.dumps(self.history))
        before = self.latest()
        finish_directory(unfinished, folder)
        if before is not None:
            shutil.rmtree(before)


class StopOnDivergence(keras.callbacks.Callback):
    """Stops training at the first step whose loss is not finite, or that leaves such weights to be backed up.

    Args:
        backup: the `Backup`, which comes after this callback.

    Raises:
        InputError: with the epoch, the step and where the last good weights are.
    """

    def __init__(self, backup):
        super().__init__()
        self._backup = backup

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._step = batch + 1
        if not np.isfinite(logs["loss"]):
            self._stop(f"loss {logs['loss']}")

    def on_epoch_end(self, epoch, logs=None):
        if not all(np.isfinite(weights).all() for weights in self.model.get_weights()):
            self._stop("weights that are not finite")

    def _stop(self, what):
        kept = self._backup.latest()
        raise InputError(
            f"Training diverged: {what} at epoch {self._epoch + 1}, step {self._step}, learning rate "
            f"{learning_rate(self.model):g}. "
            + (f"The weights after the last finished epoch are kept in {kept}. " if kept else "No epoch was finished. ")
            + "Try a lower --learning_rate, --clip_norm 1 or a smaller --lam."
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


class LearningRateLog(keras.callbacks.Callback):
    """Adds the learning rate at the epoch's end to what is reported."""

    def on_epoch_end(self, epoch, logs=None):
        logs["learning_rate"] = learning_rate(self.model)


class EpochSeconds(keras.callbacks.Callback):
    """Adds the seconds that the epoch took to what is reported; before the other callbacks, it leaves out their work.

    An epoch that is killed starts again from its first step, and so does its time. The first epoch after a start also
    pays for building the graph: of several epochs, take the median.
    """

    def on_epoch_begin(self, epoch, logs=None):
        self._started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        logs["seconds"] = time.monotonic() - self._started


class TrainingProgress(keras.callbacks.Callback):
    """Says live how far training is, how it goes and how long it will take."""

    def __init__(self, epochs, steps, first_epoch):
        super().__init__()
        self._epochs, self._steps, self._epoch = epochs, steps, first_epoch
        self._progress = Progress("Training", epochs * steps, first_epoch * steps)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._progress.update(self._epoch * self._steps + batch + 1, self._details(logs))

    def on_train_end(self, logs=None):
        self._progress.finish(self._epochs * self._steps, self._details(logs))

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


def write_history(history, path):
    """Writes one line an epoch as comma-separated values."""
    names = list(history[0])
    lines = [",".join(["epoch", *names])]
    lines += [",".join([str(i + 1), *(repr(row[name]) for name in names)]) for i, row in enumerate(history)]
    write_text(path, os.linesep.join(lines) + os.linesep)
