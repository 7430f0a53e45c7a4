import re

import numpy as np
import pytest
from scipy import stats

from macer_tf import bounds, certificates
from macer_tf.budgets import RadiusBudget
from macer_tf.certificates import ABSTAIN
from macer_tf.confidence import anytime_lower
from macer_tf.votes import UNITS, SoftMoments, Votes


def votes(selection, estimation):
    return Votes(np.array(selection, np.int64), np.array(estimation, np.int64))


def test_values_worked_out_by_hand():
    # 100 votes of 100 at alpha = 0.001: p_lower = 0.001^(1/100) = 0.933254, Phi^-1 = 1.500475,
    # radius = 0.25 * 1.500475 = 0.375119. Second image: 50 of 100 leaves p_lower below 1/2.
    result = certificates.certify(votes([[10, 0], [4, 6]], [[100, 0], [50, 50]]), sigma=0.25, alpha=0.001)
    assert result.predictions.tolist() == [0, ABSTAIN]
    assert result.selected.tolist() == [0, 1]
    assert result.p_lower[0] == pytest.approx(0.933254, abs=1e-6)
    assert result.p_lower[1] < 0.5
    assert result.radii == pytest.approx([0.375119, 0.0], abs=1e-6)
    assert (result.n0, result.n, result.sigma, result.alpha) == (10, 100, 0.25, 0.001)


def test_the_class_comes_from_selection_and_its_bound_from_estimation_alone():
    # Estimation would choose class 1; selection chose 0, which 20 of 1,000 do not carry.
    result = certificates.certify(votes([[51, 49]], [[20, 980]]), sigma=1.0, alpha=0.001)
    assert result.selected.tolist() == [0]
    assert result.predictions.tolist() == [ABSTAIN]
    # More selection votes for the same class change nothing.
    few = certificates.certify(votes([[1, 0]], [[900, 100]]), sigma=1.0, alpha=0.001)
    many = certificates.certify(votes([[800, 0]], [[900, 100]]), sigma=1.0, alpha=0.001)
    assert few.radii == many.radii > 0


def test_it_abstains_up_to_one_half_and_what_rounding_may_add(monkeypatch):
    values = np.array([np.nextafter(0.5, 0), 0.5 + 1e-13, 0.5 + 1.01e-13])
    given = bounds.Bound("given", lambda successes, n, alpha: values, needs_fixed_n=False)
    monkeypatch.setitem(bounds.BOUNDS, "given", given)
    result = certificates.certify(votes([[0, 1]] * 3, [[5, 5]] * 3), sigma=1.0, alpha=0.05, bound="given")
    assert result.predictions.tolist() == [ABSTAIN, ABSTAIN, 1]
    assert (result.radii[:2] == 0).all()
    assert result.radii[2] > 0


def test_more_than_two_classes_use_one_half_too():
    # Cohen's p_B is bounded by 1 - p_A: 40 % of the votes never certify, however far ahead of the others.
    result = certificates.certify(votes([[9, 0, 0, 0]], [[4000, 2000, 2000, 2000]]), sigma=1.0, alpha=0.001)
    assert result.predictions.tolist() == [ABSTAIN]


@pytest.mark.parametrize("alpha", [0.5, 0.25, 0.125, 2.0**-20, 0.3, 0.05, 0.001, 1e-9, 1e-100])
def test_the_smallest_n_that_it_suggests_is_the_smallest_that_works(alpha):
    checks = [(certificates.check_can_certify, lambda n: certificates.certify(votes([[1, 0]], [[n, 0]]), 1.0, alpha))]
    if alpha >= 1e-12:
        checks.append((certificates.check_can_predict, lambda n: certificates.predict(np.array([[n, 0]]), alpha)[0]))
    for check, unanimous in checks:
        with pytest.raises(ValueError, match="n must be at least") as caught:
            check(0, alpha)
        smallest = int(re.search(r"at least (\d+)", str(caught.value))[1])
        check(smallest, alpha)
        result = unanimous(smallest)
        assert getattr(result, "predictions", result).tolist() == [0]
        if smallest > 1:
            with pytest.raises(ValueError, match=f"Received: n={smallest - 1}; n must be at least {smallest}"):
                check(smallest - 1, alpha)


def test_a_prediction_at_an_alpha_below_what_the_noise_is_off_is_refused():
    with pytest.raises(ValueError, match=r"prediction's alpha must be at least 1e-12. Received: alpha=1e-13"):
        certificates.predict(np.array([[1000, 0]]), 1e-13)


def test_the_smallest_n_by_hand():
    # certify: 0.001^(1/n) > 1/2 from n = 10 (1/1024 < 0.001 < 1/512). predict: 2 * 2^-n <= 0.001 from n = 11.
    certificates.check_can_certify(10, 0.001)
    certificates.check_can_predict(11, 0.001)
    with pytest.raises(ValueError, match=r"No image could be certified.*n=9; n must be at least 10"):
        certificates.certify(votes([[1, 0]], [[9, 0]]), 0.25, 0.001)
    with pytest.raises(ValueError, match=r"Every image would be abstained on.*n=10; n must be at least 11"):
        certificates.predict(np.array([[10, 0]]), 0.001)


def test_predict_agrees_with_scipys_binomial_test():
    rng = np.random.default_rng(0)
    for total in (20, 101, 1000):
        counts = rng.multinomial(total, [0.45, 0.4, 0.15], size=150)
        predictions, p_values = certificates.predict(counts, 0.05)
        for row, prediction, p_value in zip(counts, predictions, p_values, strict=True):
            first, second = sorted(row.tolist())[:-3:-1]
            expected = stats.binomtest(first, first + second, 0.5).pvalue
            assert p_value == pytest.approx(expected, rel=1e-9, abs=1.1e-13)
            assert prediction == (row.argmax() if expected <= 0.05 else ABSTAIN)
        assert 0 < (predictions == ABSTAIN).sum() < 150


@pytest.mark.parametrize(
    ("top", "votes", "exact"),  # by a continued fraction, in numbers of 200 binary digits
    [
        (309108169, 618173504, 0.08493299675281171),
        (5892504572, 11784914092, 0.38126098194408914),
        (86640204514, 173279666562, 0.07448553339135162),
    ],
)
def test_no_p_value_is_understated_for_billions_of_votes(top, votes, exact):
    _, p_values = certificates.predict(np.array([[top, votes - top]]), 0.001)
    assert exact <= p_values[0] <= exact * (1 + 1e-8)


def test_predict_abstains_on_a_tie_at_any_alpha():
    predictions, p_values = certificates.predict(np.array([[50, 50, 0], [0, 34, 66]]), 0.999)
    assert predictions.tolist() == [ABSTAIN, 2]
    assert p_values[0] == 1.0


def test_predict_is_wrong_at_most_alpha_of_the_time():
    # Two classes almost level: of 20,000 draws, at most alpha return the less likely one.
    counts = np.random.default_rng(1).binomial(200, 0.499, size=20_000)
    predictions, _ = certificates.predict(np.stack([counts, 200 - counts], axis=1), 0.05)
    assert 0 < np.mean(predictions == 0) <= 0.05


def test_max_radius_is_what_a_unanimous_vote_gets():
    # Published limits: 3.81 sigma at n = 100,000 and 3.20 sigma at n = 10,000, alpha = 0.001.
    assert certificates.max_radius(1.0, 100_000, 0.001) == pytest.approx(3.81, abs=0.005)
    assert certificates.max_radius(0.5, 10_000, 0.001) == pytest.approx(1.60, abs=0.005)
    unanimous = certificates.certify(votes([[1, 0]], [[10_000, 0]]), 0.5, 0.001)
    assert unanimous.radii[0] == certificates.max_radius(0.5, 10_000, 0.001)


@pytest.mark.parametrize(
    ("selection", "estimation", "message"),
    [
        ([[1, 0], [1, 0]], [[100, 0], [99, 0]], r"same n, at least 1. Received: \[99, 100\]"),
        ([[1, 0], [2, 0]], [[100, 0], [100, 0]], r"same n0, at least 1. Received: \[1, 2\]"),
        ([[0, 0]], [[100, 0]], "same n0"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "same n0"),
    ],
)
def test_images_with_other_numbers_of_samples_are_refused(selection, estimation, message):
    with pytest.raises(ValueError, match=message):
        certificates.certify(votes(selection, estimation), 0.25, 0.001)


def test_votes_for_a_single_class_certify_nothing():
    # All of them are for it, whatever the images are: it would be certified everywhere, at the largest radius.
    votes = Votes(np.array([[100]]), np.array([[1000]]))
    with pytest.raises(ValueError, match=r"2 classes or more. Received: \(1, 1\)"):
        certificates.certify(votes, 0.5, 0.001)
    with pytest.raises(ValueError, match="2 classes or more"):
        certificates.certify_without_selection(votes, 0.5, 0.001)
    with pytest.raises(ValueError, match="2 classes or more"):
        RadiusBudget(0.25, 1000).certify(votes, 0.5, 0.001)


def test_bad_input():
    good = votes([[1, 0]], [[100, 0]])
    for sigma in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="sigma must be above 0"):
            certificates.certify(good, sigma, 0.001)
    for alpha in (0, 1, np.nan):
        with pytest.raises(ValueError, match="alpha"):
            certificates.certify(good, 0.25, alpha)
        with pytest.raises(ValueError, match="alpha"):
            certificates.predict(good.estimation, alpha)
    with pytest.raises(ValueError, match="same n"):
        certificates.predict(np.array([[100, 0], [50, 0]]), 0.001)
    with pytest.raises(ValueError, match="2 classes or more"):
        certificates.predict(np.array([[100]]), 0.001)


def soft(selection_sums, sums, squares, n0, n):
    """Votes of one image with soft moments at beta = 16, in [0, 1]; hard votes are all for class 0."""
    moments = SoftMoments(*((np.array([values]) * UNITS**power).astype(np.int64)
                            for values, power in ((sums, 1), (squares, 2), (selection_sums, 1))))  # fmt: skip
    return Votes(np.array([[n0, 0]]), np.array([[n, 0]]), {16.0: moments})


def test_soft_certificates_worked_out_by_hand():
    # Class 1 has the larger selection score, whatever was voted for. 100 scores of 0.875 and 0.9375 by turns: mean
    # 0.90625, variance 100 / 99 * (1/32)^2 = 0.000986427. ln 2000 = 7.600902.
    # Hoeffding: 0.90625 - sqrt(ln 1000 / 200) = 0.90625 - 0.185846 = 0.720404.
    # Bernstein: 0.90625 - sqrt(2 * 0.000986427 * 7.600902 / 100) - 7 * 7.600902 / 297
    #          = 0.90625 - 0.012246 - 0.179146 = 0.714858.
    some = soft([4, 6], [9.375, 90.625], [1, 50 * (0.875**2 + 0.9375**2)], n0=10, n=100)
    for bound, expected in (("hoeffding", 0.720404), ("empirical-bernstein", 0.714858)):
        result = certificates.certify(some, 0.5, 0.001, bound=bound, beta=16)
        assert result.predictions.tolist() == result.selected.tolist() == [1]
        assert result.p_lower == pytest.approx([expected], abs=1e-6)
        assert result.radii == pytest.approx([0.5 * stats.norm.ppf(expected)], abs=2e-6)
        assert (result.bound, result.beta, result.n) == (bound, 16.0, 100)
    # The hard classifier is another one: its certificate is of class 0.
    assert certificates.certify(some, 0.5, 0.001).predictions.tolist() == [0]


def test_soft_certificates_abstain():
    some = soft([6, 4], [60, 40], [36, 16], n0=10, n=100)
    result = certificates.certify(some, 0.5, 0.001, bound="hoeffding", beta=16.0)
    assert result.predictions.tolist() == [ABSTAIN]
    assert result.radii.tolist() == [0.0]


def test_anytime_certificates_of_different_n():
    some = votes([[9, 1], [9, 1], [9, 1], [9, 1]], [[100, 0], [0, 0], [50, 50], [900, 100]])
    result = certificates.certify(some, 0.25, 0.001, bound="anytime")
    assert result.predictions.tolist() == [0, ABSTAIN, ABSTAIN, 0]
    assert result.n.tolist() == [100, 0, 100, 1000]
    expected = anytime_lower([100, 0, 50, 900], [100, 0, 100, 1000], 0.001)
    assert result.p_lower.tolist() == certificates.round_down(expected).tolist()
    assert result.radii[[0, 3]] == pytest.approx(0.25 * stats.norm.ppf(result.p_lower[[0, 3]]))
    assert result.bound == "anytime"


@pytest.mark.parametrize("bound", ["clopper-pearson", "hoeffding", "empirical-bernstein"])
def test_bounds_for_one_n_refuse_others_unless_they_were_fixed(bound):
    beta = None if bound == "clopper-pearson" else 16.0
    parts = [soft([9, 1], [n, 0], [n, 0], n0=10, n=n) for n in (100, 200, 0)]
    some = Votes(
        np.concatenate([part.selection for part in parts]),
        np.concatenate([part.estimation for part in parts]),
        {16.0: SoftMoments(*(np.concatenate([getattr(part.soft[16.0], name) for part in parts])
                             for name in ("sums", "squares", "selection_sums")))},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"same n, at least 1. Received: \[0, 100, 200\]"):
        certificates.certify(some, 0.25, 0.01, bound, beta)
    for fixed_n in ([100, 100, 0], [100, 200, 300], [100, 200]):
        with pytest.raises(ValueError, match="do not have the number of samples fixed for them"):
            certificates.certify(some, 0.25, 0.01, bound, beta, fixed_n=np.array(fixed_n))
    result = certificates.certify(some, 0.25, 0.01, bound, beta, fixed_n=np.array([100, 200, 0]))
    assert result.predictions.tolist() == [0, 0, ABSTAIN]
    assert result.n.tolist() == [100, 200, 0]
    alone = certificates.certify(parts[1], 0.25, 0.01, bound, beta)
    assert alone.radii[0] == result.radii[1] > result.radii[0]


def test_the_smallest_n_of_each_bound():
    # hoeffding: 1 - sqrt(ln 1000 / 2n) > 1/2 from n > 2 ln 1000 = 13.8. empirical-bernstein: 7 ln 2000 / (3 (n - 1)) <
    # 1/2 from n - 1 > 35.5. anytime: 0.15 * 2^n > 1000 from n = 13 at the latest (2^12.7), clopper-pearson: 10.
    for bound, smallest in (("hoeffding", 14), ("empirical-bernstein", 37), ("clopper-pearson", 10)):
        certificates.check_can_certify(smallest, 0.001, bound)
        with pytest.raises(ValueError, match=f"n={smallest - 1}; n must be at least {smallest}"):
            certificates.check_can_certify(smallest - 1, 0.001, bound)
    with pytest.raises(ValueError, match=r"n must be at least 1[123]\."):
        certificates.check_can_certify(10, 0.001, "anytime")
    assert certificates.max_radius(1.0, 100_000, 0.001, "anytime") < certificates.max_radius(1.0, 100_000, 0.001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"bound": "wilson"},
            "bound must be one of clopper-pearson, anytime, hoeffding, empirical-bernstein, randomized-clopper-pearson",
        ),
        ({"bound": "hoeffding"}, r"soft moments at beta in \[16.0\]. Received: bound='hoeffding', beta=None"),
        ({"bound": "empirical-bernstein", "beta": 1.0}, "soft moments at beta in"),
        ({"beta": 16.0}, "beta is for the soft bounds"),
        ({"bound": "anytime", "fixed_n": np.array([100])}, "the anytime bound holds for any n"),
    ],
)
def test_bounds_that_do_not_fit_the_votes(arguments, message):
    with pytest.raises(ValueError, match=message):
        certificates.certify(soft([9, 1], [90, 10], [85, 2], n0=10, n=100), 0.25, 0.01, **arguments)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("n", [6, 12])
def test_exactly_how_often_a_certificate_without_selection_is_false(n, alpha):
    # Every outcome of n votes for three classes, with its probability.
    counts = np.array([(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)])
    result = certificates.certify_without_selection(Votes(np.zeros_like(counts), counts), 1.0, alpha)
    grid = [(a / 20, b / 20, 1 - a / 20 - b / 20) for a in range(11) for b in range(21 - a)]
    worst = 0.0
    for p in [*grid, (0.5, 0.5, 0.0), (0.5 + 1e-9, 0.5 - 1e-9, 0.0)]:
        p = np.maximum(p, 0)
        probability = stats.multinomial.pmf(counts, n, p / p.sum())
        is_false = (result.predictions != ABSTAIN) & (result.p_lower > p[result.selected])
        worst = max(worst, probability[is_false | ((result.radii > 0) & (p[result.selected] <= 0.5))].sum())
    assert 0 < worst <= alpha


def test_a_certificate_without_selection_by_hand():
    result = certificates.certify_without_selection(votes([[0, 0], [0, 0]], [[1, 99], [60, 40]]), 0.5, 0.02)
    lower = stats.beta.ppf(0.01, 99, 2)
    assert result.predictions.tolist() == [1, ABSTAIN]
    assert result.p_lower[0] == pytest.approx(lower, rel=1e-12)
    assert result.radii[0] == pytest.approx(0.5 * stats.norm.ppf(lower), rel=1e-12)
    assert (result.n0, result.n) == (0, 100)


def several():
    counts = [[1000, 0], [900, 100], [500, 500]]
    return certificates.certify(votes([[10, 0]] * 3, counts), sigma=0.25, alpha=0.001)


def test_certificates_are_shown_in_one_line():
    assert repr(several()) == "Certificates(3 images, sigma=0.25, n=1,000, alpha=0.001: 66.7 % certified)"
    different = certificates.certify(votes([[10, 0]] * 2, [[100, 0], [9000, 0]]), 0.5, 0.01, "anytime")
    assert repr(different) == (
        "Certificates(2 images, sigma=0.5, n=100 to 9,000, alpha=0.01, bound=anytime: 100.0 % certified)"
    )
    assert repr(several()[0]) == "Certificates(1 image, sigma=0.25, n=1,000, alpha=0.001: 100.0 % certified)"
    assert repr(several()[:0]) == "Certificates(0 images, sigma=0.25, n=1,000, alpha=0.001)"


@pytest.mark.parametrize(
    ("images", "places"),
    [(1, [1]), (-1, [2]), (slice(0, 2), [0, 1]), ([2, 0], [2, 0]), (np.array([True, False, True]), [0, 2])],
)
def test_an_index_gives_the_certificates_of_those_images(images, places):
    whole = certificates.certify(votes([[10, 0]] * 3, [[100, 0], [90, 10], [3, 9]]), 0.5, 0.01, "anytime")
    some = whole[images]
    assert len(some) == len(places)
    for name in ("predictions", "radii", "p_lower", "selected", "n"):
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[places])
    assert (some.sigma, some.alpha, some.n0, some.bound) == (0.5, 0.01, 10, "anytime")


def test_an_index_beyond_the_images_is_an_error():
    with pytest.raises(IndexError):
        several()[3]


def test_a_frame_has_one_row_per_image():
    frame = several().to_frame()
    assert frame.columns.tolist() == ["prediction", "radius", "p_lower", "selected", "n"]
    assert frame.prediction.tolist() == [0, 0, ABSTAIN]
    np.testing.assert_array_equal(frame.radius, several().radii)
    assert frame.n.tolist() == [1000] * 3
    assert frame.index.name == "image"


def test_a_mask_or_an_index_of_another_form_is_refused():
    counts = np.array([[1000, 0], [700, 300], [500, 500]])
    certified = certificates.certify(Votes(counts, counts), 0.25, 0.001)
    for index in (None, True, np.array([[0, 1]])):
        with pytest.raises(IndexError, match="must be one number, a slice, or one row of numbers or bools"):
            certified[index]
    with pytest.raises(ValueError, match="The index must not be masked"):
        certified[np.ma.masked_array([0, 1], mask=[False, True])]
    planned = np.ma.masked_array([5, 1000, 1000], mask=[True, False, False])
    with pytest.raises(ValueError, match="fixed_n must not be masked"):
        certificates.certify(Votes(counts, counts), 0.25, 0.001, fixed_n=planned)
    with pytest.raises(ValueError, match="Votes must not be masked"):
        certificates.predict(np.ma.masked_array(counts, mask=counts == 300), 0.001)
    assert certificates.predict(counts.tolist(), 0.001)[0].tolist() == [0, 0, ABSTAIN]


def test_a_beta_that_is_no_number_is_one_line():
    counts = np.array([[1000, 0]])
    with pytest.raises(ValueError, match=r"The votes hold soft moments at beta in \[\]. .* beta=\[16.0\]"):
        certificates.certify(Votes(counts, counts), 0.25, 0.001, "hoeffding", beta=[16.0])


def test_a_radius_is_of_float64_and_of_a_bound_below_1():
    near_1 = np.float32(1 - 2.0**-24)  # in float32, its quantile is 5e-9 too high
    assert certificates.radius(near_1, 1.0) <= stats.norm.ppf(float(near_1))
    assert certificates.radius(near_1, 1.0).dtype == np.float64
    assert certificates.round_down(near_1) < near_1
    for p_lower in (1.0, 1.5, np.nan, np.array([0.6, np.inf])):
        with pytest.raises(ValueError, match=r"a lower bound on a probability, is below 1\. Received: "):
            certificates.radius(p_lower, 0.25)
    with pytest.raises(ValueError, match="sigma must be above 0"):
        certificates.radius(0.9, -0.25)
