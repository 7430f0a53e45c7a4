"""Run by test_strategy.py in a process of its own: training on two logical CPU devices. Prints one JSON object.

For each case, a list of [weights after training, epoch losses, evaluation] on one replica and on two.
"""

import contextlib
import json

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from macer_tf.model import MACERModel
from macer_tf.optimizers import SGD

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


class GivenNoise(MACERModel):
    """Noise that is a function of the image, and so the same on whichever replica the image lands."""

    def draw_noise(self, images, start, training=True):
        copies = tf.cast(tf.range(1, self.num_samples + 1), tf.float32)[None, :, None, None, None]
        return self.sigma * tf.sin(100.0 * copies * images[:, None])


class InfiniteAtTheEnd(GivenNoise):
    """Infinite noise for a batch's second half, which is the second replica's."""

    def draw_noise(self, images, start, training=True):
        second = tf.distribute.get_replica_context().replica_id_in_sync_group == 1
        return super().draw_noise(images, start, training) + tf.where(second, float("inf"), 0.0)


class FlattenWithSpareWeight(layers.Flatten):
    """Has a weight that no output depends on, and so no gradient."""

    def build(self, input_shape):
        self.spare = self.add_weight(name="spare", shape=(2,))


def build(kind, clip_norm=None, ema=None, flatten=layers.Flatten, **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(4, 3, activation="relu", kernel_regularizer=keras.regularizers.L2(0.01))(inputs)
    model = kind(keras.Model(inputs, layers.Dense(3)(flatten()(x))), 0.25, num_samples=3, beta=4.0, seed=1, **options)
    model.compile(
        SGD(0.1, momentum=0.9, l2=1e-3, global_clipnorm=clip_norm, use_ema=ema is not None, ema_momentum=ema or 0.99),
        metrics=["accuracy"],
        weighted_metrics=["sparse_categorical_crossentropy"],
    )
    return model


BEYOND_EQUATION_17 = {
    "average_cross_entropy": True,
    "consistency": 2.0,
    "entropy": 0.5,
    "noise_steps": 1,
    # So little that images stay right on the moved noise too.
    "noise_radius": 0.05,
    "noise_for_all": True,
}


def train(parts, scope, clip_norm=None, **options):
    """[weights, epoch losses, evaluation] of each part by itself, on one model that begins anew as it was made."""
    with scope():
        model = build(GivenNoise, clip_norm, lam=1.0, **options)
        model.optimizer.build(model.trainable_variables)
    model.lam = 5.0
    variables = [*model.variables, *model.optimizer.variables]
    as_made = [np.array(variable) for variable in variables]
    results = []
    for part in parts:
        for variable, value in zip(variables, as_made, strict=True):
            variable.assign(value)
        dataset = tf.data.Dataset.from_tensor_slices(part).batch(4)
        history = model.fit(dataset, epochs=2, shuffle=False, verbose=0).history
        evaluation = model.evaluate(dataset, verbose=0, return_dict=True)
        flat = np.concatenate([weight.ravel() for weight in model.classifier.get_weights()])
        results.append([flat.tolist(), history, evaluation])
    return results


def main():
    rng = np.random.default_rng(0)
    images, labels = rng.random((12, 6, 6, 1), np.float32), rng.integers(3, size=12)
    weights = rng.random(12).astype(np.float32) * 2
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    parts = {count: (images[:count], labels[:count], weights[:count]) for count in (12, 10, 9)}
    parts[3] = images[9:], labels[9:], weights[9:]
    scopes = contextlib.nullcontext, strategy.scope
    one, two = (train(parts.values(), scope) for scope in scopes)
    result = dict(zip(map(str, parts), zip(one, two, strict=True), strict=True))
    cases = {
        "clipped": {"clip_norm": 0.01},
        "beyond": {"ema": 0.9, **BEYOND_EQUATION_17},
        "hinge alone": BEYOND_EQUATION_17 | {"noise_for_all": False},
    }
    for name, options in cases.items():
        result[name] = [train([parts[10]], scope, **options)[0] for scope in scopes]

    keras.config.set_dtype_policy("mixed_float16")
    with strategy.scope():
        model = build(InfiniteAtTheEnd, flatten=FlattenWithSpareWeight)
    keras.config.set_dtype_policy("float32")
    before = model.classifier.get_weights()
    model.fit(images[:4], labels[:4], batch_size=4, shuffle=False, verbose=0)
    unchanged = [bool((a == b).all()) for a, b in zip(model.classifier.get_weights(), before, strict=True)]
    result["float16"] = [
        unchanged,
        float(model.optimizer.dynamic_scale.numpy()),
        int(model.optimizer.iterations.numpy()),
    ]

    with strategy.scope():
        model = build(MACERModel)
        same = tf.constant(images[:2])
        drawn = []
        for _ in range(2):
            drawn.append(strategy.run(model.draw_noise, args=(same, 0)))
            model._noise_step.assign_add(1)
        result["noise"] = [
            noise.numpy().ravel().tolist() for step in drawn for noise in strategy.experimental_local_results(step)
        ]
        try:
            model.evaluate(tf.data.Dataset.from_tensor_slices((images[:0], labels[:0])).batch(4), verbose=0)
        except ValueError as error:
            result["empty"] = str(error)
        try:
            model.compile("sgd", jit_compile=True)
        except ValueError as error:
            result["jit"] = str(error)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
