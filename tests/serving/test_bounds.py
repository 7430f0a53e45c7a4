import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from macer_tf import certificates, confidence, early_exit
from macer_tf.votes import Votes
from serving.bounds import anytime_p_value, certified_radius, clopper_pearson_lower, round_down
from serving.card import ALPHA_RANGE, MOST_N
from serving.rest_format import decimal

SIGMA = 0.5


def in_graph(successes, n, alpha):
    """p_lower and radius of votes for the selected class, by one call of a compiled graph."""
    successes = np.asarray(successes, np.int64)
    return [
        values.numpy()
        for values in tf.function(certified_radius)(
            tf.constant(successes),
            tf.constant(np.broadcast_to(n, successes.shape), tf.int64),
            tf.fill(successes.shape, tf.constant(alpha, tf.float64)),
            SIGMA,
        )
    ]


@pytest.mark.parametrize("n", [10, 17, 100, 999, 1000, 2000])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_every_count_gives_the_librarys_certificate(n, alpha):
    successes = np.arange(n + 1)
    p_lower, radius = in_graph(successes, n, alpha)
    estimation = np.stack([successes, n - successes], axis=1)
    selection = np.tile(np.array([[1, 0]]), (n + 1, 1))
    expected = certificates.certify(Votes(selection, estimation), SIGMA, alpha)
    assert (np.where(p_lower > 0.5, 0, certificates.ABSTAIN) == expected.predictions).all()
    assert (p_lower <= expected.p_lower).all()
    np.testing.assert_allclose(p_lower, expected.p_lower, atol=1e-10)
    assert (radius.astype(np.float64) <= expected.radii).all()
    np.testing.assert_allclose(radius, expected.radii, rtol=2.0**-23, atol=1e-7)


@pytest.mark.slow
def test_every_majority_of_every_n_up_to_two_thousand_gives_the_librarys_certificate():
    """Counts of half and below are certified by neither; the test above has them."""
    alpha = 0.001
    n = np.concatenate([np.full(n - n // 2, n) for n in range(10, 2001)])
    successes = np.concatenate([np.arange(n // 2 + 1, n + 1) for n in range(10, 2001)])
    p_lower, radius = in_graph(successes, n, alpha)
    # What `certificates.certify` does for one n, here for each its own; `stats.beta.ppf` is the bound.
    expected = stats.beta.ppf(alpha, successes, n - successes + 1)
    assert ((p_lower > 0.5) == (expected > 0.5)).all()
    assert (p_lower <= expected).all()
    np.testing.assert_allclose(p_lower, expected, atol=1e-10)
    expected_radius = SIGMA * stats.norm.ppf(np.maximum(expected, 0.5))
    assert (radius.astype(np.float64) <= expected_radius).all()
    np.testing.assert_allclose(radius, expected_radius, rtol=2.0**-23, atol=1e-7)


@pytest.mark.parametrize("alpha", [1e-6, 0.001, 0.1])
def test_no_bound_and_no_radius_is_above_scipys_for_samples_up_to_a_million(alpha):
    rng = np.random.default_rng(0)
    n = np.concatenate([np.exp(rng.uniform(np.log(2001), np.log(1e6), 4000)).astype(np.int64), [10**6] * 100])
    # Near all of them as well as anywhere: there the radius is steepest.
    missed = np.where(rng.random(len(n)) < 0.5, rng.integers(0, 20, len(n)), (rng.random(len(n)) * n).astype(np.int64))
    successes = n - missed
    p_lower, radius = in_graph(successes, n, alpha)
    expected = np.where(successes > 0, stats.beta.ppf(alpha, np.maximum(successes, 1), missed + 1), 0.0)
    assert (p_lower <= expected).all()
    np.testing.assert_allclose(p_lower, expected, atol=1e-10)
    expected_radius = np.where(expected > 0.5, SIGMA * stats.norm.ppf(expected), 0.0)
    assert (radius - expected_radius <= 1e-9).all()
    np.testing.assert_allclose(radius, expected_radius, atol=2e-6)


def test_no_success_and_one_success():
    ten, alpha = tf.constant([10, 10], tf.int64), tf.constant([0.05, 0.05], tf.float64)
    bound = clopper_pearson_lower(tf.constant([0, 1], tf.int64), ten, alpha).numpy()
    # P(at least 1 of 10) = 1 - (1 - p)^10 = 0.05 at p = 1 - 0.95^(1/10).
    np.testing.assert_allclose(bound, [0, 1 - 0.95**0.1], atol=1e-10)


def test_radii_are_rounded_down():
    radii = np.random.default_rng(0).uniform(0, 4, 10_000)
    rounded = round_down(tf.constant(radii)).numpy()
    assert rounded.dtype == np.float32
    assert (rounded.astype(np.float64) <= radii).all()
    # Whoever reads the digits of a server's JSON, or of NumPy, as a float64 has no larger radius either.
    for printed in (decimal, str):
        assert (np.array([float(printed(radius)) for radius in rounded]) <= radii).all()
    np.testing.assert_allclose(rounded, radii, rtol=3e-7)
    assert round_down(tf.constant(0.0, tf.float64)).numpy() == 0


@pytest.mark.parametrize(("classes", "alpha"), [(2, 0.05), (10, 0.001), (1000, 0.001)])
def test_the_sequential_test_decides_as_the_librarys_on_all_pairs_of_counts(classes, alpha):
    """All pairs of the two highest counts up to 300, and every split of n for n up to 2,000."""
    small = np.stack(np.meshgrid(np.arange(301), np.arange(301)), axis=-1).reshape(-1, 2)
    splits = np.concatenate([np.stack([np.arange(n + 1), n - np.arange(n + 1)], axis=1) for n in range(301, 2001, 53)])
    pairs = np.concatenate([small, splits, [[600_000, 400_000], [500_700, 499_300], [10**6, 0]]])
    # A third class that never leads changes nothing; further ones have no votes.
    counts = np.zeros((len(pairs), min(classes, 3)), np.int64)
    counts[:, -2:] = pairs
    if classes > 3:
        counts = np.concatenate([counts, np.zeros((len(pairs), 7), np.int64)], axis=1)
    expected = early_exit.anytime_p_values(counts)
    got = tf.function(anytime_p_value)(tf.constant(counts)).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-300)
    assert ((got <= alpha) == (expected <= alpha)).all()
    assert (expected <= alpha).any()
    assert (expected > alpha).any()


def test_no_bound_is_overstated_up_to_the_largest_n_that_is_served():
    rng = np.random.default_rng(0)
    n = rng.integers(MOST_N // 2, MOST_N, 2000)
    successes = (n * rng.uniform(0.5, 1, len(n))).astype(np.int64)
    for alpha in ALPHA_RANGE:
        expected = confidence.clopper_pearson_lower(successes, n, alpha)
        p_lower = clopper_pearson_lower(tf.constant(successes), tf.constant(n), tf.fill(n.shape, np.float64(alpha)))
        assert (p_lower.numpy() < expected - 1e-13).all()
