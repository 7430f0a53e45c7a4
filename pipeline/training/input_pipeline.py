"""Training batches that depend on (seed, epoch, step) alone."""

import math

import tensorflow as tf

from pipeline.data import datasets

_AHEAD = 4  # batches that are loaded in parallel, and kept ready


def batches(examples, ids, labels=None, *, batch_size, seed, first_step, epochs, crop_padding, flip):
    """Shuffled and augmented training batches from step `first_step` to the end of `epochs` epochs, one after another.

    Order and augmentation are functions of (seed, epoch, step), so training that starts at a step sees what
    uninterrupted training sees there.

    Args:
        examples: `Examples`, whose training split is read.
        ids: integers [N], the examples to train on.
        labels: integers [N], the labels to train with; None: the examples' own.
        first_step: counted from 0 through all epochs.
        crop_padding: random crops after zero-padding by this many pixels; 0 for none.
        flip: random horizontal flips.

    Returns:
        A `tf.data.Dataset` of float32 [batch, H, W, C] in [0, 1] and int64 [batch], ceil(N / batch_size) per epoch.
    """
    steps = math.ceil(len(ids) / batch_size)
    images = examples.images["train"]
    labels = tf.constant(examples.labels["train"][ids] if labels is None else labels)

    @tf.autograph.experimental.do_not_convert  # nothing there needs it
    def epoch_batches(epoch):
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(ids)), seed=tf.stack([tf.cast(seed, tf.int64), epoch])
        )
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size).enumerate(epoch * steps)

    @tf.autograph.experimental.do_not_convert
    def load(step, indices):
        batch = tf.numpy_function(lambda chosen: images[ids[chosen]], [indices], tf.uint8, stateful=False)
        batch = tf.ensure_shape(batch, [None, *images.shape[1:]])
        batch = tf.cast(batch, tf.float32) / examples.pixel_max
        if crop_padding or flip:
            batch = augment(batch, tf.stack([tf.cast(seed, tf.int64), step]), crop_padding, flip)
        return batch, tf.gather(labels, indices)

    dataset = tf.data.Dataset.range(first_step // steps, epochs).flat_map(epoch_batches).skip(first_step % steps)
    dataset = dataset.map(load, num_parallel_calls=_AHEAD, deterministic=True).prefetch(_AHEAD)
    return datasets.without_tuner(dataset)


def augment(images, seed, crop_padding, flip):
    """Random crops (after zero-padding) and horizontal flips of images [batch, H, W, C], one draw per image.

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
