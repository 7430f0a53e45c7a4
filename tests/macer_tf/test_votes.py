import numpy as np
import pytest

from macer_tf.votes import MAX_SOFT_SAMPLES, UNITS, SoftMoments, Votes


def votes(selection, estimation):
    return Votes(np.array(selection, np.int64), np.array(estimation, np.int64))


def test_votes_add_and_keep_selection_and_estimation_apart():
    total = votes([[1, 2]], [[30, 4]]) + votes([[5, 0]], [[1, 1]])
    assert total.selection.tolist() == [[6, 2]]
    assert total.estimation.tolist() == [[31, 5]]
    assert total.n0.tolist() == [8]
    assert total.n.tolist() == [36]


def test_zeros_are_neutral():
    some = votes([[1, 2], [0, 3]], [[4, 5], [9, 0]])
    for total in (some + Votes.zeros(2, 2), Votes.zeros(2, 2) + some):
        assert total.selection.tolist() == some.selection.tolist()
        assert total.estimation.tolist() == some.estimation.tolist()


@pytest.mark.parametrize("other", [Votes.zeros(1, 3), Votes.zeros(2, 1), Votes.zeros(4, 3)])
def test_votes_of_other_images_or_classes_are_not_broadcast(other):
    with pytest.raises(ValueError, match=r"same images and classes can be added. Received: \(2, 3\) and"):
        Votes.zeros(2, 3) + other


@pytest.mark.parametrize(
    ("selection", "estimation", "message"),
    [
        (np.zeros((2, 3), np.int64), np.zeros((2, 4), np.int64), "of one shape"),
        (np.zeros(3, np.int64), np.zeros(3, np.int64), "of one shape"),
        (np.zeros((2, 3)), np.zeros((2, 3), np.int64), "int64 counts"),
        (np.zeros((2, 3), np.int64), np.full((2, 3), -1, np.int64), "min=-1"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "dtype=float64"),
        # Their sum in int64 is 1,000: all for the last class.
        (np.array([[0, 0, 0, 0, 9]]), np.array([[2**62] * 4 + [1000]]), r"up to 2\^40 samples.*Received: 1.84467e\+19"),
        (np.array([[2**40, 1]]), np.array([[9, 0]]), r"up to 2\^40 samples"),
    ],
)
def test_what_is_not_counts_is_refused(selection, estimation, message):
    with pytest.raises(ValueError, match=message):
        Votes(selection, estimation)


def soft_votes(scores, selection_scores, beta=16.0):
    """Votes of one image from softmax scores [samples, classes]."""

    def counted(scores):
        return np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])[None].astype(np.int64)

    units = np.floor(np.asarray(scores) * UNITS).astype(np.int64)
    moments = SoftMoments(
        units.sum(axis=0)[None],
        (units * units).sum(axis=0)[None],
        np.floor(np.asarray(selection_scores) * UNITS).astype(np.int64).sum(axis=0)[None],
    )
    return Votes(counted(np.asarray(selection_scores)), counted(np.asarray(scores)), {beta: moments})


def test_soft_moments_worked_out_by_hand():
    # Scores of class 0: 1/2, 3/4, 1. Mean 3/4; variance (1/16 + 0 + 1/16) / 2 = 1/16. Selection: 1/4 + 1/2 = 3/4.
    some = soft_votes([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]], [[0.25, 0.75], [0.5, 0.5]])
    moments = some.soft[16.0]
    assert moments.mean(some.n).tolist() == [[0.75, 0.25]]
    assert moments.variance(some.n).tolist() == [[1 / 16, 1 / 16]]
    assert moments.selection_sums.tolist() == [[3 * UNITS // 4, 5 * UNITS // 4]]


def test_soft_moments_are_numpys_and_never_above_them():
    scores = np.random.default_rng(0).dirichlet([0.5, 0.3, 0.2], size=5000)
    some = soft_votes(scores, scores[:10])
    mean = some.soft[16.0].mean(some.n)[0]
    assert (mean <= scores.mean(axis=0)).all()
    np.testing.assert_allclose(mean, scores.mean(axis=0), rtol=0, atol=1 / UNITS)
    np.testing.assert_allclose(some.soft[16.0].variance(some.n)[0], scores.var(axis=0, ddof=1), rtol=0, atol=2 / UNITS)


def test_the_variance_of_the_most_samples_is_exact():
    # 2^22 samples, half of them 1 and half one unit below: in units, variance 1/4 * n / (n - 1). Floats cannot see it.
    n, half = MAX_SOFT_SAMPLES, MAX_SOFT_SAMPLES // 2
    sums, squares = half * (2 * UNITS - 1), half * (UNITS**2 + (UNITS - 1) ** 2)
    moments = SoftMoments(*(np.array([[value, 0]], np.int64) for value in (sums, squares, UNITS)))
    some = Votes(np.array([[1, 0]]), np.array([[n, 0]]), {1.0: moments})
    assert moments.variance(some.n)[0, 0] * UNITS**2 == pytest.approx(0.25 * n / (n - 1), rel=1e-12)
    with pytest.raises(ValueError, match="up to 4,194,304 samples per image"):
        some + soft_votes([[0.5, 0.5]], [[1.0, 0.0]], beta=1.0)


def test_soft_moments_add_to_the_same_bit_in_any_order():
    rng = np.random.default_rng(1)
    parts = [soft_votes(rng.dirichlet([1, 1, 1], 7), rng.dirichlet([1, 1, 1], 3)) for _ in range(9)]
    totals = []
    for order in (range(9), reversed(range(9)), rng.permutation(9)):
        total = Votes.zeros(1, 3, betas=[16])
        for part in order:
            total += parts[part]
        moments = total.soft[16.0]
        totals.append((moments.sums.tolist(), moments.squares.tolist(), moments.selection_sums.tolist()))
    assert totals[0] == totals[1] == totals[2]
    assert total.n.tolist() == [63]


def test_no_samples_have_mean_and_variance_0():
    none = Votes.zeros(2, 3, betas=[1.0, 16.0])
    assert not none.soft[1.0].mean(none.n).any()
    assert not none.soft[16.0].variance(none.n).any()
    one = soft_votes([[0.3, 0.7]], [[0.3, 0.7]])
    assert not one.soft[16.0].variance(one.n).any()


def test_betas_must_be_the_same():
    some = soft_votes([[0.5, 0.5]], [[0.5, 0.5]])
    for other in (Votes.zeros(1, 2), Votes.zeros(1, 2, betas=[1])):
        with pytest.raises(ValueError, match=r"same betas can be added. Received: \[16.0\] and"):
            some + other


@pytest.mark.parametrize(
    ("sums", "squares", "selection_sums"),
    [
        ([-1, 0], [1, 0], [0, 0]),  # below 0
        ([2 * UNITS + 1, 0], [2 * UNITS**2, 0], [0, 0]),  # more than two samples of 1
        ([2 * UNITS, 1], [2 * UNITS**2, 1], [0, 0]),  # scores that add up to more than 1
        ([100, 0], [99, 0], [0, 0]),  # u * u below u
        ([100, 0], [101 * UNITS, 0], [0, 0]),  # u above 1
        ([100, 0], [4999, 0], [0, 0]),  # two samples of mean 50 have squares of 5,000 at least
        ([100, 0], [5000, 0], [UNITS + 1, 0]),  # more than the one selection sample
    ],
)
def test_moments_that_no_samples_have_are_refused(sums, squares, selection_sums):
    moments = SoftMoments(*(np.array([values], np.int64) for values in (sums, squares, selection_sums)))
    with pytest.raises(ValueError, match="The soft moments at beta=16 do not match"):
        Votes(np.array([[1, 0]]), np.array([[2, 0]]), {16.0: moments})


def test_soft_moments_of_another_form_are_refused():
    good = SoftMoments.zeros(1, 2)
    for beta in (16, "16", 0.0, np.inf):
        with pytest.raises(ValueError, match="beta, the inverse temperature, is a float above 0"):
            Votes(*np.zeros((2, 1, 2), np.int64), {beta: good})
    for soft in (None, {16.0: (good.sums, good.squares, good.selection_sums)}):
        with pytest.raises(ValueError, match="Soft votes are a dict, beta -> `SoftMoments`"):
            Votes(*np.zeros((2, 1, 2), np.int64), soft)
    for bad in (SoftMoments.zeros(2, 2), SoftMoments(*np.zeros((3, 1, 2)))):
        with pytest.raises(ValueError, match=r"Soft moments are int64 arrays \(1, 2\)"):
            Votes(*np.zeros((2, 1, 2), np.int64), {16.0: bad})


def test_votes_are_shown_in_one_line():
    selection, estimation = np.array([[3, 1], [4, 0]]), np.array([[1000, 500], [100, 0]])
    assert repr(Votes(selection, estimation)) == "Votes(2 images, 2 classes, n0=4, n=100 to 1,500)"
    assert repr(Votes.zeros(3, 10, betas=(1, 16))) == "Votes(3 images, 10 classes, n0=0, n=0, soft at beta=1, 16)"
    assert repr(Votes.zeros(0, 10)) == "Votes(0 images, 10 classes, n0=0, n=0)"


def test_uniforms_stay_with_their_votes():
    counts, uniforms = np.array([[8, 2], [1, 9]]), np.array([0.25, 0.5])
    votes = Votes(counts, counts, uniforms=uniforms)
    further = Votes(np.zeros_like(counts), counts, uniforms=uniforms.copy())
    for both in (votes + further, further + votes):
        assert both.uniforms.tolist() == uniforms.tolist()
        assert both.n0.tolist() == [10, 10]
        assert both.n.tolist() == [20, 20]
    for others in (None, uniforms[::-1]):
        with pytest.raises(ValueError, match="the same uniforms"):
            votes + Votes(counts, counts, uniforms=others)


def test_the_same_samples_are_not_counted_twice():
    counts = np.array([[8, 2], [1, 9]])
    with pytest.raises(ValueError, match="begin with the same samples, which would be counted twice") as caught:
        Votes(counts, counts, uniforms=np.array([0.25, 0.5])) + Votes(counts, counts, uniforms=np.array([0.25, 0.5]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uniforms", [[0.5], [0.5, 1.1], [-0.1, 0.5], [0.5, np.nan], [[0.5, 0.5]], ["a", "b"]])
def test_uniforms_that_are_none_are_refused(uniforms):
    counts = np.array([[8, 2], [1, 9]])
    with pytest.raises(ValueError, match="one number in"):
        Votes(counts, counts, uniforms=np.array(uniforms))


def test_masked_counts_are_refused_and_a_matrix_is_an_array():
    counts = np.array([[95, 5], [30, 70]])
    with pytest.raises(
        ValueError, match=r"The estimation votes must not be masked; leave masked ones out. Received: 1"
    ):
        Votes(counts, np.ma.masked_array(counts, mask=[[0, 0], [0, 1]]))
    for same in (np.ma.masked_array(counts), counts.view(np.matrix)):
        assert type(Votes(same, counts).selection) is np.ndarray
