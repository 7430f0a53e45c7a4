"""Certifying anyone's classifier: every kind of file, the library's own certificates, failed images, refusals."""

import errno
import importlib
import itertools
import json
import os
import pkgutil
import re
import shlex
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pyarrow import parquet

from macer_tf import certification_log
from macer_tf.smoothing import SmoothedClassifier
from pipeline.certification import certificate_files, classifiers, driver, ledger, vote_store, workers
from pipeline.data import sources
from pipeline.jobs import certify, compare
from pipeline.utils import sealed
from pipeline.utils.errors import InputError
from tests.kills import Ended

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
    """A function: arguments -> status, output, errors; certificates go to tmp_path / output.

    Of the settings those are given that the arguments do not give.
    """

    def run(*arguments, settings=SETTINGS):
        settings = dict(zip(settings[::2], settings[1::2], strict=True))
        others = [part for name, value in settings.items() if name not in arguments for part in (name, value)]
        arguments = [str(argument) for argument in (*arguments, *others, "--output", tmp_path / "output")]
        capsys.readouterr()
        return certify.main(arguments), *capsys.readouterr()

    return run


def saved(classifier, tmp_path, kind):
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / f"saved{kind}"
    if kind:
        classifier.save(path)
    else:
        classifier.export(path, verbose=False)
    return path


# Kinds of model


@pytest.mark.parametrize("kind", ["", ".keras", ".h5"])
def test_every_kind_of_file_gets_the_certificates_of_the_library(run, classifier, digits, tmp_path, kind):
    # TensorFlow would take its name for a pattern.
    model = saved(classifier, tmp_path, kind).rename(tmp_path / f"saved [1]{kind}")
    status, out, err = run("--model", model, "--dataset", "digits", "--skip", "60")
    assert (status, err) == (0, "")
    ids = np.arange(0, 360, 60)
    images, labels = (array[1437:][ids] for array in digits)
    expected = SmoothedClassifier(classifier, 0.5, seed=3, levels=256).certify(images, 20, 300, 0.01, example_ids=ids)
    log = certification_log.read(tmp_path / "output" / "certificates.tsv")
    assert log.ids.tolist() == ids.tolist()
    assert log.labels.tolist() == labels.tolist()
    np.testing.assert_array_equal(log.predictions, expected.predictions)
    np.testing.assert_array_equal(log.radii, expected.radii)
    assert f"precision: {'float32' if kind else 'as saved'}" in out
    assert "6 of 360 of digits (ids 0 to 300)" in out
    assert (tmp_path / "output" / "failed.tsv").read_text() == "idx\treason\n"
    assert "failed" not in out


def test_a_model_trained_here_brings_its_sigma_and_no_other(run, classifier, write_model, tmp_path, monkeypatch):
    path = write_model(classifier, sigma=0.75)
    status, out, _ = run("--model", path, "--dataset", "digits", "--max", "1", settings=SETTINGS[2:])
    assert status == 0
    assert "sigma=0.75" in out
    assert json.loads((tmp_path / "output" / "metrics.json").read_text())["sigma"] == 0.75
    others = keras.models.clone_model(classifier)
    others.sigma = 0.1  # of a user's own kind of model, where it may be anything
    monkeypatch.setattr(classifiers, "load", lambda *_: others)
    _, _, err = run("--model", path, "--dataset", "digits", "--max", "1", settings=SETTINGS[2:])
    assert "--sigma is missing" in err


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


def save_module(path, shape, outputs):
    """Saves `outputs(module, images)` as a SavedModel of images of this shape; the module has a variable `calls`."""
    module = tf.Module()
    module.calls = tf.Variable(0.0)
    module.call = tf.function(
        lambda images: outputs(module, images), input_signature=[tf.TensorSpec(shape, tf.float32, name="images")]
    )
    tf.saved_model.save(module, str(path), signatures=module.call)


@pytest.mark.parametrize("size", [1, 32])
def test_a_saved_model_of_a_fixed_batch_size_is_refused(tmp_path, size):
    save_module(tmp_path / "fixed", [size, 8, 8, 1], lambda module, images: images[:, 0, :2, 0])
    with pytest.raises(InputError, match=rf"takes {size} images at once, .*; save it with a batch size of None\.$"):
        classifiers.load(tmp_path / "fixed")


def test_a_saved_model_that_changes_when_it_runs_is_refused(run, tmp_path):
    def turns(module, images):
        module.calls.assign_add(1.0)
        return tf.where(module.calls > 1000.0, -1.0, 1.0) * images[:, 0, :, 0]

    save_module(tmp_path / "turns", [None, 8, 8, 1], turns)
    status, _, err = run("--model", tmp_path / "turns", "--dataset", "digits", "--max", "1")
    assert status == 2
    assert "turns cannot be certified. The classifier changes variables whenever it runs, " in err
    assert err.count("\n") == 1


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
    log = certification_log.read(tmp_path / "output" / "certificates.tsv")
    assert log.ids.tolist() == [0, 1, 2, *range(4, 12)]
    assert set(log.labels) == {-1}
    header, row = (tmp_path / "output" / "failed.tsv").read_text().splitlines()
    assert header == "idx\treason\tfile"
    assert row.startswith("3\t")
    assert row.endswith("\t03.png")
    assert "03.png cannot be read" in row
    assert "1 image failed and has no certificate: image 3:" in out
    assert f"; failed images: {tmp_path / 'output' / 'failed.tsv'}\n" in out
    lines = (tmp_path / "output" / "certificates.tsv").read_text().splitlines()
    assert [line.split("\t")[-1] for line in lines] == ["file", *(f"{i:02}.png" for i in range(12) if i != 3)]
    assert "without labels" in out
    assert "Certified accuracy" not in out
    # Mended, it is drawn alone and all are certified.
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "03.png")
    status, out, _ = run("--model", model, "--images", folder)
    assert status == 0
    assert "3,520 samples have already been drawn." in out
    assert "To draw: 320 noisy samples" in out
    assert certification_log.read(tmp_path / "output" / "certificates.tsv").ids.tolist() == list(range(12))
    # Another image in its place has votes of its own.
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / "03.png")
    assert "To draw: 320 noisy samples" in run("--model", model, "--images", folder)[1]


def test_if_every_image_fails_there_is_no_certificate(run, model, folder, tmp_path):
    for file in folder.iterdir():
        file.write_bytes(b"")
    status, out, _ = run("--model", model, "--images", folder)
    assert status == 1
    assert "12 images failed" in out
    assert (tmp_path / "output" / "certificates.tsv").read_text() == "idx\tlabel\tpredict\tradius\tcorrect\n"
    assert len((tmp_path / "output" / "failed.tsv").read_text().splitlines()) == 13


def test_an_archive_with_labels(run, model, digits, tmp_path):
    np.savez(tmp_path / "some.npz", images=digits[0][:9], labels=digits[1][:9])
    status, out, _ = run(
        "--model",
        model,
        "--images",
        tmp_path / "some.npz",
        "--levels",
        "256",
        "--start",
        "4",
        "--max",
        "8",
        "--skip",
        "2",
    )
    assert status == 0
    log = certification_log.read(tmp_path / "output" / "certificates.tsv")
    assert (log.ids.tolist(), log.labels.tolist()) == ([4, 6], digits[1][[4, 6]].tolist())
    assert "Certified accuracy at l2 radius" in out


def test_images_that_all_lie_off_the_grid_are_refused_before_any_is_drawn(run, model, digits, tmp_path):
    """One that lies on it is certified, and the others are written down."""
    images = digits[0][:3] * np.float32(15 / 16)
    images[:, 0, 0] = 0.3
    path = tmp_path / "some.npz"
    np.savez(path, images=images)
    status, out, err = run("--model", model, "--images", path, "--levels", "256")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: No image can be certified\. Pixels must be multiples of 1/256, .* --levels\.\n", err)
    assert not (tmp_path / "output" / "votes").exists()
    images[1] = digits[0][1]
    np.savez(path, images=images)
    status, out, _ = run("--model", model, "--images", path, "--levels", "256")
    assert status == 1
    assert "2 images failed" in out


def test_folders_are_numbered_as_a_file_says(run, model, digits, tmp_path):
    for name in ("seven", "two"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / name / "a.png")
    status, _, err = run("--model", model, "--images", tmp_path / "images")
    assert status == 2
    assert err == (
        "error: The model has 10 classes, but the images have 2, seven, two: their numbers must mean the same. Number "
        "the folders with --classes, or make an empty one for each missing class.\n"
    )
    (tmp_path / "classes.csv").write_text("two,2\nseven,7\n")
    assert run("--model", model, "--images", tmp_path / "images", "--classes", tmp_path / "classes.csv")[0] == 0
    assert certification_log.read(tmp_path / "output" / "certificates.tsv").labels.tolist() == [7, 2]
    (tmp_path / "classes.csv").write_text("two,2\nseven,17\n")
    _, _, err = run("--model", model, "--images", tmp_path / "images", "--classes", tmp_path / "classes.csv")
    assert err.endswith(
        "the images have 18: their numbers must mean the same. Image 0, seven/a.png, is of class 17; accepted: 0 to 9. "
        "Number the folders from 0, by their names or with --classes.\n"
    )


def test_folders_that_are_named_by_numbers_need_no_file(run, model, tmp_path):
    for name in ("10", "2", "07"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / name / "a.png")
    status, _, err = run("--model", model, "--images", tmp_path / "images")
    assert status == 2
    assert "Image 1, 10/a.png, is of class 10; accepted: 0 to 9." in err
    (tmp_path / "images" / "10").rename(tmp_path / "images" / "9")
    assert run("--model", model, "--images", tmp_path / "images")[0] == 0
    assert certification_log.read(tmp_path / "output" / "certificates.tsv").labels.tolist() == [7, 2, 9]


def test_images_are_resized_only_if_asked_to_and_it_is_told_wherever_the_certificates_are(run, model, tmp_path):
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    large = random.integers(0, 256, (16, 20), np.uint8)
    Image.fromarray(large).save(tmp_path / "images" / "large.png")
    Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "images" / "right.png")
    output = tmp_path / "output"
    status, out, _ = run("--model", model, "--images", tmp_path / "images")
    assert status == 1
    assert "large.png is 16x20, not 8x8; save it in that size, or certify it resized" in out
    assert "resized to" not in out
    assert json.loads((output / "metrics.json").read_text())["resize"] is False
    # Of the image that had the size, no vote counts for the other rule.
    status, out, _ = run("--model", model, "--images", tmp_path / "images", "--resize")
    assert status == 0
    assert "already been drawn" not in out
    assert "without labels, resized to that and cropped, given to the model in [0, 1]" in out
    assert json.loads((output / "metrics.json").read_text())["resize"] is True
    html = (output / "report.html").read_text()
    assert "2 of 2 images of" in html
    assert "resized and cropped" in html
    assert "--resize=yes" in html
    # The middle 16x16, each 2x2 block of which weighs most.
    middle = Image.fromarray(large).resize((8, 8), Image.Resampling.BILINEAR, box=(2, 0, 18, 16))
    (tmp_path / "small").mkdir()
    middle.save(tmp_path / "small" / "large.png")
    shutil.copy(tmp_path / "images" / "right.png", tmp_path / "small")
    lines = (output / "certificates.tsv").read_text()
    assert run("--model", model, "--images", tmp_path / "small")[0] == 0
    assert (output / "certificates.tsv").read_text() == lines


def test_an_archive_that_is_replaced_after_it_was_read_is_certified_as_it_was_read(
    run, model, digits, tmp_path, monkeypatch
):
    """Otherwise the labels of one archive would stand beside the votes on another's images."""
    from pipeline.data import sources

    np.savez(tmp_path / "some.npz", images=digits[0][:2], labels=digits[1][:2])
    assert run("--model", model, "--images", tmp_path / "some.npz", "--levels", "256")[0] == 0
    expected = (tmp_path / "output" / "certificates.tsv").read_text()
    open_archive = sources.Archive.open

    def replace_after(source):
        opened = open_archive(source)
        np.savez(tmp_path / "some.npz", images=digits[0][[0, 5]], labels=digits[1][[0, 5]])
        return opened

    monkeypatch.setattr(sources.Archive, "open", replace_after)
    shutil.rmtree(tmp_path / "output")
    assert run("--model", model, "--images", tmp_path / "some.npz", "--levels", "256")[0] == 0
    assert (tmp_path / "output" / "certificates.tsv").read_text() == expected


def test_names_of_files_command_no_terminal_and_reasons_are_the_same_in_every_run(run, model, folder, tmp_path):
    (folder / "03.png").rename(folder / "\x1b[2J\n03.png")
    texts = []
    for _ in range(2):
        status, out, err = run("--model", model, "--images", folder)
        assert (status, err) == (1, "")
        assert "\x1b" not in out
        texts.append((tmp_path / "output" / "failed.tsv").read_text())
    assert texts[0] == texts[1]
    assert texts[0].count("\n") == 2
    assert "\x1b" not in texts[0]
    assert " at 0x" not in texts[0]


# Going on, and what comes of it


def test_the_same_command_draws_nothing_again_and_another_alpha_neither(run, model, tmp_path, monkeypatch):
    arguments = ("--model", model, "--dataset", "digits", "--max", "3")
    assert run(*arguments)[0] == 0
    files = (
        "certificates.tsv", "certificates.jsonl", "certification.json", "failed.tsv", "metrics.json",
        "radius_accuracy.png", "certificates.parquet", "report.html", "settings.yaml",
    )  # fmt: skip
    first = [(tmp_path / "output" / name).read_bytes() for name in files]

    def record(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(ledger.LedgerWriter, "record", record)
    status, out, _ = run(*arguments)
    assert status == 0
    assert re.search(r"  [\d,]+ samples have already been drawn\.\n\n", out)
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
    assert renames >= 1  # links that are right already stay


def test_a_copy_without_links_is_certified_anew_and_whole(run, model, tmp_path):
    arguments = ("--model", model, "--dataset", "digits", "--max", "3")
    assert run(*arguments)[0] == 0
    output = tmp_path / "output"
    output.rename(tmp_path / "linked")
    shutil.copytree(tmp_path / "linked", output)  # follows links
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")  # before any work
    assert f"{output / 'results'} is in the way" in err
    shutil.rmtree(output / "results")
    assert run(*arguments, settings=(*SETTINGS, "--alpha", "0.2"))[0] == 0
    assert certificate_files.read(output)[0]["alpha"] == 0.2
    assert all(path.is_symlink() for path in output.glob("certificat*"))


def test_files_of_ones_own_are_neither_replaced_nor_removed(run, model, tmp_path):
    output = tmp_path / "output"
    own = (
        "results-2025/notes",
        "results-20250131/notes",
        "unfinished/a",
        ".model/a",
        "results-notes.txt",
        "certificates of old.tsv",
    )
    for name in own:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("mine")
    arguments = ("--model", model, "--dataset", "digits", "--max", "2")
    for name in ("settings.yaml", "report.html", "certificates-soft-bernstein-1.tsv"):
        (output / name).write_text("mine")
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")  # before any work
        assert err == (
            f"error: {output / name} is in the way: a result of that name goes there. Move it elsewhere, or give "
            "another output.\n"
        )
        assert (output / name).read_text() == "mine"
        (output / name).unlink()
    assert run(*arguments)[0] == 0
    # A copy that somebody keeps, under a name like ours.
    shutil.copytree(output / "results", output / "results-20250228")
    assert run(*arguments)[0] == 0
    assert (output / "results-20250228" / "certificates.tsv").exists()
    assert len([*output.glob("results-*/certificates.tsv")]) == 2
    assert all((output / name).read_text() == "mine" for name in own)
    (output / "metrics.json").unlink()
    (output / "metrics.json").symlink_to("results-notes.txt")
    assert run(*arguments)[0] == 2
    assert (output / "results-notes.txt").read_text() == "mine"


def test_a_full_disk_is_one_line_and_what_was_drawn_is_kept(run, model, tmp_path, monkeypatch):
    arguments = ("--model", model, "--dataset", "digits", "--max", "2")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "unfinished").write_text("a file of that name")

    def write(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(certificate_files, "write", write)
        status, _, err = run(*arguments)
    assert (status, err) == (
        2,
        f"error: The certification cannot write ({os.strerror(errno.ENOSPC)}) in {tmp_path / 'output'}. Make room "
        "there and run the same command again: what was drawn is kept.\n",
    )
    status, out, _ = run(*arguments)
    assert status == 0
    assert "To draw" not in out


def test_the_page_of_a_folder_without_labels_shows_its_images_by_name(run, model, folder, tmp_path):
    assert run("--model", model, "--images", folder)[0] == 1  # image 3 is damaged
    output = tmp_path / "output"
    html = (output / "report.html").read_text()
    assert f"<title>{model.name} on {folder}, sigma = " in html
    shown = re.findall(r'<p class="name">image (\d+), (\S+)</p>', html)
    assert sorted((int(i), name) for i, name in shown) == [(i, f"{i:02}.png") for i in range(12) if i != 3]
    assert not re.search(r"\bACR [\d.]|certified class is their label|not correct|data-label", html)
    (command,) = re.findall(r"<dt>Command</dt><dd>(.*?)</dd>", html)
    given = dict(argument.removeprefix("--").split("=", 1) for argument in shlex.split(command)[3:])
    assert (given.pop("model"), given.pop("images")) == (str(model), str(folder))
    settings = dict(zip([flag.removeprefix("--") for flag in SETTINGS[::2]], SETTINGS[1::2], strict=True))
    assert given == {name: settings[name] for name in ("sigma", "n0", "n", "alpha", "seed")}
    rows = parquet.read_table(output / "certificates.parquet").to_pylist()
    assert [row["file"] for row in rows] == [f"{i:02}.png" for i in range(12) if i != 3]
    lines = [json.loads(line) for line in (output / "certificates.jsonl").read_text().splitlines()]
    for row, line in zip(rows, lines, strict=True):
        assert [row[name] for name in ("example_id", "prediction", "radius", "p_lower", "votes", "label")] == [
            *(line[name] for name in ("example_id", "prediction", "radius", "p_lower", "estimation")), None,
        ]  # fmt: skip


def test_the_page_shows_no_other_image_than_was_certified(run, model, folder, tmp_path, monkeypatch):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "03.png")
    draw = driver.run_in

    def replaced_after(*arguments, **keywords):
        outcome = draw(*arguments, **keywords)
        Image.fromarray(np.full((8, 8), 77, np.uint8)).save(folder / "05.png")
        return outcome

    monkeypatch.setattr(driver, "run_in", replaced_after)
    assert run("--model", model, "--images", folder)[0] == 0
    html = (tmp_path / "output" / "report.html").read_text()
    cards = re.findall(r'<li class="card.*?</li>', html, re.DOTALL)
    assert [card.count("<img") for card in cards if "05.png" in card] == [0]
    assert {card.count("<img") for card in cards if "05.png" not in card} == {2}


def test_hard_and_soft_certificates_in_one_table_and_one_figure(run, model, tmp_path):
    status, out, _ = run(
        "--model", model, "--dataset", "digits", "--max", "4", "--certify", "all", "--soft_betas", "1,1e16"
    )  # fmt: skip
    assert status == 0
    soft = ["soft-hoeffding-1", "soft-hoeffding-1e+16", "soft-bernstein-1", "soft-bernstein-1e+16"]
    kinds = ["hard", *soft, "hard-randomized"]
    assert re.findall(r"^(hard\S*|soft-\S+) ", out, re.MULTILINE) == kinds
    assert (
        "bound: clopper-pearson (hard), hoeffding (soft-hoeffding-1, soft-hoeffding-1e+16), empirical-bernstein "
        "(soft-bernstein-1, soft-bernstein-1e+16), randomized-clopper-pearson (hard-randomized); "
    ) in out
    output = tmp_path / "output"
    metrics = json.loads((output / "metrics.json").read_text())
    assert list(metrics["certificates"]) == kinds
    assert metrics["acr"] == metrics["certificates"]["hard"]["acr"]
    logged = [
        certification_log.read(output / f"certificates{suffix}.tsv")
        for suffix in ("", *(f"-{kind}" for kind in kinds[1:]))
    ]
    for kind, log in zip(kinds, logged, strict=True):
        assert np.mean(np.where(log.correct, log.radii, 0)) == pytest.approx(metrics["certificates"][kind]["acr"])
    assert (output / "radius_accuracy.png").read_bytes().startswith(b"\x89PNG")
    # Another run leaves no certificates of this one behind.
    assert run("--model", model, "--dataset", "digits", "--max", "4")[0] == 0
    assert sorted(path.name for path in output.glob("certificates*")) == [
        "certificates.jsonl",
        "certificates.parquet",
        "certificates.tsv",
    ]


def test_adaptive_budgets(run, model, tmp_path):
    # The budget for radii says what it decided, and no more.
    on_digits = ("--model", model, "--dataset", "digits", "--skip", "40", "--n", "5000", "--skip_wrong", "no")
    settings = (*SETTINGS[:4], *SETTINGS[6:])
    # At n = 5,000, 1.53 is above what the anytime bound alone can certify.
    status, out, _ = run(*on_digits, "--budget", "adaptive", "--radii", "0,0.1,1.53", settings=settings)
    assert status == 0
    assert "Sampled only to decide these radii: the radii, and so the ACR, could be larger." in out
    assert "bound: anytime" in out
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
    assert metrics["radii"] == metrics["decided_radii"] == [0, 0.1, 1.53]
    assert metrics["is_first_look"] is True
    assert metrics["samples_per_image"] < 5020
    page = (tmp_path / "output" / "report.html").read_text()
    assert "had been looked at" not in page
    assert '<th scope="col">1.53</th>' in page
    # Another question of the same votes, by the bound that allows for looks.
    status, out, _ = run(*on_digits, "--budget", "adaptive", "--tolerance", "0.05", settings=settings)
    assert status == 0
    assert "first drawn for n0=20, n=5,000, radii=0,0.1,1.53: these certificates use the bound" in out
    assert "had been looked at before n was chosen" in (tmp_path / "output" / "report.html").read_text()
    assert json.loads((tmp_path / "output" / "metrics.json").read_text())["bound"] == "anytime"
    # What was asked for is written down, beside the number type that was computed in.
    about = certificate_files.read(tmp_path / "output")[0]
    asked = {name: about[name] for name in ("n0", "n", "radii", "tolerance", "precision")}
    assert asked == {"n0": 20, "n": 5000, "radii": None, "tolerance": 0.05, "precision": "float32"}


def test_certificates_of_another_format_are_told_in_one_line(run, model, tmp_path):
    assert run("--model", model, "--dataset", "digits", "--max", "9")[0] == 0
    path = tmp_path / "output" / "certification.json"
    about = sealed.loads(path.read_bytes())
    about["format"] = 3
    path.write_text(sealed.dumps(about))
    with pytest.raises(InputError, match="are of format 3, which another version wrote"):
        certificate_files.read(tmp_path / "output")
    del about["format"]
    path.write_text(sealed.dumps(about))
    with pytest.raises(InputError, match="are of format 1, which an earlier version wrote") as error:
        certificate_files.read(tmp_path / "output")
    assert "\n" not in str(error.value)


def test_its_output_can_be_compared(run, model, tmp_path, capsys):
    assert run("--model", model, "--dataset", "digits", "--max", "9")[0] == 0
    entry = compare.load(tmp_path / "output", "ours")
    assert (entry.sigma, entry.n, entry.alpha, len(entry.log.ids)) == (0.5, 300, 0.01, 9)


# Bad input


def test_bad_input_is_one_line_and_status_2(run, model, folder, digits, tmp_path):
    np.savez(tmp_path / "eleven.npz", images=digits[0][:3], labels=np.array([0, 10, 1]))
    (tmp_path / "text.txt").write_text("")
    (tmp_path / "torn.keras").write_bytes(model.read_bytes()[:-100])
    (tmp_path / "torn.h5").write_bytes(b"PK")
    (tmp_path / "loop").symlink_to("loop")
    ours = ("--model", model)
    on_digits = (*ours, "--dataset", "digits")
    for arguments, message in [
        (("--dataset", "digits"), "--model is missing"),
        (ours, "Give the images with either --dataset or --images."),
        ((*on_digits, "--images", folder), "Give the images with either --dataset or --images."),
        ((*ours, "--images", folder, "--split", "test"), "--split is for --dataset, not for --images."),
        ((*on_digits, "--classes", "x"), "--classes is for the folders of --images, not for --dataset."),
        ((*on_digits, "--resize"), "--resize is for the files of --images; --image_size resizes a --dataset."),
        ((*ours, "--images", tmp_path / "eleven.npz", "--resize"), "Only files in a folder can be resized, not arrays"),
        (("--model", tmp_path / "none.keras", "--dataset", "digits"), "There is no model"),
        (("--model", tmp_path / "text.txt", "--dataset", "digits"), "A model is a .keras, .h5, .hdf5 file or"),
        (("--model", folder, "--dataset", "digits"), "A model is a .keras, .h5, .hdf5 file or"),
        ((*ours, "--images", tmp_path / "no\x1b[2J\nwhere"), r"There is no folder or file"),
        ((*ours, "--images", tmp_path / "no\x1b[2J\nwhere"), r"no\x1b[2J\nwhere"),
        ((*ours, "--images", tmp_path / "text.txt"), "or in an .npz file with the arrays images and labels"),
        ((*ours, "--images", tmp_path / "loop"), "There is no folder or file"),
        ((*ours, "--images", "x" * 300), f"Cannot use {'x' * 300} ({os.strerror(errno.ENAMETOOLONG)}); give another"),
        (
            (*ours, "--images", tmp_path / "eleven.npz", "--levels", "256"),
            "The model has 10 classes, but the images have 11",
        ),
        ((*ours, "--images", tmp_path), "where it would be taken for a class; give another"),
        ((*on_digits, "--start", "360"), "start=360 leaves none of the 360 images"),
        ((*on_digits, "--num_workers", "1025"), "num_workers must be a whole number from 1 to 1024. Received: 1025"),
        ((*on_digits, "--skip", "0"), "skip must be a whole number from 1. Received: 0"),
        ((*on_digits, "--n", "3", "--alpha", "0.001"), "n is too small. No image could be certified"),
        ((*on_digits, "--modle", "x"), "Unknown argument --modle. Did you mean --model"),
        (
            (*on_digits, "--certify", "sotf"),
            "Unknown kind of certificates. Received: sotf; accepted: hard, soft-hoeffding, ",
        ),
        ((*on_digits, "--certify", "sotf:f"), "Cannot import sotf"),
        ((*on_digits, "--certify", "math:nothing"), "The module math defines no nothing"),
        (
            (*on_digits, "--certify", "math:sqrt"),
            "math:sqrt is not a bound: decorate it with @macer_tf.bounds.register.",
        ),
        ((*on_digits, "--certify", "macer_tf.confidence:anytime_lower"), "give certify=hard instead."),
        ((*on_digits, "--soft_betas", "1,0"), "--soft_betas must be numbers above 0 such as 1,16. Received: 1,0"),
        ((*on_digits, "--budget", "adaptive"), "--budget adaptive needs either --radii or --tolerance, which says"),
        ((*on_digits, "--radii", "0.25"), "--radii is for --budget adaptive."),
        ((*on_digits, "--tolerance", "0.01"), "--tolerance is for --budget adaptive."),
        ((*on_digits, "--budget", "adaptive", "--radii", "9"), "n=300 samples certify up to radius"),
        ((*on_digits, "--budget", "adaptive", "--radii", "0.2", "--certify", "all"), "adaptive is for certify=hard"),
        ((*on_digits, "--certify", "all", "--n", "5000000"), "Soft votes hold up to 4,194,304 samples per image."),
        ((*on_digits, "--soft_betas", "1"), "--soft_betas would do nothing here: certify=hard asks for no soft"),
        (
            (*on_digits, "--skip_wrong", "no", "--certify", "all"),
            "--skip_wrong would do nothing here: certify=all estimates every image.",
        ),
        ((*on_digits, "--max", "2", "--max=3"), "--max is given twice: 2 and 3. Give it once."),
        ((*ours, "--dataset", "digist"), "Unknown dataset 'digist'. Did you mean digits"),
        ((*on_digits, "--custom_objects", "my_nowhere"), "There is no module my_nowhere to import"),
        (("--model", tmp_path / "torn.keras", "--dataset", "digits"), "is not a .keras file, or was not written comp"),
        (("--model", tmp_path / "torn.h5", "--dataset", "digits"), "is not a .h5 file, or was not written completely."),
    ]:
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), arguments
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert message in err


def test_programs_get_one_value_and_the_settings_make_the_same_again(run, model, tmp_path, capsys):
    status, out, err = run("--model", model, "--dataset", "digits", "--max", "9", "--json")
    told = json.loads(out)
    output = tmp_path / "output"
    assert (status, told["status"]) == (0, 0)
    assert told["metrics"] == json.loads((output / "metrics.json").read_text())
    assert told["paths"]["certificates.tsv"] == str(output / "certificates.tsv")
    assert all(Path(path).exists() for path in told["paths"].values())
    assert f"Certificates: {output / 'certificates.tsv'}" in err
    # Its settings, with no others, draw nothing and certify the same.
    before = (output / "certificates.jsonl").read_bytes()
    config = tmp_path / "settings.yaml"
    shutil.copy(output / "settings.yaml", config)
    status, out, _ = run("--config", config, "--quiet", settings=())
    assert status == 0
    assert out.startswith("\nCertified accuracy")
    assert (output / "certificates.jsonl").read_bytes() == before
    # A flag wins.
    assert run("--config", config, "--max", "4", settings=())[0] == 0
    assert len((output / "certificates.jsonl").read_bytes().splitlines()) == 4
    # And the command is the same command.
    capsys.readouterr()
    assert certify.main([*shlex.split(told["command"])[3:], "--output", str(output)]) == 0
    assert (output / "certificates.jsonl").read_bytes() == before


def test_a_failed_image_is_in_the_value_too(run, model, folder):
    status, out, _ = run("--model", model, "--images", folder, "--json")
    told = json.loads(out)
    assert (status, told["status"], list(told["failed"])) == (1, 1, ["3"])


def test_the_result_for_one_image_is_json_too(run, model, tmp_path):
    """Its ACR has no standard error, and JSON has no NaN."""
    status, out, _ = run("--model", model, "--dataset", "digits", "--max", "1", "--json")
    assert status == 0
    for text in (out, (tmp_path / "output" / "metrics.json").read_text()):
        assert '"acr_standard_error": null' in text
        assert "NaN" not in text


def test_a_dry_run_forecasts_what_is_still_to_draw_and_writes_nothing(run, model, tmp_path):
    on_digits = ("--model", model, "--dataset", "digits", "--max", "20")
    status, out, err = run(*on_digits, "--dry_run")
    assert (status, err) == (0, "")
    assert "To draw: at most 6,400 noisy samples, a forward pass each: at most " in out
    assert out.endswith("Nothing was certified or written.\n")
    assert list(tmp_path.iterdir()) == []
    assert run(*on_digits)[0] == 0
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert "Every sample has already been drawn." in run(*on_digits, "--dry_run")[1]
    told = json.loads(run(*on_digits[:-1], "30", "--skip_wrong", "no", "--dry_run", "--json")[1])
    assert 10 * 320 <= told["dry_run"]["samples"] <= 30 * 320
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    # It takes into account what was looked at, whatever n0 that was for, and refuses what the run would refuse.
    assert (
        "these certificates use the bound that holds whenever one looks" in run(*on_digits, "--n0", 10, "--dry_run")[1]
    )
    status, _, err = run(*on_digits, "--n0", 10, "--n", 7, "--dry_run")
    assert (status, "n=7 is too small for that" in err) == (2, True)
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    # Nor does it write a record that is missing.
    (register,) = (tmp_path / "output" / "votes").glob("looks-*.json")
    register.unlink()
    assert run(*on_digits, "--dry_run")[0] == 0
    assert not register.exists()


def test_without_sigma_it_asks_for_it(run, model):
    status, _, err = run("--model", model, "--dataset", "digits", settings=())
    assert status == 2
    assert "--sigma is missing" in err


def test_ctrl_c_is_status_130(run, model, monkeypatch, ctrl_c, capsys):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("pipeline.certification.driver.run", lambda *_, **__: ctrl_c())
    with pytest.raises(Ended, match="130"):
        run("--model", model, "--dataset", "digits")
    expected = "\nInterrupted. What was drawn is kept; run the same command again to resume.\n"
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
    monkeypatch.setattr("serving.exit.os._exit", ended.append)
    monkeypatch.setattr("pipeline.certification.driver.run", lose)
    run("--model", model, "--dataset", "digits")
    assert ended == [130]


# What is certified is what was there


@pytest.fixture
def two_models(classifier):
    """Two classifiers that differ in what they return."""
    other = keras.models.clone_model(classifier)
    rng = np.random.default_rng(5)
    other.set_weights([rng.normal(0, 1, weight.shape) for weight in classifier.get_weights()])
    return classifier, other


def replaced(path, other):
    """Puts another model where one is, as a training that goes on does."""
    if path.is_dir():
        shutil.rmtree(path)
        shutil.copytree(other, path)
    else:
        shutil.copyfile(other, path)


@pytest.mark.parametrize("kind", ["", ".keras"])
@pytest.mark.parametrize(
    "before",
    ["keras.models.load_model", "tensorflow.saved_model.load", "pipeline.certification.driver.run",
     "pipeline.certification.classifiers.model_fingerprint", "pipeline.certification.workers.Sampler.load"],
)  # fmt: skip
def test_a_model_replaced_at_any_moment_gets_no_other_models_votes(
    run, two_models, digits, tmp_path, monkeypatch, kind, before
):
    paths = [saved(model, tmp_path / name, kind) for name, model in zip("ab", two_models, strict=True)]
    path = saved(two_models[0], tmp_path / "used", kind)
    function, calls = pkgutil.resolve_name(before), []

    def replacing(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            replaced(path, paths[1])
        return function(*arguments, **options)

    monkeypatch.setattr(before, replacing)
    on_digits = ("--dataset", "digits", "--skip", "30", "--skip_wrong", "no")
    assert run("--model", path, *on_digits)[0] == 0
    monkeypatch.undo()
    if calls:
        # Its votes are found again under the fingerprint of what they are of, and of nothing else.
        for model, expected in zip(paths, two_models, strict=True):
            replaced(path, model)
            assert run("--model", path, *on_digits)[0] == 0
            ids = np.arange(0, 360, 30)
            right = SmoothedClassifier(expected, 0.5, seed=3, levels=256).certify(
                digits[0][1437:][ids], 20, 300, 0.01, example_ids=ids
            )
            log = certification_log.read(tmp_path / "output" / "certificates.tsv")
            np.testing.assert_array_equal(log.predictions, right.predictions)
            np.testing.assert_array_equal(log.radii, right.radii)
    assert not (tmp_path / "output" / ".certifying-model").exists()


def unreadable(path, other):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("become_another", [replaced, unreadable])
def test_it_tells_that_the_model_is_another_by_now(run, two_models, tmp_path, monkeypatch, become_another):
    path, other = (saved(model, tmp_path / name, ".keras") for name, model in zip("ab", two_models, strict=True))
    function = vote_store.VoteStore.compact
    monkeypatch.setattr(vote_store.VoteStore, "compact", lambda store: (function(store), become_another(path, other)))
    status, out, _ = run("--model", path, "--dataset", "digits", "--max", "2")
    assert status == 0
    assert f"{path} has been replaced since then: the certificates are for the model that was there before." in out


def test_a_model_that_is_written_to_all_the_time_is_refused(model, tmp_path, monkeypatch):
    path, texts = tmp_path / "changing.keras", itertools.count()
    copy = shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", lambda *paths: (copy(*paths), path.write_text(f"{next(texts)}")))
    path.write_text("")
    with pytest.raises(InputError, match=r"changing\.keras is being written to; wait until that is done"):
        classifiers.snapshot(path, tmp_path / "copy").__enter__()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda path: path.symlink_to("nowhere"), "variables'). Put back what is missing there and run the same"),
        (os.mkfifo, "variables` is a named pipe). Remove it and run the same"),
    ],
)
def test_a_models_folder_that_cannot_be_copied_is_not_taken_for_one_that_is_written_to(tmp_path, break_it, told):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"graph")
    break_it(tmp_path / "model" / "variables")
    with pytest.raises(InputError, match="Cannot copy the model") as caught:
        classifiers.snapshot(tmp_path / "model", tmp_path / "copy").__enter__()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "copy").exists()


def test_what_a_killed_run_left_of_the_model_is_removed(run, model, tmp_path):
    left = tmp_path / "output" / ".certifying-model"
    left.mkdir(parents=True)
    (left / model.name).write_bytes(b"half a mod")
    (left / "other").write_bytes(b"")
    assert run("--model", model, "--dataset", "digits", "--max", "1")[0] == 0
    assert not left.exists()


# Models that are not as they should be


def head(*outputs, dtype="float32", shape=(8, 8, 1)):
    """A model with a dense layer for each size in `outputs`, which may also be a dict of them."""
    keras.utils.set_random_seed(0)
    images = keras.Input(shape, dtype=dtype)
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    if isinstance(outputs[0], dict):
        return keras.Model(images, {name: keras.layers.Dense(size)(flat) for name, size in outputs[0].items()})
    made = [keras.layers.Dense(size, name=f"head{i}")(flat) for i, size in enumerate(outputs)]
    return keras.Model(images, made if len(made) > 1 else made[0])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "bool"])
def test_a_classifier_of_whole_numbers_is_refused(run, tmp_path, dtype):
    path = saved(head(10, dtype=dtype), tmp_path, ".keras")
    status, _, err = run("--model", path, "--dataset", "digits")
    assert (status, err.count("\n")) == (2, 1)
    assert (
        f"saved.keras cannot be certified. The classifier's input is {dtype}, which truncates pixels in [0, 1] to "
        "whole numbers; make its input float"
    ) in err


@pytest.mark.parametrize("kind", ["", ".keras"])
@pytest.mark.parametrize("outputs", [(10, 3), ({"digit": 10, "style": 3},)])
def test_of_several_outputs_the_one_that_is_named_is_certified(run, digits, tmp_path, kind, outputs):
    model = head(*outputs)
    path = saved(model, tmp_path, kind)
    on_digits = ("--model", path, "--dataset", "digits", "--max", "2", "--skip_wrong", "no")
    status, _, err = run(*on_digits)
    assert (status, err.count("\n")) == (2, 1)
    names = re.search(r"has outputs (\S+), (\S+): choose one \(model_output\)\. Received: none", err).groups()
    first = next(iter(model.output.values())) if isinstance(model.output, dict) else model.output[0]
    assert run(*on_digits, "--model_output", names[0])[0] == 0
    right = SmoothedClassifier(keras.Model(model.inputs, first), 0.5, seed=3, levels=256).certify(
        digits[0][1437:1439], 20, 300, 0.01
    )
    np.testing.assert_array_equal(certification_log.read(tmp_path / "output" / "certificates.tsv").radii, right.radii)
    # Another output is another classifier, with votes of its own; here, with other classes than the digits have.
    assert "The model has 3 classes" in run(*on_digits, "--model_output", names[1])[2]
    assert "Received: third" in run(*on_digits, "--model_output", "third")[2]


def test_which_of_one_output_need_not_be_said(run, model):
    status, _, err = run("--model", model, "--dataset", "digits", "--model_output", "logits")
    assert status == 2
    assert "has one output; leave model_output out. Received: logits" in err


OWN = """
import keras

{decorator}
class Twice(keras.layers.Layer):
    def call(self, images):
        return {factor} * images

class Net(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.parts = [Twice(), keras.layers.Flatten(), keras.layers.Dense(10)]

    def call(self, images):
        for part in self.parts:
            images = part(images)
        return images
"""


@pytest.fixture
def own_layers(tmp_path, monkeypatch):
    """A function: text of the module `own_layers` in the current folder -> the module, imported anew."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        forget()
        (tmp_path / "own_layers.py").write_text(text)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path)
            module = importlib.import_module("own_layers")
        forget()
        return module

    def forget():
        sys.modules.pop("own_layers", None)
        keras.saving.get_custom_objects().clear()

    registered = dict(keras.saving.get_custom_objects())
    yield write
    forget()
    keras.saving.get_custom_objects().update(registered)


@pytest.mark.parametrize("decorator", ["", "@keras.saving.register_keras_serializable('own')"])
@pytest.mark.parametrize("kind", [".keras", ".h5", "subclassed"])
def test_a_model_with_layers_of_its_own_needs_the_module_that_defines_them(run, own_layers, tmp_path, kind, decorator):
    module = own_layers(OWN.format(decorator=decorator, factor=2))
    if kind == "subclassed":
        model, kind = module.Net(), ".keras"
        model(np.zeros((1, 8, 8, 1), np.float32))
    else:
        model = keras.Sequential(
            [keras.Input((8, 8, 1)), module.Twice(), keras.layers.Flatten(), keras.layers.Dense(10)]
        )
    on_digits = ("--model", saved(model, tmp_path, kind), "--dataset", "digits", "--max", "2")
    status, _, err = run(*on_digits)
    assert (status, err.count("\n")) == (2, 1)
    assert re.search(r"holds (Twice|Net), which is not Keras' own: it can be loaded only with the module", err)
    status, out, err = run(*on_digits, "--custom_objects", "own_layers")
    assert (status, err) == (0, "")
    assert "already been drawn" not in out
    assert "samples have already been drawn" in run(*on_digits, "--custom_objects", "own_layers")[1]
    # Other code is another classifier.
    own_layers(OWN.format(decorator=decorator, factor=3))
    assert "already been drawn" not in run(*on_digits, "--custom_objects", "own_layers")[1]


READS = """
import keras
import numpy as np

class Twice(keras.layers.Layer):
    def build(self, shape):
        self.factor = float(np.load("factor.npy"))

    def call(self, images):
        return images * self.factor + 1 - self.factor
"""


def test_what_a_layer_reads_from_a_file_counts_as_part_of_the_model(run, own_layers, tmp_path):
    np.save(tmp_path / "factor.npy", 2.0)
    keras.utils.set_random_seed(0)
    parts = [own_layers(READS).Twice(), keras.layers.Flatten(), keras.layers.Dense(10)]
    on_digits = ("--model", saved(keras.Sequential([keras.Input((8, 8, 1)), *parts]), tmp_path, ".keras"), "--dataset",
                 "digits", "--max", "2", "--custom_objects", "own_layers")  # fmt: skip
    assert "already been drawn" not in run(*on_digits)[1]
    own_layers(READS)
    assert "samples have already been drawn" in run(*on_digits)[1]
    np.save(tmp_path / "factor.npy", 3.0)
    own_layers(READS)
    assert "already been drawn" not in run(*on_digits)[1]


def test_what_a_model_of_any_size_does_is_tried_on_images_of_the_size_that_is_certified():
    parts = [keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(2, kernel_initializer="identity")]
    model = keras.Sequential([keras.Input((None, None, 1)), *parts])
    assert classifiers.behaviour(model, (8, 8, 1)) != classifiers.behaviour(model, (4, 4, 1))


def test_a_machine_with_another_module_of_this_name_draws_nothing(own_layers, tmp_path):
    twice = own_layers(OWN.format(decorator="", factor=2)).Twice()
    path = tmp_path / "model.keras"
    parts = [twice, keras.layers.Flatten(), keras.layers.Dense(2)]
    keras.Sequential([keras.Input((8, 8, 1)), *parts]).save(path)
    loading = classifiers.Loading(custom_objects="own_layers")
    classifiers.load(path, loading)
    sampler = workers.Sampler(str(path), sources.Folder("images"), 0.5, 0, loading=loading).for_engine(str(tmp_path))
    assert classifiers.load(path, sampler.loading)
    own_layers(OWN.format(decorator="", factor=3))
    with pytest.raises(InputError, match=r"The module own_layers on \S+, or .* is not the same as where .* began"):
        classifiers.load(path, sampler.loading)


def test_a_module_that_cannot_be_imported_is_told(run, own_layers, model):
    on_digits = ("--model", model, "--dataset", "digits")
    assert "There is no module no_such_module to import" in run(*on_digits, "--custom_objects", "no_such_module")[2]
    assert "--custom_objects must be a module such as" in run(*on_digits, "--custom_objects", "own_layers.py/x")[2]
    (Path.cwd() / "own_layers.py").write_text("1 / 0")
    assert "Cannot import own_layers (ZeroDivisionError" in run(*on_digits, "--custom_objects", "own_layers")[2]


def of_keras_2(path, change):
    """A file as Keras 2 writes it: the configuration changed by `change`, and Keras' version."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = change(file.attrs["model_config"])
            file.attrs["keras_version"] = "2.15.0"
        return path
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents["config.json"] = change(contents["config.json"].decode())
    contents["metadata.json"] = json.dumps({"keras_version": "2.15.0", "date_saved": "2024-01-01@00:00:00"})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.replace('"depth_multiplier"', '"groups": 1, "depth_multiplier"'),
        lambda config: re.sub(r'"module": "keras[\w.]*", "class_name": "(Functional|DepthwiseConv2D)"',
                              r'"module": "keras.src.engine.functional", "class_name": "\1", "groups": 1', config)
        .replace('"depth_multiplier"', '"groups": 1, "depth_multiplier"'),
    ],
    ids=["a layer", "a module"],
)  # fmt: skip
def test_a_file_of_keras_2_is_told_as_such(tmp_path, suffix, change):
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.DepthwiseConv2D(3)(inputs)))
    path = of_keras_2(saved(keras.Model(inputs, outputs), tmp_path, suffix), change)
    with pytest.raises(
        InputError, match=r"was written by Keras 2 \(2\.15\.0\); save it as a SavedModel there"
    ) as error:
        classifiers.load(path)
    assert "\n" not in str(error.value)
    # One that Keras 3 can read is taken.
    readable = of_keras_2(saved(keras.Model(inputs, outputs), tmp_path, suffix), lambda config: config)
    assert classifiers.load(readable).output_shape == (None, 10)


def test_a_saved_model_that_writes_files_is_run_only_on_trust(run, tmp_path):
    written = tmp_path / "written"

    class Writing(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1], tf.float32)])
        def __call__(self, images):
            with tf.control_dependencies([tf.io.write_file(str(written), "x")]):
                return tf.reshape(images, [-1, 64])[:, :10]

    module = Writing()
    tf.saved_model.save(module, str(tmp_path / "writes"), signatures=module.__call__)
    on_digits = ("--model", tmp_path / "writes", "--dataset", "digits", "--max", "2")
    status, _, err = run(*on_digits)
    assert (status, err.count("\n")) == (2, 1)
    assert f"The SavedModel {tmp_path / 'writes'} does more than compute: its operations WriteFile could" in err
    assert "(trust_model=yes)" in err
    assert not written.exists()
    assert run(*on_digits, "--trust_model", "yes")[0] == 0
    assert written.exists()


@pytest.mark.parametrize("kind", ["", ".keras"])
def test_a_model_whose_answer_depends_on_the_batch_is_refused(run, tmp_path, kind):
    images = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(images)
    flat = flat - keras.ops.mean(flat, axis=0, keepdims=True)
    path = saved(keras.Model(images, keras.layers.Dense(10)(flat)), tmp_path, kind)
    status, _, err = run("--model", path, "--dataset", "digits")
    assert (status, err.count("\n")) == (2, 1)
    assert f"{path} cannot be certified. The classifier's output for an image depends on the rest of its batch" in err


def test_soft_certificates_of_probabilities_are_refused_and_hard_ones_are_not(run, tmp_path):
    model = keras.Sequential([head(10), keras.layers.Softmax()])
    on_digits = ("--model", saved(model, tmp_path, ".keras"), "--dataset", "digits", "--max", "1")
    status, _, err = run(*on_digits, "--certify", "all")
    assert (status, err.count("\n")) == (2, 1)
    assert "Soft votes need logits, but the classifier returns probabilities" in err
    assert run(*on_digits)[0] == 0
