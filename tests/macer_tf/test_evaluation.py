from fractions import Fraction

import numpy as np
import pytest

from macer_tf import FixedBudget, Votes, certification_log, certify, early_exit
from macer_tf.certificates import ABSTAIN, Certificates, max_radius
from macer_tf.certification_log import CertificationLog
from macer_tf.evaluation import correct_radii, default_radii, evaluate, mean_and_standard_error


def certified(predictions, radii):
    predictions, radii = np.array(predictions), np.array(radii, np.float64)
    return Certificates(predictions, radii, np.full(radii.shape, 0.9), predictions, 0.25, 0.001, 100, 1000)


def test_values_worked_out_by_hand():
    # Five images: right with radius 0.4 and 0.2, right with radius 0, wrong with radius 0.9, abstained.
    # ACR = (0.4 + 0.2 + 0 + 0 + 0) / 5 = 0.12
    # variance = (0.28^2 + 0.08^2 + 3 * 0.12^2) / 4 = (0.0784 + 0.0064 + 0.0432) / 4 = 0.032
    # standard error = sqrt(0.032 / 5) = 0.08
    result = evaluate(
        certified([3, 1, 2, 0, ABSTAIN], [0.4, 0.2, 0.0, 0.9, 0.0]), [3, 1, 2, 7, 5], (0, 0.2, 0.3, 0.4, 0.5)
    )
    assert result.num_images == 5
    assert result.acr == pytest.approx(0.12)
    assert result.acr_standard_error == pytest.approx(0.08)
    assert result.abstained == pytest.approx(0.2)
    # At radius 0 a right class counts, abstaining and a wrong class do not; a radius counts at exactly itself.
    assert result.radii == (0.0, 0.2, 0.3, 0.4, 0.5)
    assert result.certified_accuracy == pytest.approx((0.6, 0.4, 0.2, 0.2, 0.0))


def test_correct_radii_tell_radius_zero_from_wrong():
    assert correct_radii(certified([1, 1, ABSTAIN], [0.0, 0.5, 0.0]), [1, 0, 0]).tolist() == [0.0, -1.0, -1.0]


def test_abstaining_is_never_correct_even_where_the_label_is_minus_one():
    result = evaluate(certified([ABSTAIN, 2], [0.0, 0.3]), [-1, -1], (0,))
    assert result.certified_accuracy == (0.0,)


def test_paired_difference():
    # Differences 0.1, 0.3: mean 0.2, standard deviation 0.1414, / sqrt(2) = 0.1; unpaired it would be 0.36.
    mean, error = mean_and_standard_error(np.array([0.5, 1.2]) - np.array([0.4, 0.9]))
    assert (mean, error) == (pytest.approx(0.2), pytest.approx(0.1))


def test_a_single_image_has_no_standard_error():
    mean, error = mean_and_standard_error([0.7])
    assert mean == 0.7
    assert np.isnan(error)


def test_a_label_for_each_image():
    with pytest.raises(ValueError, match=r"Expected one label per image. Received: \(3,\) for \(2,\)"):
        evaluate(certified([0, 1], [0.1, 0.1]), [0, 1, 2], (0,))


@pytest.mark.parametrize("labels", [[[1], [2]], np.eye(3)[[1, 2]], np.eye(3, dtype=bool)[[1, 2]]])
def test_labels_as_training_takes_them(labels, tmp_path):
    certificates = certified([1, 0], [0.5, 0.5])
    assert evaluate(certificates, labels, (0,)) == evaluate(certificates, [1, 2], (0,))
    certification_log.write(tmp_path / "log.tsv", certificates, labels, ids=[0, 1])
    np.testing.assert_array_equal(certification_log.read(tmp_path / "log.tsv").labels, [1, 2])
    votes = Votes(np.array([[0, 9, 1], [9, 1, 0]]), np.zeros((2, 3), int))
    np.testing.assert_array_equal(FixedBudget(100).more(votes, 0.25, 0.001, labels), [100, 0])


@pytest.mark.parametrize("labels", [[[1, 1], [1, 0]], [[0.5, 0.5], [1, 0]]])
def test_rows_that_are_not_one_hot_are_no_labels(labels):
    with pytest.raises(ValueError, match=r"Expected one label per image|Labels must be whole numbers"):
        evaluate(certified([1, 0], [0.5, 0.5]), labels, (0,))


def test_images_without_samples_are_told_from_those_that_abstained():
    certificates = Certificates(
        np.array([1, ABSTAIN, ABSTAIN]), np.array([0.5, 0.0, 0.0]), np.array([0.9, 0.4, 0.0]), np.array([1, 1, 1]),
        0.25, 0.001, 100, np.array([1000, 1000, 0]),
    )  # fmt: skip
    result = evaluate(certificates, [1, 1, 0], (0,))
    assert (result.abstained, result.unestimated) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert evaluate(certified([1], [0.5]), [1], (0,)).unestimated == 0


@pytest.mark.parametrize("bound", ["clopper-pearson", "anytime", "hoeffding"])
def test_default_radii_are_multiples_of_a_quarter_that_n_samples_can_certify(bound):
    for sigma, n in ((0.25, 100_000), (0.5, 1000), (0.12, 50)):
        radii = default_radii(sigma, n, 0.001, bound)
        assert radii == tuple(0.25 * step for step in range(len(radii)))
        assert radii[-1] <= max_radius(sigma, n, 0.001, bound) < radii[-1] + 0.25
    # 3.81 at sigma = 1; ten columns are as many as a table has.
    assert default_radii(1.0, 100_000, 0.001)[-1] == 2.25


def test_radii_are_those_of_the_certificates_own_bound_unless_they_are_given():
    # Unanimous at n = 1,000 and sigma = 1: 2.46 by Clopper-Pearson, 1.56 by Hoeffding.
    one = {
        "predictions": np.array([0]),
        "radii": np.array([0.5]),
        "p_lower": np.array([0.9]),
        "selected": np.array([0]),
    }
    settings = {"sigma": 1.0, "alpha": 0.001, "n0": 100, "n": np.array([1000])}
    assert evaluate(Certificates(**one, **settings), [0]).radii[-1] == 2.25
    assert evaluate(Certificates(**one, **settings, bound="hoeffding", beta=16.0), [0]).radii[-1] == 1.5


def test_a_log_does_not_say_what_it_is_for_so_its_radii_are_asked_for(tmp_path):
    certification_log.write(tmp_path / "log.tsv", certified([1], [0.5]), [1], [0])
    log = certification_log.read(tmp_path / "log.tsv")
    assert evaluate(log, log.labels, (0.5,)).certified_accuracy == (1.0,)
    with pytest.raises(ValueError, match="radii are needed: a CertificationLog does not say"):
        evaluate(log, log.labels)


@pytest.mark.parametrize("radii", [[-1], [0, np.nan], [np.inf], [10**400], 0.5, np.array(0.5), ["0.5"], [[0.5]]])
def test_radii_that_are_none_are_refused(radii):
    """A radius below 0 would count what is wrong."""
    with pytest.raises(ValueError, match="radii must be finite numbers from 0"):
        evaluate(certified([0], [0.5]), [1], radii)


def test_radii_may_come_in_any_collection():
    expected = evaluate(certified([0], [0.5]), [0], (0, 0.5)).certified_accuracy
    for radii in ([0, Fraction(1, 2)], {0.0: 1, 0.5: 2}.keys(), np.array([0, 0.5]), np.array([0, 0.5], np.float32)):
        result = evaluate(certified([0], [0.5]), [0], radii)
        assert (result.radii, result.certified_accuracy) == ((0.0, 0.5), expected)


def test_what_is_no_certificate_or_none_is_refused():
    with pytest.raises(ValueError, match=r"Expected `Certificates` or a `CertificationLog`\. Received: list"):
        evaluate([1], [1])
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(certified([0], [0.5])[:0], [])


def test_an_evaluation_is_printed_as_one_table():
    result = evaluate(certified([3, ABSTAIN], [0.5, 0.0]), [3, 1], (0, 0.25, 0.75))
    assert str(result).splitlines() == [
        "2 images: ACR 0.250 ± 0.250, 50.0 % abstained",
        "l2 radius            0.00   0.25   0.75",
        "certified accuracy  0.500  0.500  0.000",
    ]
    assert str(evaluate(certified([3], [0.5]), [3], (0,))).startswith("1 image: ACR 0.500, 0.0 % abstained")
    # At 0.50, where 0.4984 would be rounded to, nothing is certified.
    assert str(evaluate(certified([3], [0.499]), [3], (0, 0.4984, 0.5))).splitlines()[1:] == [
        "l2 radius             0.00  0.4984    0.50",
        "certified accuracy   1.000   1.000   0.000",
    ]
    # Nor is a radius rounded at its sixth digit, to 0.282353, where nothing is certified.
    assert " 0.2823529411764706\n" in str(evaluate(certified([3], [72 / 255]), [3], (0, 72 / 255)))


def test_it_plots_certified_accuracy_over_radii():
    result = evaluate(certified([3, ABSTAIN], [0.5, 0.0]), [3, 1], (0, 0.25, 0.75))
    axes = result.plot(label="one")
    assert result.plot(axes) is axes
    first, second = axes.get_lines()
    assert first.get_xdata().tolist() == [0, 0.25, 0.75]
    assert first.get_ydata().tolist() == [0.5, 0.5, 0]
    assert (first.get_label(), second.get_label()) == ("one", "ACR 0.250")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("l2 radius", "certified accuracy")


@pytest.mark.parametrize("labels", [["0", "1"], [0.5, 1.0], [np.nan, 1.0], [np.inf, 1.0], [-2, 1], [None, 1]])
def test_labels_that_are_none_are_refused(labels):
    with pytest.raises(ValueError, match=r"Labels must be whole numbers from 0, or -1 where there is none. Received: "):
        correct_radii(certified([0, 1], [0.1, 0.2]), labels)
    assert correct_radii(certified([0, 1], [0.1, 0.2]), [0.0, -1.0]).tolist() == [0.1, -1.0]


def test_predictions_without_radii_and_masked_labels_are_refused():
    found = early_exit.anytime_predict(np.array([[[40, 0]]]), 0.001)
    with pytest.raises(
        ValueError, match=r"Expected `Certificates` or a `CertificationLog`. Received: AnytimePrediction"
    ):
        evaluate(found, [0])
    counts = np.array([[1000, 0], [1000, 0]])
    certified = certify(Votes(counts, counts), 0.25, 0.001)
    masked = np.ma.masked_array([0, 0], mask=[False, True])
    for labels in (masked, list(masked), (masked[:1], masked[1:])):
        with pytest.raises(ValueError, match=r"Labels must not be masked; leave masked ones out. Received: 1 masked"):
            evaluate(certified, labels)
    assert evaluate(certified, np.ma.masked_array([0, 1])).certified_accuracy[0] == 0.5


def of_log(predictions, radii):
    two = np.array([0, 1])
    return CertificationLog(ids=two, labels=two, predictions=predictions, radii=radii, seconds=two)


def test_a_log_of_lists_counts_as_one_of_arrays():
    """A label of -1 and an abstention are no match, and an abstention is one."""
    log = of_log([ABSTAIN, 1], [0.25, 0.5])
    assert log.correct.tolist() == [False, True]
    found = evaluate(log, [-1, 1], (0,))
    assert (found.acr, found.abstained, found.certified_accuracy) == (0.25, 0.5, (0.5,))


@pytest.mark.parametrize(
    ("predictions", "radii", "message"),
    [
        (
            [[0], [1]],
            [0.1, 0.2],
            r"one prediction and radius per image. Received: predictions \(2, 1\), radii \(2,\)",
        ),
        ([0, 1], [[0.1], [0.2]], r"Received: predictions \(2,\), radii \(2, 1\)"),
        ([0, 1], 0.1, r"Received: predictions \(2,\), radii \(\)"),
        (["0", "1"], [0.1, 0.2], "predictions of certificates are numbers. Received: <U1"),
        ([0, None], [0.1, 0.2], "predictions of certificates are numbers. Received: object"),
        ([0, np.nan], [0.1, 0.2], "Predictions are classes from 0, or -1 to abstain. Received: nan"),
        ([0, -2], [0.1, 0.2], "Predictions are classes from 0, or -1 to abstain. Received: -2"),
        (np.ma.array([0, 1], mask=[True, False]), [0.1, 0.2], "Predictions must not be masked"),
        ([0, 1], np.ma.array([0.1, 0.2], mask=[True, False]), "Radii must not be masked"),
        ([0, 1], [0.1, np.nan], "Certified radii must be finite, and from 0. Received: nan"),
        ([0, 1], [0.1, np.inf], "Certified radii must be finite, and from 0. Received: inf"),
        ([0, 1], [-0.1, 0.2], "Certified radii must be finite, and from 0. Received: -0.1"),
    ],
)
def test_certificates_that_are_none_are_not_averaged(predictions, radii, message):
    with pytest.raises(ValueError, match=message):
        evaluate(of_log(predictions, radii), [0, 1], (0,))
    assert correct_radii(of_log([0, 5], [0.1, np.nan]), [0, 1]).tolist() == [
        0.1,
        -1,
    ]  # as in some logs


def test_masked_differences_are_not_averaged():
    with pytest.raises(ValueError, match=r"Values must not be masked; leave masked ones out. Received: 1 masked"):
        mean_and_standard_error(np.ma.array([0.1, 9.0], mask=[False, True]))
