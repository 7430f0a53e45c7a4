"""Images without a label take the class that the averaged weights see in most noisy copies, or do not count."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from macer_tf import objective
from macer_tf.optimizers import SGD
from macer_tf.semi_supervised import SemiSupervisedMACERModel

SHAPE = (1, 1, 1)
SIGMA = 0.5


class GivenTeacherNoise(SemiSupervisedMACERModel):
    """Of an image's ten copies, its value says how many have noise of +1; the others have -1: of 0.9, nine and one."""

    def teacher_votes(self, images, noise):
        share = tf.round(images * 10)[:, None]
        places = tf.reshape(tf.range(10, dtype=tf.float32), [1, 10, 1, 1, 1])
        return super().teacher_votes(images, tf.where(places < share, 1.0, -1.0))


def made(kind=SemiSupervisedMACERModel, momentum=0.5, rate=0.1, **options):
    """Two classes, logits (x, 0) times 4: class 0 where the noisy pixel is above 0."""
    inputs = keras.Input(SHAPE)
    network = keras.Model(inputs, keras.layers.Dense(2, use_bias=False)(keras.layers.Flatten()(inputs)))
    network.set_weights([np.array([[4.0, 0.0]])])
    model = kind(network, SIGMA, num_samples=2, beta=2.0, seed=0, **options)
    model.compile(SGD(rate, momentum=0.0, use_ema=True, ema_momentum=momentum))
    return model


def column(*pixels):
    return np.array(pixels, np.float32).reshape(-1, 1, 1, 1)


def after_a_step(model):
    """The model after a first step that changes nothing, so that the average is its weights."""
    model.optimizer.learning_rate = 0.0
    model.train_on_batch(column(0.5), np.array([0]))
    model.reset_metrics()
    return model


def test_votes_are_the_majority_of_the_copies_under_the_averaged_weights():
    model = after_a_step(made())
    # The student changes its mind; the average does not.
    model.classifier.set_weights([np.array([[-4.0, 0.0]])])
    noise = np.array([1, 1, 1, -1, -1, -1, -1, -1], np.float32).reshape(1, 8, 1, 1, 1)
    classes, shares = model.teacher_votes(tf.constant(column(0.5)), tf.constant(noise))
    assert (classes.numpy().tolist(), shares.numpy().tolist()) == ([1], [5 / 8])


def test_an_image_counts_above_the_threshold_and_in_the_same_two_terms():
    # Shares of class 0: 0.9, 0.8 (not above 0.8) and 0.5; the last image has a label, which its share does not change.
    images, labels = column(0.9, 0.8, 0.5, 0.1), np.array([-1, -1, -1, 1])
    model = after_a_step(made(GivenTeacherNoise, lam=3.0))
    noise = model.draw_noise(tf.constant(images), 0)
    logits = model.noisy_logits(tf.constant(images), noise, training=True)
    terms = objective.macer_terms(logits, tf.constant([0, 0, 0, 1]), SIGMA, 8.0, 2.0)
    counts = np.array([1, 0, 0, 1])
    logs = model.train_on_batch(images, labels, return_dict=True)
    assert logs["classification_loss"] == pytest.approx((counts * terms.classification).numpy().sum() / 4, rel=1e-5)
    assert logs["robustness_loss"] == pytest.approx(3 * (counts * terms.robustness).numpy().sum() / 4, rel=1e-5)
    assert logs["robustness_loss"] > 0


def test_they_come_in_with_the_other_terms():
    images, labels = column(0.9), np.array([-1])
    model = after_a_step(made(GivenTeacherNoise))
    losses = []
    for share in (0.0, 0.5, 1.0):
        model.consistency_share = share
        again = model._noise_step.numpy()
        losses.append(model.train_on_batch(images, labels, return_dict=True)["loss"])
        model.reset_metrics()
        model._noise_step.assign(again)
    assert losses == pytest.approx([0, losses[2] / 2, losses[2]], rel=1e-5)
    assert losses[2] > 0


def test_before_the_first_step_there_is_no_teacher():
    model = made(GivenTeacherNoise)
    before = model.classifier.get_weights()[0].copy()
    logs = model.train_on_batch(column(0.9, 1.0), np.array([-1, -1]), return_dict=True)
    assert logs["loss"] == 0
    np.testing.assert_array_equal(model.classifier.get_weights()[0], before)


def test_with_all_labels_it_is_macer():
    images, labels = np.random.default_rng(0).random((8, *SHAPE), np.float32), np.arange(8) % 2
    from macer_tf.model import MACERModel

    ours, theirs = made(), made(MACERModel)
    for model in (ours, theirs):
        model.fit(images, labels, batch_size=4, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_array_equal(ours.classifier.get_weights()[0], theirs.classifier.get_weights()[0])


def test_behaves_as_a_keras_model(tmp_path):
    images, labels = np.random.default_rng(0).random((8, *SHAPE), np.float32), np.array([0, 1, 0, 1, -1, -1, -1, -1])
    model = made(threshold=0.6, teacher_samples=5, microbatch=3)
    model.fit(images, labels, epochs=2, verbose=0, validation_data=(images[:4], labels[:4]))
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert (restored.threshold, restored.teacher_samples) == (0.6, 5)
    for one in (model, restored):
        one.fit(images, labels, shuffle=False, verbose=0)
    for ours, theirs in zip(model.get_weights(), restored.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_cannot_be_is_told_in_one_line():
    model = made()
    with pytest.raises(ValueError, match="make the optimizer with use_ema=True"):
        model.compile(SGD(0.1))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1; the"):
        model.evaluate(column(0.5), np.array([-1]), verbose=0)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1, or be -1 for an image without one; the"):
        model.train_on_batch(column(0.5), np.array([-2]))
    for options in ({"threshold": 1.5}, {"teacher_samples": 0}):
        with pytest.raises(ValueError, match=rf"{next(iter(options))}, .* must be .* Received: "):
            made(**options)
