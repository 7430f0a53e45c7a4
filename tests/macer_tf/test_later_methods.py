"""Stability, Consistency, SmoothMix and CAT-RS against NumPy transcriptions of their formulas (linear classifiers)."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from macer_tf import noise as noise_lib
from macer_tf.baselines import attacks
from macer_tf.baselines.catrs import CATRSModel
from macer_tf.baselines.consistency import ConsistencyModel
from macer_tf.baselines.smoothmix import SmoothMixModel
from macer_tf.baselines.stability import StabilityModel
from macer_tf.model import MACERModel
from macer_tf.optimizers import SGD

SHAPE, SIGMA = (4, 4, 1), 0.25
RNG = np.random.default_rng(0)
IMAGES = RNG.random((16, *SHAPE), np.float32)
WEIGHTS = RNG.normal(size=(16, 2))
WEIGHTS -= WEIGHTS.mean(axis=0)
NOISE = (RNG.normal(size=(16, 3, *SHAPE)) * SIGMA).astype(np.float32)
# About one label in five is wrong.
LABELS = np.where(RNG.random(16) < 0.2, RNG.integers(2, size=16), (IMAGES.reshape(16, 16) @ WEIGHTS).argmax(axis=1))
MODELS = {
    "stability": (StabilityModel, {"stability": 2.0}),
    "consistency": (ConsistencyModel, {"consistency": 5.0, "entropy": 0.5}),
    "smoothmix": (SmoothMixModel, {"mixup": 5.0, "attack_steps": 3, "step_size": 0.3}),
    "catrs": (CATRSModel, {"adversarial": 2.0, "attack_steps": 3, "noise_radius": 0.5}),
}


def made(name, **options):
    inputs = keras.Input(SHAPE)
    network = keras.Model(inputs, keras.layers.Dense(2, use_bias=False)(keras.layers.Flatten()(inputs)))
    network.set_weights([WEIGHTS])
    kind, own = MODELS[name]
    return kind(network, SIGMA, num_samples=3, seed=1, **{**own, **options})


def logits(weights, images):
    return images.reshape(*images.shape[:-3], 16).astype(np.float64) @ weights


def log_p(weights, images):
    return special.log_softmax(logits(weights, images), axis=-1)


def of_label(values):
    """values[..., label] of each image."""
    return np.stack([values[i, ..., label] for i, label in enumerate(LABELS)])


def kl(p, log_q):
    return (p * (np.log(p) - log_q)).sum(axis=-1)


def copies(images, noise=NOISE):
    return images[:, None] + noise


def uniforms():
    board = (-1.0) ** np.add.outer(np.arange(4), np.arange(4))[..., None]
    return special.ndtr((NOISE * board).sum(axis=(1, 2, 3, 4)) / (SIGMA * np.sqrt(48)))


def stability(weights):
    clean, noisy = log_p(weights, IMAGES), log_p(weights, copies(IMAGES))
    return -of_label(clean) - 2.0 * (np.exp(clean)[:, None] * noisy).sum(axis=-1).mean(axis=1)


def consistency(weights):
    noisy = log_p(weights, copies(IMAGES))
    mean = np.exp(noisy).mean(axis=1)
    return (
        -of_label(noisy).mean(axis=1)
        + 5.0 * kl(mean[:, None], noisy).mean(axis=1)
        - 0.5 * (mean * np.log(mean)).sum(axis=-1)
    )


def unit(weights):
    """The direction that raises class 1 and lowers class 0, as an image."""
    direction = weights[:, 1] - weights[:, 0]
    return (direction / np.linalg.norm(direction)).reshape(SHAPE)


def smoothmix(weights):
    attacked = IMAGES.astype(np.float64)
    for _ in range(3):
        # Whatever the noise, -log pbar_y rises along the direction of the other class.
        attacked = np.clip(attacked + 0.3 * np.where(LABELS == 0, 1, -1)[:, None, None, None] * unit(WEIGHTS), 0, 1)
    t = uniforms() / 2
    mixed = (1 - t)[:, None, None, None] * IMAGES + t[:, None, None, None] * attacked
    noisy = log_p(weights, copies(IMAGES))
    mean = np.exp(noisy).mean(axis=1)
    target = (1 - t)[:, None] * mean + t[:, None] / 2
    right = mean.argmax(axis=-1) == LABELS
    divergence = kl(target[:, None], log_p(weights, copies(mixed))).mean(axis=1)
    return -of_label(noisy).mean(axis=1) + 5.0 * right * divergence


def moved_noise():
    """eps' of CAT-RS: away from the target along the weights, 2/3 of the radius a step, mean and rms as before."""
    target = np.exp(log_p(WEIGHTS, copies(IMAGES))).mean(axis=1)
    noise = NOISE.astype(np.float64)
    for _ in range(3):
        p = np.exp(log_p(WEIGHTS, copies(IMAGES, noise)))
        away = np.sign(p[..., 1] - target[:, None, 1])[..., None, None, None] * unit(WEIGHTS)
        delta = noise + away / 3 - NOISE
        norms = np.sqrt((delta**2).sum(axis=(2, 3, 4), keepdims=True))
        noise = NOISE + delta * np.minimum(1, 0.5 / norms)
        rms = np.sqrt((noise**2).mean(axis=(2, 3, 4), keepdims=True))
        rms_before = np.sqrt((NOISE.astype(np.float64) ** 2).mean(axis=(2, 3, 4), keepdims=True))
        noise = (noise - noise.mean(axis=(2, 3, 4), keepdims=True)) * rms_before / rms
        noise += NOISE.mean(axis=(2, 3, 4), keepdims=True, dtype=np.float64)
    return target, noise


def catrs(weights):
    target, noise = moved_noise()
    noisy = log_p(weights, copies(IMAGES))
    right = (logits(WEIGHTS, copies(IMAGES)).argmax(axis=-1) == LABELS[:, None]).sum(axis=1)
    taken = np.maximum(1, stats.binom.ppf(uniforms(), 3, right / 3)).astype(int)
    smallest = np.sort(-of_label(noisy), axis=1)
    cross_entropy = np.array([row[:count].sum() / 3 for row, count in zip(smallest, taken, strict=True)])
    worst = kl(target[:, None], log_p(weights, copies(IMAGES, noise))).max(axis=1)
    return cross_entropy + 2.0 * (taken == 3) * worst


TRANSCRIPTIONS = {"stability": stability, "consistency": consistency, "smoothmix": smoothmix, "catrs": catrs}


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_and_its_gradient_are_those_of_the_formula(name):
    model, transcription = made(name), TRANSCRIPTIONS[name]
    with tf.GradientTape() as tape:
        terms = model.loss_terms(tf.constant(IMAGES), tf.constant(LABELS), tf.constant(NOISE), training=True)
        loss = tf.add_n(list(terms.losses.values()))
    np.testing.assert_allclose(loss, transcription(WEIGHTS), rtol=1e-4, atol=1e-5)
    gradient = tape.gradient(loss, model.classifier.trainable_variables[0]).numpy()
    expected = np.zeros((16, 2))
    for place in np.ndindex(16, 2):
        step = np.zeros((16, 2))
        step[place] = 1e-5
        expected[place] = (transcription(WEIGHTS + step) - transcription(WEIGHTS - step)).sum() / 2e-5
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(expected).max() > 0.1


def test_the_cases_are_mixed():
    # Otherwise the indicators of SmoothMix and CAT-RS would hold for all images or for none.
    right = (logits(WEIGHTS, copies(IMAGES)).argmax(axis=-1) == LABELS[:, None]).sum(axis=1)
    assert {0, 3} <= set(right.tolist())
    assert len(set(right.tolist())) > 2


def test_consistency_is_macer_without_its_hinge():
    options = {"consistency": 5.0, "entropy": 0.5, "num_samples": 3, "seed": 1}
    macer = MACERModel(made("consistency").classifier, SIGMA, lam=0.0, average_cross_entropy=True, **options)
    logs = []
    for model in (macer, made("consistency")):
        model.compile(SGD(0.1))
        logs.append(model.train_on_batch(IMAGES, LABELS, return_dict=True))
    for name, value in logs[1].items():
        assert logs[0][name] == pytest.approx(value, rel=1e-6), name


def test_uniforms_are_uniform_and_follow_the_noise():
    noise = np.random.default_rng(3).normal(size=(20_000, 2, 3, 4, 1)).astype(np.float32) * 0.5
    drawn = noise_lib.uniforms_of_noise(tf.constant(noise), 0.5).numpy()
    assert stats.kstest(drawn, "uniform").pvalue > 0.001
    np.testing.assert_array_equal(noise_lib.uniforms_of_noise(tf.constant(noise), 0.5), drawn)
    np.testing.assert_allclose(noise_lib.uniforms_of_noise(tf.constant(NOISE), SIGMA), uniforms(), atol=1e-5)


def test_the_free_ascent_stays_in_the_pixel_range_and_knows_no_ball():
    model = made("smoothmix")
    images, noise = tf.fill([16, *SHAPE], 0.5), tf.constant(NOISE)
    attacked = attacks.free_ascent(model.classifier, images, tf.constant(LABELS), noise, 5.0, 2).numpy()
    assert (attacked.min(), attacked.max()) == (0, 1)
    norms = np.sqrt(((attacked - 0.5) ** 2).sum(axis=(1, 2, 3)))
    assert norms.min() > 1.2  # 2 is the corner of the cube


@pytest.mark.parametrize("name", MODELS)
def test_behaves_as_a_keras_model(name, tmp_path):
    model = made(name, microbatch=5)
    model.compile(SGD(0.05, momentum=0.9), metrics=["accuracy"])
    history = model.fit(IMAGES, LABELS, batch_size=8, epochs=2, validation_data=(IMAGES, LABELS), verbose=0).history
    assert np.isfinite(list(history.values())).all()
    assert {f"val_{loss}" for loss in (*model.LOSSES, *model.REPORTS)} < set(history)
    parts = sum(history[loss][-1] for loss in model.LOSSES)
    assert parts == pytest.approx(history["loss"][-1], rel=1e-5)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert restored.get_config() | {"classifier": None} == model.get_config() | {"classifier": None}
    for one in (model, restored):
        one.fit(IMAGES, LABELS, batch_size=8, shuffle=False, verbose=0)
    for ours, theirs in zip(model.get_weights(), restored.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_weight_of_mixed_images_changes_while_training():
    model = made("smoothmix", mixup=0.0)
    model.compile(SGD(0.0))
    assert model.train_on_batch(IMAGES, LABELS, return_dict=True)["mixup_loss"] == 0
    model.mixup = 2.0
    assert model.train_on_batch(IMAGES, LABELS, return_dict=True)["mixup_loss"] > 0
    assert model.get_config()["mixup"] == 2.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("stability", {"stability": -1.0}, "stability, .* must be 0 or above. Received: stability=-1.0"),
        ("consistency", {"consistency": float("inf")}, "consistency, .* must be 0 or above"),
        ("smoothmix", {"mixup": -1.0}, "mixup, .* must be 0 or above"),
        ("smoothmix", {"step_size": 0.0}, "step_size, .* must be above 0"),
        ("smoothmix", {"attack_steps": 0}, "attack_steps must be a whole number from 1"),
        ("catrs", {"adversarial": -1.0}, "adversarial, .* must be 0 or above"),
        ("catrs", {"noise_radius": float("nan")}, "noise_radius, .* must be above 0"),
    ],
)
def test_bad_hyper_parameters_are_told_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=message):
        made(name, **options)
