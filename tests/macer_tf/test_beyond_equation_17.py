"""What MACERModel has beyond Eq. (17), each by hand; and that it is Eq. (17) to the bit where they are off."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

from macer_tf import objective
from macer_tf.baselines import attacks
from macer_tf.model import MACERModel

SHAPE = (4, 4, 1)
WEIGHTS = np.random.default_rng(1).normal(size=16).astype(np.float32)


def linear(weights=WEIGHTS, bias=0.0):
    """Two classes, logits (w.x + bias, 0)."""
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    model.set_weights([np.stack([weights, np.zeros_like(weights)], axis=1), np.array([bias, 0], np.float32)])
    return model


def data(count=20):
    rng = np.random.default_rng(0)
    return rng.random((count, *SHAPE), np.float32), rng.integers(2, size=count)


def macer(classifier=None, num_samples=3, beta=2.0, seed=5, **options):
    return MACERModel(classifier or linear(), 0.25, num_samples=num_samples, beta=beta, seed=seed, **options)


def terms_of(model, images, labels):
    """The model's `LossTerms`, and the copies' logits [images, copies, 2]."""
    noise = model.draw_noise(tf.constant(images), 0)
    logits = model.noisy_logits(tf.constant(images), noise, training=True)
    return model.loss_terms(tf.constant(images), tf.constant(labels), noise, training=True), logits.numpy()


def log_of(*copies):
    return tf.math.log(tf.constant([copies], tf.float64))


def test_the_averaged_cross_entropy_by_hand():
    # -(log 0.6 + log 0.5) / 2 = (0.510826 + 0.693147) / 2 = 0.601986, above -log 0.55 = 0.597837.
    logits = log_of([6.0, 3.0, 1.0], [2.0, 1.0, 1.0])
    terms = objective.macer_terms(logits, tf.constant([0]), 0.25, average_cross_entropy=True)
    assert terms.classification.numpy() == pytest.approx([0.601986], abs=1e-6)
    plain = objective.macer_terms(logits, tf.constant([0]), 0.25)
    assert plain.classification.numpy() == pytest.approx([0.597837], abs=1e-6)
    assert terms.robustness == plain.robustness


def test_a_wrong_copy_weighs_in_the_averaged_cross_entropy_and_hardly_in_that_of_the_mean():
    logits = tf.constant([[[8.0, 0.0], [0.0, 8.0]]])
    gradients = []
    for cross_entropy in (objective.averaged_cross_entropy, objective.smoothed_cross_entropy):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = cross_entropy(logits, tf.constant([0]))
        gradients.append(tape.gradient(loss, logits).numpy()[0, 1, 0])
    # With p the label's probability on a copy: -(1 - p) / 2 averaged; -p_2 (1 - p_2) / (p_1 + p_2) of the mean.
    assert gradients == pytest.approx([-0.499832, -0.000335], abs=1e-6)


def test_the_averaged_cross_entropy_is_never_below_that_of_the_mean():
    logits = tf.constant(np.random.default_rng(0).normal(size=(500, 4, 5)) * 5)
    labels = tf.constant(np.arange(500) % 5)
    difference = objective.averaged_cross_entropy(logits, labels) - objective.smoothed_cross_entropy(logits, labels)
    assert difference.numpy().min() >= 0
    assert difference.numpy().max() > 1


def test_consistency_by_hand():
    # p_1 = (.8, .2), p_2 = (.4, .6), pbar = (.6, .4).
    #   KL(pbar || p_1) = .6 log(.6/.8) + .4 log(.4/.2) = 0.104650
    #   KL(pbar || p_2) = .6 log(.6/.4) + .4 log(.4/.6) = 0.081093
    #   H(pbar) = -.6 log .6 - .4 log .4 = 0.673012
    terms = objective.consistency(log_of([0.8, 0.2], [0.4, 0.6]))
    assert terms.divergence.numpy() == pytest.approx([(0.104650 + 0.081093) / 2], abs=1e-6)
    assert terms.entropy.numpy() == pytest.approx([0.673012], abs=1e-6)


def test_consistency_has_the_gradient_of_finite_differences_through_the_mean_too():
    logits = np.random.default_rng(0).normal(size=(3, 3, 4))

    def loss(logits):
        terms = objective.consistency(logits)
        return tf.reduce_sum(2.0 * terms.divergence + 0.5 * terms.entropy)

    theoretical, numerical = tf.test.compute_gradient(loss, [tf.constant(logits)], delta=1e-6)
    np.testing.assert_allclose(theoretical[0], numerical[0], rtol=1e-6, atol=1e-8)


def test_consistency_is_finite_for_every_finite_logit_and_nan_for_others():
    largest = np.finfo(np.float32).max
    logits = tf.constant([[[a, b], [b, c]] for a in (0.0, largest, 200.0) for b in (-largest, 1e-40) for c in (0.0, a)])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        terms = objective.consistency(logits)
        loss = terms.divergence + terms.entropy
    assert np.isfinite(loss).all()
    assert np.isfinite(tape.gradient(loss, logits)).all()
    assert np.isnan(objective.consistency(tf.constant([[[np.inf, 0.0]]])).divergence).all()


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_the_worst_noise_of_a_linear_classifier_is_the_balls_edge_against_its_weights(num_steps):
    images, labels = data()
    noise = np.random.default_rng(2).normal(size=(20, 3, *SHAPE)).astype(np.float32) * 0.25
    moved = attacks.worst_noise(linear(), tf.constant(images), tf.constant(labels), tf.constant(noise), 0.4, num_steps)
    direction = WEIGHTS.reshape(SHAPE) / np.linalg.norm(WEIGHTS)
    expected = np.where(labels == 0, -0.4, 0.4)[:, None, None, None, None] * direction
    np.testing.assert_allclose(moved - noise, np.broadcast_to(expected, noise.shape), atol=2e-6)
    rows = tf.one_hot(labels, 2)
    of_rows = attacks.worst_noise(linear(), tf.constant(images), rows, tf.constant(noise), 0.4, num_steps)
    np.testing.assert_allclose(of_rows, moved, atol=2e-6)


def test_noise_whose_gradient_vanishes_stays():
    images, labels = data(2)
    noise = np.ones((2, 3, *SHAPE), np.float32)
    moved = attacks.worst_noise(
        linear(0 * WEIGHTS), tf.constant(images), tf.constant(labels), tf.constant(noise), 1.0, 2
    )
    np.testing.assert_array_equal(moved, noise)


def test_the_hinge_is_on_the_worst_noise_where_all_copies_are_right():
    images, labels = data(60)
    model = macer(linear(bias=-WEIGHTS.sum() / 2), lam=3.0, noise_steps=1, noise_radius=0.1)
    terms, logits = terms_of(model, images, labels)
    # The step lowers the label's logit by radius * |w| on every copy: that of class 0, or of class 1 less that of 0.
    shifted = logits.copy()
    shifted[..., 0] += np.where(labels == 0, -0.1, 0.1)[:, None] * np.linalg.norm(WEIGHTS)
    plain, worst = (
        objective.macer_terms(tf.constant(some), tf.constant(labels), 0.25, 8.0, 2.0) for some in (logits, shifted)
    )
    agree = (logits.argmax(axis=-1) == labels[:, None]).all(axis=1)
    assert 5 < agree.sum() < 55
    expected = np.where(agree, np.maximum(plain.robustness, worst.robustness), plain.robustness)
    np.testing.assert_allclose(terms.losses["robustness_loss"], 3 * expected, rtol=1e-4, atol=1e-5)
    assert (expected > plain.robustness.numpy() + 1e-3).sum() > 3
    np.testing.assert_array_equal(terms.losses["classification_loss"], plain.classification)


def test_all_terms_are_on_the_worse_noise_where_that_is_asked_for_and_reports_on_the_noise_as_drawn():
    images, labels = data(60)
    options = {"lam": 3.0, "consistency": 5.0, "entropy": 0.5, "average_cross_entropy": True}
    model = macer(linear(bias=-WEIGHTS.sum() / 2), noise_steps=1, noise_radius=0.1, noise_for_all=True, **options)
    terms, logits = terms_of(model, images, labels)
    # As above, but only where all copies are right.
    agree = (logits.argmax(axis=-1) == labels[:, None]).all(axis=1)
    shifted = logits.copy()
    shifted[..., 0] += (agree * np.where(labels == 0, -0.1, 0.1))[:, None] * np.linalg.norm(WEIGHTS)
    drawn, expected = (
        objective.macer_terms(tf.constant(some), tf.constant(labels), 0.25, 8.0, 2.0, True)
        for some in (logits, shifted)
    )
    parts = objective.consistency(tf.constant(shifted))
    near = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(terms.losses["classification_loss"], expected.classification, **near)
    # The hinge is the larger one; where the shift makes the prediction wrong, that is the one on the noise as drawn.
    hinge = np.maximum(drawn.robustness, expected.robustness)
    assert (drawn.robustness > expected.robustness + 1e-3).numpy().any()
    np.testing.assert_allclose(terms.losses["robustness_loss"], 3 * hinge, **near)
    np.testing.assert_allclose(terms.losses["consistency_loss"], 5 * parts.divergence + 0.5 * parts.entropy, **near)
    assert (expected.classification > drawn.classification + 1e-3).numpy().sum() > 3
    np.testing.assert_allclose(terms.reports["soft_radius"], drawn.radius, **near)
    np.testing.assert_allclose(terms.probabilities, drawn.probabilities, **near)
    np.testing.assert_array_equal(terms.reports["hinge_fraction"], (drawn.in_hinge | expected.in_hinge).numpy())


def test_while_lam_is_0_no_noise_is_moved():
    images, labels = data()
    classifier = linear(bias=-WEIGHTS.sum() / 2)
    model = macer(classifier, lam=0.0, noise_steps=2, noise_radius=0.1)
    model.compile("sgd")
    assert model.test_on_batch(images, labels, return_dict=True)["robustness_loss"] == 0
    model.lam = 3.0
    moved = model.test_on_batch(images, labels, return_dict=True)["robustness_loss"]
    unmoved = macer(classifier, lam=3.0)
    unmoved.compile("sgd")
    assert moved > unmoved.test_on_batch(images, labels, return_dict=True)["robustness_loss"] * 1.01 > 0


def test_consistency_is_a_part_of_the_loss_with_its_weights_and_share():
    images, labels = data()
    model = macer(consistency=5.0, entropy=0.5)
    terms, logits = terms_of(model, images, labels)
    parts = objective.consistency(tf.constant(logits))
    expected = 5 * parts.divergence + 0.5 * parts.entropy
    np.testing.assert_allclose(terms.losses["consistency_loss"], expected, rtol=1e-5)
    model.consistency_share = 0.25
    np.testing.assert_allclose(terms_of(model, images, labels)[0].losses["consistency_loss"], expected / 4, rtol=1e-5)
    assert (model.get_config()["consistency"], model.get_config()["entropy"]) == (5.0, 0.5)


def test_off_it_is_equation_17_to_the_bit():
    images, labels = data()
    model = macer(average_cross_entropy=False, consistency=0.0, entropy=0.0, noise_steps=0, lam=3.0)
    terms, logits = terms_of(model, images, labels)
    expected = objective.macer_terms(tf.constant(logits), tf.constant(labels), 0.25, 8.0, 2.0)
    assert set(terms.losses) == {"classification_loss", "robustness_loss"}
    np.testing.assert_array_equal(terms.losses["classification_loss"], expected.classification)
    np.testing.assert_array_equal(terms.losses["robustness_loss"], 3 * expected.robustness)
    np.testing.assert_array_equal(terms.reports["hinge_fraction"], expected.in_hinge.numpy())


def test_num_samples_rises_while_fit_runs_and_never_falls():
    seen = []

    class Probe(keras.layers.Layer):
        def call(self, images):
            tf.py_function(lambda batch: seen.append(len(batch)), [images], [])
            return images

    inputs = keras.Input(SHAPE)
    model = macer(keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(Probe()(inputs)))), num_samples=1)
    model.compile(keras.optimizers.SGD(0.0))
    images, labels = data(8)
    rise = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: setattr(model, "num_samples", 4**epoch))
    model.fit(images, labels, batch_size=8, epochs=3, verbose=0, callbacks=[rise])
    assert [count for count in seen if count % 8 == 0] == [8, 32, 128]
    assert model.get_config()["num_samples"] == 16
    with pytest.raises(
        ValueError, match="num_samples may only rise; otherwise noise that was already drawn would be drawn again"
    ):
        model.num_samples = 4


def test_noise_never_comes_again_when_num_samples_rises():
    model, images = macer(num_samples=1), tf.constant(data(4)[0])
    drawn = []
    model.compile(keras.optimizers.SGD(0.0))
    for samples in (1, 1, 2, 4):
        model.num_samples = samples
        drawn.append(model.draw_noise(images, 0).numpy().ravel())
        model.train_on_batch(images, np.zeros(4, np.int64))
    drawn = np.concatenate(drawn)
    assert len(np.unique(drawn)) == drawn.size


def test_the_configuration_comes_back():
    options = {
        "average_cross_entropy": True, "consistency": 5.0, "entropy": 0.5, "noise_steps": 2, "noise_radius": 0.5,
        "noise_for_all": True,
    }  # fmt: skip
    model = macer(**options)
    model.consistency_share = 0.25
    config = model.get_config()
    again = MACERModel.from_config(config).get_config()
    assert {name: again[name] for name in options} == options
    assert again["consistency_share"] == 0.25
    assert again | {"classifier": None} == config | {"classifier": None}
    before = model.get_config()
    del before["consistency_share"]  # as files of before have none
    assert MACERModel.from_config(before).consistency_share == 1


@pytest.mark.parametrize("copied", ["saved", "pickled", "cloned", "deep-copied"])
def test_a_copy_goes_on_with_the_share_of_consistency(copied, tmp_path):
    model = macer(consistency=5.0)
    model.consistency_share = 0.5
    model.save(tmp_path / "m.keras")
    copies = {
        "saved": lambda: keras.models.load_model(tmp_path / "m.keras"),
        "pickled": lambda: pickle.loads(pickle.dumps(model)),
        "cloned": lambda: keras.models.clone_model(model),
        "deep-copied": lambda: copy.deepcopy(model),
    }
    assert copies[copied]().consistency_share == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"consistency": -1.0}, "consistency, the weight of the copies' divergence, must be 0 or above"),
        ({"entropy": float("nan")}, "entropy, .* must be 0 or above"),
        ({"noise_steps": 1.5}, "noise_steps, .* must be a whole number from 0. Received: noise_steps=1.5"),
        ({"noise_radius": 0.0}, "noise_radius, .* must be above 0"),
    ],
)
def test_bad_hyper_parameters_are_told_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        macer(**options)


def test_a_label_out_of_range_is_told_in_one_line_with_moved_noise_too():
    images, labels = data(8)
    model = macer(noise_steps=1, noise_for_all=True)
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"^Bad batch: labels must lie in 0..1; the classifier has 2 outputs.$"):
        model.train_on_batch(images, labels + 1)


@pytest.mark.parametrize(("policy", "in_all_terms"), [("mixed_bfloat16", True), ("mixed_float16", False)])
def test_all_of_it_trains_in_mixed_precision_and_slices(policy, in_all_terms):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    outputs = keras.layers.Dense(2, dtype=policy)(keras.layers.Flatten(dtype=policy)(inputs))
    options = {"average_cross_entropy": True, "consistency": 1.0, "entropy": 0.1, "noise_steps": 1, "microbatch": 6}
    model = macer(keras.Model(inputs, outputs), dtype=policy, noise_for_all=in_all_terms, **options)
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5))
    images, labels = data()
    losses = model.fit(images, labels, batch_size=20, epochs=12, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
