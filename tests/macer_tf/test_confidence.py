import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from macer_tf.confidence import check_alpha, clopper_pearson_lower


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


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, np.nan])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match=r"alpha, the failure probability, must be above 0 and below 1. Received"):
        check_alpha(alpha)
    with pytest.raises(ValueError, match="alpha"):
        clopper_pearson_lower(5, 10, alpha)


@pytest.mark.parametrize("successes", [-1, 11])
def test_bad_successes(successes):
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        clopper_pearson_lower(successes, 10, 0.05)
