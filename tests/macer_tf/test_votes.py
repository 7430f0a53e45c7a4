import numpy as np
import pytest

from macer_tf.votes import Votes


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
    with pytest.raises(ValueError, match=r"same images and classes. Received: \(2, 3\) and"):
        Votes.zeros(2, 3) + other


@pytest.mark.parametrize(
    ("selection", "estimation", "message"),
    [
        (np.zeros((2, 3), np.int64), np.zeros((2, 4), np.int64), "of one shape"),
        (np.zeros(3, np.int64), np.zeros(3, np.int64), "of one shape"),
        (np.zeros((2, 3)), np.zeros((2, 3), np.int64), "int64 counts"),
        (np.zeros((2, 3), np.int64), np.full((2, 3), -1, np.int64), "min=-1"),
    ],
)
def test_what_is_not_counts_is_refused(selection, estimation, message):
    with pytest.raises(ValueError, match=message):
        Votes(selection, estimation)
