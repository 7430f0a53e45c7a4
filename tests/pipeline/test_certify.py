"""Certifying anyone's classifier: every kind of file, the library's own certificates, failed images, refusals."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from macer_tf import logs
from macer_tf.smoothing import SmoothedClassifier
from pipeline import certificate_files, certify, classifiers, compare, vote_store
from pipeline.errors import InputError

SETTINGS = ("--sigma", "0.5", "--n0", "20", "--n", "300", "--alpha", "0.01", "--seed", "3", "--num_workers", "2")


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.Flatten(),
         keras.layers.Dense(10)]
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    classifier.save(path)
    return path


@pytest.fixture
def run(tmp_path, capsys):
    """A function: arguments -> status, output, errors; certificates go to tmp_path / output."""

    def run(*arguments, settings=SETTINGS):
        arguments = [str(argument) for argument in (*arguments, *settings, "--output", tmp_path / "output")]
        capsys.readouterr()
        return certify.main(arguments), *capsys.readouterr()

    return run


def saved(classifier, tmp_path, kind):
    path = tmp_path / f"saved{kind}"
    if kind:
        classifier.save(path)
    else:
        classifier.export(path, verbose=False)
    return path


# Kinds of model


@pytest.mark.parametrize("kind", ["", ".keras", ".h5"])
def test_every_kind_of_file_gets_the_certificates_of_the_library(run, classifier, digits, tmp_path, kind):
    status, out, err = run("--model", saved(classifier, tmp_path, kind), "--dataset", "digits", "--skip", "60")
    assert (status, err) == (0, "")
    ids = np.arange(0, 360, 60)
    images, labels = (array[1437:][ids] for array in digits)
    expected = SmoothedClassifier(classifier, 0.5, seed=3).certify(images, 20, 300, 0.01, example_ids=ids)
    log = logs.read(tmp_path / "output" / "certificates.tsv")
    assert log.ids.tolist() == ids.tolist()
    assert log.labels.tolist() == labels.tolist()
    np.testing.assert_array_equal(log.predictions, expected.predictions)
    np.testing.assert_array_equal(log.radii, expected.radii)
    assert f"precision: {'float32' if kind else 'as saved'}" in out
    assert "6 of 360 of digits (ids 0 to 300)" in out
    assert (tmp_path / "output" / "failed.tsv").read_text() == "idx\treason\n"


def test_a_model_trained_here_brings_its_sigma(run, classifier, write_model, tmp_path):
    path = write_model(classifier, sigma=0.75)
    status, out, _ = run("--model", path, "--dataset", "digits", "--max", "1", settings=SETTINGS[2:])
    assert status == 0
    assert "sigma=0.75" in out
    assert json.loads((tmp_path / "output" / "metrics.json").read_text())["sigma"] == 0.75


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_that_runs_code_of_its_own_is_refused(tmp_path, suffix):
    path = tmp_path / f"lambda{suffix}"
    twice = keras.layers.Lambda(lambda x: 2 * x)
    keras.Sequential([keras.Input((8, 8, 1)), twice, keras.layers.Flatten(), keras.layers.Dense(2)]).save(path)
    with pytest.raises(InputError, match=r"cannot be loaded \(.*[Ll]ambda") as error:
        classifiers.load(path)
    assert "\n" not in str(error.value)


def test_a_saved_model_of_certificates_is_no_classifier(classifier, tmp_path):
    from macer_tf.model import MACERModel
    from serving.export import export

    export(MACERModel(classifier, sigma=0.5, seed=0), tmp_path / "served", n0=10, n=50, alpha=0.01)
    with pytest.raises(InputError, match=r"serving_default of the SavedModel .* must map float32 images"):
        classifiers.load(tmp_path / "served")


@pytest.mark.parametrize(
    ("shape", "classes"), [((64,), 10), ((8, 8, 2), 10), ((8, 8, 1), 1)], ids=["no image", "2 channels", "1 class"]
)
def test_what_is_no_image_classifier_is_refused(tmp_path, shape, classes):
    inputs = keras.Input(shape)
    keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.Flatten()(inputs))).save(tmp_path / "model.keras")
    with pytest.raises(InputError, match=r"must map images \[batch, H, W, 1 or 3\] to \[batch, classes\]"):
        classifiers.load(tmp_path / "model.keras")


# Images


@pytest.fixture
def folder(digits, tmp_path):
    """Twelve digits as PNG files without labels, the fourth of them cut off."""
    (tmp_path / "images").mkdir()
    for i, image in enumerate(digits[0][:12]):
        Image.fromarray(np.round(image[..., 0] * 255).astype(np.uint8)).save(tmp_path / "images" / f"{i:02}.png")
    damaged = tmp_path / "images" / "03.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    return tmp_path / "images"


def test_a_failed_image_stops_no_other_and_is_written_down(run, model, folder, tmp_path):
    status, out, err = run("--model", model, "--images", folder)
    assert (status, err) == (1, "")
    log = logs.read(tmp_path / "output" / "certificates.tsv")
    assert log.ids.tolist() == [0, 1, 2, *range(4, 12)]
    assert set(log.labels) == {-1}
    header, row = (tmp_path / "output" / "failed.tsv").read_text().splitlines()
    assert header == "idx\treason"
    assert row.startswith("3\t")
    assert "03.png cannot be read" in row
    assert "1 images failed and have no certificate, image 3 first:" in out
    assert "without labels" in out
    assert "Certified accuracy" not in out
    # Mended, it is drawn alone and all are certified.
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "03.png")
    status, out, _ = run("--model", model, "--images", folder)
    assert status == 0
    assert "3,520 samples were drawn before." in out
    assert "To draw: 320 noisy samples" in out
    assert logs.read(tmp_path / "output" / "certificates.tsv").ids.tolist() == list(range(12))
    # Another image in its place has votes of its own.
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / "03.png")
    assert "To draw: 320 noisy samples" in run("--model", model, "--images", folder)[1]


def test_if_every_image_fails_there_is_no_certificate(run, model, folder, tmp_path):
    for file in folder.iterdir():
        file.write_bytes(b"")
    status, out, _ = run("--model", model, "--images", folder)
    assert status == 1
    assert "12 images failed" in out
    assert (tmp_path / "output" / "certificates.tsv").read_text() == "\t".join(logs.HEADER) + "\n"
    assert len((tmp_path / "output" / "failed.tsv").read_text().splitlines()) == 13


def test_an_archive_with_labels(run, model, digits, tmp_path):
    np.savez(tmp_path / "some.npz", images=digits[0][:9], labels=digits[1][:9])
    status, out, _ = run(
        "--model", model, "--images", tmp_path / "some.npz", "--start", "4", "--max", "8", "--skip", "2"
    )
    assert status == 0
    log = logs.read(tmp_path / "output" / "certificates.tsv")
    assert (log.ids.tolist(), log.labels.tolist()) == ([4, 6], digits[1][[4, 6]].tolist())
    assert "Certified accuracy at l2 radius" in out


# Going on, and what comes of it


def test_the_same_command_draws_nothing_again_and_another_alpha_neither(run, model, tmp_path, monkeypatch):
    arguments = ("--model", model, "--dataset", "digits", "--max", "3")
    assert run(*arguments)[0] == 0
    files = (
        "certificates.tsv", "certificates.jsonl", "certification.json", "failed.tsv", "metrics.json",
        "radius_accuracy.png",
    )  # fmt: skip
    first = [(tmp_path / "output" / name).read_bytes() for name in files]

    def record(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(vote_store.LedgerWriter, "record", record)
    status, out, _ = run(*arguments)
    assert status == 0
    assert re.search(r"  [\d,]+ samples were drawn before\.\n\n", out)
    assert [(tmp_path / "output" / name).read_bytes() for name in files] == first
    assert run(*arguments, settings=(*SETTINGS, "--alpha", "0.2"))[0] == 0
    assert json.loads((tmp_path / "output" / "metrics.json").read_text())["alpha"] == 0.2
    names = {path.name for path in (tmp_path / "output").iterdir()}
    (results,) = (name for name in names if name.startswith("results-"))
    assert names == {".lock", "votes", "results", results, *files}


def test_results_of_two_runs_never_lie_side_by_side(run, model, tmp_path, monkeypatch):
    """Stopped before each rename of the results: what is read is of the run before, or of this one."""
    arguments = ("--model", model, "--dataset", "digits", "--max", "3")
    assert run(*arguments)[0] == 0
    output = tmp_path / "output"
    replace, left = os.replace, [None]

    def stopping(source, target):
        if Path(target).parent == output and not left[0]:
            raise OSError("stopped")
        left[0] -= Path(target).parent == output
        replace(source, target)

    monkeypatch.setattr("os.replace", stopping)
    alphas = []
    for renames in range(12):
        left[0] = renames
        status, *_ = run(*arguments, settings=(*SETTINGS, "--alpha", "0.2"))
        read = certificate_files.read(output)[0]["alpha"]
        assert json.loads((output / "metrics.json").read_text())["alpha"] == read
        alphas.append(read)
        if status == 0:
            break
    assert status == 0
    assert alphas == [0.01] * renames + [0.2]
    assert renames >= 5


def test_a_copy_without_links_is_certified_anew_and_whole(run, model, tmp_path):
    arguments = ("--model", model, "--dataset", "digits", "--max", "3")
    assert run(*arguments)[0] == 0
    output = tmp_path / "output"
    output.rename(tmp_path / "linked")
    shutil.copytree(tmp_path / "linked", output)  # follows links
    status, _, err = run(*arguments)
    assert status == 2
    assert f"{output / 'results'} is in the way" in err
    shutil.rmtree(output / "results")
    assert run(*arguments, settings=(*SETTINGS, "--alpha", "0.2"))[0] == 0
    assert certificate_files.read(output)[0]["alpha"] == 0.2
    assert all(path.is_symlink() for path in output.glob("certificat*"))


def test_hard_and_soft_certificates_in_one_table_and_one_figure(run, model, tmp_path):
    status, out, _ = run(
        "--model", model, "--dataset", "digits", "--max", "4", "--certify", "all", "--soft_betas", "1,16"
    )  # fmt: skip
    assert status == 0
    kinds = ["hard", "soft-hoeffding-1", "soft-hoeffding-16", "soft-bernstein-1", "soft-bernstein-16"]
    assert re.findall(r"^(hard|soft-\S+) ", out, re.MULTILINE) == kinds
    output = tmp_path / "output"
    metrics = json.loads((output / "metrics.json").read_text())
    assert list(metrics["certificates"]) == kinds
    assert metrics["acr"] == metrics["certificates"]["hard"]["acr"]
    logged = [logs.read(output / f"certificates{suffix}.tsv") for suffix in ("", *(f"-{kind}" for kind in kinds[1:]))]
    for kind, log in zip(kinds, logged, strict=True):
        assert np.mean(np.where(log.correct, log.radii, 0)) == pytest.approx(metrics["certificates"][kind]["acr"])
    assert (output / "radius_accuracy.png").read_bytes().startswith(b"\x89PNG")
    # Another run leaves no certificates of this one behind.
    assert run("--model", model, "--dataset", "digits", "--max", "4")[0] == 0
    assert sorted(path.name for path in output.glob("certificates*")) == ["certificates.jsonl", "certificates.tsv"]


def test_adaptive_budgets(run, model, tmp_path):
    # The budget for a radius says what it decided, and no more.
    on_digits = ("--model", model, "--dataset", "digits", "--skip", "40", "--n", "5000", "--skip_wrong", "no")
    settings = (*SETTINGS[:4], *SETTINGS[6:])
    status, out, _ = run(*on_digits, "--budget", "adaptive", "--radius", "0.1", settings=settings)
    assert status == 0
    assert "Sampled to decide radius 0.1: the ACR is of radii that could be larger." in out
    assert "bound: anytime" in out
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
    assert (metrics["radii"], metrics["is_first_look"]) == ([0.1], True)
    assert metrics["samples_per_image"] < 5020
    # Another question of the same votes, by the bound that allows for looks.
    status, out, _ = run(*on_digits, "--budget", "adaptive", "--precision", "0.05", settings=settings)
    assert status == 0
    assert "first drawn for n0=20, n=5,000, radius=0.1: these certificates are by the bound" in out
    assert json.loads((tmp_path / "output" / "metrics.json").read_text())["bound"] == "anytime"


def test_its_output_can_be_compared(run, model, tmp_path, capsys):
    assert run("--model", model, "--dataset", "digits", "--max", "9")[0] == 0
    entry = compare.load(tmp_path / "output", "ours")
    assert (entry.sigma, entry.n, entry.alpha, len(entry.log.ids)) == (0.5, 300, 0.01, 9)


# Bad input


def test_bad_input_is_one_line_and_status_2(run, model, folder, digits, tmp_path):
    np.savez(tmp_path / "eleven.npz", images=digits[0][:3], labels=np.array([0, 10, 1]))
    (tmp_path / "text.txt").write_text("")
    ours = ("--model", model)
    on_digits = (*ours, "--dataset", "digits")
    for arguments, message in [
        (("--dataset", "digits"), "--model is missing"),
        (ours, "Give the images by --dataset or by --images, one of them."),
        ((*on_digits, "--images", folder), "Give the images by --dataset or by --images, one of them."),
        ((*ours, "--images", folder, "--split", "test"), "--split is for --dataset, not for --images."),
        (("--model", tmp_path / "none.keras", "--dataset", "digits"), "There is no model"),
        (("--model", tmp_path / "text.txt", "--dataset", "digits"), "A model is a .keras, .h5, .hdf5 file or"),
        (("--model", folder, "--dataset", "digits"), "A model is a .keras, .h5, .hdf5 file or"),
        ((*ours, "--images", tmp_path / "nowhere"), "nowhere"),
        ((*ours, "--images", tmp_path / "eleven.npz"), "The model has 10 classes, the images have 11"),
        ((*on_digits, "--start", "360"), "leave none of the 360 images"),
        ((*on_digits, "--skip", "0"), "--skip must be a whole number from 1. Received: 0"),
        ((*on_digits, "--n", "3", "--alpha", "0.001"), "--n is too small. No image could be certified"),
        ((*on_digits, "--modle", "x"), "Unknown argument --modle. Did you mean --model"),
        ((*on_digits, "--certify", "sotf"), "--certify must be hard or soft-hoeffding or soft-bernstein or all."),
        ((*on_digits, "--soft_betas", "1,0"), "--soft_betas must be numbers above 0 such as 1,16. Received: 1,0"),
        ((*on_digits, "--budget", "adaptive"), "--budget adaptive needs --radius or --precision, one of them"),
        ((*on_digits, "--radius", "0.25"), "--radius is for --budget adaptive."),
        ((*on_digits, "--precision", "0.01"), "--precision is for --budget adaptive."),
        ((*on_digits, "--budget", "adaptive", "--radius", "9"), "n=300 samples certify up to radius"),
        ((*on_digits, "--budget", "adaptive", "--radius", "0.2", "--certify", "all"), "adaptive is for --certify hard"),
        ((*on_digits, "--certify", "all", "--n", "5000000"), "Soft votes hold up to 4,194,304 samples an image."),
    ]:
        # What comes last on a command line counts.
        status, out, err = run(*SETTINGS, *arguments, settings=())
        assert (status, out) == (2, ""), arguments
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert message in err


def test_without_sigma_it_asks_for_it(run, model):
    status, _, err = run("--model", model, "--dataset", "digits", settings=())
    assert status == 2
    assert "--sigma is missing" in err


def test_ctrl_c_is_status_130(run, model, monkeypatch, ctrl_c, capsys):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("pipeline.certification.run", lambda *_, **__: ctrl_c())
    with pytest.raises(SystemExit, match="130"):
        run("--model", model, "--dataset", "digits")
    expected = "\nInterrupted. What was drawn is kept; run the same command again to go on.\n"
    assert capsys.readouterr().err == expected
    assert signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_is_not_lost_where_an_exception_would_be(run, model, monkeypatch, ctrl_c):
    class Lossy:
        def __del__(self):
            ctrl_c()

    def lose(*_, **__):
        Lossy()
        raise AssertionError("it goes on")

    ended = []
    monkeypatch.setattr("pipeline.errors.os._exit", ended.append)
    monkeypatch.setattr("pipeline.certification.run", lose)
    run("--model", model, "--dataset", "digits")
    assert ended == [130]
