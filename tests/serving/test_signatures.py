import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from macer_tf.certificates import ABSTAIN
from serving.signatures import SmoothedSignature, clopper_pearson_lower, round_down

SIGMA = 0.5


def linear_classifier(bias=0.0):
    """Two classes on 2x2x1 images, logits (s, 0) with s = sum of the pixels + bias; so p_0 = Phi(s / (2 sigma))."""
    inputs = keras.Input((2, 2, 1))
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, outputs)
    model.set_weights([np.array([[1.0, 0.0]] * 4, np.float32), np.array([bias, 0.0], np.float32)])
    return model


def constant_images(*values):
    return np.array(values, np.float32)[:, None, None, None] * np.ones((1, 2, 2, 1), np.float32)


@pytest.mark.parametrize("n", [1, 10, 100, 1000, 12_345, 1_000_000])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_clopper_pearson_is_never_above_scipys_and_hardly_below(n, alpha):
    bound = tf.function(lambda successes: clopper_pearson_lower(successes, n, alpha))
    chosen = sorted({0, 1, n // 3, n // 2, int(0.9 * n), n - 1, n})
    got = np.array([bound(tf.constant(successes, tf.int64)).numpy() for successes in chosen])
    expected = np.array([stats.beta.ppf(alpha, s, n - s + 1) if s else 0.0 for s in chosen])
    assert (got <= expected).all()
    np.testing.assert_allclose(got, expected, atol=1e-10)


def test_radii_are_rounded_down():
    radii = np.random.default_rng(0).uniform(0, 4, 10_000)
    rounded = round_down(tf.constant(radii)).numpy()
    assert rounded.dtype == np.float32
    assert (rounded.astype(np.float64) <= radii).all()
    np.testing.assert_allclose(rounded, radii, rtol=3e-7)
    assert round_down(tf.constant(0.0, tf.float64)).numpy() == 0


def test_answers_agree_with_the_exact_probability_of_a_linear_classifier():
    # The class probability is known: p_0 = Phi((sum + bias) / (sigma * |w|)) with |w| = 2.
    signature = SmoothedSignature(linear_classifier(bias=-1.0), SIGMA, n0=50, n=4000, alpha=0.001)
    values = (0.0, 0.15, 0.25, 0.5, 0.9)
    answers = {name: tensor.numpy() for name, tensor in signature.certify(constant_images(*values)).items()}
    p_0 = stats.norm.cdf((4 * np.array(values) - 1) / (2 * SIGMA))
    likeliest = np.where(p_0 > 0.5, 0, 1)
    true_radius = np.abs(4 * np.array(values) - 1) / 2
    assert answers["predicted_class"][[0, 1, 3, 4]].tolist() == likeliest[[0, 1, 3, 4]].tolist()
    assert answers["predicted_class"][2] == ABSTAIN  # p_0 = 1/2
    assert answers["radius"][2] == 0
    assert (answers["radius"] <= true_radius + 1e-6).all()
    top = np.maximum(p_0, 1 - p_0)[[0, 1, 3, 4]]
    error = answers["vote_share"][[0, 1, 3, 4]] - top
    assert (np.abs(error) <= 5 * np.sqrt(top * (1 - top) / 4000) + 1e-6).all()


def test_the_radius_follows_from_the_votes():
    n = 1500
    signature = SmoothedSignature(linear_classifier(-0.6), SIGMA, n0=50, n=n, alpha=0.01)
    answers = signature.certify(constant_images(*np.linspace(0, 1, 12)))
    columns = (answers[name].numpy() for name in ("predicted_class", "radius", "vote_share"))
    for prediction, radius, share in zip(*columns, strict=True):
        votes = round(float(share) * n)
        p_lower = stats.beta.ppf(0.01, votes, n - votes + 1)
        expected = SIGMA * stats.norm.ppf(p_lower) if p_lower > 0.5 else 0.0
        assert radius == pytest.approx(expected, abs=1e-6)
        assert radius <= expected
        assert (prediction == ABSTAIN) == (p_lower <= 0.5)


def test_noise_is_fresh_for_every_image_and_every_call():
    signature = SmoothedSignature(linear_classifier(-0.9), SIGMA, n0=10, n=500, alpha=0.01)
    images = constant_images(*[0.3] * 20)
    first, second = (signature.certify(images)["vote_share"].numpy() for _ in range(2))
    assert len(set(first.tolist())) > 5
    assert (first != second).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.01, 1.01])
def test_bad_pixels_are_refused_without_showing_them(bad):
    signature = SmoothedSignature(linear_classifier(), SIGMA, n0=10, n=100, alpha=0.01)
    images = constant_images(0.123456, 0.5)
    images[1, 0, 0, 0] = bad
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"images must be finite and lie in \[0, 1\]") as error:
        signature.certify(images)
    assert "123456" not in str(error.value)


def test_a_classifier_that_returns_nan_certifies_nothing():
    classifier = linear_classifier()
    classifier.set_weights([np.full((4, 2), np.nan, np.float32), np.zeros(2, np.float32)])
    signature = SmoothedSignature(classifier, SIGMA, n0=10, n=100, alpha=0.01)
    with pytest.raises(tf.errors.InvalidArgumentError, match="NaN or infinity"):
        signature.certify(constant_images(0.5))


def test_an_empty_batch_has_empty_answers():
    signature = SmoothedSignature(linear_classifier(), SIGMA, n0=10, n=100, alpha=0.01)
    answers = signature.certify(np.zeros((0, 2, 2, 1), np.float32))
    assert [answers[name].shape for name in ("predicted_class", "radius", "vote_share")] == [(0,)] * 3


def test_n_that_can_never_certify_is_refused():
    with pytest.raises(ValueError, match="n must be at least 10"):
        SmoothedSignature(linear_classifier(), SIGMA, n0=10, n=9, alpha=0.001)


def test_a_classifier_of_one_class_is_refused():
    # Its largest output is always class 0: it would certify everything.
    inputs = keras.Input((2, 2, 1))
    single = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match="two classes or more"):
        SmoothedSignature(single, SIGMA, n0=10, n=100, alpha=0.01).certify(constant_images(0.5))
