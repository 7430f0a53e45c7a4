import functools
import math

import numpy as np
import pytest
from scipy import stats

from macer_tf import certificates
from macer_tf.budgets import BLOCK, FixedBudget, RadiusBudget, ToleranceBudget
from macer_tf.certificates import ABSTAIN
from macer_tf.confidence import anytime_lower, clopper_pearson_lower
from macer_tf.evaluation import evaluate
from macer_tf.votes import UNITS, SoftMoments, Votes

SIGMA, ALPHA = 0.5, 0.05
# Radius 0.25 at sigma = 0.5 needs p_A of Phi(0.5) = 0.691462.
THRESHOLD = stats.norm.cdf(0.5)


def two_classes(selected, n0, successes, n):
    """Votes of two classes: class 0 has `selected` of n0 and `successes` of n."""
    selected, n0, successes, n = np.broadcast_arrays(
        *(np.atleast_1d(np.int64(x)) for x in (selected, n0, successes, n))
    )
    return Votes(np.stack([selected, n0 - selected], axis=1), np.stack([successes, n - successes], axis=1))


def spend(budget, selected, n0, samples, labels=None, alpha=ALPHA):
    """Draws what the budget asks for, each image from its own row of `samples` [images, n]: 1 is a vote for class 0.

    Returns the votes and how often it asked.
    """
    votes, rounds = two_classes(selected, n0, np.zeros(len(samples), np.int64), 0), 0
    rows = np.arange(len(samples))
    totals = np.concatenate([np.zeros((len(samples), 1), np.int64), samples.cumsum(axis=1)], axis=1)
    while (more := budget.more(votes, SIGMA, alpha, labels)).any():
        n = votes.n + more
        votes, rounds = two_classes(selected, n0, totals[rows, n], n), rounds + 1
    return votes, rounds


def drawn(p, n, seed=0):
    return (np.random.default_rng(seed).random((len(p), n)) < np.asarray(p)[:, None]).astype(np.int64)


BUDGETS = [
    *(FixedBudget(3000), RadiusBudget(0.25, 3000), RadiusBudget(0.0, 2950), RadiusBudget((0.0, 0.25, 0.5), 3000)),
    ToleranceBudget(0.05, 3000),
]


@pytest.mark.parametrize("budget", BUDGETS)
def test_never_more_than_n_in_whole_blocks(budget):
    p = np.linspace(0.05, 1, 400)
    votes, rounds = spend(budget, np.maximum(np.round(100 * p), 51), 100, drawn(p, 3000))
    assert (votes.n <= budget.n).all()
    assert ((votes.n % BLOCK == 0) | (votes.n == budget.n)).all()
    # From 100 by half as much again: 100, 200, 300, 500, 800, 1200, 1800, 2700, 3000.
    assert rounds == (9 if isinstance(budget, RadiusBudget) else 1)
    result = budget.certify(votes, SIGMA, ALPHA)
    assert 0 < (result.predictions == ABSTAIN).sum() < 400
    # What is decided stays decided, and what an image gets does not depend on which others are beside it.
    assert not budget.more(votes, SIGMA, ALPHA).any()
    half = Votes(votes.selection, votes.estimation // 2)
    together = budget.more(half, SIGMA, ALPHA)
    alone = [
        budget.more(Votes(half.selection[[row]], half.estimation[[row]]), SIGMA, ALPHA)[0] for row in range(0, 400, 7)
    ]
    assert together[::7].tolist() == alone


def test_fixed_budget_is_certify():
    votes, _ = spend(FixedBudget(1000), 80, 100, drawn([0.5, 0.8, 0.99], 1000))
    ours, theirs = FixedBudget(1000).certify(votes, SIGMA, ALPHA), certificates.certify(votes, SIGMA, ALPHA)
    assert ours.radii.tolist() == theirs.radii.tolist()
    assert (ours.n, ours.bound) == (1000, "clopper-pearson")
    assert FixedBudget(1000).certify(votes, SIGMA, ALPHA, "anytime").bound == "anytime"


def test_soft_bounds_refuse_images_left_out_by_their_hard_votes():
    unit = np.array([[UNITS, 0]])
    some = Votes(np.array([[10, 0]] * 2), np.array([[100, 0], [0, 0]]), {
        1.0: SoftMoments(np.concatenate([100 * unit, 0 * unit]), np.concatenate([100 * unit * UNITS, 0 * unit]),
                         np.concatenate([10 * unit] * 2))
    })  # fmt: skip
    assert FixedBudget(100).certify(some, SIGMA, ALPHA).predictions.tolist() == [0, ABSTAIN]
    with pytest.raises(ValueError, match="do not have the number of samples fixed for them"):
        FixedBudget(100).certify(some, SIGMA, ALPHA, "hoeffding", 1.0)


@functools.cache
def looks(budget, alpha):
    """At each look of RadiusBudget: n, by the number of successes whether it stops, and how many more it asks for."""
    n, rows = 0, []
    while True:
        more = budget.more(two_classes(9, 10, np.arange(n + 1), n), SIGMA, alpha)
        step = int(more.max())
        assert set(more.tolist()) <= {0, step}
        rows.append((n, more == 0, step))
        if not step:
            return rows
        n += step


@functools.cache
def certified_where_it_stops(budget, alpha):
    """n wherever RadiusBudget may stop, and the `Certificates` there."""
    counts = [(n, successes) for n, stops, _ in looks(budget, alpha) for successes in np.flatnonzero(stops)]
    n, successes = np.array(counts).T
    return n, budget.certify(two_classes(9, 10, successes, n), SIGMA, alpha)


def stopped(budget, p, alpha):
    """n wherever RadiusBudget may stop, the exact probability that it stops there, and the `Certificates` there."""
    probability, parts = np.ones(1), []
    for _, stops, step in looks(budget, alpha):
        parts.append(probability[stops])
        if step:
            steps = stats.binom.pmf(np.arange(step + 1), step, p)
            probability = np.convolve(np.where(stops, 0, probability), steps)
    n, certified = certified_where_it_stops(budget, alpha)
    return n, np.concatenate(parts), certified


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
@pytest.mark.parametrize("p", [0.5, 0.65, 0.69, THRESHOLD - 1e-9, THRESHOLD + 1e-9, 0.7, 0.75, 0.9])
def test_exactly_how_often_a_stopped_certificate_is_false(p, alpha):
    budget = RadiusBudget(0.25, 2000)
    n, probability, result = stopped(budget, p, alpha)
    assert probability.sum() == pytest.approx(1, abs=1e-9)
    # Any radius beyond the true one is false, not only those beyond 0.25.
    assert probability[result.p_lower > p].sum() <= alpha
    certified = result.radii >= 0.25
    if p < THRESHOLD:
        assert probability[certified].sum() <= alpha
    # It does decide: far from the threshold, nearly always.
    if p in (0.5, 0.9):
        assert probability[certified].sum() == pytest.approx(float(p > THRESHOLD), abs=alpha)
        assert (probability * n).sum() < 500


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
def test_an_image_that_n_samples_may_certify_is_given_up_with_probability_alpha_at_most(alpha):
    budget = RadiusBudget(0.25, 2000)
    fewest = np.searchsorted(clopper_pearson_lower(np.arange(2001), 2000, alpha / 2), THRESHOLD)
    for p in fewest / 2000 + np.array([1e-9, 0.005, 0.02]):
        n, probability, result = stopped(budget, p, alpha)
        certified = result.radii >= 0.25
        assert probability[~certified & (n < 2000)].sum() <= alpha


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
def test_giving_up_loses_exactly_so_few_images(alpha):
    # As many are certified as by one look at all 2,000 samples, with half of alpha; 5 in 1,000 fewer at most.
    budget = RadiusBudget(0.25, 2000)
    fewest = np.searchsorted(clopper_pearson_lower(np.arange(2001), 2000, alpha / 2), THRESHOLD)
    for p in (0.6, THRESHOLD, *(fewest / 2000 + np.array([-0.01, 0, 0.01, 0.02])), 0.75, 0.85):
        n, probability, result = stopped(budget, p, alpha)
        certified = result.radii >= 0.25
        assert probability[certified].sum() >= stats.binom.sf(fewest - 1, 2000, p) - 0.005
        # Without giving up, an image of 0.6 takes 1,900 samples and more.
        if p == 0.6:
            assert (probability * n).sum() < 1000


def test_half_of_alpha_for_looks_and_half_for_one_look_at_the_end():
    votes = two_classes(9, 10, [720, 1420], [1000, 2000])
    result = RadiusBudget(0.25, 2000).certify(votes, SIGMA, ALPHA)
    expected = [anytime_lower(720, 1000, ALPHA / 2), stats.beta.ppf(ALPHA / 2, 1420, 2000 - 1420 + 1)]
    np.testing.assert_allclose(result.p_lower, expected, rtol=1e-12)
    np.testing.assert_allclose(result.radii, SIGMA * stats.norm.ppf(expected), rtol=1e-12)
    assert result.alpha == ALPHA
    # Before its last samples, an image has the anytime bound alone; one vote fewer at the end would not be enough.
    fewest = next(s for s in range(2001) if stats.beta.ppf(ALPHA / 2, max(s, 1), 2001 - s) >= THRESHOLD)
    ends = two_classes(9, 10, [fewest - 1, fewest], 2000)
    assert (RadiusBudget(0.25, 2000).certify(ends, SIGMA, ALPHA).radii >= 0.25).tolist() == [False, True]


def test_how_often_a_stopped_certificate_is_false_at_alpha():
    # 20,000 images at 2 % below the threshold; 3 binomial standard errors of a share alpha.
    p = np.full(20_000, THRESHOLD - 0.02)
    votes, _ = spend(RadiusBudget(0.25, 1200), 9, 10, drawn(p, 1200))
    result = RadiusBudget(0.25, 1200).certify(votes, SIGMA, ALPHA)
    false = np.mean(SIGMA * stats.norm.ppf(p[0]) < result.radii)
    assert 0 < false <= ALPHA + 3 * np.sqrt(ALPHA / 20_000)


def test_several_radii_are_decided_together():
    radii, n = (0.0, 0.25, 0.5, 9.0), 20_000
    p = np.concatenate([np.linspace(0.3, 1, 400), np.repeat(stats.norm.cdf(np.array(radii[:3]) / SIGMA), 30)])
    samples = drawn(p, n)
    votes, _ = spend(RadiusBudget(radii, n), 100, 100, samples)
    result = RadiusBudget(radii, n).certify(votes, SIGMA, ALPHA)
    for radius in radii[:3]:
        budget = RadiusBudget(radius, n)
        # Nothing is left to decide at any of them, and at each the answer is mostly that of its own budget.
        assert not budget.more(votes, SIGMA, ALPHA).any()
        alone = budget.certify(spend(budget, 100, 100, samples)[0], SIGMA, ALPHA)
        certified, expected = ((one.predictions == 0) & (one.radii >= radius) for one in (result, alone))
        assert np.mean(certified != expected) < 0.02
        # Each is false with probability at most alpha, also of those at the very radius.
        assert np.mean(certified[stats.norm.cdf(radius / SIGMA) >= p]) <= 3 * ALPHA
    # Together they take hardly more than the dearest of them.
    dearest = np.max([spend(RadiusBudget(radius, n), 100, 100, samples)[0].n for radius in radii[:3]], axis=0)
    assert votes.n.sum() < 1.1 * dearest.sum()


def test_how_often_any_of_several_radii_is_false():
    # p lies at one of the radii: a certificate beyond it is false, and so is one at a larger radius.
    radii, n = (0.0, 0.25, 0.5), 2000
    for radius in radii[1:]:
        p = np.full(4000, stats.norm.cdf(radius / SIGMA) - 1e-9)
        votes, _ = spend(RadiusBudget(radii, n), 100, 100, drawn(p, n, seed=int(100 * radius)))
        result = RadiusBudget(radii, n).certify(votes, SIGMA, ALPHA)
        false = (result.predictions == 0) & (result.radii >= radius)
        # 4 standard errors above alpha would be 0.064.
        assert 0 < false.mean() <= ALPHA


@pytest.mark.parametrize("n0", [10, 200])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_exactly_how_often_a_planned_certificate_is_false(n0, alpha):
    budget = ToleranceBudget(0.02, 5000)
    selected = np.arange(n0 // 2 + 1, n0 + 1)
    planned = budget.more(two_classes(selected, n0, 0, 0), SIGMA, alpha)
    assert len(set(planned.tolist())) > 3
    p_lower = {
        n: budget.certify(two_classes(selected[planned == n][0], n0, np.arange(n + 1), n), SIGMA, alpha).p_lower
        for n in set(planned.tolist())
    }
    for p in (0.55, 0.7, 0.9, 0.99, 0.9999):
        false = 0.0
        for chance, n in zip(stats.binom.pmf(selected, n0, p), planned.tolist(), strict=True):
            false += chance * stats.binom.pmf(np.arange(n + 1), n, p)[p_lower[n] > p].sum()
        assert false <= alpha


def test_tolerance_is_what_it_says():
    # Of the mean radius that all 20,000 samples would certify; three standard errors of the comparison are 0.2 %.
    p = np.random.default_rng(3).beta(6, 0.6, size=4000)
    rng = np.random.default_rng(4)
    selected = rng.binomial(500, p)
    p, selected = p[selected > 250], selected[selected > 250]
    for tolerance in (0.01, 0.05):
        budget = ToleranceBudget(tolerance, 20_000)
        n = budget.more(two_classes(selected, 500, 0, 0), SIGMA, 0.001)
        ours = budget.certify(two_classes(selected, 500, rng.binomial(n, p), n), SIGMA, 0.001)
        full = FixedBudget(20_000).certify(two_classes(selected, 500, rng.binomial(20_000, p), 20_000), SIGMA, 0.001)
        assert 0.8 * tolerance - 0.002 < 1 - ours.radii.mean() / full.radii.mean() < tolerance + 0.002
        assert n.mean() < (0.65 if tolerance == 0.01 else 0.35) * 20_000
        assert np.mean(ours.p_lower > p) < 0.003


def test_a_plan_comes_from_selection_alone_and_nothing_else_is_certified():
    budget = ToleranceBudget(0.02, 5000)
    (planned,) = budget.more(two_classes(95, 100, 0, 0), SIGMA, ALPHA)
    for successes in (0, 300, 600):
        assert budget.more(two_classes(95, 100, successes, 600), SIGMA, ALPHA).tolist() == [planned - 600]
    budget.certify(two_classes(95, 100, planned, planned), SIGMA, ALPHA)
    for n in (planned - 100, planned + 100):
        with pytest.raises(ValueError, match="do not have the number of samples fixed for them"):
            budget.certify(two_classes(95, 100, n, n), SIGMA, ALPHA)
    with pytest.raises(ValueError, match="do not have the number of samples fixed for them"):
        FixedBudget(5000).certify(two_classes(95, 100, planned, planned), SIGMA, ALPHA)


@pytest.mark.parametrize(
    "of_n", [FixedBudget, functools.partial(RadiusBudget, 0.25), functools.partial(ToleranceBudget, 0.01)]
)
def test_an_n_of_a_narrow_type_is_what_it_is(of_n):
    """Its negative, and one more than it, would be other numbers."""
    votes = two_classes(95, 100, 150, 200)
    for n in (np.uint8(255), np.int16(32_750)):
        assert of_n(n) == of_n(int(n))
        assert of_n(n).more(votes, SIGMA, ALPHA).tolist() == of_n(int(n)).more(votes, SIGMA, ALPHA).tolist()


def test_images_that_will_abstain_cost_little():
    # The most frequent class has 40 % of the votes, of three classes at selection.
    votes = Votes(np.array([[200, 150, 150]]), np.zeros((1, 3), np.int64))
    assert ToleranceBudget(0.01, 100_000).more(votes, SIGMA, 0.001).tolist() == [BLOCK]
    for radius in (0.0, 0.25):
        assert RadiusBudget(radius, 100_000).more(two_classes(9, 10, 160, 400), SIGMA, ALPHA).tolist() == [0]


@pytest.mark.parametrize("budget", BUDGETS)
def test_leaving_out_wrong_images_changes_no_number_of_an_evaluation(budget):
    p = np.linspace(0.55, 1, 300)
    samples, labels = drawn(p, 3000, seed=5), np.arange(300) % 3
    selected = np.maximum(np.round(100 * p), 51)
    whole, _ = spend(budget, selected, 100, samples)
    saved, _ = spend(budget, selected, 100, samples, labels)
    assert (saved.n == np.where(labels == 0, whole.n, 0)).all()
    radii = (0, 0.25, 0.5)
    ours, theirs = (evaluate(budget.certify(votes, SIGMA, ALPHA), labels, radii) for votes in (saved, whole))
    assert ours.certified_accuracy == theirs.certified_accuracy
    assert (ours.acr, ours.acr_standard_error) == (theirs.acr, theirs.acr_standard_error)
    assert ours.acr > 0
    # Two thirds of the images: nobody knows whether they would abstain.
    assert ours.unestimated == pytest.approx(2 / 3)
    assert theirs.unestimated == 0
    assert ours.abstained <= theirs.abstained


def test_a_radius_out_of_reach_is_refused_before_any_sampling():
    votes = two_classes(9, 10, 0, 0)
    with pytest.raises(ValueError, match=r"n=100 samples certify up to radius 0\.\d+ at sigma=0.5.* radius=2"):
        RadiusBudget(2, 100).more(votes, SIGMA, ALPHA)
    largest = float(certificates.max_radius(SIGMA, 100, ALPHA / 2))
    beyond = math.nextafter(largest, 2)
    with pytest.raises(ValueError, match=rf"up to radius {largest} .* radius={beyond}"):
        RadiusBudget(beyond, 100).more(votes, SIGMA, ALPHA)
    for budget in (FixedBudget(9), ToleranceBudget(0.1, 9), RadiusBudget(0.0, 9)):
        with pytest.raises(ValueError, match="No image could be certified"):
            budget.more(votes, SIGMA, 0.001)


def test_bad_input():
    for n in (0, -5, 1.5, 2**40 + 1, 10**400):
        with pytest.raises(ValueError, match="n, the most samples per image, must be a whole number from 1"):
            FixedBudget(n)
    for radius in (-0.1, np.nan, np.inf, [0.25, 0.5], np.array([0.25]), "0.25", None, (0.25, "0.5"), ()):
        with pytest.raises(ValueError, match="radius must be a finite number from 0"):
            RadiusBudget(radius, 1000)
    for tolerance in (0, 1, np.nan, "0.1", None):
        with pytest.raises(ValueError, match="tolerance must be above 0 and below 1"):
            ToleranceBudget(tolerance, 1000)
    budget, votes = RadiusBudget(0.25, 1000), two_classes(9, 10, 0, 0)
    with pytest.raises(ValueError, match="sigma must be above 0"):
        budget.more(votes, 0, ALPHA)
    for ask in (budget.more, budget.certify):
        with pytest.raises(ValueError, match=r"alpha.* Received: alpha=1"):
            ask(votes, SIGMA, 1)
    with pytest.raises(ValueError, match=r"Expected one label per image. Received: \(2,\) for \(1,\)"):
        budget.more(votes, SIGMA, ALPHA, labels=[0, 1])
    # Otherwise an image whose label cannot be read would be left out.
    for labels, received in (
        (["0"], "<U1"),
        ([0.5], r"0\.5 to 0\.5"),
        ([np.nan], "nan"),
        ([None], "object"),
        ([-2], "-2"),
    ):
        with pytest.raises(ValueError, match=f"Labels must be whole numbers from 0, or -1 .* Received: {received}"):
            budget.more(votes, SIGMA, ALPHA, labels)
    with pytest.raises(ValueError, match="Labels must not be masked"):
        budget.more(votes, SIGMA, ALPHA, np.ma.masked_array([0], mask=[True]))
    for bad in (two_classes(0, 0, 0, 0), two_classes(9, 10, 1001, 1001)):
        with pytest.raises(ValueError, match="needs selection votes and at most n=1000 estimation votes"):
            budget.more(bad, SIGMA, ALPHA)
