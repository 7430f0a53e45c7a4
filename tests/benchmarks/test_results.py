"""The tables of docs/results.md, from certificates whose figures are known."""

import dataclasses
import json
import os
import re
import shutil

import numpy as np
import pytest

import macer_tf
from benchmarks import published, results
from macer_tf import Votes, certify, released
from pipeline.experiments import settings
from pipeline.orchestration import orchestrator
from pipeline.orchestration.artifacts import Artifact
from pipeline.report import results as report_results

FOLDER = released.FOLDER
PARTS = "".join(
    f"<!-- {group}: written by benchmarks/results.py draw -->\nold\n<!-- {group}: end -->\nkept\n"
    for group in (*results.TABLES, "cost")
)


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """A function: cell, right votes of each of four images, of 1,000 -> it is kept as if it had been run."""
    monkeypatch.setattr(results, "KEPT", tmp_path)
    monkeypatch.setattr(results, "PAGE", tmp_path / "results.md")
    results.PAGE.write_text(PARTS)

    def run(cell, right, **others):
        """`others`: kind of certificates -> as many right votes, for other kinds than hard."""
        certified = {"hard": certify(votes_of(right), sigma=0.5, alpha=0.001)}
        certified |= {name: certify(votes_of(counts), sigma=0.5, alpha=0.001) for name, counts in others.items()}
        votes, certificates = votes_of(right), certified["hard"]
        ids, about = np.arange(len(right)), {"n": 1000, "alpha": 0.001, "radii": None, "sigma": 0.5}
        cell.kept.mkdir(parents=True)
        also = {"sigma": 0.5, "n0": 100, "n": 1000, "alpha": 0.001, "epochs": 3, "training_seconds": 120.0}
        also["seed"] = int(cell.name.endswith("-1"))
        (flags,) = (one.flags for one in results.cells() if (one.group, one.name) == (cell.group, cell.name))
        also |= {
            "command": f"python -m pipeline.run {flags} --num_test_examples {len(right)}",
            "image_set": "four",
            "training_core_seconds": 180.0,
            "cores": 2,
        }
        report_results.write(cell.kept, (about, ids, votes, certified), np.zeros(len(right), np.int64), **also)
        return certificates.radii

    return run


def votes_of(right):
    """Of two classes, the first one's share of 1,000 in each image."""
    estimation = np.array([[count, 1000 - count] for count in right])
    return Votes(selection=np.array([[100, 0]] * len(right)), estimation=estimation)


def test_every_cell_is_a_command_line_and_has_a_name_of_its_own():
    cells = list(results.cells())
    assert len({(cell.group, cell.name) for cell in cells}) == len(cells)
    for cell in cells:
        parsed, _ = settings.parse(cell.arguments(images=100))
        assert parsed["num_test_examples"] == 100
        # Nothing is chosen on test images.
        assert (parsed["validation"] is None) == (not cell.group.startswith("tuning")), cell.name


def test_tables_say_what_the_certificates_say(keep):
    gaussian = keep(results.Cell("mnist", "gaussian-0.50-0", ""), [1000, 1000, 900, 500])
    best = keep(results.Cell("mnist", "best-0.50-0", ""), [1000, 990, 950, 500])
    results.draw()
    page = results.PAGE.read_text()
    assert page.count("kept\n") == len(results.TABLES) + 1
    assert page.count("old\n") == len(results.TABLES) - 1  # what was not measured
    gains = best - gaussian  # the fourth image abstains in both
    assert (best[3], gaussian[3]) == (0, 0)
    # 1000 of 1000 at alpha = 0.001: p_lower is 0.001^(1/1000) = 0.99312; 900, 950 and 990 lie below 0.9, 0.99 and 0.99.
    for name, radii, paired, bands in (
        ("gaussian", gaussian, "", "25 / 25 / 0 / 50 / 0"),
        ("best", best, f"{gains.mean():+.3f} ± {gains.std(ddof=1) / 2:.3f}", "25 / 0 / 50 / 25 / 0"),
    ):
        acr = f"{radii.mean():.3f} ± {radii.std(ddof=1) / 2:.3f}"
        accuracies = " | ".join(f"{np.mean((radii > 0) & (radii >= r)):.3f}" for r in (0, 0.5, 1.0, 1.5))
        of_all = "{:.3f} ± {:.3f}".format(*published.estimate(published.read(0.5), np.arange(4), radii))
        told = f"{accuracies} | {acr} | {paired} | {of_all} | {bands} | 3 epochs, 2 min | 4"
        assert f"| {name}, seed 0 | {told} |" in page
    # Jeong and Shin's models on every tenth image, and on all of them.
    (row,) = re.findall(r"^\| consistency, published \| (.*) \|$", page, re.MULTILINE)
    everywhere = published.read(0.5)["consistency"].radius
    cells = row.split(" | ")
    assert (cells[4], cells[6], cells[8:]) == (f"{everywhere[::10].mean():.3f}", "1.655", ["5 models", "1,000"])
    assert "\n| macer, claimed |  |  |  |  |  |  | 1.583 |  |  |  |\n" in page
    assert (results.KEPT / "mnist-0.50.svg").read_bytes().startswith(b"<?xml")


def test_another_seed_is_compared_with_seed_0_on_the_same_images(keep):
    first = keep(results.Cell("mnist", "gaussian-0.50-0", ""), [1000, 1000, 900, 500])
    keep(results.Cell("mnist", "best-0.50-0", ""), [1000, 990, 950, 500])
    results.draw()
    assert "ACR of another seed" not in results.PAGE.read_text()
    again = keep(results.Cell("mnist", "gaussian-0.50-1", ""), [990, 950, 900])
    results.draw()
    gains = again - first[:3]
    told = f"gaussian, seed 1: {gains.mean():+.3f} ± {gains.std(ddof=1) / 3**0.5:.3f}."
    assert f"\nACR of another seed minus that of seed 0, on the same images: {told}\n" in results.PAGE.read_text()


def test_methods_are_compared_on_the_same_images_and_drawn_at_their_core_minutes(keep):
    gaussian = keep(results.Cell("methods", "cohen", ""), [1000, 1000, 900, 500])
    other = keep(results.Cell("methods", "catrs", ""), [1000, 990, 950, 500])
    results.draw()
    gains = other - gaussian
    page = results.PAGE.read_text()
    assert re.search(r"^\| cohen: .* \|  \| 3 epochs, 3 core-minutes \|$", page, re.MULTILINE)
    (row,) = re.findall(r"^\| catrs: .*$", page, re.MULTILINE)
    assert f" | {gains.mean():+.3f} ± {gains.std(ddof=1) / 2:.3f} | 3 epochs" in row
    drawn = (results.KEPT / "methods.svg").read_text()
    assert drawn.startswith("<?xml")
    assert drawn.index("<!-- cohen -->") < drawn.index("<!-- catrs -->")


def test_kinds_of_certificates_have_a_row_each_and_hard_and_bernsteins_a_curve(keep):
    soft = {"soft-hoeffding, beta = 16": [900, 500], "soft-bernstein, beta = 16": [950, 500]}
    keep(results.Cell("kinds", "macer-best", ""), [1000, 990], **soft)
    results.draw()
    page = results.PAGE.read_text()
    for name, right in {"hard": [1000, 990], **soft}.items():
        radii = certify(votes_of(right), sigma=0.5, alpha=0.001).radii
        (row,) = re.findall(rf"^\| {name} \|.*$", page, re.MULTILINE)
        assert f"{radii.mean():.4f} ± " in row
    drawn = (results.KEPT / "kinds.svg").read_text()
    assert "hard" in drawn
    assert "soft-bernstein" in drawn
    assert "soft-hoeffding" not in drawn


def test_the_cost_of_a_group_is_that_of_its_models(keep):
    measured = {
        "cohen": {"num_images": 1000, "samples_per_image": 1100, "training_seconds": 1800},
        "catrs": {"num_images": 2000, "samples_per_image": 825, "training_seconds": 7200},
    }

    def recorded(name, **more):
        path = results.Cell("methods", name, "").kept / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | measured[name] | more))
        results.draw()
        return results.PAGE.read_text()

    for name in measured:
        keep(results.Cell("methods", name, ""), [1000, 990])
        page = recorded(name)
    # 1.1 and 1.65 million samples were drawn, where n0 + n = 1,100 of each of 3,000 images are 3.3 million.
    assert "\n| methods | 2 | 2.5 | 2.8 | 16.7 % | not recorded |\n" in page
    page = recorded("cohen", certification_core_seconds=5400)
    assert "\n| methods | 2 | 2.5 | 2.8 | 16.7 % | 1.5 for 1 of them |\n" in page
    page = recorded("catrs", certification_core_seconds=1800)
    assert "\n| methods | 2 | 2.5 | 2.8 | 16.7 % | 2.0 |\n" in page


def test_the_cost_of_certification_is_recorded_only_if_no_vote_was_there_before(tmp_path):
    execution, votes = tmp_path / "Certifier-1", tmp_path / "votes" / "1" / "votes.json"
    for path in (execution / "execution.json", votes):
        path.parent.mkdir(parents=True)
    (execution / "execution.json").write_text(json.dumps({"started_at": 1000.0, "finished_at": 1060.0}))
    votes.touch()
    cores = len(os.sched_getaffinity(0))
    for made, cost in ((1001, {"certification_core_seconds": 60.0 * cores}), (999, {}), (1061, {})):
        os.utime(votes, (made, made))
        assert results.certification_cost(execution, tmp_path) == cost


def test_drawing_twice_changes_nothing(keep):
    keep(results.Cell("mnist", "gaussian-0.50-0", ""), [1000, 1000, 900, 500])
    results.draw()
    first = results.PAGE.read_bytes(), (results.KEPT / "mnist-0.50.svg").read_bytes()
    results.draw()
    assert (results.PAGE.read_bytes(), (results.KEPT / "mnist-0.50.svg").read_bytes()) == first


def test_two_at_once_in_one_root_and_other_bad_input_are_refused_in_one_line(keep, tmp_path):
    root = tmp_path / "root"
    command = ["run", "methods/cohen", "--data_dir", str(tmp_path), "--root", str(root)]
    with (
        orchestrator.locked(root),
        pytest.raises(SystemExit, match=r"^Another run is in progress in .*root; .* another --root\.$"),
    ):
        results.main(command)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"^Cannot write to the folder .*file \(.*\); .*, or give another --root\.$"):
        results.main([*command[:-1], str(tmp_path / "file")])


def test_a_model_that_was_measured_is_released_in_place_of_the_one_before(keep, tmp_path, monkeypatch):
    name = "macer-mnist-0.50"
    monkeypatch.setattr(released, "FOLDER", tmp_path / "released")
    released.FOLDER.mkdir()
    before = json.loads((FOLDER / f"{name}.json").read_text())
    (released.FOLDER / f"{name}.json").write_text(json.dumps(before))
    command = ["release", name, "--data_dir", "data", "--root", "root"]
    with pytest.raises(SystemExit, match=r"^Nothing that was measured of mnist/best-0\.50-0 with its flags is kept in"):
        results.main(command)
    keep(results.released_cell(0.5), [1000, 990, 900, 500])
    trained = tmp_path / "model"
    trained.mkdir()
    shutil.copy(FOLDER / f"{name}.keras", trained / "model.keras")
    monkeypatch.setattr(results, "made", lambda cell, arguments: ({}, {"model": Artifact.of(trained)}))
    results.main(command)
    card = released.card(name)
    assert (card["verified"]["num_images"], card["claimed"]) == (4, before["claimed"])
    assert card["sha256"] != before["sha256"]  # another file: that of the model as it is saved now
    macer_tf.load_released(name)


def test_a_released_model_is_certified_again_on_more_images(keep, tmp_path, monkeypatch, shared_tfds):
    """What was measured of its training stays; cell and card tell the same of more images."""
    name = "macer-mnist-0.50"
    before = released.card(name)
    before["verified"]["num_images"] = 4
    monkeypatch.setattr(released, "FOLDER", tmp_path / "released")
    released.FOLDER.mkdir()
    (released.FOLDER / f"{name}.json").write_text(json.dumps(before))
    shutil.copy(FOLDER / f"{name}.keras", released.FOLDER)
    cell = results.released_cell(0.5)
    keep(cell, [1000, 990, 900, 500])
    trained = json.loads((cell.kept / "metrics.json").read_text())
    where = ["--data_dir", str(shared_tfds), "--root", str(tmp_path / "root")]
    results.main(["recertify", name, "--images", "10", *where])
    kept, card, told = results.kept(cell), released.card(name), set(results.TOLD) & set(trained)
    assert kept.ids.tolist() == list(range(0, 10_000, 1000))
    assert {key: kept.metrics[key] for key in told} == {key: trained[key] for key in told}
    assert (kept.votes[kept.predictions >= 0].sum(axis=1) == 1000).all()
    assert card["verified"]["acr"] == kept.metrics["acr"] == pytest.approx(kept.radii.mean())
    assert card["verified"]["acr"] > 0.5
    assert card["verified"]["num_images"] == 10
    assert card["verified"]["image_set"].startswith("10, evenly spaced, of the test split of mnist")
    assert (card["sha256"], card["claimed"]) == (before["sha256"], before["claimed"])
    macer_tf.load_released(name)
    # Nothing is left to do, so nothing is done: not even the root is looked at.
    results.main(["recertify", name, "--images", "5", "--data_dir", "nowhere", "--root", "nowhere"])


def test_what_was_measured_with_other_flags_is_measured_again_and_not_drawn(keep):
    keep(results.Cell("mnist", "gaussian-0.50-0", ""), [1000, 1000, 900, 500])
    (cell,) = (one for one in results.cells() if (one.group, one.name) == ("mnist", "gaussian-0.50-0"))
    assert cell.measured() == results.kept(cell).metrics
    other = dataclasses.replace(cell, flags=cell.flags.replace("--epochs 20", "--epochs 200"))
    assert other.flags != cell.flags
    assert (other.measured(), results.kept(other)) == (None, None)


def test_what_was_measured_with_a_preset_that_has_changed_is_measured_again_and_not_drawn(keep):
    cell = results.released_cell(0.5)
    keep(cell, [1000, 1000, 900, 500])
    path, settings = cell.kept / "metrics.json", cell.settings()
    assert {name: settings[name] for name in ("epochs", "consistency", "n")} == {
        "epochs": "30", "consistency": "5.0", "n": "100000"
    }  # fmt: skip

    def measured(**recorded):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": recorded}))
        return cell.measured() is not None

    assert measured(**settings)
    # A setting that there is no more, or was not then.
    assert measured(**settings, since_removed="1")
    assert measured(epochs="30")
    assert not measured(**{**settings, "epochs": "20"})


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["methods/cohen", "typo"], "no such cells: typo; see `list`"),
        (["methods/cohen", "--images", "-5"], "--images must be a whole number from 1. Received: -5"),
    ],
)
def test_cells_that_there_are_not_are_refused(arguments, line, capsys):
    with pytest.raises(SystemExit):
        results.main(["run", *arguments, "--data_dir", "nowhere", "--root", "nowhere"])
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("images", [300, 0, -5, 20_000])
def test_images_to_certify_again_are_refused_unless_evenly_spaced(images, capsys):
    with pytest.raises(SystemExit):
        results.main(["recertify", "macer-mnist-0.50", f"--images={images}", "--data_dir", "nowhere", "--root", "no"])
    assert f"--images {images} does not divide 10,000, the test images of MNIST." in capsys.readouterr().err


def test_a_cell_with_more_images_than_the_card_is_not_replaced_by_fewer(keep, tmp_path, monkeypatch):
    name = "macer-mnist-0.50"
    card = json.dumps(released.card(name) | {"verified": {"num_images": 2}})
    monkeypatch.setattr(released, "FOLDER", tmp_path / "released")
    released.FOLDER.mkdir()
    (released.FOLDER / f"{name}.json").write_text(card)
    cell = results.released_cell(0.5)
    keep(cell, [1000] * 10)
    with pytest.raises(SystemExit, match=r" has 10 images, .* Received: --images 5; accepted: 10 or more\.$"):
        results.main(["recertify", name, "--images", "5", "--data_dir", "nowhere", "--root", str(tmp_path / "root")])
    assert cell.measured()["num_images"] == 10
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("command", [["draw"], ["run", "mnist/gaussian-0.50-0", "--data_dir=no", "--root=no"]])
@pytest.mark.parametrize("content", ['{"command": "python', "{}", "[]"])
def test_a_cell_whose_metrics_are_damaged_is_named_in_one_line(command, content, keep):
    keep(results.Cell("mnist", "gaussian-0.50-0", ""), [1000, 1000, 900, 500])
    path = results.KEPT / "mnist" / "gaussian-0.50-0" / "metrics.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match=rf"^{re.escape(str(path))} is missing or damaged. .* \(see `list`\)\.$"):
        results.main(command)
    assert results.PAGE.read_text() == PARTS


@pytest.mark.parametrize("length", [None, 0, 1000])
def test_a_cell_whose_certificates_are_damaged_is_named_in_one_line(length, keep):
    keep(results.Cell("mnist", "gaussian-0.50-0", ""), [1000, 1000, 900, 500])
    path = results.KEPT / "mnist" / "gaussian-0.50-0" / "certificates.parquet"
    content = path.read_bytes()
    path.unlink()
    if length is not None:
        path.write_bytes(content[:length])
    with pytest.raises(SystemExit, match=rf"^{re.escape(str(path))} is missing or damaged. .* \(see `list`\)\.$"):
        results.main(["draw"])
    assert results.PAGE.read_text() == PARTS


def test_a_page_without_the_parts_is_refused(keep):
    results.PAGE.write_text("nothing\n")
    keep(results.Cell("mnist", "gaussian-0.50-0", ""), [1000, 1000, 900, 500])
    with pytest.raises(SystemExit, match="has no part between <!-- mnist"):
        results.draw()
