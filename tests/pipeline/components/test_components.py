"""ExampleGen, Evaluator, InfraValidator and Pusher, each by itself on small artifacts."""

import hashlib
import json
import re
import resource
import shutil
import time
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

from macer_tf import confidence
from pipeline.components import evaluator, example_gen, exporter, infra_validator, pusher, trainer
from pipeline.data import examples as examples_lib
from pipeline.experiments import settings as settings_lib
from pipeline.orchestration import orchestrator
from pipeline.orchestration.artifacts import Artifact
from pipeline.training import models
from pipeline.utils import sealed
from pipeline.utils.errors import InputError
from serving import card as card_lib
from serving import manifest, validate
from serving.blessing import judge
from serving.export import export
from tests.serving import saved_models

IMAGES, LABELS = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4)


def test_good_examples_pass():
    example_gen.check_split(IMAGES, LABELS, 16, 4, "tiny, train")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), LABELS, "images must be uint8 [N, H, W, 1 or 3]. Received: float32 [4, 8, 8, 1]"),
        (IMAGES[..., 0], LABELS, "Received: uint8 [4, 8, 8]"),
        (np.zeros((4, 8, 8, 2), np.uint8), LABELS, "Received: uint8 [4, 8, 8, 2]"),
        (IMAGES[:0], LABELS[:0], "Received: uint8 [0, 8, 8, 1]"),
        (IMAGES, LABELS[:3], "expected one label per image. Received: 4 images, 3 labels"),
        (IMAGES + np.uint8(17), LABELS, "pixels must lie in 0..16. Received: 17"),
        (IMAGES, LABELS + 1, "labels must lie in 0..3. Received: 1..4"),
        (IMAGES, LABELS - 1, "labels must lie in 0..3. Received: -1..2"),
    ],
)
def test_bad_examples_are_told_in_one_line(images, labels, message):
    with pytest.raises(InputError) as error:
        example_gen.check_split(images, labels, 16, 4, "tiny, train")
    assert str(error.value).startswith("tiny, train: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_example_gen_writes_what_later_components_read(execution):
    from pipeline.data import examples

    run = execution(
        outputs=("examples",),
        parameters=dict.fromkeys(example_gen.EXAMPLE_GEN.parameters) | {"dataset": "digits"},
    )
    example_gen.generate(run)
    data = examples.read(run.outputs["examples"])
    assert [len(data.images[name]) for name in ("train", "test")] == [1437, 360]
    assert (data.image_shape, data.num_classes, data.pixel_max) == ((8, 8, 1), 10, 16)
    scaled = data.scaled("test", np.array([0, 359]))
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, data.images["test"][[0, 359]] / np.float32(16))


def test_images_held_out_for_validation_are_certified_and_not_trained_on(execution):
    from pipeline.data import datasets, examples

    parameters = dict.fromkeys(example_gen.EXAMPLE_GEN.parameters) | {"dataset": "digits", "validation": 100}
    run = execution(outputs=("examples",), parameters=parameters)
    example_gen.generate(run)
    data, digits = examples.read(run.outputs["examples"]), datasets.load("digits")
    held_out = np.arange(100) * 1437 // 100
    np.testing.assert_array_equal(data.images["test"], digits.train.images[held_out])
    np.testing.assert_array_equal(data.labels["test"], digits.train.labels[held_out])
    np.testing.assert_array_equal(data.images["train"], np.delete(digits.train.images, held_out, axis=0))
    np.testing.assert_array_equal(data.labels["train"], np.delete(digits.train.labels, held_out))
    assert data.descriptions["test"] == (
        "100 held out for validation, evenly spaced, of the first 1,437 of scikit-learn's digits"
    )


def test_other_images_under_the_same_words_are_read_anew(tmp_path, monkeypatch):
    """A relative path leads elsewhere from another folder, and an empty folder is a class."""
    for place, pixel in (("one", 10), ("two", 200)):
        for split, value in (("train", pixel + 1), ("test", pixel)):
            for name in ("a", "c"):
                folder = tmp_path / place / split / name
                folder.mkdir(parents=True)
                Image.fromarray(np.full((4, 4), value, np.uint8)).save(folder / "0.png")
    settings = dict.fromkeys(example_gen.EXAMPLE_GEN.parameters)
    settings |= {"train_images": "train", "test_images": "test", "dataset": "images-train"}

    def read():
        artifacts = orchestrator.run((example_gen.EXAMPLE_GEN,), settings, tmp_path, 1)
        read = examples_lib.read(artifacts["examples"].path)
        return int(read.images["test"].max()), read.labels["test"].tolist()

    monkeypatch.chdir(tmp_path / "one")
    assert read() == (10, [0, 1])
    monkeypatch.chdir(tmp_path / "two")
    assert read() == (200, [0, 1])
    for split in ("train", "test"):
        (tmp_path / "two" / split / "b").mkdir()
    assert read() == (200, [0, 2])


@pytest.mark.parametrize("count", [1, 1436, 2000])
def test_a_validation_set_leaves_images_to_train_on(execution, count):
    parameters = dict.fromkeys(example_gen.EXAMPLE_GEN.parameters) | {"dataset": "digits", "validation": count}
    with pytest.raises(InputError, match=r"^digits: 2 to 1,435 of its 1,437 training images can be held out"):
        example_gen.generate(execution(outputs=("examples",), parameters=parameters))


def test_examples_on_a_full_disk_are_told_in_one_line(write_examples, tmp_path):
    images = np.zeros((40, 8, 8, 1), np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(
            InputError, match=rf"^Cannot write {tmp_path}/examples \(File too large\)\. Raise the limit on the size of"
        ):
            write_examples(images, np.zeros(40, np.int64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Five images of classes 0, 1, 2, 0, 1 at sigma 1, n = 100, alpha = 0.05:
# correct at radius 1.0; correct at 0.5; wrong (class 0 at 2.0); abstained; correct at 0.0.
ROWS = [(0, 0, 1.0), (1, 1, 0.5), (2, 0, 2.0), (0, -1, 0.0), (1, 1, 0.0)]
PARAMETERS = {
    "sigma": 1.0, "n0": 10, "n": 100, "alpha": 0.05, "certify": "hard", "budget": "fixed",
}  # fmt: skip
SETTINGS = {**PARAMETERS, "num_test_examples": None}


class Evaluations:
    """Evaluates fake certificates in one root, as the orchestrator does."""

    def __init__(self, root, examples, trained):
        self.root, self.examples, self.trained = root, examples, trained

    def run(
        self,
        model,
        radii=None,
        num_test_examples=None,
        estimation=(60, 20, 20),
        bound="clopper-pearson",
        beta=None,
        **changed,
    ):
        """Certifies correctly at `radii` if given, else as in ROWS -> the folder of the evaluation."""
        from pipeline.orchestration import orchestrator
        from pipeline.orchestration.orchestrator import Component

        count = num_test_examples or 5
        rows = ROWS if radii is None else [(row[0], row[0], radius) for row, radius in zip(ROWS, radii, strict=True)]

        def make_model(execution):
            (execution.outputs["model"] / "history.csv").write_text('epoch,"of, #2",loss\n1,0.5,2.5\n2,1,1.5\n')
            (execution.outputs["model"] / "name").write_text(model)
            shutil.copy(self.trained, execution.outputs["model"] / "model.keras")

        def make_examples(execution):
            shutil.copytree(self.examples, execution.outputs["examples"], dirs_exist_ok=True)

        def make_certificates(execution):
            lines = [
                {"example_id": i, "selection": [4, 3, 3], "estimation": estimation, "prediction": prediction,
                 "selected": max(prediction, 0), "radius": radius, "p_lower": 0.6}
                for i, (_, prediction, radius) in enumerate(execution.parameters["rows"][:count])
            ]  # fmt: skip
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (execution.outputs["certificates"] / "certificates.jsonl").write_text(text)
            about = {"format": 2, "radii": None} | {name: PARAMETERS[name] for name in ("sigma", "alpha", "n0", "n")}
            digest = hashlib.sha256(text.encode()).hexdigest()
            about["kinds"] = [
                {"name": "hard", **{name: execution.parameters[name] for name in ("bound", "beta")}, "sha256": digest}
            ]
            (execution.outputs["certificates"] / "certification.json").write_text(sealed.dumps(about))

        settings = {
            **SETTINGS, "seed": 0, "min_accuracy": 0.4, "paper": None, "model": model,
            "rows": [list(row) for row in rows], "listing": {"Data": [["dataset", "tiny"], ["method", "macer"]]},
            "num_test_examples": num_test_examples, "bound": bound, "beta": beta, **changed,
        }  # fmt: skip
        components = [
            Component("Examples", (), ("examples",), (), make_examples),
            Component("Model", (), ("model",), ("model",), make_model),
            Component("Fake", (), ("certificates",), ("rows", "num_test_examples", "bound", "beta"), make_certificates),
            evaluator.LATEST_BLESSED,
            evaluator.EVALUATOR,
        ]
        return orchestrator.run(components, settings, self.root, 1)["evaluation"].path


@pytest.fixture
def no_report(monkeypatch):
    """Leaves out the figures, which take a second an evaluation."""
    monkeypatch.setattr(evaluator.certification_report, "write", lambda *arguments, **keywords: None)


@pytest.fixture
def evaluations(tmp_path, write_examples, threshold_model, monkeypatch):
    monkeypatch.setattr(evaluator, "MIN_IMAGES", 3)
    images = np.random.default_rng(0).integers(0, 16, (5, 4, 4, 1)).astype(np.uint8)
    labels = np.array([row[0] for row in ROWS])
    root = tmp_path / "root"
    root.mkdir()
    return Evaluations(root, write_examples(images, labels, class_names=("a", "b", "c")), threshold_model(0.9))


@pytest.mark.parametrize(
    ("bound", "highest"),
    [("clopper-pearson", 0.05 ** (1 / 100)), ("anytime", float(confidence.anytime_lower(100, 100, 0.05)))],
)
def test_the_highest_p_a_that_is_drawn_is_that_of_the_bound(evaluations, monkeypatch, bound, highest):
    drawn = []
    draw = evaluator.certification_report.charts.lower_bounds

    def noted(*arguments, ceiling):
        drawn.append(ceiling)
        return draw(*arguments, ceiling=ceiling)

    monkeypatch.setattr(evaluator.certification_report.charts, "lower_bounds", noted)
    evaluations.run("a", bound=bound)
    assert drawn == [pytest.approx(highest, rel=1e-12)]


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_a_report_without_any_estimated_image(evaluations):
    """Each image's selected class was wrong, and all were spared."""
    rows = [[label, -1, 0.0] for label, *_ in ROWS]
    folder = evaluations.run("A", estimation=(0, 0, 0), rows=rows)
    metrics = read(folder, "metrics.json")
    assert (metrics["abstained"], metrics["unestimated"], metrics["samples_per_image"]) == (0, 1, 10)
    assert metrics["certified_accuracy"] == [0] * 8
    html = (folder / "report.html").read_text()
    assert "1.000 more were not estimated" in html
    assert "How sure the votes are" not in html
    assert html.count('data-outcome="unestimated"') == 5


@pytest.mark.usefixtures("no_report")
def test_metrics_by_hand(evaluations):
    folder = evaluations.run("A")
    metrics = read(folder, "metrics.json")
    # Correct radii 1.0, 0.5, 0 (wrong), 0 (abstained), 0.0: the mean is 1.5 / 5 = 0.3, the squared deviations are
    # 0.49 + 0.04 + 3 * 0.09 = 0.8, the standard deviation sqrt(0.8 / 4), the standard error sqrt(0.2 / 5) = 0.2.
    assert metrics["acr"] == pytest.approx(0.3)
    assert metrics["acr_standard_error"] == pytest.approx(0.2)
    assert metrics["abstained"] == pytest.approx(1 / 5)
    # The largest radius at n = 100, alpha = 0.05 is Phi^-1(0.05^(1/100)) = Phi^-1(0.970487) = 1.888.
    assert metrics["radii"] == [0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert metrics["certified_accuracy"] == pytest.approx([0.6, 0.4, 0.4, 0.2, 0.2, 0, 0, 0])
    assert metrics["num_images"] == 5
    assert metrics["image_set"] == "tiny test"
    assert {name: metrics[name] for name in PARAMETERS} == PARAMETERS
    assert metrics["difference_to_last_blessed"] is None


@pytest.mark.usefixtures("no_report")
def test_the_fields_log(evaluations):
    lines = (evaluations.run("A") / "certificates.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["idx", "label", "predict", "radius", "correct"]
    assert [line.split("\t") for line in lines[1:]] == [
        ["0", "0", "0", "1.0", "1"],
        ["1", "1", "1", "0.5", "1"],
        ["2", "2", "0", "2.0", "0"],
        ["3", "0", "-1", "0.0", "0"],
        ["4", "1", "1", "0.0", "1"],
    ]


def test_an_evaluation_names_its_images(tmp_path, write_examples, threshold_model, monkeypatch):
    from pyarrow import parquet

    monkeypatch.setattr(evaluator, "MIN_IMAGES", 3)
    labels = np.array([row[0] for row in ROWS])
    names = tuple(f"{label}/{i} .png" for i, label in enumerate(labels))
    examples = write_examples(np.zeros((5, 4, 4, 1), np.uint8), labels, class_names=("a", "b", "c"), names=names)
    (tmp_path / "root").mkdir()
    folder = Evaluations(tmp_path / "root", examples, threshold_model(0.9)).run("A", num_test_examples=2)
    lines = (folder / "certificates.tsv").read_text().splitlines()
    assert [line.split("\t")[-1] for line in lines] == ["file", "0/0%20.png", "1/1%20.png"]
    assert parquet.read_table(folder / "certificates.parquet")["file"].to_pylist() == list(names[:2])
    assert "image 1, 1/1 .png" in (folder / "report.html").read_text()


def test_an_evaluation_has_the_report_and_its_figure(evaluations):
    folder = evaluations.run("A")
    assert {path.name for path in folder.iterdir()} == {
        "metrics.json", "blessing.json", "certificates.tsv", "certificates.parquet", "report.html",
        "radius_accuracy.png",
    }  # fmt: skip
    html = (folder / "report.html").read_text()
    assert "<title>MACER on tiny, sigma = 1</title>" in html
    assert "0.300 ± 0.200" in html
    assert html.count('src="data:image/png;base64,') == html.count("src=") == 10  # five images, each with a noisy copy
    # The largest radius at n = 100, alpha = 0.05 is 1.8877, which a bound is not rounded up from.
    assert "limit of n = 100: 1.887" in html
    assert "python -m pipeline.run --dataset=tiny --method=macer" in html


def test_the_report_is_the_same_whenever_it_is_made(evaluations, monkeypatch):
    first = (evaluations.run("A", min_accuracy=0.5) / "report.html").read_text()
    record = read(next(evaluations.root.glob("Fake-*")), "execution.json")
    told = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record["finished_at"]))
    assert told in first
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert (evaluations.run("A", min_accuracy=0.55) / "report.html").read_text() == first


PAPER = {
    "name": "MACER-1, paper", "table": 1, "radii": [0.0, 1.0, 1.75, 2.0], "certified_accuracy": [0.8, 0.5, 0.25, 0.125],
    "acr": 0.9, "image_set": "all images",
}  # fmt: skip


def test_the_reports_columns_end_at_the_largest_radius_that_n_can_certify(evaluations):
    """It is 1.888: the paper's column at 2 is of its own n, which stands beside its row."""
    html = (evaluations.run("A", paper=PAPER) / "report.html").read_text()
    header, *rows = re.findall(r"<tr.*?</tr>", html[html.index('<table class="numbers">') :], re.DOTALL)
    assert re.findall(r"<th [^>]*>([^<]*)</th>", header) == ["Model", "0.00", "1.00", "1.75", "ACR"]
    assert "0.25</td>" in rows[1]
    assert "0.12" not in rows[1]
    assert "n = 100,000, alpha = 0.001; all images" in rows[1]


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("min_accuracy", "blessed"), [(0.59, True), (0.6, False), (0.61, False), (None, False)])
def test_a_blessed_model_is_above_the_threshold(evaluations, min_accuracy, blessed):
    """Accuracy 0.6, which is not above itself; by default the threshold is twice chance, 2 / 3."""
    blessing = read(evaluations.run("A", min_accuracy=min_accuracy), "blessing.json")
    assert blessing["blessed"] is blessed
    reason = f"certified accuracy at radius 0 is 0.600, not above {min_accuracy or 2 / 3:.3f}"
    assert blessing["reasons"] == ([] if blessed else [reason])


def test_a_blessing_takes_so_many_images_that_an_accuracy_is_known_to_a_twentieth():
    """sqrt(p (1 - p) / N) is at most sqrt(1/4 / N)."""
    assert (0.25 / evaluator.MIN_IMAGES) ** 0.5 <= 0.05 < (0.25 / (evaluator.MIN_IMAGES - 1)) ** 0.5


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("least", "blessed"), [(5, True), (6, False)])
def test_fewer_images_than_it_takes_bless_nothing(evaluations, monkeypatch, least, blessed):
    monkeypatch.setattr(evaluator, "MIN_IMAGES", least)
    blessing = read(evaluations.run("A"), "blessing.json")
    assert blessing["blessed"] is blessed
    reason = "5 certified images are too few to judge a model by; it takes 6 or more"
    assert blessing["reasons"] == ([] if blessed else [reason])


@pytest.mark.usefixtures("no_report")
def test_a_blessing_tells_what_was_measured(evaluations):
    blessing = read(evaluations.run("A"), "blessing.json")
    assert (blessing["num_test_examples"], blessing["n"]) == (5, 100)
    assert (blessing["acr"], blessing["acr_standard_error"]) == (pytest.approx(0.3), pytest.approx(0.2))


@pytest.mark.usefixtures("no_report")
def test_a_worse_model_is_not_blessed_and_a_better_one_is(evaluations):
    good, worse, better = [1.0, 1.1, 0.9, 1.0, 1.0], [0.5, 0.6, 0.5, 0.5, 0.5], [1.5, 1.5, 1.5, 1.4, 1.5]
    first = evaluations.run("A", good)
    assert read(first, "blessing.json")["blessed"]

    blessing = read(evaluations.run("B", worse), "blessing.json")
    assert not blessing["blessed"]
    assert blessing["reasons"] == ["ACR is 0.4800 ± 0.0200 below the last blessed model's on the same images"]

    # B was not blessed, so C is measured against A: 1.48 - 1.0.
    difference = read(evaluations.run("C", better), "metrics.json")["difference_to_last_blessed"]
    assert difference["mean"] == pytest.approx(0.48)
    assert difference["baseline"] == str(first)
    # And from then on C is the mark: as good as A is not enough.
    assert not read(evaluations.run("D", good), "blessing.json")["blessed"]


@pytest.mark.usefixtures("no_report")
def test_a_difference_within_two_standard_errors_is_no_reason(evaluations):
    evaluations.run("A", [1.0, 1.0, 1.0, 1.0, 1.0])
    # Differences -0.5, 0, 0, 0, 0: mean -0.1, standard deviation sqrt((0.16 + 4 * 0.01) / 4), standard error 0.1.
    folder = evaluations.run("B", [0.5, 1.0, 1.0, 1.0, 1.0])
    assert read(folder, "metrics.json")["difference_to_last_blessed"]["standard_error"] == pytest.approx(0.1)
    assert read(folder, "blessing.json")["blessed"]


@pytest.mark.usefixtures("no_report")
def test_a_model_is_never_its_own_baseline(evaluations, capsys):
    folder = evaluations.run("A")
    capsys.readouterr()
    assert evaluations.run("A") == folder
    assert "running" not in capsys.readouterr().out
    # Evaluated anew, for another threshold: still not against itself.
    again = evaluations.run("A", min_accuracy=0.5)
    assert read(again, "metrics.json")["difference_to_last_blessed"] is None


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("changed", [{"alpha": 0.01}, {"n": 200}, {"n0": 20}, {"sigma": 0.5}, {"num_test_examples": 3}])
def test_only_like_is_compared_with_like(evaluations, changed):
    evaluations.run("A", [1.0] * 5, **changed)
    assert read(evaluations.run("B", [0.1] * 5), "blessing.json")["blessed"]


@pytest.mark.usefixtures("no_report")
def test_certificates_by_another_bound_are_not_compared(evaluations):
    """As after a look: the same model's radii by the anytime-valid bound are smaller."""
    evaluations.run("A", radii=[1.0, 1.0, 1.0, 1.0, 1.0])
    looked = evaluations.run("B", radii=[0.9, 0.9, 0.9, 0.9, 0.9], bound="anytime")
    assert read(looked, "metrics.json")["difference_to_last_blessed"] is None
    again = evaluations.run("C", radii=[0.9, 0.9, 0.9, 0.9, 0.8], bound="anytime")
    assert read(again, "metrics.json")["difference_to_last_blessed"]["baseline"] == str(looked)


@pytest.mark.usefixtures("no_report")
def test_soft_certificates_at_another_inverse_temperature_are_not_compared(evaluations):
    """By default it is the one that a model was trained at, and it changes the same model's radii."""
    sharp = evaluations.run("A", radii=[1.0] * 5, bound="hoeffding", beta=16.0)
    flat = evaluations.run("B", radii=[0.1] * 5, bound="hoeffding", beta=1.0)
    assert read(flat, "metrics.json")["difference_to_last_blessed"] is None
    again = evaluations.run("C", radii=[0.9] * 5, bound="hoeffding", beta=16.0)
    assert read(again, "metrics.json")["difference_to_last_blessed"]["baseline"] == str(sharp)


@pytest.mark.usefixtures("no_report")
def test_the_last_comparable_model_counts_not_the_last_one(evaluations):
    evaluations.run("A", [1.0] * 5)
    evaluations.run("B", [0.5] * 5, num_test_examples=3)
    assert not read(evaluations.run("C", [0.1] * 5), "blessing.json")["blessed"]


@pytest.mark.usefixtures("no_report")
def test_a_damaged_baseline_is_told_in_one_line(evaluations):
    folder = evaluations.run("A", [1.0] * 5)
    (folder / "certificates.tsv").write_text("idx\n")
    with pytest.raises(InputError, match="was changed or damaged after it was finished"):
        evaluations.run("B", [0.1] * 5)


@pytest.mark.usefixtures("no_report")
def test_an_evaluation_killed_before_it_was_finished_is_no_baseline(evaluations):
    folder = evaluations.run("A", [1.0] * 5).parent
    folder.rename(folder.with_name(folder.name + ".unfinished"))
    assert read(evaluations.run("B", [0.1] * 5), "metrics.json")["difference_to_last_blessed"] is None


@pytest.mark.usefixtures("no_report")
def test_the_image_set_says_how_many_of_which(evaluations):
    metrics = read(evaluations.run("A", num_test_examples=3), "metrics.json")
    assert (metrics["num_images"], metrics["image_set"]) == (3, "3, evenly spaced, of the tiny test")


def test_the_exporters_card_names_the_model_as_the_orchestrator_does(
    execution, write_examples, threshold_model, tmp_path
):
    (tmp_path / "trained").mkdir()
    threshold_model(0.9).rename(tmp_path / "trained" / "model.keras")
    examples = write_examples(np.zeros((2, 2, 2, 1), np.uint8), np.arange(2), class_names=("a", "b"))
    parameters = {"n0": 10, "serving_n": 50, "alpha": 0.01}
    run = execution({"model": tmp_path / "trained", "examples": examples}, ("saved_model",), parameters)
    exporter.export_model(run)
    card = card_lib.read(run.outputs["saved_model"])
    assert card["model"] == Artifact.of(tmp_path / "trained").fingerprint
    assert (card["sigma"], card["class_names"], card["scaling"]) == (0.5, ["a", "b"], "divide by 16")


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("min_accuracy", "reason"), [(0.59, None), (0.6, "certified accuracy at radius 0 is 0.600")])
def test_what_the_evaluator_writes_blesses_what_the_exporter_makes_of_the_same_model_alone(
    evaluations, execution, write_examples, threshold_model, tmp_path, min_accuracy, reason
):
    folder = evaluations.run("A", min_accuracy=min_accuracy, sigma=0.5)
    (model,) = evaluations.root.glob("Model-*/model")
    examples = write_examples(np.zeros((2, 2, 2, 1), np.uint8), np.arange(2), class_names=("a", "b"), name="two")
    parameters = {"n0": 10, "serving_n": 50, "alpha": 0.01}
    run = execution({"model": model, "examples": examples}, ("saved_model",), parameters)
    exporter.export_model(run)
    saved_model = run.outputs["saved_model"]
    _, found = judge(folder / "blessing.json", saved_model)
    assert found is None if reason is None else found.startswith(reason)
    # The variables of another model of the same shapes, under everything else of this one.
    shutil.copy(threshold_model(0.8), tmp_path / "other.keras")
    export(models.load(tmp_path / "other.keras"), tmp_path / "other", n0=10, n=50, alpha=0.01)
    shutil.rmtree(saved_model / "variables")
    shutil.copytree(tmp_path / "other" / "variables", saved_model / "variables")
    if reason is None:
        assert "'variables/variables." in judge(folder / "blessing.json", saved_model)[1]
        manifest.write(saved_model)
        assert "is for other weights" in judge(folder / "blessing.json", saved_model)[1]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    from macer_tf import networks
    from macer_tf.model import MACERModel

    folder = tmp_path_factory.mktemp("exported") / "saved_model"
    export(MACERModel(networks.small_cnn(), sigma=0.25, seed=0), folder, n0=10, n=50, alpha=0.01, pixel_max=16)
    return folder


@pytest.fixture
def saved_model(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "saved_model")


def infra(execution, saved_model, examples):
    run = execution(
        {"saved_model": saved_model, "examples": examples}, ("infra_blessing",), name=f"infra-{saved_model.name}"
    )
    infra_validator.validate(run)
    return read(run.outputs["infra_blessing"], "infra_blessing.json")


@pytest.mark.slow
def test_a_good_saved_model_passes(execution, saved_model, digit_examples):
    result = infra(execution, saved_model, digit_examples)
    assert result["passed"]
    assert not result["reason"]
    assert result["example_ids"] == [0, 3, 6, 9]
    assert all(len(values) == 4 for values in result["answers"].values())
    # It lists what it checked: the card, all signatures, their answers, warm-up requests, refusals.
    listed = " ".join(result["checks"])
    assert all(word in listed for word in ("card", "every signature", "votes", "p-value", "warm-up", "NaN"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["no index", "truncated variables"])
def test_a_damaged_saved_model_does_not_pass_and_says_why(execution, saved_model, digit_examples, damage):
    variables = saved_model / "variables"
    if damage == "no index":
        (variables / "variables.index").unlink()
    else:
        (data,) = variables.glob("variables.data*")
        data.write_bytes(data.read_bytes()[:1000])
    result = infra(execution, saved_model, digit_examples)
    assert not result["passed"]
    assert (result["answers"], result["checks"]) == (None, [])
    assert 10 < len(result["reason"]) < 400
    assert "\n" not in result["reason"]
    assert "Error" in result["reason"]


def test_a_model_that_does_not_answer_in_time_is_not_judged(execution, tmp_path, digit_examples, monkeypatch):
    monkeypatch.setattr(validate, "_TIMEOUT_SECONDS", 0.01)
    (tmp_path / "no_model").mkdir()
    with pytest.raises(RuntimeError, match=r"did not answer within 0\.01 s"):
        infra(execution, tmp_path / "no_model", digit_examples)


class TestPusher:
    @pytest.fixture
    def push(self, execution, tmp_path):
        numbers = iter(range(100))

        def run(content="model", blessed=True, passed=True, base=None, evaluated=None):
            number = next(numbers)
            folders = {name: tmp_path / f"{name}{number}" for name in ("saved_model", "evaluation", "infra_blessing")}
            for folder in folders.values():
                folder.mkdir()
            saved_models.write(folders["saved_model"], content)
            verdict = {"blessed": blessed, "reasons": [] if blessed else ["too bad", "too old"]}
            saved_models.write_blessing(folders["evaluation"] / "blessing.json", evaluated or content, **verdict)
            reason = None if passed else "NotFoundError: no variables"
            (folders["infra_blessing"] / "infra_blessing.json").write_text(
                json.dumps({"passed": passed, "reason": reason})
            )
            done = execution(folders, ("push",), {"push_dir": str(base or tmp_path / "serving" / "m")}, f"push{number}")
            pusher.push(done)
            return read(done.outputs["push"], "push.json")

        return run

    def test_versions_rise_and_none_is_overwritten(self, push, tmp_path):
        base = tmp_path / "serving" / "m"
        assert push("one") == {"pushed_to": str(base / "1"), "reasons": []}
        (base / "9").mkdir()
        (base / "notes").mkdir()
        assert push("two")["pushed_to"] == str(base / "10")
        assert (base / "1" / "saved_model.pb").read_text() == "one"
        assert (base / "10" / "saved_model.pb").read_text() == "two"
        assert sorted(path.name for path in base.iterdir()) == ["1", "10", "9", "notes"]

    def test_what_is_there_already_is_not_pushed_twice_and_it_says_so(self, push, tmp_path, capsys):
        """As after a kill right behind the push."""
        base = tmp_path / "serving" / "m"
        push("one")
        assert capsys.readouterr().out == ""
        assert push("one")["pushed_to"] == str(base / "1")
        assert capsys.readouterr().out == f"  {base / '1'} is already this very model; it is not pushed again.\n"
        push("two")
        # Back to an earlier model: that is a new version.
        assert push("one")["pushed_to"] == str(base / "3")
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(
        ("blessed", "passed", "reasons"),
        [
            (False, True, ["not blessed: too bad; too old"]),
            (True, False, ["failed in a fresh process: NotFoundError: no variables"]),
            (False, False, ["not blessed: too bad; too old", "failed in a fresh process: NotFoundError: no variables"]),
        ],
    )
    def test_what_is_not_blessed_or_does_not_load_is_not_pushed(self, push, tmp_path, blessed, passed, reasons):
        assert push(blessed=blessed, passed=passed) == {"pushed_to": None, "reasons": reasons}
        assert not (tmp_path / "serving").exists()

    def test_the_blessing_of_another_model_pushes_nothing(self, push, tmp_path):
        result = push(evaluated="another")
        assert result["pushed_to"] is None
        (reason,) = result["reasons"]
        assert re.fullmatch(r"not blessed: .*blessing\.json is for another model, .*; its card says .*", reason)
        assert not (tmp_path / "serving").exists()

    def test_an_unwritable_folder_is_told_in_one_line(self, push, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"Cannot push to .*file.*; give another one with push_dir") as error:
            push(base=tmp_path / "file" / "m")
        assert "\n" not in str(error.value)


def test_every_declared_parameter_is_a_setting():
    from pipeline.components.certifier import CERTIFIER
    from pipeline.components.exporter import EXPORTER
    from pipeline.experiments import methods

    names = {setting.name for group in settings_lib.known([]).values() for setting in group} | {"listing", "paper"}
    trainers = [trainer.component({"method": name, "network": None}) for name in methods.NAMES]
    components = (
        example_gen.EXAMPLE_GEN, *trainers, CERTIFIER, evaluator.EVALUATOR, EXPORTER, infra_validator.INFRA_VALIDATOR,
        pusher.PUSHER,
    )  # fmt: skip
    declared = [set(component.parameters) for component in components]
    assert set().union(*declared) <= names
    # Each training setting is a parameter of the Trainer: none is forgotten, so none is served from a stale cache.
    for name, component in zip(methods.NAMES, trainers, strict=True):
        training = {setting.name for setting in settings_lib.groups(methods.find(name))["Training"]}
        assert training <= set(component.parameters)
        # alpha and the threshold must not train or sample anew.
        assert not {"alpha", "n", "n0", "min_accuracy", "num_workers"} & set(component.parameters)


@pytest.mark.parametrize("component", ["certifier", "exporter"])
def test_a_model_that_is_not_what_was_finished_is_neither_certified_nor_exported(
    execution, digit_examples, threshold_model, tmp_path, component
):
    (tmp_path / "trained").mkdir()
    shutil.move(threshold_model(0.9), tmp_path / "trained" / "model.keras")
    settings = {"num_test_examples": 2, "n0": 10, "n": 50, "serving_n": 50, "alpha": 0.01, "sigma": 0.5, "seed": 0,
                "certify": "hard", "budget": "fixed", "soft_betas": [16.0]}  # fmt: skip
    outputs = ("certificates", "saved_model")
    inputs = {"model": tmp_path / "trained", "examples": digit_examples}
    made = execution(inputs, outputs, settings)
    with open(tmp_path / "trained" / "model.keras", "ab") as file:
        file.write(b"changed")
    module = import_module(f"pipeline.components.{component}")
    with pytest.raises(InputError, match="was changed while this command ran"):
        getattr(module, component.upper()).execute(made)
    assert [list(made.outputs[name].iterdir()) for name in outputs] == [[], []]
    assert not (made.scratch / "model").exists()


def test_classes_of_one_name_are_told_apart_in_what_is_exported():
    assert exporter.distinct(("crane", "cat", "crane")) == ["crane (0)", "cat", "crane (2)"]
