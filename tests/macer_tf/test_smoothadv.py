import keras
import numpy as np
import pytest
import tensorflow as tf

from macer_tf.baselines import attacks
from macer_tf.baselines.smoothadv import SmoothAdvModel
from macer_tf.model import MACERModel
from macer_tf.noise import noisy_copies
from macer_tf.objective import smoothed_cross_entropy
from macer_tf.optimizers import SGD

SHAPE = (4, 4, 1)
ATTACKS = [attacks.pgd, attacks.ddn]


def network(seed=0, classes=3):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(SHAPE)
    x = keras.layers.Dense(16, activation="tanh")(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(classes, kernel_initializer="glorot_normal")(x))


def linear(weights):
    """Two classes, logits (w.x, 0)."""
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, keras.layers.Dense(2, use_bias=False)(keras.layers.Flatten()(inputs)))
    model.set_weights([np.stack([weights, np.zeros_like(weights)], axis=1)])
    return model


def data(count=20, low=0.0, high=1.0, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(low, high, (count, *SHAPE)).astype(np.float32)
    return images, rng.integers(3, size=count), rng.normal(size=(count, 5, *SHAPE)).astype(np.float32) * 0.25


def smoothed_loss(model, images, labels, noise):
    logits = tf.reshape(model(noisy_copies(images, noise)), [len(images), noise.shape[1], -1])
    return smoothed_cross_entropy(logits, labels).numpy()


def norms(perturbation):
    return np.sqrt((np.asarray(perturbation, np.float64) ** 2).sum(axis=(1, 2, 3)))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("epsilon", [0.1, 0.5, 2.0, 10.0])
def test_the_perturbation_leaves_neither_the_ball_nor_the_pixel_range(attack, epsilon):
    images, labels, noise = data()
    images[:5] = np.round(images[:5])  # many pixels at the border
    attacked = attack(network(), images, labels, noise, epsilon, 7).numpy()
    assert (norms(attacked - images) <= epsilon * (1 + 1e-6)).all()
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert norms(attacked - images).max() > 0.05


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_ball_no_attack(attack):
    images, labels, noise = data()
    np.testing.assert_array_equal(attack(network(), images, labels, noise, 0.0, 4), images)


@pytest.mark.parametrize("num_steps", [2, 10])
def test_pgd_finds_the_known_optimum_of_a_linear_classifier(num_steps):
    # Away from the border the worst perturbation of label 0 is -epsilon * w / |w|, whatever the noise; PGD's steps of
    # 2 * epsilon / num_steps along it reach the ball's edge.
    weights = np.random.default_rng(1).normal(size=16).astype(np.float32)
    images, _, noise = data(low=0.4, high=0.6)
    attacked = attacks.pgd(linear(weights), images, np.zeros(20, np.int64), noise, 0.3, num_steps).numpy()
    worst = -0.3 * weights / np.linalg.norm(weights)
    np.testing.assert_allclose((attacked - images).reshape(20, 16), np.tile(worst, (20, 1)), atol=2e-6)


def test_pgd_at_the_border_is_the_clipped_optimum():
    # w >= 0 and images of 0: every useful direction leaves the pixel range for label 0, none does for label 1.
    weights = np.abs(np.random.default_rng(1).normal(size=16)).astype(np.float32)
    images, noise = np.zeros((2, *SHAPE), np.float32), data(2)[2]
    attacked = attacks.pgd(linear(weights), images, np.array([0, 1]), noise, 0.3, 5).numpy().reshape(2, 16)
    np.testing.assert_array_equal(attacked[0], 0)
    np.testing.assert_allclose(attacked[1], 0.3 * weights / np.linalg.norm(weights), atol=2e-6)


def test_pgd_raises_the_smoothed_loss_and_more_steps_raise_it_further():
    model = network()
    images, labels, noise = data(50)
    plain = smoothed_loss(model, images, labels, noise)
    few, many = (
        smoothed_loss(model, attacks.pgd(model, images, labels, noise, 0.5, steps), labels, noise) for steps in (1, 20)
    )
    assert (many > plain + 0.01).all()
    assert many.mean() > few.mean() - 1e-3
    random = np.random.default_rng(2).normal(size=images.shape)
    random = np.clip(images + 0.5 * random / norms(random)[:, None, None, None], 0, 1).astype(np.float32)
    assert many.mean() > smoothed_loss(model, random, labels, noise).mean() + 0.05


def test_ddn_changes_the_smoothed_prediction_or_returns_the_image():
    model = network(seed=3)
    images, _, noise = data(50, seed=4)

    def predictions(images):
        logits = tf.reshape(model(noisy_copies(images, noise)), [50, 5, 3])
        return tf.argmax(tf.reduce_mean(tf.nn.softmax(logits), axis=1), axis=-1).numpy()

    labels = predictions(images)
    attacked = attacks.ddn(model, images, labels, noise, 100.0, 40).numpy()
    changed = predictions(attacked) != labels
    moved = norms(attacked - images) > 0
    np.testing.assert_array_equal(moved, changed)
    assert changed.mean() > 0.5
    # The norms shrink towards the decision boundary: no larger than PGD's smallest successful ball on the average.
    assert norms(attacked - images)[changed].mean() < 1.5


def test_a_vanishing_gradient_gives_a_random_direction_not_nan():
    images, labels, noise = data()
    model = linear(np.zeros(16, np.float32))
    attacked = attacks.pgd(model, images, labels % 2, noise, 0.5, 3).numpy()
    assert np.isfinite(attacked).all()
    assert (norms(attacked - images) > 0.1).all()


class TestModel:
    def test_zero_epsilon_is_gaussian_training(self):
        images, labels, _ = data(24)
        weights = []
        for model in (
            SmoothAdvModel(network(), 0.25, epsilon=0.0, attack_steps=2, num_samples=1, seed=3),
            MACERModel(network(), 0.25, lam=0.0, num_samples=1, seed=3),
        ):
            model.compile(SGD(0.1, momentum=0.9, l2=1e-3))
            history = model.fit(images, labels, batch_size=8, epochs=3, shuffle=False, verbose=0).history
            weights.append((model.classifier.get_weights(), history["loss"]))
        np.testing.assert_allclose(weights[0][1], weights[1][1], rtol=1e-6)
        for ours, gaussian in zip(weights[0][0], weights[1][0], strict=True):
            np.testing.assert_allclose(ours, gaussian, atol=1e-6)

    def test_the_loss_is_the_mean_cross_entropy_of_the_attacked_copies(self):
        images, labels, _ = data(6)
        model = SmoothAdvModel(network(), 0.25, epsilon=0.5, attack_steps=3, num_samples=4, seed=3)
        noise = model.draw_noise(tf.constant(images), 0, training=False)
        attacked = attacks.pgd(model.classifier, images, labels, noise, 0.5, 3)
        logits = model.classifier(noisy_copies(attacked, noise)).numpy().reshape(6, 4, 3)
        log_softmax = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        expected = -log_softmax[np.arange(6), :, labels].mean()
        model.compile("sgd")
        logs = model.test_on_batch(images, labels, return_dict=True)
        assert logs["loss"] == pytest.approx(expected, rel=1e-5)
        assert logs["perturbation"] == pytest.approx(norms(attacked - images).mean(), rel=1e-5)

    @pytest.mark.parametrize("attack", ["pgd", "ddn"])
    def test_behaves_as_a_keras_model(self, attack, tmp_path):
        images, labels, _ = data(24)
        model = SmoothAdvModel(network(), 0.25, 0.3, attack=attack, attack_steps=4, num_samples=2, seed=3, microbatch=5)
        model.compile(SGD(0.05, momentum=0.9), metrics=["accuracy"])
        history = model.fit(images, labels, batch_size=8, epochs=2, validation_data=(images, labels), verbose=0).history
        names = {"loss", "classification_loss", "smoothed_accuracy", "perturbation", "accuracy"}
        assert set(history) == names | {f"val_{name}" for name in names}
        assert np.isfinite(list(history.values())).all()
        model.save(tmp_path / "model.keras")
        restored = keras.models.load_model(tmp_path / "model.keras")
        assert restored.get_config() | {"classifier": None} == model.get_config() | {"classifier": None}
        for one in (model, restored):
            one.fit(images, labels, batch_size=8, shuffle=False, verbose=0)
        for ours, theirs in zip(model.get_weights(), restored.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_batch_norm_sees_no_attack_step(self):
        inputs = keras.Input(SHAPE)
        x = keras.layers.BatchNormalization(momentum=0.0)(inputs)
        classifier = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
        model = SmoothAdvModel(classifier, 0.25, epsilon=0.5, attack_steps=3, num_samples=4, seed=3)
        model.compile(keras.optimizers.SGD(0.0))
        images, labels, _ = data(6)
        noise = model.draw_noise(tf.constant(images), 0)
        attacked = attacks.pgd(lambda x: classifier(x, training=False), images, labels, noise, 0.5, 3)
        model.fit(images, labels, batch_size=6, shuffle=False, verbose=0)
        mean = noisy_copies(attacked, noise).numpy().mean()
        assert classifier.layers[1].moving_mean.numpy() == pytest.approx([mean], abs=1e-6)

    def test_epsilon_changes_while_training(self):
        model = SmoothAdvModel(network(), 0.25, epsilon=0.0, attack_steps=2, num_samples=2, seed=3)
        model.compile("sgd")
        images, labels, _ = data(8)
        assert model.fit(images, labels, verbose=0).history["perturbation"] == [0.0]
        model.epsilon = 0.4
        assert model.fit(images, labels, verbose=0).history["perturbation"] == pytest.approx([0.4], rel=1e-4)
        assert model.get_config()["epsilon"] == pytest.approx(0.4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epsilon": -1.0}, "epsilon, .* must be 0 or above. Received: epsilon=-1.0"),
            ({"epsilon": float("nan")}, "epsilon, .* must be 0 or above"),
            ({"attack": "fgsm"}, "attack must be pgd or ddn. Received: attack='fgsm'"),
            ({"attack_steps": 0}, "attack_steps must be a whole number from 1"),
            ({"num_samples": 0}, "num_samples, .* must be a whole number from 1"),
            ({"microbatch": 0}, "microbatch, .* must be a whole number from 1, or None"),
        ],
    )
    def test_bad_hyper_parameters_are_told_in_one_line(self, options, message):
        with pytest.raises(ValueError, match=message):
            SmoothAdvModel(network(), 0.25, **{"epsilon": 0.5, **options})
