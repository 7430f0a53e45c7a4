import mpmath
import numpy as np
import pytest
from scipy import integrate

from macer_tf import early_exit
from macer_tf.certificates import ABSTAIN
from macer_tf.early_exit import anytime_p_values, anytime_predict, log_e_values, looks


def test_the_stake_by_hand():
    # E(1, 0) = 2 * integral of 2q over [1/2, 1] = 2 * (1 - 1/4) = 3/2. E(0, 1) = 2 * integral of 2(1 - q) = 2 * 1/4.
    # E(2, 0) = 2 * integral of 4q^2 = 8/3 * (1 - 1/8) = 7/3. E(1, 1) = 2 * integral of 4q(1 - q)
    #         = 8 * (1/2 - 1/8 - (1/3 - 1/24)) = 8 * (3/8 - 7/24) = 2/3.
    e = np.exp(log_e_values(np.array([0.0, 1, 0, 2, 1]), np.array([0.0, 0, 1, 0, 1])))
    np.testing.assert_allclose(e, [1, 3 / 2, 1 / 2, 7 / 3, 2 / 3], rtol=2e-6)
    assert (e < [1, 3 / 2, 1 / 2, 7 / 3, 2 / 3]).all()  # rounded down, never up


@pytest.mark.parametrize(("successes", "failures"), [(30, 0), (40, 13), (300, 240), (10, 25)])
def test_the_stake_against_numerical_integration(successes, failures):
    def integrand(q):
        return 2 * (2 * q) ** successes * (2 - 2 * q) ** failures

    expected, _ = integrate.quad(integrand, 0.5, 1, epsabs=0, epsrel=1e-10, limit=200)
    assert np.exp(log_e_values(float(successes), float(failures))) == pytest.approx(expected, rel=2e-6)


def test_p_values_by_hand():
    # 17 of 17 votes for one of ten classes: E = 2 * 2^17 (1 - 2^-18) / 18 = 14563.5; p = 9 / E.
    counts = np.array([[17] + [0] * 9, [5, 5] + [0] * 8])
    p_values = anytime_p_values(counts)
    assert p_values[0] == pytest.approx(9 / (2**18 * (1 - 2**-18) / 18), rel=2e-6)
    assert p_values[1] == 1  # level votes are no evidence
    assert anytime_p_values(np.array([[[17] + [0] * 9]])).shape == (1, 1)


def test_the_test_stops_at_the_first_look_that_decides():
    # Two classes, alpha = 0.01: 9 of 9 votes give E = 2^10 (1 - 2^-10) / 10 = 102.3, 8 of 8 give 511 / 9 = 56.8.
    counts = np.array([[[8, 0], [9, 0], [9, 9]], [[0, 8], [1, 8], [8, 8]], [[0, 4], [0, 9], [0, 10]]])
    result = anytime_predict(counts, alpha=0.01)
    assert result.predictions.tolist() == [0, ABSTAIN, 1]
    assert result.samples.tolist() == [9, 16, 9]
    np.testing.assert_allclose(result.p_values[[0, 2]], 10 / 1023, rtol=2e-6)
    assert result.p_values[1] == 1


@pytest.mark.parametrize(
    "probabilities", [(0.5, 0.5), (0.55, 0.45), (1 / 3, 1 / 3, 1 / 3), (0.45, 0.45, 0.1), (0.4, 0.35, 0.25)]
)
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_a_wrong_class_is_returned_with_probability_at_most_alpha(probabilities, alpha):
    """Exact, by dynamic programming over all votes, a look after each of 120 samples. Class 0 is a top one."""
    limit, others = 120, len(probabilities) - 1
    # Votes of all classes but the first: its own are what is left of the samples drawn.
    votes = np.moveaxis(np.indices((limit + 1,) * others), 0, -1)
    reached = np.zeros(votes.shape[:-1])
    reached[(0,) * others] = 1
    errors, returned = 0.0, 0.0
    for samples in range(1, limit + 1):
        moved = probabilities[0] * reached
        for axis, probability in enumerate(probabilities[1:]):
            later, earlier = [slice(None)] * others, [slice(None)] * others
            later[axis], earlier[axis] = slice(1, None), slice(None, -1)
            moved[tuple(later)] += probability * reached[tuple(earlier)]
        first = np.maximum(samples - votes.sum(axis=-1, keepdims=True), 0)
        counts = np.concatenate([first, votes], axis=-1)
        stops = anytime_p_values(counts) <= alpha
        errors += moved[stops & (counts.argmax(axis=-1) != 0)].sum()
        returned += moved[stops].sum()
        reached = np.where(stops, 0, moved)
    assert returned + reached.sum() == pytest.approx(1)
    assert errors <= alpha
    # It is a test, not a refusal to answer: wrong answers do happen where classes are level.
    assert errors > alpha / 50 or probabilities[0] > probabilities[1]


def test_looks_rise_to_the_limit_by_no_more_than_a_batch():
    assert looks(1000, 500) == [32, 64, 96, 144, 216, 324, 486, 729, 1000]
    assert looks(20, 500) == [20]
    assert np.diff([0, *looks(100_000, 500)]).max() == 500
    assert max(looks(100, 8)) == 100
    assert np.diff([0, *looks(100, 8)]).max() == 8


def test_a_limit_that_can_never_decide_is_refused():
    # Ten classes at 0.001: 2^17 (1 - 2^-17) / 17 = 7710 < 9000 for 16 votes, 14563 for 17.
    early_exit.check_can_decide(17, 10, 0.001)
    with pytest.raises(ValueError, match="at most 16 samples; 17 are needed"):
        early_exit.check_can_decide(16, 10, 0.001)


@pytest.mark.parametrize(
    "counts",
    [
        np.ones((2, 3), np.int64), np.ones((1, 1, 1), np.int64), np.array([[[3, 1], [2, 2]]]),
        np.array([[[90.0, 0.0]]]), np.array([[[np.nan, 0.0], [90.0, 0.0]]]),
    ],
)  # fmt: skip
def test_bad_counts_are_refused(counts):
    with pytest.raises(ValueError, match=r"\[images, looks, classes\].*Received"):
        anytime_predict(counts, 0.01)


@pytest.mark.parametrize("counts", [[17], 17, [[9, -1]], [9.5, 0.5], [[True, False]]])
def test_evidence_in_what_are_no_votes_is_refused(counts):
    with pytest.raises(ValueError, match=r"counts must be votes, whole numbers from 0, .* Received: "):
        anytime_p_values(np.array(counts))


@pytest.mark.parametrize("votes", [2**25, 2**40, 2**52, 2**60])
def test_more_samples_than_the_evidence_is_exact_for_are_refused(votes):
    with pytest.raises(ValueError, match=r"up to 33,554,432 samples per image.*Received: [\d,]+$"):
        anytime_predict(np.array([[[votes, votes - 1]]]), 0.01)


def test_evidence_is_not_overstated_by_as_many_samples_as_are_taken():
    """Against log E(s, f) = log 2 + log of the integral from 1/2 to 1 of (2q)^s (2 - 2q)^f dq, in 60 digits."""
    for successes, failures in ((16_800_000, 16_700_000), (16_790_000, 16_760_000), (30_000_000, 3_000_000)):
        with mpmath.workdps(60):
            top = mpmath.mpf(successes) / (successes + failures)
            deviation = mpmath.sqrt(top * (1 - top) / (successes + failures))
            largest = successes * mpmath.log(2 * top) + failures * mpmath.log(2 - 2 * top)
            ends = [top + deviations * deviation for deviations in (-40, -10, -3, 0, 3, 10, 40)]
            area = mpmath.quad(
                lambda q, s=successes, f=failures, high=largest: mpmath.exp(
                    s * mpmath.log(2 * q) + f * mpmath.log(2 - 2 * q) - high
                ),
                sorted({max(end, mpmath.mpf(1) / 2) for end in ends}),
            )
            expected = largest + mpmath.log(2 * area)
            error = float(log_e_values(float(successes), float(failures)) - expected)
        assert -2e-6 < error < 0
