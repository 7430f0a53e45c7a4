"""A dry run says what is cached and how long the rest takes, and leaves no trace."""

import json
import re

import pytest

from pipeline.components import trainer
from pipeline.components.example_gen import EXAMPLE_GEN
from pipeline.experiments import methods
from pipeline.experiments import settings as settings_lib
from pipeline.jobs import run as run_lib
from pipeline.orchestration import orchestrator
from pipeline.training import backups

TINY = ("--dataset", "digits", "--epochs", "2", "--num_samples", "1", "--train_examples", "70", "--n", "200")
# 2 epochs of ceil(70 / 64) steps.
STEPS = 4
LATER = ("Evaluator", "Exporter", "InfraValidator", "Pusher")


@pytest.fixture
def dry(capsys, tmp_path):
    """A function: arguments -> the result for programs, and what was said to people."""

    def run(*arguments):
        capsys.readouterr()
        assert run_lib.main([*TINY, "--pipeline_root", str(tmp_path / "root"), "--dry_run", "--json", *arguments]) == 0
        out, err = capsys.readouterr()
        return json.loads(out), err

    return run


def test_it_tells_the_plan_and_forecasts_both_and_writes_nothing(dry, tmp_path):
    told, said = dry()
    assert not list(tmp_path.iterdir())
    (run,) = told["dry_run"]
    assert [(one["name"], one["state"]) for one in run["components"]] == [
        (name, "to do") for name in ("ExampleGen", "Trainer", "Certifier", *LATER)
    ]
    assert (run["training"]["steps"], run["certification"]["samples"]) == (STEPS, 360 * 300)
    assert 0 < run["training"]["seconds"] < 60
    assert 0 < run["certification"]["seconds"] < 600
    assert run["seconds"] == pytest.approx(run["training"]["seconds"] + run["certification"]["seconds"], abs=0.01)
    assert re.search(r"Differs from the preset: train_examples=70 \(all\),\s+epochs=2 \(60\)", said)
    assert re.search(r"^Trainer +to do: 4 steps, about \d+ s; [\d.e+]+ steps per second", said, re.MULTILINE)
    assert re.search(r"^Certifier +to do: at most 108,000 noisy samples, a forward pass each: at most ", said, re.M)
    assert said.endswith("Nothing was trained, certified or written.\n")


def test_what_is_cached_is_said_to_be_and_takes_no_time(dry, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    settings, _ = settings_lib.parse([*TINY, "--pipeline_root", str(root)])
    artifacts = orchestrator.run((EXAMPLE_GEN, trainer.component(settings)), settings, root, 1)
    before = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
    told, said = dry()
    (run,) = told["dry_run"]
    states = {one["name"]: one["state"] for one in run["components"]}
    assert states == dict.fromkeys(("ExampleGen", "Trainer"), "cached") | dict.fromkeys(("Certifier", *LATER), "to do")
    assert run["training"] is None
    assert run["seconds"] == round(run["certification"]["seconds"], 3)
    assert f"Trainer         cached in {artifacts['model'].path.parent}\n" in said
    assert {path: path.lstat().st_mtime_ns for path in root.rglob("*")} == before

    # Done anew, it is not.
    assert {one["state"] for one in dry("--no_cache")[0]["dry_run"][0]["components"]} == {"to do"}


def test_of_a_sweep_each_member_is_told(dry, tmp_path):
    told, said = dry("--sweep", "lam=0,4")
    assert [len(one["components"]) for one in told["dry_run"]] == [3, 3]
    assert "lam=0 (1 of 2)\n" in said
    assert "lam=4 (2 of 2)\n" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [(), ("--no_cache",)])
def test_what_members_share_is_forecast_once(dry, flags):
    told, said = dry("--sweep", "alpha=0.01,0.1", *flags)
    first, second = told["dry_run"]
    assert [one["state"] for one in first["components"]] == ["to do", "to do", "to do"]
    assert [one["state"] for one in second["components"]] == ["shared", "shared", "to do"]
    assert "Trainer         shared with an earlier value\n" in said
    assert second["training"] is None
    assert second["seconds"] == round(second["certification"]["seconds"], 3)
    assert first["seconds"] > round(first["certification"]["seconds"], 3)


NOT_RESTORED = """
import keras

class Twice(keras.layers.Layer):
    def call(self, images):
        return 2 * images

def network(image_shape, num_classes):
    images = keras.Input(image_shape)
    return keras.Model(images, keras.layers.Dense(num_classes)(keras.layers.Flatten()(Twice()(images))))
"""


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--network", "lenet"), "lenet takes images of at least 16x16 pixels. Received: 8x8"),
        (("--crop_padding", "8"), "crop_padding must be less than the images' shorter side, or crops would miss"),
        (("--num_test_examples", "361"), "There are only 360 test images. Received: num_test_examples=361"),
        (("--serving_n", "4", "--alpha", "0.1"), "serving_n=4 is too small: a served prediction takes up to"),
        (("--network", "not_restored_twice:network"), "The model could not be loaded from its file: register your own"),
    ],
)
def test_a_dry_run_finds_what_is_wrong_as_a_run_would(tmp_path, capsys, monkeypatch, flags, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "not_restored_twice.py").write_text(NOT_RESTORED)
    root = tmp_path / "root"
    arguments = ["--dataset", "digits", *flags, "--dry_run", "--json", "--pipeline_root", str(root)]
    assert run_lib.main(arguments) == 2
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["status"], told["error"][: len(line)]) == (2, line)
    assert err.endswith(f"error: {told['error']}\n")
    assert not root.exists()


def test_what_was_trained_before_a_kill_is_no_longer_to_do(tmp_path):
    assert backups.done(tmp_path / "nowhere", 10) == 0
    for name in ("epoch-00003", "epoch-00004-step-0000007", "epoch-00009.unfinished", "other"):
        (tmp_path / name).mkdir()
    assert backups.done(tmp_path, 10) == 47


def test_later_epochs_of_more_noisy_copies_are_more_work():
    settings, _ = settings_lib.parse(
        ["--dataset", "digits", "--samples_rise_epochs", "2,4", "--samples_rise_factor", "3"]
    )
    work = methods.find("macer").work
    assert [work(settings, epoch) for epoch in range(6)] == [1, 1, 3, 3, 9, 9]
    assert methods.find("cohen").work(settings, 5) == 1


def test_epochs_in_which_noise_is_moved_are_more_work():
    """Two steps on the noise and the pass on what they lead to, beside the one pass of an epoch without lam."""
    work, flags = methods.find("macer").work, ["--dataset", "digits", "--noise_steps", "2", "--epochs", "4"]
    settings, _ = settings_lib.parse([*flags, "--lam_start_epoch", "2"])
    assert [work(settings, epoch) for epoch in range(4)] == [1, 1, 4, 4]
    settings, _ = settings_lib.parse([*flags, "--samples_rise_epochs", "3"])
    assert [work(settings, epoch) for epoch in range(4)] == [1, 1, 1, 4]
