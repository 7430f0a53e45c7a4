"""What certificates amount to, worked out by hand."""

import json

import numpy as np
import pytest

from macer_tf import certification_log
from macer_tf.certificates import Certificates
from macer_tf.votes import Votes
from pipeline.report import results

IDS = np.array([3, 5, 8, 9])
LABELS = np.array([0, 1, 1, 0])
VOTES = Votes(np.full((4, 2), 5), np.array([[90, 10], [20, 80], [50, 50], [0, 0]]))
# Right at 0.6; right at 0.2; abstained; not estimated, as a wrong class was selected.
HARD = Certificates(
    np.array([0, 1, -1, -1]), np.array([0.6, 0.2, 0, 0]), np.full(4, 0.8), np.array([0, 1, 1, 1]),
    1.0, 0.05, 10, np.array([100, 100, 100, 0]), "clopper-pearson", None,
)  # fmt: skip
SOFT = Certificates(
    np.array([1, 1, 1, 0]), np.array([0.5, 0.4, 0.3, 0.2]), np.full(4, 0.8), np.array([1, 1, 1, 0]),
    1.0, 0.05, 10, 100, "hoeffding", 1.0,
)  # fmt: skip


def certified(kinds, radii=None):
    return {"sigma": 0.5, "alpha": 0.001, "n": 100, "radii": radii}, IDS, VOTES, kinds


def test_results_of_labelled_images(tmp_path):
    kinds = {"hard": HARD, "soft-hoeffding-1": SOFT}
    metrics = results.write(tmp_path, certified(kinds, radii=[0, 0.25]), LABELS, seed=7)
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert metrics["certificates"] == {
        "hard": {
            "bound": "clopper-pearson", "beta": None, "num_certified": 2, "median_radius": pytest.approx(0.4),
            "abstained": 0.25, "unestimated": 0.25, "acr": pytest.approx(0.2),
            # Deviations 0.4, 0, -0.2, -0.2: a variance of 0.24 / 3.
            "acr_standard_error": pytest.approx(np.sqrt(0.08 / 4)),
            "radii": (0, 0.25), "certified_accuracy": (0.5, 0.25),
        },
        "soft-hoeffding-1": {
            "bound": "hoeffding", "beta": 1.0, "num_certified": 4, "median_radius": pytest.approx(0.35), "abstained": 0,
            "unestimated": 0, "acr": pytest.approx(0.225),
            # 0, 0.4, 0.3, 0.2 are right.
            "acr_standard_error": pytest.approx(np.sqrt(0.0875 / 3 / 4)),
            "radii": (0, 0.25), "certified_accuracy": (0.75, 0.5),
        },
    }  # fmt: skip
    own = metrics["certificates"]["hard"]
    # (3 x 110 + 10) / 4 samples.
    assert metrics == {
        "seed": 7, "num_images": 4, "samples_per_image": 85, **own, "certificates": metrics["certificates"],
    }  # fmt: skip
    logs = [
        certification_log.read(tmp_path / name) for name in ("certificates.tsv", "certificates-soft-hoeffding-1.tsv")
    ]
    for log, of_kind in zip(logs, kinds.values(), strict=True):
        assert (log.ids.tolist(), log.labels.tolist()) == (IDS.tolist(), LABELS.tolist())
        assert log.predictions.tolist() == of_kind.predictions.tolist()


def test_radii_are_those_asked_for_then_those_decided_then_what_n_can_certify(tmp_path):
    def radii(decided, asked=None):
        return results.write(tmp_path, certified({"hard": HARD}, decided), LABELS, asked)["radii"]

    assert radii(None) == (0, 0.25, 0.5, 0.75)  # 100 samples reach 0.5 Phi^-1(0.001^(1/100)) = 0.75
    assert radii([0.1]) == (0.1,)
    assert radii([0.1], asked=[0, 1]) == (0, 1)


def test_without_labels_nothing_is_said_of_accuracy(tmp_path):
    metrics = results.write(tmp_path, certified({"hard": HARD}), np.full(4, -1))
    assert metrics["certificates"]["hard"].keys() == {
        "bound", "beta", "num_certified", "median_radius", "abstained", "unestimated",
    }  # fmt: skip


def test_of_no_image_nothing_is_measured():
    nothing = Votes(np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int64))
    metrics = results.of({"hard": HARD}, nothing, np.zeros(0, np.int64), (0.0,))
    assert metrics == {"num_images": 0, "samples_per_image": None, "certificates": {}}


@pytest.mark.parametrize(("classes", "twice"), [(2, 0.75), (3, 2 / 3), (10, 0.2)])
def test_twice_chance(classes, twice):
    assert results.twice_chance(classes) == pytest.approx(twice)


def test_rows_of_the_table():
    measured = {"certified_accuracy": (0.5, 0.25), "acr": 0.2, "acr_standard_error": 0.1414}
    # A radius is never rounded: at 0.282353, less may be certified than at 72/255.
    assert results.header("radius", (0, 0.25, 72 / 255)) == ["radius", "0", "0.25", "0.2823529411764706", "ACR"]
    assert results.row("hard", measured) == ["hard", "0.500", "0.250", "0.2000 ± 0.1414"]
