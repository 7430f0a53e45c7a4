"""How often each bound is above what it bounds: added up exactly where the samples are votes, else drawn."""

import numpy as np
import pytest
from scipy import stats

from macer_tf.confidence import (
    anytime_lower,
    anytime_upper,
    clopper_pearson_lower,
    clopper_pearson_upper,
    empirical_bernstein_lower,
    hoeffding_lower,
)

MEANS = (0.02, 0.3, 0.5, 0.69, 0.9, 0.99, 0.999)


def bernstein_of_votes(successes, n, alpha):
    # The unbiased variance of votes: n / (n - 1) * p * (1 - p).
    share = successes / n
    return empirical_bernstein_lower(share, share * (1 - share) * n / (n - 1), n, alpha)


BOUNDS_OF_VOTES = {
    "clopper-pearson": clopper_pearson_lower,
    "anytime": anytime_lower,
    "hoeffding": lambda successes, n, alpha: hoeffding_lower(successes / n, n, alpha),
    "empirical-bernstein": bernstein_of_votes,
}


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
@pytest.mark.parametrize("name", BOUNDS_OF_VOTES)
def test_of_n_votes_the_bound_is_too_high_with_probability_alpha_at_most(name, alpha):
    for n in (2, 30, 400, 5000):
        counts = np.arange(n + 1)
        bound = BOUNDS_OF_VOTES[name](counts, n, alpha)
        assert (np.diff(bound) >= -1e-12).all() or name == "empirical-bernstein"
        for p in (*MEANS, *(bound[n // 3 :: max(n // 20, 1)] - 1e-9)):
            if 0 < p < 1:
                assert stats.binom.pmf(counts, n, p)[bound > p].sum() <= alpha * (1 + 1e-6)


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_clopper_pearson_spends_at_least_half_of_alpha(alpha):
    # Of 5,000 votes, one count more or less is less than a factor of 2 in probability near these tails.
    n, counts = 5000, np.arange(5001)
    for p in (0.3, 0.5, 0.69, 0.9):
        for bound, miss in ((clopper_pearson_lower, np.greater), (clopper_pearson_upper, np.less)):
            missed = stats.binom.pmf(counts, n, p)[miss(bound(counts, n, alpha), p)].sum()
            assert 0.5 * alpha < missed <= alpha * (1 + 1e-9)


def ever_too_high(p, alpha, most):
    """The probability that the anytime lower bound is above p after any of the first `most` votes."""
    n = np.arange(1, most + 1)
    # The fewest successes whose bound is above p, n + 1 where there are none: the bound grows with successes.
    few, many = np.zeros(most, np.int64), n + 1
    while (few < many).any():
        middle = (few + many) // 2
        above = anytime_lower(np.minimum(middle, n), n, alpha) > p
        many = np.where(above, middle, many)
        few = np.where(above, few, np.minimum(middle + 1, many))
    alive, total = np.zeros(most + 2), 0.0
    alive[0] = 1.0
    for fewest in many:
        alive[1:] = alive[1:] * (1 - p) + alive[:-1] * p
        alive[0] *= 1 - p
        total += alive[fewest:].sum()
        alive[fewest:] = 0
    return total


@pytest.mark.parametrize(
    ("alpha", "most"), [(0.3, 300), (0.05, 1000), (0.001, 1000)]
)  # the larger alpha, the earlier it would show
def test_the_anytime_bound_is_ever_too_high_with_probability_alpha_at_most(alpha, most):
    missed = [ever_too_high(p, alpha, most) for p in (0.3, 0.5, 0.69, 0.9, 0.99, 0.999)]
    assert max(missed) <= alpha
    # Nor is it so loose that this says nothing: Ville's inequality is met up to the overshoot and the finite n.
    assert max(missed) > alpha / 4


def test_the_fixed_bound_does_not_survive_looks():
    # What the anytime bound is for: the same sum with Clopper-Pearson after every vote, at alpha = 0.05.
    p, alive, total = 0.9, np.ones(1), 0.0
    for n in range(1, 501):
        alive = np.append(alive * (1 - p), 0) + np.append(0, alive * p)
        above = clopper_pearson_lower(np.arange(n + 1), n, 0.05) > p
        total += alive[above].sum()
        alive[above] = 0
    assert total > 0.2


@pytest.mark.parametrize("alpha", [0.2, 0.01])
@pytest.mark.parametrize("shape", [(0.3, 0.1), (9.0, 1.0), (0.02, 0.02), (1.0, 1.0), (0.5, 0.002)])
def test_scores_between_0_and_1(shape, alpha):
    # Beta-distributed scores, like softmax outputs: 4,000 sets of 50. Binomial standard error of the share: 3 of it.
    scores = np.random.default_rng(0).beta(*shape, size=(4000, 50))
    mean, variance, true = scores.mean(axis=1), scores.var(axis=1, ddof=1), shape[0] / sum(shape)
    allowed = alpha + 3 * np.sqrt(alpha / 4000)
    assert np.mean(hoeffding_lower(mean, 50, alpha) > true) <= allowed
    assert np.mean(empirical_bernstein_lower(mean, variance, 50, alpha) > true) <= allowed


def test_the_upper_bounds_are_the_lower_bounds_of_the_failures():
    successes = np.arange(201)
    for lower, upper in ((anytime_lower, anytime_upper), (clopper_pearson_lower, clopper_pearson_upper)):
        np.testing.assert_allclose(
            upper(successes, 200, 0.01), 1 - lower(200 - successes, 200, 0.01), rtol=0, atol=1e-12
        )
