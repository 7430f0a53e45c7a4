import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from macer_tf.checks import MAX_GAMMA, MAX_GAMMA_XLA
from macer_tf.objective import macer_terms


def algorithm_1(logits, labels, sigma, gamma, beta):
    """Lines 5-9 of Algorithm 1, one image at a time, in float64; in log space, so that nothing saturates.

    Returns the classification term, the robustness term if the prediction counts as correct, and the margin
    log z_y - log z_B that decides whether it does.
    """
    classification, robustness, margins = [], [], []
    for image_logits, label in zip(np.asarray(logits, np.float64), labels, strict=True):
        log_z = special.logsumexp(special.log_softmax(image_logits, axis=1), axis=0) - np.log(len(image_logits))
        classification.append(-log_z[label])
        log_z = special.logsumexp(special.log_softmax(beta * image_logits, axis=1), axis=0)
        log_z -= np.log(len(image_logits))
        others = np.delete(log_z, label)
        xi = -special.ndtri_exp(special.logsumexp(others)) - special.ndtri_exp(others.max())
        robustness.append(sigma / 2 * max(gamma - xi, 0))
        margins.append(log_z[label] - others.max())
    return np.array(classification), np.array(robustness), np.array(margins)


def assert_agrees(terms, expected, rounding, rtol, atol):
    """Compares the two; a margin within `rounding` of a tie may fall to either side, and only to those two values."""
    classification, robustness, margin = expected
    np.testing.assert_allclose(terms.classification, classification, rtol=rtol, atol=atol)
    close = np.abs(terms.robustness.numpy() - robustness) <= atol + rtol * robustness
    zero = terms.robustness.numpy() == 0
    assert close[margin > rounding].all()
    assert zero[margin < -rounding].all()
    assert (close | zero).all()
    assert (margin > rounding).sum() > 0.2 * len(margin)


def test_values_worked_out_by_hand():
    # Two copies, three classes, logits = log(weights), beta = 2, label 0.
    #   inverse temperature 1: softmax (6,3,1)/10 and (2,1,1)/4; mean of class 0 = (0.6 + 0.5)/2 = 0.55
    #   inverse temperature 2: squares (36,9,1)/46 and (4,1,1)/6
    #     z_0 = (36/46 + 4/6)/2 = 0.724638, z_1 = (9/46 + 1/6)/2 = 0.181159
    #   xi = Phi^-1(0.724638) - Phi^-1(0.181159) = 0.596675 + 0.910955 = 1.507630
    #   robustness = 0.5/2 * (8 - 1.507630) = 1.623092, radius = 0.5/2 * 1.507630 = 0.376908
    logits = tf.math.log(tf.constant([[[6.0, 3.0, 1.0], [2.0, 1.0, 1.0]]], tf.float64))
    terms = macer_terms(logits, tf.constant([0]), sigma=0.5, gamma=8.0, beta=2.0)
    assert terms.classification.numpy() == pytest.approx([-np.log(0.55)], abs=1e-12)
    assert terms.robustness.numpy() == pytest.approx([1.623092], abs=1e-6)
    assert terms.radius.numpy() == pytest.approx([0.376908], abs=1e-6)
    assert terms.in_hinge.numpy().tolist() == [True]
    assert terms.probabilities.numpy()[0] == pytest.approx([0.55, 0.275, 0.175], abs=1e-12)


def test_a_wrong_prediction_has_no_robustness_term_and_a_hinge_that_is_passed_is_zero():
    # One copy of (0.8, 0.2): for label 1 wrong; for label 0 xi = 2 * Phi^-1(0.8) = 1.683242 > gamma = 1.
    logits = tf.math.log(tf.constant([[[0.8, 0.2]], [[0.8, 0.2]]], tf.float64))
    terms = macer_terms(logits, tf.constant([1, 0]), sigma=0.25, gamma=1.0, beta=1.0)
    assert terms.robustness.numpy().tolist() == [0.0, 0.0]
    assert terms.in_hinge.numpy().tolist() == [False, False]
    assert terms.radius.numpy() == pytest.approx([0.0, 0.125], abs=1e-12)  # capped at sigma / 2 * gamma
    assert terms.classification.numpy() == pytest.approx(-np.log([0.2, 0.8]), abs=1e-12)


def test_a_tie_is_correct_whichever_the_label_and_has_xi_zero():
    terms = macer_terms(tf.zeros([3, 4, 2]), tf.constant([0, 1, 1]), sigma=1.0, gamma=8.0, beta=16.0)
    assert terms.robustness.numpy() == pytest.approx([4.0, 4.0, 4.0])


def random_cases(rng, count, num_samples, classes):
    """Logits of many scales, a fifth of them rounded so that ties occur; labels right about half of the time."""
    logits = rng.normal(size=(count, num_samples, classes)) * 10.0 ** rng.uniform(-2, 1, size=(count, 1, 1))
    logits[:, :, 0] += rng.choice([0, 1, 5], size=(count, 1))
    tied = rng.random(count) < 0.2
    logits[tied] = np.round(logits[tied][:, :1])
    labels = np.where(rng.random(count) < 0.5, logits.mean(axis=1).argmax(axis=1), rng.integers(classes, size=count))
    return logits, labels


@pytest.mark.parametrize(("num_samples", "classes"), [(1, 2), (4, 3), (16, 10), (2, 1000)])
@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 2.0), (16.0, 8.0), (16.0, MAX_GAMMA), (64.0, 16.0)])
def test_agrees_with_a_transcription_of_algorithm_1(num_samples, classes, beta, gamma):
    rng = np.random.default_rng(classes + int(beta))
    logits, labels = random_cases(rng, 100 if classes == 1000 else 1000, num_samples, classes)
    terms = macer_terms(tf.constant(logits), tf.constant(labels), 0.25, gamma, beta)
    assert_agrees(terms, algorithm_1(logits, labels, 0.25, gamma, beta), rounding=1e-10, rtol=1e-8, atol=1e-8)

    logits = logits.astype(np.float32)
    terms = macer_terms(tf.constant(logits), tf.constant(labels), 0.25, gamma, beta)
    expected = algorithm_1(logits, labels, 0.25, gamma, beta)
    assert_agrees(terms, expected, rounding=1e-3, rtol=1e-5, atol=1e-4)


def test_float32_neither_loses_nor_invents_the_hinge_where_the_softmax_saturates():
    # The gap in logits sets log(p_B) = -16 * gap; at a gap of 5 the label's probability is 1 - 2e-35, which is 1.
    gaps = np.linspace(0.05, 12, 400)
    logits = np.zeros((400, 2, 2), np.float32)
    logits[:, :, 0] = gaps[:, None]
    labels = np.zeros(400, np.int64)
    for gamma in (8.0, 16.0, MAX_GAMMA):
        expected = algorithm_1(logits, labels, 1.0, gamma, 16.0)[1]
        got = macer_terms(tf.constant(logits), tf.constant(labels), 1.0, gamma, 16.0).robustness.numpy()
        assert 0 < (expected > 0).sum() < 400
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_finite_loss_and_gradients_for_every_finite_logit(jit_compile):
    largest = np.finfo(np.float32).max
    values = [0.0, 1e-45, 1e-38, 1e-3, 1.0, 5.6, 10.0, 88.0, 104.0, 1e4, 1e20, 1e30, 1e38, largest]
    values += [-value for value in values]
    pairs = np.array([[a, b, c] for a in values for b in values for c in (0.0, largest, -largest)], np.float32)
    logits = np.stack([pairs, np.roll(pairs, 1, axis=0)], axis=1)

    @tf.function(jit_compile=jit_compile)
    def loss_and_gradient(logits, labels):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            terms = macer_terms(logits, labels, 0.25, MAX_GAMMA_XLA if jit_compile else MAX_GAMMA, 16.0)
            loss = terms.classification + 12.0 * terms.robustness
        return loss, tape.gradient(loss, logits)

    for label in range(3):
        loss, gradient = loss_and_gradient(tf.constant(logits), tf.fill([len(logits)], label))
        assert np.isfinite(loss).all()
        assert np.isfinite(gradient).all()
        assert (loss.numpy() >= 0).all()


def test_xla_agrees_up_to_its_largest_gamma():
    rng = np.random.default_rng(5)
    logits, labels = random_cases(rng, 500, 4, 10)
    logits = tf.constant(logits, tf.float32)
    compiled = tf.function(macer_terms, jit_compile=True)
    for gamma in (8.0, MAX_GAMMA_XLA):
        terms = compiled(logits, tf.constant(labels), 0.25, gamma, 1.0)
        expected = algorithm_1(logits.numpy(), labels, 0.25, gamma, 1.0)
        assert_agrees(terms, expected, rounding=1e-4, rtol=1e-5, atol=2e-3)


def test_a_nan_or_infinite_logit_shows_in_the_loss():
    for bad in (np.nan, np.inf, -np.inf):
        logits = np.zeros((2, 2, 3), np.float32)
        logits[1, 0, 2] = bad
        loss = macer_terms(tf.constant(logits), tf.constant([0, 0]), 0.25).classification.numpy()
        assert np.isfinite(loss[0])
        assert np.isnan(loss[1])


def test_gradients_agree_with_finite_differences():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 3, 4)) * 0.3
    labels = tf.constant(logits.mean(axis=1).argmax(axis=1))

    def loss(logits):
        terms = macer_terms(logits, labels, 0.5, 8.0, 4.0)
        return tf.reduce_sum(terms.classification + 3.0 * terms.robustness)

    assert macer_terms(tf.constant(logits), labels, 0.5, 8.0, 4.0).in_hinge.numpy().any()
    theoretical, numerical = tf.test.compute_gradient(loss, [tf.constant(logits)], delta=1e-6)
    np.testing.assert_allclose(theoretical[0], numerical[0], rtol=1e-6, atol=1e-7)


def test_the_hinge_is_pushed_the_right_way():
    # A gradient step must raise the label's probability and so the soft radius.
    logits = tf.Variable(np.array([[[0.4, 0.1, 0.0]]], np.float32))
    with tf.GradientTape() as tape:
        before = macer_terms(logits, tf.constant([0]), 0.25, 8.0, 4.0)
        loss = before.robustness[0]
    logits.assign_sub(0.01 * tape.gradient(loss, logits))
    after = macer_terms(logits, tf.constant([0]), 0.25, 8.0, 4.0)
    assert after.radius[0] > before.radius[0]
