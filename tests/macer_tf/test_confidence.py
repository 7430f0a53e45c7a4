from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy import special, stats
from statsmodels.stats.proportion import proportion_confint

from macer_tf.budgets import FixedBudget, RadiusBudget, ToleranceBudget
from macer_tf.certificates import certify, certify_without_selection, max_radius
from macer_tf.confidence import (
    anytime_lower,
    anytime_upper,
    check_alpha,
    clopper_pearson_lower,
    clopper_pearson_upper,
    empirical_bernstein_lower,
    hoeffding_lower,
    randomized_clopper_pearson_lower,
)
from macer_tf.votes import Votes


@pytest.mark.parametrize("alpha", [0.001, 0.05, 1e-9])
@pytest.mark.parametrize("n", [1, 7, 100, 100_000, 10_000_000])
def test_agrees_with_statsmodels_and_scipy(n, alpha):
    successes = np.unique(np.linspace(1, n, 50).astype(int))
    bound = clopper_pearson_lower(successes, n, alpha)
    # statsmodels' interval is two-sided: its lower end at 2 * alpha is the one-sided bound at alpha.
    reference = proportion_confint(successes, n, alpha=2 * alpha, method="beta")[0]
    np.testing.assert_allclose(bound, reference, rtol=1e-9)
    expected = [stats.binomtest(int(k), n, alternative="greater").proportion_ci(1 - alpha).low for k in successes]
    np.testing.assert_allclose(bound, expected, rtol=1e-7, atol=4e-12)  # SciPy bisects to 2e-12
    upper = proportion_confint(successes[:-1], n, alpha=2 * alpha, method="beta")[1]
    np.testing.assert_allclose(clopper_pearson_upper(successes[:-1], n, alpha), upper, rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.5])
def test_at_the_bound_so_many_successes_have_probability_alpha(alpha):
    # The definition: P(Binomial(n, bound) >= successes) = alpha.
    for n in (5, 60, 1000):
        successes = np.arange(1, n + 1)
        tail = stats.binom.sf(successes - 1, n, clopper_pearson_lower(successes, n, alpha))
        np.testing.assert_allclose(tail, alpha, rtol=1e-9)


def test_values_in_closed_form():
    # n of n: p^n = alpha. 1 of n: 1 - (1 - p)^n = alpha. 0 of n: 0.
    assert clopper_pearson_lower(10, 10, 0.001) == pytest.approx(0.001**0.1, rel=1e-12)
    assert clopper_pearson_lower(1, 10, 0.05) == pytest.approx(1 - 0.95**0.1, rel=1e-12)
    assert clopper_pearson_lower([0, 0], [1, 10], 0.05).tolist() == [0.0, 0.0]
    # 0 of n from above: (1 - p)^n = alpha. n of n: 1.
    assert clopper_pearson_upper(0, 10, 0.001) == pytest.approx(1 - 0.001**0.1, rel=1e-12)
    assert clopper_pearson_upper([1, 10], [1, 10], 0.05).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
@pytest.mark.parametrize("n", [1, 10, 100, 1000])
def test_exact_coverage(n, alpha):
    # No sampling: the probability of every count whose bound lies above p, added up.
    counts = np.arange(n + 1)
    bound = clopper_pearson_lower(counts, n, alpha)
    misses = []
    for p in [*np.linspace(0, 1, 101), *np.nextafter(bound[1:], 0)[:200], *(bound[1:] * (1 - 1e-9))[-200:]]:
        misses.append(stats.binom.pmf(counts, n, p)[bound > p].sum())
    assert max(misses) <= alpha * (1 + 1e-6)
    assert max(misses) > 0.9 * alpha  # just below a bound: it is not loose either


def test_it_grows_with_successes_and_with_alpha():
    assert (np.diff(clopper_pearson_lower(np.arange(101), 100, 0.01)) > 0).all()
    assert (np.diff([clopper_pearson_lower(80, 100, alpha) for alpha in (1e-6, 0.001, 0.05, 0.5)]) > 0).all()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble, Fraction])
@pytest.mark.parametrize("alpha", [0.001, 1.8e-7])
def test_alpha_counts_as_the_number_that_it_is_whatever_its_type(kind, alpha):
    """Logarithms and halves in 16 bits would put a bound too high."""
    given = kind(alpha)
    exact = float(given)
    assert type(check_alpha(given)) is float
    for bound in (clopper_pearson_lower, clopper_pearson_upper, anytime_lower, anytime_upper):
        assert bound(990, 1000, given) == bound(990, 1000, exact)
    assert hoeffding_lower(0.99, 1000, given) == hoeffding_lower(0.99, 1000, exact)
    assert empirical_bernstein_lower(0.99, 0.01, 1000, given) == empirical_bernstein_lower(0.99, 0.01, 1000, exact)
    votes = Votes(np.array([[100, 0]]), np.array([[990, 10]]))
    sigma = kind(0.3) if kind is not Fraction else 0.3
    for certified in (
        lambda sigma, alpha: certify(votes, sigma, alpha),
        lambda sigma, alpha: certify(votes, sigma, alpha, bound="anytime"),
        lambda sigma, alpha: certify_without_selection(votes, sigma, alpha),
        lambda sigma, alpha: RadiusBudget(0.25, 1000).certify(votes, sigma, alpha),
    ):
        received, expected = certified(sigma, given), certified(float(sigma), exact)
        assert (received.radii, received.p_lower) == (expected.radii, expected.p_lower)
        assert (type(received.alpha), type(received.sigma)) == (float, float)
        assert (received.alpha, received.sigma) == (exact, float(sigma))
    for budget in (RadiusBudget(0.25, 1000), ToleranceBudget(0.01, 1000)):
        assert budget.more(votes, sigma, given) == budget.more(votes, float(sigma), exact)
    assert max_radius(sigma, 1000, given) == max_radius(float(sigma), 1000, exact)


def test_an_alpha_that_rounds_to_1_is_refused():
    for alpha in (np.longdouble(1) - np.longdouble(1e-18), Fraction(10**30 - 1, 10**30)):
        with pytest.raises(ValueError, match="must be above 0 and below 1"):
            clopper_pearson_lower(50, 100, alpha)


def test_sigma_may_be_an_array_of_one_number():
    votes = Votes(np.array([[100, 0]]), np.array([[990, 10]]))
    assert certify(votes, np.array(0.25), 0.001).radii == certify(votes, 0.25, 0.001).radii
    for sigma in ("0.25", None, np.array([0.25]), True, 0, np.inf, 10**400):
        with pytest.raises(ValueError, match=r"sigma must be above 0 and finite\. Received: sigma="):
            certify(votes, sigma, 0.001)
    for sigma in (1e308, 5e-324):  # the radius would be infinite, or rounded up to the next multiple of 5e-324
        with pytest.raises(ValueError, match=r"sigma must lie in \[1e-100, 1e\+100\]\. Received: sigma="):
            certify(votes, sigma, 0.001)
        with pytest.raises(ValueError, match="sigma must lie in"):
            FixedBudget(1000).more(votes, sigma, 0.001)


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 9e-101])
def test_an_alpha_at_which_scipys_bound_is_too_high_is_refused(alpha):
    """Of 3,000 votes, 30 of them others: its bound is 0.7808 at 1e-290, where mpmath finds 0.7666."""
    with pytest.raises(ValueError, match=r"alpha must be at least 1e-100. Received: alpha="):
        clopper_pearson_lower(2970, 3000, alpha)


@pytest.mark.parametrize("alpha", [1e-100, 1e-50, 1e-3])
@pytest.mark.parametrize(
    ("n", "failures"),
    [(2000, 20), (3000, 30), (3000, 1200), (100_000, 80), (100_000, 30_000), (10**6, 999), (10**8, 999)],
)
def test_clopper_pearson_errs_as_often_as_alpha_and_no_more_often(n, failures, alpha):
    """P(X >= successes) at the bound, term by term in 60 digits, is alpha."""
    successes = n - failures
    lower = float(clopper_pearson_lower(successes, n, alpha)) - 1e-13  # as certificates round it down
    with mpmath.workdps(60):
        p = mpmath.mpf(lower)
        term = mpmath.binomial(n, successes) * p**successes * (1 - p) ** failures
        tail = mpmath.mpf(0)
        for k in range(successes, n + 1):
            tail += term
            term *= mpmath.mpf(n - k) / (k + 1) * p / (1 - p)
        assert 0.99 * alpha < tail <= alpha


def test_clopper_pearson_is_exact_where_scipys_inverse_is_not():
    """Its bounds were up to 8e-9 too high, 4e-13 too high, 3e-12 too low and, for all of 2^40 votes, 1."""
    cases = ((2435965962, 999, 1.0353674e-05), (655 * 10**9, 108 * 10**9, 0.0015), (9374 * 10**8, 1649 * 10**8, 4e-11))
    for n, failures, alpha in cases:
        bound = clopper_pearson_lower(n - failures, n, alpha)
        below, above = (special.betainc(n - failures, failures + 1, bound + off) for off in (-2e-14, 2e-14))
        assert below < alpha < above
    assert clopper_pearson_lower(2**40, 2**40, 0.9999999) < 1
    assert certify(Votes(np.array([[1, 0]]), np.array([[2**40, 0]])), 1.0, 0.9999999).radii > 7


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, np.nan, 10**400])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match=r"alpha, the failure probability, must be above 0 and below 1. Received"):
        check_alpha(alpha)
    with pytest.raises(ValueError, match="alpha"):
        clopper_pearson_lower(5, 10, alpha)


@pytest.mark.parametrize("successes", [-1, 11])
def test_bad_successes(successes):
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        clopper_pearson_lower(successes, 10, 0.05)
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        anytime_lower(successes, 10, 0.05)


def test_anytime_bounds_worked_out_by_hand():
    # All of 20 successes: nearly all evidence is the certain alternative's, of weight 0.15. Alone it would give
    # 0.15 * p^-20 = 1 / 0.001, p = (0.15 * 0.001)^(1/20) = 0.643838; the others can only add to it.
    assert 0.643838 < anytime_lower(20, 20, 0.001) < 0.001 ** (1 / 20)
    # The evidence against the bound itself is 1 / alpha: the mixture's definition, term by term.
    p = float(anytime_lower(180, 200, 0.01))
    weights = [0.75 / 7] * 7 + [0.1 / 9] * 9
    thetas = [3 / 2**k for k in range(16)]
    evidence = sum(
        weight * np.exp(180 * theta) / (1 + p * (np.exp(theta) - 1)) ** 200
        for weight, theta in zip(weights, thetas, strict=True)
    )
    assert evidence == pytest.approx(100, rel=1e-9)


def test_anytime_bounds_at_the_extremes():
    assert anytime_lower([0, 0, 0], [0, 1, 10**9], 0.001).tolist() == [0.0, 0.0, 0.0]
    assert anytime_upper([0, 1, 10**9], [0, 1, 10**9], 0.001).tolist() == [1.0, 1.0, 1.0]
    large = anytime_lower([10**9, 10**9 - 1, 9 * 10**8, 5 * 10**8], 10**9, 0.001)
    # Below the observed share by no more than ten standard errors (or twenty events).
    assert (large < [1, 1 - 1e-9, 0.9, 0.5]).all()
    assert (large > [1 - 2e-8, 1 - 3e-8, 0.9 - 1e-4, 0.5 - 1.6e-4]).all()
    for alpha in (1e-100, 1e-9, 0.999):
        assert 0 <= anytime_lower(900, 1000, alpha) < 0.9 < anytime_upper(900, 1000, alpha) <= 1
    assert anytime_lower(np.zeros((0,)), 5, 0.1).shape == (0,)
    assert anytime_lower(np.full((2, 3), 5), 5, 0.1).shape == (2, 3)


@pytest.mark.parametrize("alpha", [0.001, 0.3])
def test_anytime_bounds_grow_with_successes_and_shrink_with_failures(alpha):
    successes = np.arange(0, 1001)
    assert (np.diff(anytime_lower(successes, 1000, alpha)) >= 0).all()
    assert (np.diff(anytime_lower(successes, successes + 30, alpha)) >= 0).all()
    assert (np.diff(anytime_lower(500, 500 + successes, alpha)) <= 0).all()
    assert (anytime_lower(successes, 1000, alpha) <= anytime_lower(successes, 1000, 2 * alpha)).all()


def test_anytime_is_never_above_clopper_pearson_and_near_it_for_certificates():
    # What holds at all n is below what holds at one; within 3 % of its quantile from p = 0.6 at n = 100,000.
    successes = np.array([100_000, 99_990, 99_000, 90_000, 75_000, 60_000])
    anytime, fixed = (bound(successes, 100_000, 0.001) for bound in (anytime_lower, clopper_pearson_lower))
    assert (anytime < fixed).all()
    assert (stats.norm.ppf(anytime) > 0.97 * stats.norm.ppf(fixed)).all()


def test_bounds_on_scores_worked_out_by_hand():
    # Hoeffding, 100 scores of mean 0.9 at alpha = 0.001: 0.9 - sqrt(6.907755 / 200) = 0.9 - 0.185846 = 0.714154.
    assert hoeffding_lower(0.9, 100, 0.001) == pytest.approx(0.714154, abs=1e-6)
    # Bernstein, variance 0.01: ln 2000 = 7.600902; sqrt(2 * 0.01 * 7.600902 / 100) = 0.038989;
    # 7 * 7.600902 / (3 * 99) = 0.179146; 0.9 - 0.038989 - 0.179146 = 0.681865.
    assert empirical_bernstein_lower(0.9, 0.01, 100, 0.001) == pytest.approx(0.681865, abs=1e-6)
    assert hoeffding_lower([0.9, 0.1], [0, 5], 0.001).tolist() == [0.0, 0.0]
    assert empirical_bernstein_lower([0.9, 0.9], 0.0, [1, 2], 0.001).tolist() == [0.0, 0.0]
    # With many samples and little variance, Bernstein is the tighter one, and the other way round.
    assert empirical_bernstein_lower(0.9, 0.001, 10_000, 0.001) > hoeffding_lower(0.9, 10_000, 0.001)
    assert empirical_bernstein_lower(0.5, 0.25, 10_000, 0.001) < hoeffding_lower(0.5, 10_000, 0.001)


def test_bad_scores():
    for mean in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"mean in \[0, 1\]"):
            hoeffding_lower(mean, 10, 0.05)
        with pytest.raises(ValueError, match=r"mean in \[0, 1\]"):
            empirical_bernstein_lower(mean, 0.1, 10, 0.05)
    for variance in (-1e-9, np.nan):
        with pytest.raises(ValueError, match="variance is at least 0"):
            empirical_bernstein_lower(0.5, variance, 10, 0.05)
    for bound in (hoeffding_lower, anytime_lower, anytime_upper, clopper_pearson_upper):
        with pytest.raises(ValueError, match="alpha"):
            bound(1, 10, 0)


@pytest.mark.parametrize("p", [0.03, 0.5, 0.731, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 4, 30])
def test_the_randomised_bound_errs_exactly_as_often_as_alpha(n, p):
    # For which U the bound of x successes is above p, by hand: those below (alpha - P(X > x)) / P(X = x).
    alpha, least, x = 0.05, 0.1, np.arange(n + 1)
    limits = (alpha - stats.binom.sf(x, n, p)) / stats.binom.pmf(x, n, p)
    errs = 0.0
    for successes, limit in zip(x, np.clip(limits, 0, 1), strict=True):
        for uniform in (limit - 1e-6, limit + 1e-6):
            if successes and least <= uniform <= 1:
                bound = randomized_clopper_pearson_lower(successes, n, alpha, uniform)
                assert (bound > p) == (uniform < limit)
        # Below 2 alpha, U counts as that: the bound then errs for all of those U, or for none.
        counted = limit if limit > least else 0
        errs += counted * stats.binom.pmf(successes, n, p) * (successes > 0)
    assert errs <= alpha + 1e-12
    if limits[1:].max() > least and n == 30:
        assert errs > 0.6 * alpha


def test_the_randomised_bound_lies_between_those_of_this_count_and_the_next():
    rng = np.random.default_rng(0)
    n = rng.integers(1, 100_000, 500)
    successes = (rng.random(500) * (n + 1)).astype(int)
    uniform, alpha = rng.random(500), 0.001
    bound = randomized_clopper_pearson_lower(successes, n, alpha, uniform)
    assert (bound >= clopper_pearson_lower(successes, n, alpha)).all()
    has_next = successes < n
    following = clopper_pearson_lower((successes + 1)[has_next], n[has_next], alpha)
    assert (bound[has_next] <= following).all()
    at_one = randomized_clopper_pearson_lower(successes, n, alpha, 1.0)
    np.testing.assert_allclose(at_one, clopper_pearson_lower(successes, n, alpha), rtol=1e-12)
    # By hand: of n votes out of n, U p^n = alpha.
    assert randomized_clopper_pearson_lower(100, 100, alpha, 0.25) == pytest.approx((alpha / 0.25) ** 0.01, rel=1e-12)


@pytest.mark.parametrize(("alpha", "uniform"), [(0.001, -0.1), (0.001, 1.1), (0.001, np.nan), (0, 0.5)])
def test_a_randomised_bound_out_of_range_is_refused(alpha, uniform):
    with pytest.raises(ValueError, match="Received: "):
        randomized_clopper_pearson_lower(5, 10, alpha, uniform)


@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.4, 0.9])
def test_at_any_alpha_a_unanimous_vote_leaves_the_randomised_bound_below_1(alpha):
    # By hand: U p^n = alpha, at the least U that counts.
    least = {0.02: 1 / 16, 0.1: 0.2, 0.4: 0.8, 0.9: 1}[alpha]
    assert randomized_clopper_pearson_lower(50, 50, alpha, 0.0) == pytest.approx((alpha / least) ** 0.02, rel=1e-12)


def bounds_of(successes, n):
    """Each bound on counts, yet to be computed."""
    yield lambda: clopper_pearson_lower(successes, n, 0.001)
    yield lambda: clopper_pearson_upper(successes, n, 0.001)
    yield lambda: randomized_clopper_pearson_lower(successes, n, 0.001, 0.5)
    yield lambda: anytime_lower(successes, n, 0.001)
    yield lambda: anytime_upper(successes, n, 0.001)


@pytest.mark.parametrize(
    ("successes", "n", "message"),
    [
        (
            2**53,
            2**53,
            "n up to 2\\^40. Received: .* n from 9.0072e\\+15",
        ),  # bounded by 1: any radius
        (np.inf, np.inf, "n up to 2\\^40"),
        (99.5, 100, "needs whole numbers"),
        (np.ma.array([99, 100], mask=[True, False]), 100, "successes must not be masked"),
        ("99", 100, "successes must be numbers. Received: <U2"),
        (np.array([99 + 1j]), 100, "successes must be numbers. Received: complex128"),
    ],
)
def test_what_is_no_count_that_can_be_bounded_is_refused(successes, n, message):
    for bound in bounds_of(successes, n):
        with pytest.raises(ValueError, match=message):
            bound()


def test_masked_scores_and_uniforms_are_refused():
    masked = np.ma.array([0.9], mask=[True])
    with pytest.raises(ValueError, match="mean must not be masked"):
        hoeffding_lower(masked, 100, 0.001)
    with pytest.raises(ValueError, match="variance must not be masked"):
        empirical_bernstein_lower([0.9], masked, 100, 0.001)
    with pytest.raises(ValueError, match="uniform must not be masked"):
        randomized_clopper_pearson_lower([99], 100, 0.001, masked)
