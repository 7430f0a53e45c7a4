import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from macer_tf import networks
from macer_tf.layers import FusedBatchNormalization
from macer_tf.model import MACERModel
from tests import forks

SHAPE = (3, 4, 5, 6)
# What each type of activation resolves where |x| < 12 and |y| < 5.
TOLERANCES = {"float32": 1e-5, "mixed_float16": 1e-2, "mixed_bfloat16": 0.1, "float64": 1e-12}


def images(dtype=np.float32):
    return np.random.default_rng(0).normal(2, 3, SHAPE).astype(dtype)


def weights(rng=None):
    rng = rng or np.random.default_rng(1)
    return [rng.uniform(0.5, 1.5, 6), rng.normal(size=6), rng.normal(size=6), rng.uniform(0.5, 1.5, 6)]


def built(kind=FusedBatchNormalization, **options):
    layer = kind(momentum=0.9, epsilon=1e-5, **options)
    layer.build((None, *SHAPE[1:]))
    layer.set_weights([value.astype(layer.variable_dtype) for value in weights()])
    return layer


def as_float64(tensor):
    return tf.cast(tensor, tf.float64).numpy()


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("policy", TOLERANCES)
def test_outputs_and_moving_statistics(policy, jit):
    layer, tolerance = built(dtype=policy), TOLERANCES[policy]
    x = images(np.float64)
    gamma, beta, mean, variance = weights()
    step = tf.function(lambda training: layer(x, training=training), jit_compile=jit)
    inference = step(False)
    assert inference.dtype == layer.compute_dtype
    expected = (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    np.testing.assert_allclose(as_float64(inference), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, rtol=1e-6)

    pixels = x.reshape(-1, 6)
    expected = (x - pixels.mean(0)) / np.sqrt(pixels.var(0) + 1e-5) * gamma + beta
    np.testing.assert_allclose(as_float64(step(True)), expected, rtol=tolerance, atol=tolerance)
    assert layer.moving_variance.dtype == ("float64" if policy == "float64" else "float32")
    np.testing.assert_allclose(layer.moving_mean, 0.9 * mean + 0.1 * pixels.mean(0), rtol=0, atol=tolerance)
    np.testing.assert_allclose(layer.moving_variance, 0.9 * variance + 0.1 * pixels.var(0, ddof=1), atol=tolerance)


def test_the_moving_variance_is_unbiased_by_hand():
    # Two pixels, 1 and 3: mean 2, unbiased variance 2 (biased: 1). From 0 and 1 with momentum 0.9: 0.2 and 1.1.
    layer = FusedBatchNormalization(momentum=0.9, epsilon=1e-5)
    outputs = layer(np.float32([[[[1], [3]]]]), training=True)
    assert layer.moving_mean.numpy() == pytest.approx([0.2])
    assert layer.moving_variance.numpy() == pytest.approx([1.1])
    # The output is normalised by the biased one.
    np.testing.assert_allclose(outputs.numpy().ravel(), np.float32([-1, 1]) / np.sqrt(1 + 1e-5), rtol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("policy", ["float32", "float64"])
def test_gradients_are_those_of_keras(policy, training):
    results = []
    for kind in (keras.layers.BatchNormalization, FusedBatchNormalization):
        layer, x = built(kind, dtype=policy), tf.constant(images(policy))
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=training)
            loss = tf.reduce_sum(outputs**3) / 100
        results.append([outputs, *tape.gradient(loss, [x, *[v.value for v in layer.trainable_variables]])])
    for unfused, fused in zip(*results, strict=True):
        tolerance = 1e-10 if policy == "float64" else 2e-5
        np.testing.assert_allclose(fused, unfused, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_gradients_in_mixed_precision(policy):
    results = []
    for dtype in ("float32", policy):
        layer, x = built(dtype=dtype), tf.constant(images())
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.cast(layer(x, training=True), tf.float32) ** 3)
        results.append(tape.gradient(loss, [v.value for v in layer.trainable_variables]))
    for full, mixed in zip(*results, strict=True):
        assert mixed.dtype == tf.float32
        np.testing.assert_allclose(mixed, full, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"scale": False, "center": False}])
@pytest.mark.parametrize("training", [False, True])
def test_without_scale_or_offset(options, training):
    outputs = [
        kind(epsilon=1e-5, **options)(images(), training=training).numpy()
        for kind in (keras.layers.BatchNormalization, FusedBatchNormalization)
    ]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)


def test_weights_are_those_of_keras():
    unfused, fused = built(keras.layers.BatchNormalization), FusedBatchNormalization(epsilon=1e-5)
    fused.build((None, *SHAPE[1:]))
    for ours, theirs in zip(fused.weights, unfused.weights, strict=True):
        assert (ours.name, ours.shape, ours.trainable, ours.dtype) == (
            theirs.name, theirs.shape, theirs.trainable, theirs.dtype,
        )  # fmt: skip
    fused.set_weights(unfused.get_weights())
    np.testing.assert_allclose(fused(images()), unfused(images()), atol=1e-5)
    unfused.set_weights(fused.get_weights())


def test_frozen_it_runs_as_at_inference():
    layer = built()
    inference = layer(images(), training=False).numpy()
    layer.trainable = False
    before = layer.get_weights()
    np.testing.assert_array_equal(layer(images(), training=True), inference)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not layer.trainable_variables


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_symbolic_build_save_and_export(tmp_path):
    inputs = keras.Input((None, None, 6))
    outputs = built(name="a.bn1")(inputs)
    assert outputs.shape == (None, None, None, 6)
    model = keras.Model(inputs, outputs)
    model(images(), training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    norm = loaded.get_layer("a.bn1")
    assert (type(norm), norm.momentum, norm.epsilon) == (FusedBatchNormalization, 0.9, 1e-5)
    expected = model(images()).numpy()
    np.testing.assert_array_equal(loaded(images()), expected)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_array_equal(exported.serve(images()), expected)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 6), {}),
        ((4, 5, 6), {}),
        ((4, 5, 5, 5, 6), {}),
        ((4, 5, 5, 6), {"axis": 1}),
        ((4, 5, 5, 6), {"renorm": True}),
        ((4, 5, 5, 6), {"synchronized": True}),
    ],
)
def test_what_it_does_not_take(shape, options):
    with pytest.raises(ValueError, match=r"use keras.layers.BatchNormalization. Received: shape=") as caught:
        FusedBatchNormalization(**options)(np.zeros(shape, np.float32))
    assert "\n" not in str(caught.value)
    FusedBatchNormalization(axis=3)(np.zeros((4, 5, 5, 6), np.float32))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_network_trains_with_it(policy):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        network = networks.cifar_resnet(8, (16, 16, 1), 3)
        model = MACERModel(network, 0.25, num_samples=2, lam=1.0, seed=0)
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("sgd")
    rng = np.random.default_rng(0)
    before = network.get_layer("layer3.0.bn2").get_weights()
    history = model.fit(rng.random((8, 16, 16, 1), np.float32), rng.integers(3, size=8), verbose=0).history
    assert np.isfinite(history["loss"][0])
    for old, new in zip(before, network.get_layer("layer3.0.bn2").get_weights(), strict=True):
        assert np.isfinite(new).all()
        assert (old != new).any()


REPLICAS = """
import json

import keras
import numpy as np
import tensorflow as tf

from macer_tf import networks
from macer_tf.layers import FusedBatchNormalization
from macer_tf.model import MACERModel

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    layer = FusedBatchNormalization(momentum=0.9, epsilon=1e-5)
    layer.build((None, 1, 2, 1))
    network = networks.cifar_resnet(8, (8, 8, 1), 3)
    model = MACERModel(network, 0.25, num_samples=2, seed=0)
    model.compile("sgd")


@tf.function
def step():
    replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
    return layer(tf.reshape([1 + replica, 3 + 3 * replica], (1, 1, 2, 1)), training=True)


outputs = [output.numpy().ravel().tolist() for output in strategy.experimental_local_results(strategy.run(step))]
moving = [layer.moving_mean.numpy().tolist(), layer.moving_variance.numpy().tolist()]
rng = np.random.default_rng(0)
history = model.fit(rng.random((9, 8, 8, 1), np.float32), rng.integers(3, size=9), batch_size=4, verbose=0).history
norm = network.get_layer("bn1")
print(json.dumps([outputs, moving, history["loss"][0], [weight.tolist() for weight in norm.get_weights()]]))
"""


@pytest.mark.slow
def test_two_replicas_take_the_statistics_of_their_own_images():
    process = forks.run(["-c", REPLICAS])
    assert process.returncode == 0, process.stderr[-2000:]
    assert "deprecated" not in process.stderr
    outputs, (mean, variance), loss, norm = json.loads(process.stdout.splitlines()[-1])
    # Pixels 1, 3 on the first replica and 2, 6 on the second: means 2 and 4, unbiased variances 2 and 8.
    for output in outputs:
        assert output == pytest.approx([-1, 1], rel=1e-4)
    # Outside a replica the first one's are read, as with Keras' layer: from 0 and 1, 0.1 * 2 and 0.9 + 0.1 * 2.
    assert (mean, variance) == (pytest.approx([0.2]), pytest.approx([1.1]))
    assert np.isfinite(loss)
    gamma, beta, moving_mean, moving_variance = map(np.array, norm)
    assert np.isfinite([gamma, beta, moving_mean, moving_variance]).all()
    assert (moving_mean != 0).all()
    assert (moving_variance != 1).all()
