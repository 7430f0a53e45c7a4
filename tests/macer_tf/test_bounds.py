import numpy as np
import pytest

from macer_tf import bounds, certificates, confidence, evaluation
from macer_tf.budgets import FixedBudget
from macer_tf.votes import Votes


@pytest.fixture
def union_bound(monkeypatch):
    """Another bound: Clopper-Pearson's at half of alpha, which must be everywhere that bounds are."""
    monkeypatch.setattr(bounds, "BOUNDS", dict(bounds.BOUNDS))

    @bounds.register("half")
    def half(successes, n, alpha):
        return confidence.clopper_pearson_lower(successes, n, alpha / 2)

    return half


def votes(counts):
    counts = np.array(counts, np.int64)
    return Votes(np.array([[1, 0]] * len(counts), np.int64), counts)


def test_a_registered_bound_certifies_and_says_what_n_can_reach(union_bound):
    counts = votes([[1000, 0], [700, 300]])
    expected = certificates.certify(counts, 0.25, 0.0005)
    result = certificates.certify(counts, 0.25, 0.001, "half")
    np.testing.assert_array_equal(result.radii, expected.radii)
    assert result.bound == "half"
    np.testing.assert_array_equal(FixedBudget(1000).certify(counts, 0.25, 0.001, "half").radii, expected.radii)
    assert certificates.max_radius(0.25, 1000, 0.001, "half") == expected.radii[0]
    assert evaluation.default_radii(1.0, 1000, 0.001, "half")[-1] == 2.25
    # 0.0005^(1/n) > 1/2 from n = 11 (1/2048 < 0.0005 < 1/1024).
    with pytest.raises(ValueError, match="n=10; n must be at least 11"):
        certificates.check_can_certify(10, 0.001, "half")
    with pytest.raises(ValueError, match="beta is for the soft bounds hoeffding and empirical-bernstein"):
        certificates.certify(counts, 0.25, 0.001, "half", beta=16.0)


def test_a_bound_that_holds_at_any_n_takes_images_of_different_n(monkeypatch):
    any_n = bounds.Bound("any-n", confidence.anytime_lower, needs_fixed_n=False)
    monkeypatch.setitem(bounds.BOUNDS, "any-n", any_n)
    counts = votes([[1000, 0], [70, 30]])
    expected = certificates.certify(counts, 0.25, 0.001, "anytime")
    np.testing.assert_array_equal(certificates.certify(counts, 0.25, 0.001, "any-n").p_lower, expected.p_lower)
    with pytest.raises(ValueError, match="the any-n bound holds for any n"):
        certificates.certify(counts, 0.25, 0.001, "any-n", fixed_n=[1000, 100])


def test_no_two_bounds_have_one_name(union_bound):
    with pytest.raises(ValueError, match="A bound of this name already exists; choose another name"):
        bounds.register("half")


def test_an_unknown_bound_is_answered_with_those_there_are():
    names = "clopper-pearson, anytime, hoeffding, empirical-bernstein, randomized-clopper-pearson"
    with pytest.raises(ValueError, match=f"must be one of {names}. Received: bound='x'"):
        bounds.get("x")


def test_the_randomised_bound_is_above_clopper_pearson_and_needs_uniforms():
    counts = np.array([[970, 30], [1000, 0], [300, 700]])
    votes = Votes(counts, counts, uniforms=np.array([0.5, 0.25, 1.0]))
    randomised = certificates.certify(votes, 0.5, 0.001, "randomized-clopper-pearson")
    plain = certificates.certify(votes, 0.5, 0.001)
    assert (randomised.radii[:2] > plain.radii[:2]).all()
    assert randomised.radii[2] == pytest.approx(plain.radii[2], rel=1e-9)  # U = 1 is Clopper-Pearson
    assert randomised.p_lower[1] == pytest.approx(0.004**0.001, abs=1e-12)  # by hand: U p^n = alpha
    with pytest.raises(ValueError, match="needs votes with uniforms"):
        certificates.certify(Votes(counts, counts), 0.5, 0.001, "randomized-clopper-pearson")
    assert certificates.max_radius(0.5, 1000, 0.001, "randomized-clopper-pearson") >= randomised.radii[1]


def whole_share(successes, n, alpha):
    return successes / n


def above_1(successes, n, alpha):
    return successes / n + 1


def no_number(successes, n, alpha):
    return np.full(np.shape(n), np.nan)


def one_for_all(successes, n, alpha):
    return np.float64(0.9)


def a_column(successes, n, alpha):
    return np.full((*np.shape(n), 1), 0.9)


def in_fewer_digits(successes, n, alpha):
    return np.float32(confidence.clopper_pearson_lower(successes, n, alpha))


def masked(successes, n, alpha):
    lower = confidence.clopper_pearson_lower(successes, n, alpha)
    return np.ma.masked_array(lower, mask=np.full(lower.shape, True))


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (masked, "returns must not be masked; leave masked ones out. Received: 1 masked"),
        (whole_share, "must return numbers below 1. Received: 1.0"),
        (above_1, "must return numbers below 1. Received: 2.0"),
        (no_number, "must return numbers below 1. Received: nan"),
        (one_for_all, r"must return one float64 for each n, \(1,\). Received: float64 \(\)"),
        (a_column, r"must return one float64 for each n, \(1,\). Received: float64 \(1, 1\)"),
        (in_fewer_digits, r"must return one float64 for each n, \(1,\). Received: float32 \(1,\)"),
    ],
)
def test_what_cannot_be_a_lower_bound_certifies_nothing(union_bound, function, line):
    bounds.register("mistaken")(function)
    with pytest.raises(ValueError, match=f"[Tt]he bound mistaken {line}"):
        certificates.certify(votes([[1000, 0], [700, 300]]), 0.25, 0.001, "mistaken")


def test_a_bound_that_no_n_satisfies_says_so(union_bound):
    bounds.register("useless")(lambda successes, n, alpha: np.zeros(np.shape(n)))
    with pytest.raises(ValueError, match="n=1000; no n up to 4,999 is enough"):
        certificates.certify(votes([[1000, 0]]), 0.25, 0.001, "useless")


def test_a_bound_is_registered_and_found_by_a_string():
    with pytest.raises(ValueError, match=r"A bound is registered by its name: @bounds.register\('my-bound'\)"):
        bounds.register(above_1)
    with pytest.raises(ValueError, match=r"must be one of .* Received: bound=\['anytime'\]"):
        bounds.get(["anytime"])


def test_an_image_without_samples_is_abstained_on_whatever_the_bound(union_bound):
    bounds.register("quotient")(lambda successes, n, alpha: successes / n - np.sqrt(-np.log(alpha) / (2 * n)))
    counts = votes([[1000, 0], [0, 0]])
    found = FixedBudget(1000).certify(counts, 0.25, 0.001, "quotient")
    # By hand: 1 - sqrt(ln 1000 / 2000).
    np.testing.assert_allclose(found.p_lower, [1 - np.sqrt(np.log(1000) / 2000), 0], atol=1e-12)
    assert found.predictions.tolist() == [0, certificates.ABSTAIN]
    # 1 - sqrt(ln 1000 / (2 n)) > 1/2 from n = 14 (ln 1000 = 6.9).
    with pytest.raises(ValueError, match="n=1; n must be at least 14"):
        certificates.check_can_certify(1, 0.001, "quotient")
