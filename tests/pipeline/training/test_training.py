"""Training is a function of its settings: where it starts, is killed and goes on changes nothing."""

import contextlib
import csv
import dataclasses
import json
import math
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from macer_tf.smoothing import SmoothedClassifier
from pipeline.components import trainer
from pipeline.data.examples import Examples, evenly_spaced, stratified
from pipeline.experiments import methods
from pipeline.training import backups, curves, input_pipeline, live, models, schedules, watchdogs
from pipeline.utils import sealed
from pipeline.utils.errors import InputError
from tests.forks import Fork

MAKE = methods.find("macer").model
SETTINGS = {
    "sigma": 0.25, "network": "small_cnn", "num_samples": 2, "lam": 4.0, "gamma": 8.0, "beta": 16.0, "epochs": 4,
    "batch_size": 16, "learning_rate": 0.05, "lr_schedule": "cosine", "lr_drop_epochs": [], "lr_drop_factor": 0.1,
    "momentum": 0.9, "l2": 1e-4, "clip_norm": 1.0, "lam_start_epoch": 2, "crop_padding": 1, "flip": True,
    "train_examples": None, "seed": 5, "method": "macer", "attack": None, "epsilon": None, "attack_steps": None,
    "warmup_epochs": 0, "labels": None, "unlabelled": False, "ema": 0.0,
    "average_cross_entropy": False, "consistency": 0.0, "entropy": 0.0,
    "noise_steps": 0, "noise_radius": 1.0, "noise_for_all": False, "ramp_epochs": 0,
    "samples_rise_epochs": None, "samples_rise_factor": 4,
    "precision": "float32", "microbatch": None, "strategy": "auto",
}  # fmt: skip


@pytest.fixture(scope="module")
def numbered():
    """37 images of 2x2, image i all pixels i, so that a batch tells which images it holds."""
    images = np.broadcast_to(np.arange(37, dtype=np.uint8)[:, None, None, None], (37, 2, 2, 1))
    labels = np.arange(37, dtype=np.int64) % 10
    return Examples({"train": images}, {"train": labels}, {}, 255, tuple("0123456789"))


def dataset(examples, ids, first_step=0, epochs=3, seed=1, padding=0, flip=False, batch_size=8):
    return input_pipeline.batches(
        examples, ids, batch_size=batch_size, seed=seed, first_step=first_step, epochs=epochs, crop_padding=padding,
        flip=flip,
    )  # fmt: skip


def batches(*arguments, **options):
    return [(images.numpy(), labels.numpy()) for images, labels in dataset(*arguments, **options)]


def order(drawn):
    return [round(float(image[0, 0, 0]) * 255) for images, _ in drawn for image in images]


def test_an_epoch_holds_every_image_once_and_its_label(numbered):
    ids = np.arange(3, 37, 2)
    drawn = batches(numbered, ids)
    assert [len(images) for images, _ in drawn] == [8, 8, 1] * 3
    epochs = [order(drawn[i : i + 3]) for i in (0, 3, 6)]
    assert all(sorted(epoch) == ids.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for images, labels in drawn:
        assert images.dtype == np.float32
        np.testing.assert_array_equal(np.round(images[:, 0, 0, 0] * 255) % 10, labels)


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (1, True)])
def test_starting_later_sees_what_uninterrupted_training_sees(digit_examples, padding, flip):
    from pipeline.data import examples

    data = examples.read(digit_examples)
    ids = np.arange(70)
    whole = batches(data, ids, 0, 4, padding=padding, flip=flip)
    assert len(whole) == 4 * 9
    for first in (0, 1, 8, 9, 13, 27, 35):
        tail = batches(data, ids, first, 4, padding=padding, flip=flip)
        assert len(tail) == 4 * 9 - first
        for (images, labels), (expected, expected_labels) in zip(tail, whole[first:], strict=True):
            np.testing.assert_array_equal(images, expected)
            np.testing.assert_array_equal(labels, expected_labels)


def test_no_tuner_holds_up_the_end_of_training(numbered):
    assert dataset(numbered, np.arange(37)).options().autotune.enabled is False


def test_another_seed_is_another_order(numbered):
    assert order(batches(numbered, np.arange(37))) != order(batches(numbered, np.arange(37), seed=2))


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1])
def test_every_seed_the_settings_accept_works(numbered, seed):
    assert sorted(order(batches(numbered, np.arange(37), epochs=1, seed=seed, padding=1))) != []


@pytest.mark.parametrize("channels", [1, 3])
def test_no_padding_and_no_flip_is_the_identity(channels):
    images = np.random.default_rng(0).random((9, 4, 5, channels), np.float32)
    np.testing.assert_array_equal(input_pipeline.augment(images, tf.constant([1, 2], tf.int64), 0, False), images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("padding", "flip"), [(0, True), (1, False), (2, True)])
def test_augmented_images_are_crops_and_flips_and_all_of_them_occur(channels, padding, flip):
    height, width, copies = 3, 4, 2000
    image = np.arange(1, 1 + height * width * channels, dtype=np.float32).reshape(height, width, channels)
    padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)])
    possible = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            for flipped in (False, True)[: 1 + flip]:
                possible[(crop[:, ::-1] if flipped else crop).tobytes()] = (top, left, flipped)
    assert len(possible) == (2 * padding + 1) ** 2 * (1 + flip)

    seen = dict.fromkeys(possible, 0)
    for step in range(3):
        augmented = input_pipeline.augment(np.stack([image] * copies), tf.constant([7, step], tf.int64), padding, flip)
        assert augmented.shape == (copies, height, width, channels)
        for result in augmented.numpy():
            seen[result.tobytes()] += 1  # KeyError: not a crop or flip of its image
    share = np.array(list(seen.values())) / (3 * copies)
    expected = 1 / len(possible)
    assert np.abs(share - expected).max() < 5 * math.sqrt(expected / (3 * copies))


def test_each_image_stays_in_its_place():
    images = np.arange(1, 6, dtype=np.float32)[:, None, None, None] * np.ones((1, 6, 6, 3), np.float32)
    augmented = input_pipeline.augment(images, tf.constant([0, 0], tf.int64), 1, True).numpy()
    np.testing.assert_array_equal(augmented[:, 2, 2, 0], [1, 2, 3, 4, 5])


def rates(settings, steps):
    schedule = schedules.schedule({**SETTINGS, **settings}, steps)
    return [float(schedule(step)) for step in range(settings["epochs"] * steps)]


def test_a_step_schedule_drops_at_the_first_step_of_its_epochs():
    settings = {"lr_schedule": "step", "lr_drop_epochs": [2, 3], "learning_rate": 1.0, "epochs": 5}
    np.testing.assert_allclose(rates(settings, 3), [1] * 6 + [0.1] * 3 + [0.01] * 6, rtol=1e-6)


@pytest.mark.parametrize("drops", [[], None])
def test_a_step_schedule_without_drops_is_constant(drops):
    model = models.build(
        methods.find("macer").model, {**SETTINGS, "lr_schedule": "step", "lr_drop_epochs": drops}, (8, 8, 1), 10, 3
    )
    assert schedules.learning_rate(model) == pytest.approx(0.05)


def test_cosine_starts_at_the_rate_and_ends_at_0():
    drawn = rates({"lr_schedule": "cosine", "learning_rate": 2.0, "epochs": 4}, 5)
    # 2 * (1 + cos(pi t / 20)) / 2: 2 at step 0, 1 in the middle, and 0 behind step 19.
    np.testing.assert_allclose(drawn, [1 + math.cos(math.pi * step / 20) for step in range(20)], atol=1e-6)
    assert float(schedules.schedule({**SETTINGS, "epochs": 4}, 5)(20)) == pytest.approx(0, abs=1e-8)


class Kill(watchdogs.StopOnDivergence):
    """Stops the process, as it were, after so many steps, before they are backed up."""

    after = None

    def on_train_batch_end(self, batch, logs=None):
        if self._record.done == self.after:
            raise KeyboardInterrupt


@pytest.fixture
def train(execution, digit_examples, monkeypatch):
    """A function that runs the Trainer in an execution of a name, and kills it after so many steps -> the execution.

    An epoch has 5 steps.
    """
    # What was written outlives the process, flushed or not; flushing would take most of the time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    runs = {}

    def run(name, kill=None, **changed):
        if name not in runs:
            runs[name] = execution({"examples": digit_examples}, ("model",), {**SETTINGS, **changed}, name)
        with monkeypatch.context() as patch:
            if kill is not None:
                patch.setattr(Kill, "after", kill)
                patch.setattr(watchdogs, "StopOnDivergence", Kill)
            trainer.train(runs[name])
        return runs[name]

    run.executions = runs
    return run


@pytest.fixture
def back_up_every_step(monkeypatch):
    monkeypatch.setattr(backups, "_SECONDS_BETWEEN_BACKUPS", 0)
    monkeypatch.setattr(backups, "_SHARE_OF_TIME", math.inf)


def state(finished):
    model = keras.models.load_model(finished.outputs["model"] / "model.keras")
    history = (finished.outputs["model"] / "history.csv").read_text()
    variables = [*model.weights, *model.optimizer.variables]
    return [np.array(variable) for variable in variables], getattr(model, "lam", None), history


@pytest.fixture(scope="module")
def cache():
    return {}


@pytest.fixture
def undisturbed(train, cache):
    """The `state` after training that nothing disturbed."""
    if not cache:
        cache["state"] = state(train("undisturbed"))
    return cache["state"]


def assert_equal_states(ours, theirs):
    for variable, expected in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_array_equal(variable, expected)
    assert ours[1:] == theirs[1:]


def column(finished, name):
    names, *rows = [line.split(",") for line in (finished.outputs["model"] / "history.csv").read_text().splitlines()]
    return [float(row[names.index(name)]) for row in rows]


def test_killed_training_goes_on_bit_for_bit(train, undisturbed, capsys):
    """Weights, momentum, the noise's counter and the history; killed before any backup, inside and after epochs."""
    assert len(undisturbed[2].splitlines()) == 5
    capsys.readouterr()
    for kill in (3, 6, 14):
        with pytest.raises(KeyboardInterrupt):
            train("killed", kill)
        assert not list(train.executions["killed"].outputs["model"].glob("*.keras"))
    resumed = state(train("killed"))
    out = capsys.readouterr().out
    assert "Training resumes after epoch 1 of 4." in out
    assert "Training resumes after epoch 2 of 4." in out
    assert_equal_states(resumed, undisturbed)


def test_finished_training_is_only_saved_again(train, undisturbed, monkeypatch):
    train("once")
    monkeypatch.setattr("macer_tf.model.MACERModel.fit", lambda *arguments, **keywords: pytest.fail("trained again"))
    assert_equal_states(state(train("once")), undisturbed)


@pytest.mark.usefixtures("back_up_every_step")
def test_killed_within_an_epoch_it_goes_on_from_the_very_step(train, undisturbed, capsys):
    """The metrics of the interrupted epoch too; kills in an epoch's first and last steps, and twice in one epoch."""
    capsys.readouterr()
    for kill in (2, 4, 15):
        with pytest.raises(KeyboardInterrupt):
            train("killed", kill)
        names = {path.name for path in (train.executions["killed"].scratch / "backup").iterdir()}
        # Killed before the step was backed up, so the one before is the last.
        assert f"epoch-{(kill - 1) // 5:05d}-step-{(kill - 1) % 5:07d}" in names
    killed = state(train("killed"))
    out = capsys.readouterr().out
    assert "Training resumes after epoch 0 of 4 and 1 of 5 steps of the next." in out
    assert "Training resumes after epoch 2 of 4 and 4 of 5 steps of the next." in out
    assert_equal_states(killed, undisturbed)


def start(examples, *runs, devices=()):
    """The Trainer in a process of its own; runs are (execution, settings, steps after which it is interrupted)."""
    runs = json.dumps([(str(execution.root), settings, after) for execution, settings, after in runs])
    arguments = [str(examples), runs, *map(str, devices)]
    return Fork([Path(__file__).with_name("training_script.py"), *arguments])


@pytest.mark.slow
def test_a_process_killed_within_an_epoch_goes_on_bit_for_bit(train, execution, digit_examples):
    """SIGKILL from outside in the middle of the second of two epochs of 35 steps."""
    settings = {**SETTINGS, "batch_size": 2, "epochs": 2, "lam_start_epoch": 0}
    undisturbed = state(train("undisturbed", **settings))
    killed = train.executions["killed"] = execution({"examples": digit_examples}, ("model",), settings, "killed")
    backup = killed.scratch / "backup"
    process = start(digit_examples, (killed, settings, None))
    deadline = time.monotonic() + 300
    while not list(backup.glob("epoch-00001-step-000001?")):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    latest = max(path.name for path in backup.glob("epoch-*") if path.suffix != ".unfinished")
    assert 10 <= int(re.fullmatch(r"epoch-00001-step-(\d{7})", latest)[1]) < 35
    assert not (killed.outputs["model"] / "model.keras").exists()

    resumed = start(digit_examples, (killed, settings, None))
    out, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err[-3000:]
    assert "Training resumes after epoch 1 of 2 and " in out
    assert_equal_states(state(killed), undisturbed)


@pytest.mark.slow
def test_two_devices_train_as_one_and_go_on_after_a_kill(execution, digit_examples):
    """Batches of 16, the last of 6; noise is a function of the image, so the order of the sums is all that differs."""
    settings = {**SETTINGS, "epochs": 3, "crop_padding": 0, "flip": False}
    names = ("one", "two", "default", "killed")
    runs = {name: execution({"examples": digit_examples}, ("model",), settings, name) for name in names}
    one, two = ({**settings, "strategy": strategy} for strategy in ("none", "mirrored"))
    process = start(
        digit_examples,
        (runs["one"], one, None), (runs["two"], two, None), (runs["default"], settings, None),
        (runs["killed"], two, 9), (runs["killed"], two, None), devices=(2,),
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert out.count("Each batch is split across 2 devices.") == 3
    assert "Training resumes after epoch 1 of 3 and 3 of 5 steps of the next." in out
    one, two = state(runs["one"]), state(runs["two"])
    for ours, theirs in zip(two[0], one[0], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert max(np.abs(ours - theirs).max() for ours, theirs in zip(two[0], one[0], strict=True)) > 0
    for ours, theirs in zip(rows(runs["two"]), rows(runs["one"]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert_equal_states(state(runs["default"]), one)
    assert_equal_states(state(runs["killed"]), two)


@pytest.mark.parametrize(
    ("changed", "policy"),
    [
        ({"precision": "mixed_bfloat16"}, "mixed_bfloat16"),
        ({"precision": "mixed_float16"}, "mixed_float16"),
        ({"microbatch": 5}, "float32"),
        ({"strategy": "mirrored"}, "float32"),
        ({"precision": "mixed_bfloat16", "network": "cifar_resnet8", "strategy": "none"}, "mixed_bfloat16"),
        ({"precision": "mixed_float16", "method": "smoothadv", "attack": "pgd", "epsilon": 0.1, "attack_steps": 1,
          "microbatch": 4}, "mixed_float16"),
    ],
)  # fmt: skip
def test_precision_and_microbatch_reach_the_model_and_its_file(train, digits, changed, policy):
    before = keras.config.dtype_policy().name
    finished = train("flag", epochs=2, lam_start_epoch=0, **changed)
    assert keras.config.dtype_policy().name == before
    saved = keras.models.load_model(finished.outputs["model"] / "model.keras")
    assert isinstance(saved.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    model = models.load(finished.outputs["model"] / "model.keras")
    assert model.microbatch == changed.get("microbatch")
    convolution, *_, dense = (layer for layer in model.classifier.layers if layer.weights)
    assert convolution.dtype_policy.name == policy
    assert (convolution.variable_dtype, dense.dtype_policy.name) == ("float32", "float32")
    logits = model.classifier(digits[0][:3])
    assert logits.dtype == tf.float32
    assert np.isfinite(logits).all()
    assert all(math.isfinite(value) for row in rows(finished) for value in row.values())
    counts = SmoothedClassifier(model, 0.25, 0, levels=256).count(digits[0][0], 0, 1, 0, 50)
    assert counts.sum() == 50


def test_precision_changes_the_weights_and_a_microbatch_only_their_rounding(train):
    settings = {"epochs": 1, "lam_start_epoch": 0}
    plain, half, sliced = (
        state(train(name, **settings, **changed))[0]
        for name, changed in {"a": {}, "b": {"precision": "mixed_bfloat16"}, "c": {"microbatch": 5}}.items()
    )

    def largest_difference(weights):
        pairs = zip(weights, plain, strict=True)
        return max(np.abs(ours.astype(np.float64) - theirs).max() for ours, theirs in pairs)

    assert largest_difference(half) > 1e-4
    assert 0 < largest_difference(sliced) < 1e-5


@pytest.mark.usefixtures("back_up_every_step")
@pytest.mark.parametrize(("noise_for_all", "kills"), [(True, (3, 8, 14)), (False, (8,))])
def test_averaged_weights_are_what_is_saved_and_survive_a_kill_with_all_that_goes_beyond_equation_17(
    train, noise_for_all, kills
):
    changed = {
        "ema": 0.9, "average_cross_entropy": True, "consistency": 2.0, "entropy": 0.5, "noise_steps": 1,
        "noise_for_all": noise_for_all, "epochs": 3, "lam_start_epoch": 1, "ramp_epochs": 2,
        "samples_rise_epochs": [2], "samples_rise_factor": 2,
    }  # fmt: skip
    undisturbed = state(train("undisturbed", **changed))
    for kill in kills:
        with pytest.raises(KeyboardInterrupt):
            train("killed", kill, **changed)
    assert_equal_states(state(train("killed")), undisturbed)
    saved = keras.models.load_model(train.executions["killed"].outputs["model"] / "model.keras")
    averages = {variable.path: variable for variable in saved.optimizer.variables if "average" in variable.path}
    assert len(averages) == len(saved.trainable_variables) > 0
    for variable, average in zip(saved.trainable_variables, averages.values(), strict=True):
        np.testing.assert_array_equal(variable, average)
    assert (saved.num_samples, saved.consistency, saved.lam) == (4, 2.0, 4.0)


def test_labels_are_kept_of_every_class_by_its_share_and_by_the_seed():
    labels = np.repeat(np.arange(3), [50, 30, 20])
    kept = stratified(labels, 10, seed=1)
    assert np.bincount(labels[kept]).tolist() == [5, 3, 2]
    assert len(set(kept.tolist())) == 10
    np.testing.assert_array_equal(stratified(labels, 10, seed=1), kept)
    assert stratified(labels, 10, seed=2).tolist() != kept.tolist()
    np.testing.assert_array_equal(stratified(labels, 200, seed=1), np.arange(100))


@pytest.mark.usefixtures("back_up_every_step")
def test_images_without_a_label_are_trained_on_only_where_it_is_asked_for(train, monkeypatch):
    seen = {}

    def batches(examples, ids, labels, **options):
        seen.setdefault(name, (ids, labels))
        return input_pipeline_batches(examples, ids, labels, **options)

    input_pipeline_batches = input_pipeline.batches
    monkeypatch.setattr(input_pipeline, "batches", batches)
    semi = {"labels": 20, "epochs": 1, "lam_start_epoch": 0, "ema": 0.5, "unlabelled": True}
    name = "few"
    train(name, **{**semi, "unlabelled": False})
    name = "whole"
    whole = state(train(name, **semi))
    few, labels = seen["few"]
    assert (len(few), labels.min()) == (20, 0)
    ids, labels = seen["whole"]
    # 50 without a label, and those with one three times: as often, at least.
    assert (len(ids), set(ids[labels >= 0]), (labels == -1).sum()) == (110, set(few), 50)
    assert set(ids[labels == -1]) == set(range(70)) - set(few)
    name = "killed"
    with pytest.raises(KeyboardInterrupt):
        train(name, 4, **semi)
    assert_equal_states(state(train(name)), whole)
    with pytest.raises(InputError) as refused:
        train("all", **{**semi, "labels": 70})
    assert str(refused.value) == (
        "With unlabelled, labels must be below the number of images to train on, 70. Received: labels=70"
    )


def test_averaging_does_not_change_the_training_itself(train):
    plain, averaged = train("plain", epochs=2), train("averaged", epochs=2, ema=0.9)
    assert column(averaged, "loss") == column(plain, "loss")
    ours, theirs = state(averaged)[0], state(plain)[0]
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(ours[:4], theirs[:4], strict=True))


@pytest.mark.usefixtures("back_up_every_step")
def test_the_loss_scale_of_float16_survives_a_kill(train):
    changed = {"precision": "mixed_float16", "microbatch": 6, "epochs": 1, "lam_start_epoch": 0}
    undisturbed = state(train("undisturbed", **changed))
    with pytest.raises(KeyboardInterrupt):
        train("killed", 4, **changed)
    assert_equal_states(state(train("killed")), undisturbed)


def test_what_dropout_draws_goes_on_after_a_kill_and_does_not_begin_again():
    """A model's file leaves out the state of random layers."""

    def start():
        keras.utils.set_random_seed(0)
        model, record = keras.Sequential([keras.Input((8,)), keras.layers.Dropout(0.5)]), backups.Record(steps=1)
        record.set_model(model)
        return model, record

    (model, record), (resumed, its_record) = start(), start()
    images = np.ones((4, 8), np.float32)
    first = model(images, training=True).numpy()
    its_record.restore(json.loads(json.dumps(record.state())), resumed)
    second = model(images, training=True).numpy()
    assert (second != first).any()
    np.testing.assert_array_equal(resumed(images, training=True), second)


@pytest.mark.usefixtures("back_up_every_step")
def test_the_metrics_within_an_epoch_are_needed_for_that(train, undisturbed):
    """Without them the weights would be the same, but not what is reported: the tests above can fail."""
    with pytest.raises(KeyboardInterrupt):
        train("killed", 9)
    (backup,) = (train.executions["killed"].scratch / "backup").glob("*-step-*")
    content = sealed.loads((backup / "state.json").read_text())
    content["metrics"] = [0.0] * len(content["metrics"])
    (backup / "state.json").write_text(sealed.dumps(content))
    killed = state(train("killed"))
    for ours, theirs in zip(killed[0], undisturbed[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert killed[2] != undisturbed[2]


def test_the_last_and_the_best_backup_are_kept_and_a_half_written_one_is_not_taken(train):
    with pytest.raises(KeyboardInterrupt):
        train("killed", 11)
    folder = train.executions["killed"].scratch / "backup"
    (folder / "epoch-00003.unfinished").mkdir()
    (folder / "epoch-00003.unfinished" / "model.keras").write_text("half")
    assert backups.Backup(folder, backups.Record(5)).latest() == folder / "epoch-00002"
    finished = train("killed")
    accuracy = column(finished, "smoothed_accuracy")
    best = max(range(4), key=lambda epoch: (accuracy[epoch], epoch)) + 1
    assert {path.name for path in folder.iterdir()} == {"epoch-00004", f"epoch-{best:05d}"}


def test_the_best_is_the_last_of_the_epochs_with_the_highest_accuracy(tmp_path):
    record = backups.Record(5)
    backup = backups.Backup(tmp_path, record)
    assert backup.best() is None
    record.history = [{"smoothed_accuracy": accuracy} for accuracy in (0.2, 0.5, 0.5, 0.4)]
    assert backup.best() is None
    for epoch in range(1, 5):
        (tmp_path / f"epoch-{epoch:05d}").mkdir()
    assert backup.best() == tmp_path / "epoch-00003"


def test_backups_are_found_however_many_epochs_there_are(tmp_path):
    record = backups.Record(5)
    backup = backups.Backup(tmp_path, record)
    for name in ("epoch-99999", "epoch-99999-step-0000003", "epoch-100000", "epoch-100000-step-0000002"):
        (tmp_path / name).mkdir()
        assert backup.latest() == tmp_path / name
    assert backups.done(tmp_path, 5) == 500_002
    record.history = [{"smoothed_accuracy": 0.5}] * 100_000
    assert backup.best() == tmp_path / "epoch-100000"


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "bytes", "flipped", "no weights", "torn state", "other state"]
)
def test_a_damaged_backup_is_told_in_one_line(train, damage):
    with pytest.raises(KeyboardInterrupt):
        train("killed", 6)
    latest = train.executions["killed"].scratch / "backup" / "epoch-00001"
    weights, text = latest / "model.keras", (latest / "state.json").read_text()
    content = weights.read_bytes()
    middle = len(content) // 2
    if damage == "no weights":
        weights.unlink()
    elif damage == "torn state":
        (latest / "state.json").write_text(text[: len(text) // 2])
    elif damage == "other state":
        (latest / "state.json").write_text(text.replace('"done": 5', '"done": 15'))
    else:
        damaged = {"truncated": content[:middle], "empty": b"", "bytes": b"x" * 5000}
        damaged["flipped"] = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        weights.write_bytes(damaged[damage])
    with pytest.raises(
        InputError, match=r"Cannot read the training backup .*epoch-00001 .*; delete it to train again from the start"
    ) as error:
        train("killed")
    assert "\n" not in str(error.value)


def test_behind_a_damaged_backup_there_may_be_an_older_one(train, undisturbed):
    with pytest.raises(KeyboardInterrupt):
        train("killed", 11)
    older = train.executions["killed"].scratch / "backup" / "epoch-00002"
    # Later, the third epoch being no better than the second.
    last = shutil.copytree(older, older.with_name("epoch-00003"))
    (last / "model.keras").write_bytes(b"")
    with pytest.raises(InputError, match=rf"backup {last} .*; delete it to resume from {older}\.$"):
        train("killed")
    shutil.rmtree(last)
    assert_equal_states(state(train("killed")), undisturbed)


def poison(monkeypatch, after):
    """After so many steps the weights become NaN, before they are backed up."""

    class Poison(watchdogs.StopOnDivergence):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self._record.done == after:
                self.model.set_weights([weights * np.nan for weights in self.model.get_weights()])

    monkeypatch.setattr(watchdogs, "StopOnDivergence", Poison)


def test_divergence_names_epoch_and_step_and_keeps_the_last_good_weights(train, monkeypatch):
    """The weights of epoch 2, step 3 become NaN, so the loss of step 4 is: 0.05 / 2 * (1 + cos(8 pi / 20)) = 0.0327."""
    poison(monkeypatch, 8)
    with pytest.raises(
        InputError, match=r"Training diverged: loss nan at epoch 2, step 4, learning rate 0.0327"
    ) as error:
        train("diverged")
    kept = train.executions["diverged"].scratch / "backup" / "epoch-00001"
    assert (
        f"The last good weights, also the best by smoothed training accuracy, are kept in {kept}/model.keras."
        in str(error.value)
    )
    # lam is deferred: it is 0 there.
    assert str(error.value).endswith("Try a lower learning_rate or clip_norm=1.")
    assert "\n" not in str(error.value)
    model = keras.models.load_model(kept / "model.keras")
    assert all(np.isfinite(weights).all() for weights in model.get_weights())


@pytest.mark.usefixtures("back_up_every_step")
def test_divergence_keeps_the_best_weights_beside_the_last(train, monkeypatch):
    poison(monkeypatch, 14)
    with pytest.raises(InputError, match="weights that are not finite at epoch 3, step 4") as error:
        train("diverged")
    folder = train.executions["diverged"].scratch / "backup"
    history = json.loads((folder / "epoch-00002-step-0000003" / "state.json").read_text())["history"]
    best = 1 + max(range(2), key=lambda epoch: (history[epoch]["smoothed_accuracy"], epoch))
    expected = (
        f"The last good weights are kept in {folder}/epoch-00002-step-0000003/model.keras, the best by smoothed "
        f"training accuracy in {folder}/epoch-{best:05d}/model.keras. Try a lower learning_rate, clip_norm=1 or a "
        "smaller lam."
    )
    assert expected in str(error.value)
    assert {path.name for path in folder.iterdir()} == {"epoch-00002-step-0000003", f"epoch-{best:05d}"}
    for path in folder.iterdir():
        model = keras.models.load_model(path / "model.keras")
        assert all(np.isfinite(weights).all() for weights in model.get_weights())


def test_weights_that_diverge_in_an_epochs_last_step_are_not_backed_up(train, monkeypatch):
    poison(monkeypatch, 5)
    with pytest.raises(
        InputError, match=r"diverged: weights that are not finite at epoch 1, step 5.* No weights have been kept yet"
    ):
        train("diverged")
    assert not list((train.executions["diverged"].scratch).glob("backup/epoch*"))


def events(finished):
    """The event file's own first event, and for each later one (step, tag -> value), read by TensorFlow's reader."""
    (path,) = finished.root.glob("tensorboard/macer-*/*")
    assert path.name.startswith("events.out.tfevents.")
    records = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]
    values = [(event.step, {value.tag: value.simple_value for value in event.summary.value}) for event in records[1:]]
    assert [event.wall_time for event in records] == sorted(event.wall_time for event in records)
    return records[0], values


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"lr_schedule": "step", "lr_drop_epochs": [1]}, [0.05, 0.005]),
        # 5 steps an epoch: 0.05 / 2 * (1 + cos(4 pi / 10)) and 0.05 / 2 * (1 + cos(9 pi / 10)).
        ({"precision": "mixed_float16"}, [0.0327254, 0.0012236]),
    ],
)
def test_the_learning_rate_of_an_epoch_is_that_of_its_last_step_and_not_of_the_next_epoch(train, changed, expected):
    assert column(train("rates", epochs=2, lam_start_epoch=0, **changed), "learning_rate") == pytest.approx(
        expected, rel=1e-4
    )


def rows(finished):
    with open(finished.outputs["model"] / "history.csv") as file:
        return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]


def assert_equal_curves(finished, epochs):
    """Each epoch once in both files, with the same values (an event's are float32)."""
    first, written = events(finished)
    assert first.file_version == "brain.Event:2"
    table = rows(finished)
    assert [step for step, _ in written] == [row.pop("epoch") for row in table] == epochs
    for (_, values), row in zip(written, table, strict=True):
        assert values == {name: float(np.float32(value)) for name, value in row.items()}
    assert {"loss", "robustness_loss", "smoothed_accuracy", "learning_rate"} <= set(table[0])


def test_curves_are_whole_after_each_epoch_and_after_each_kill(train, monkeypatch):
    seen = []

    class Look(live.TrainingProgress):
        def on_epoch_begin(self, epoch, logs=None):
            super().on_epoch_begin(epoch, logs)
            if epoch:
                assert_equal_curves(train.executions["killed"], list(range(1, epoch + 1)))
                seen.append(epoch)

    monkeypatch.setattr(live, "TrainingProgress", Look)
    for kill in (12, 13):
        with pytest.raises(KeyboardInterrupt):
            train("killed", kill)
        assert_equal_curves(train.executions["killed"], [1, 2])
    assert_equal_curves(train("killed"), [1, 2, 3, 4])
    assert seen == [1, 2, 2, 2, 3]


@contextlib.contextmanager
def largest_file(size):
    """Within it, no file can grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("back_up_every_step")
def test_a_full_disk_is_told_in_one_line_and_leaves_the_backup_before(train, undisturbed):
    with pytest.raises(KeyboardInterrupt):
        train("full", 8)
    folder = train.executions["full"].scratch / "backup"
    latest = folder / "epoch-00001-step-0000002"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert latest / "model.keras" in before
    # A model takes over 400 kB, all else less than 10.
    with largest_file(100_000), pytest.raises(InputError) as error:
        train("full")
    assert str(error.value) == (
        f"Cannot write {latest.with_name('epoch-00001-step-0000003')} (File too large). Raise the limit on the "
        f"size of a file (ulimit -f) and run the same command again: training resumes from {latest}."
    )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert_equal_states(state(train("full")), undisturbed)


def test_a_backup_where_all_was_moved_away_is_told_and_makes_nothing_again(tmp_path):
    backup = backups.Backup(tmp_path / "moved" / "backup", backups.Record(5))
    backup.set_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    with pytest.raises(InputError, match=r"\(No such file or directory\)\. Put back what is missing there"):
        backup.on_epoch_end(0)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_full_at_the_very_end_is_told_too(train, undisturbed):
    train("full")
    (train.executions["full"].outputs["model"] / "model.keras").unlink()
    with (
        largest_file(100_000),
        pytest.raises(InputError, match=r"Cannot write .*model.keras \(File too large\)\. Raise"),
    ):
        train("full")
    assert_equal_states(state(train("full")), undisturbed)


def test_curves_on_a_full_disk_are_told_in_one_line(tmp_path):
    record = backups.Record(5)
    written = curves.Curves(tmp_path, tmp_path / "events", record)
    record.done, record.history, record.times, record.seconds = 5, [{"loss": 0.5}], [1.0], [1.0]
    record.core_seconds = [2.0]
    # The table takes 17 bytes, the file's first event 40 and the epoch's more.
    for size in (10, 40):
        with largest_file(size), pytest.raises(InputError, match=r"Cannot write the training curves in .*File too la"):
            written.on_epoch_end(0)


def test_what_a_method_reports_may_have_any_name(tmp_path):
    record = backups.Record(5)
    record.done, record.history, record.times = 5, [{"loss": 0.5, "of right, #2": 0.25}], [1.0]
    record.seconds, record.core_seconds = [1.0], [2.0]
    curves.Curves(tmp_path, tmp_path / "events", record).close()
    with open(tmp_path / "history.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{"epoch": "1", "loss": "0.5", "of right, #2": "0.25"}]


def test_an_epoch_s_time_goes_on_after_a_kill(monkeypatch):
    """The machine's clock and the cores', of both processes, but not what lies between them."""
    now = {"monotonic": 0.0, "process_time": 0.0}
    for name in now:
        monkeypatch.setattr(backups.time, name, lambda name=name: now[name])
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")

    def record():
        made = backups.Record(steps=2)
        made.set_model(model)
        return made

    first, second = record(), record()
    first.on_epoch_begin(0)
    now |= {"monotonic": 3.0, "process_time": 5.0}
    first.on_train_batch_end(0)
    state = json.loads(json.dumps(first.state()))
    now |= {"monotonic": 100.0, "process_time": 1.0}
    second.restore(state, model)
    second.on_epoch_begin(0)
    now |= {"monotonic": 104.0, "process_time": 7.0}
    second.on_train_batch_end(1)
    second.on_epoch_end(0, {"loss": 0.5})
    assert (second.seconds, second.core_seconds) == ([7.0], [11.0])


# Large steps without clipping make the small network predict one class for all images, at once and for good.
COLLAPSE = {"learning_rate": 0.2, "lr_schedule": "step", "clip_norm": None, "lam": 16.0, "lam_start_epoch": 0}
COLLAPSED = re.compile(
    r"  Training has collapsed to a constant prediction: over the last \d+ steps the smoothed accuracy was "
    r"0\.[012]\d\d, at chance level, and the robustness loss [01]\.\d\d\d\. Stop it and try clip_norm=1, lam deferred "
    r"by lam_start_epoch, or a larger batch_size\."
)


@pytest.fixture
def said(digits):
    """A function: settings and steps an epoch -> what `TellOfCollapse` said in training on all the digits."""
    images, labels = digits

    def run(changed, *epochs):
        model = models.build(
            methods.find("macer").model, {**SETTINGS, "lam_start_epoch": 0, **changed}, (8, 8, 1), 10, max(epochs)
        )
        lines = []
        callback = watchdogs.TellOfCollapse(0.1, lines.append)
        dataset = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(1797, seed=0).repeat().batch(16)
        for steps in epochs:
            model.fit(dataset, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[callback])
        return lines, model

    return run


def test_collapse_is_told_once_in_one_line(said):
    """700 steps are two windows, the first of which spans two epochs."""
    (line,) = said(COLLAPSE, 250, 450)[0]
    assert COLLAPSED.fullmatch(line)
    assert "over the last 300 steps" in line


def test_training_that_works_has_not_collapsed(said):
    """In the first 50 of its steps it is at chance with little in the hinge as well."""
    lines, model = said({"learning_rate": 0.05}, 400)
    assert lines == []
    assert model.get_metrics_result()["smoothed_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("changed", "lines"),
    [
        ({}, 1),
        ({"lam_start_epoch": 8}, 0),
        ({"lam_start_epoch": 3}, 1),
        ({"lam": 0.0}, 0),
        ({"lam": 0.0, "method": "cohen", "num_samples": 1}, 0),
        ({"method": "smoothadv", "attack": "pgd", "epsilon": 0.1, "attack_steps": 1}, 0),
    ],
)
def test_the_trainer_tells_of_collapse_where_there_is_a_robustness_term(train, capsys, monkeypatch, changed, lines):
    monkeypatch.setattr(watchdogs, "_WINDOW", 10)
    train("collapsed", **{**COLLAPSE, "epochs": 8, "batch_size": 16, **changed})
    assert len([line for line in capsys.readouterr().out.splitlines() if COLLAPSED.fullmatch(line)]) == lines


def test_a_learning_rate_too_high_is_told(train):
    with pytest.raises(InputError, match=r"Training diverged: loss (nan|inf) at epoch \d+, step \d+, learning rate"):
        train("diverged", learning_rate=1e6, clip_norm=None, lr_schedule="step")


def scheduled(epochs, *arguments):
    """(lam, consistency_share, num_samples) in each epoch of a `MACERSchedule`."""
    model = SimpleNamespace(lam=None, num_samples=None)
    callback = schedules.MACERSchedule(*arguments)
    callback.set_model(model)
    values = []
    for epoch in range(epochs):
        callback.on_epoch_begin(epoch)
        values.append((model.lam, model.consistency_share, model.num_samples))
    return values


def test_lam_is_deferred():
    assert scheduled(4, 12.0, 2) == [(0, 0, None), (0, 0, None), (12, 1, None), (12, 1, None)]


def test_lam_and_consistency_come_in_over_the_epochs_of_the_ramp():
    assert scheduled(6, 12.0, 1, 4) == [(12 * share, share, None) for share in (0, 0.25, 0.5, 0.75, 1, 1)]
    assert scheduled(1, 12.0, 0, 1) == [(12, 1, None)]


def test_num_samples_rises_by_the_factor_at_each_epoch_of_the_list():
    assert [samples for *_, samples in scheduled(5, 1.0, 0, 0, 4, [1, 4], 4)] == [4, 16, 16, 16, 64]


def test_the_deferred_lam_is_what_the_history_shows(train):
    _, lam, history = state(train("deferred"))
    names = history.splitlines()[0].split(",")
    robustness = column(train("deferred"), "robustness_loss")
    assert robustness[:2] == [0, 0]
    assert all(loss > 0 for loss in robustness[2:])
    assert lam == 4
    assert {"epoch", "loss", "classification_loss", "smoothed_accuracy", "learning_rate"} <= set(names)


def test_fewer_training_images_are_evenly_spaced(train):
    assert evenly_spaced(10, 3).tolist() == [0, 3, 6]
    assert evenly_spaced(3, 10).tolist() == [0, 1, 2]
    assert evenly_spaced(3, None).tolist() == [0, 1, 2]
    history = state(train("fewer", train_examples=20))[2]
    assert len(history.splitlines()) == 5


def test_a_backup_is_readable_json(train):
    with pytest.raises(KeyboardInterrupt):
        train("killed", 11)
    state = json.loads((train.executions["killed"].scratch / "backup" / "epoch-00002" / "state.json").read_text())
    assert (state["done"], len(state["history"]), state["metrics"]) == (10, 2, [])
    assert all(math.isfinite(value) for epoch in state["history"] for value in epoch.values())


def test_smoothadv_warms_its_epsilon_up(train):
    changed = {"method": "smoothadv", "attack": "pgd", "epsilon": 0.4, "attack_steps": 2, "warmup_epochs": 2}
    finished = train("smoothadv", **changed)
    model = models.load(finished.outputs["model"] / "model.keras")
    assert type(model).__name__ == "SmoothAdvModel"
    assert model.epsilon == pytest.approx(0.4)
    perturbation = column(finished, "perturbation")
    # Half of epsilon in the first epoch; pixels at the border of [0, 1] keep some images below it.
    assert 0.1 < perturbation[0] <= 0.2 + 1e-6
    assert all(0.2 < value <= 0.4 + 1e-6 for value in perturbation[1:])


class StopsWithinAnEpoch(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = True


@pytest.mark.parametrize(
    ("schedule", "epochs"),
    [(lambda _: keras.callbacks.EarlyStopping("loss", min_delta=100.0), 2), (lambda _: StopsWithinAnEpoch(), 1)],
    ids=["at its end", "within it"],
)
def test_a_schedule_that_stops_training_is_told_and_holds_after_a_kill(train, monkeypatch, capsys, schedule, epochs):
    """Without a word, the report named the epochs that were asked for; and after a kill, training went on."""
    stopped = dataclasses.replace(methods.find("cohen"), schedule=schedule)
    monkeypatch.setattr(methods, "find", lambda name: stopped)
    settings = {"method": "cohen", "lam": 0.0, "num_samples": 1, "train_examples": 32}
    first = state(train("stopped", **settings))
    assert f"  The method's own schedule stopped training after epoch {epochs} of 4.\n" in capsys.readouterr().out
    assert len(first[2].splitlines()) == 1 + epochs
    # As after a kill before the execution was finished.
    again = state(train("stopped"))
    assert again[1:] == first[1:]
    for weights, other in zip(again[0], first[0], strict=True):
        np.testing.assert_array_equal(weights, other)


def test_cohen_is_macer_on_one_copy_without_its_robustness_term(train):
    finished = train("cohen", method="cohen", lam=0.0, num_samples=1)
    model = models.load(finished.outputs["model"] / "model.keras")
    assert (type(model).__name__, model.lam, model.num_samples) == ("MACERModel", 0.0, 1)


def test_training_is_forecast_once_from_its_later_steps_and_by_the_work_of_its_later_epochs(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("pipeline.cli.console.time.monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "200")
    record = backups.Record(10)
    progress = live.TrainingProgress(record, 4, lambda epoch: (1, 1, 4, 4)[epoch], ["epochs", "num_samples"])
    progress.set_model(SimpleNamespace(LOSSES=("cross_entropy",)))
    for record.done in range(1, 21):
        # The first step traces the graph: 1,000 s; then 400 s each.
        now[0] = 600 + 400 * record.done
        progress.on_train_batch_end(0, {"loss": 1.0, "smoothed_accuracy": 0.5, "cross_entropy": 0.75})
    out = capsys.readouterr().out
    # 98 of 100 units of work were left after two steps: 39,200 s.
    assert out.count("To train") == 1
    assert "  To train: 38 more steps, about 10 h 53 min, measured just now.\n" in out
    assert "  More than an hour: a smaller --epochs or a smaller --num_samples would shorten it.\n" in out
    assert out.splitlines()[0].startswith("  Training:   1 % · epoch 1/4, loss 1.000 = 0.750, smoothed accuracy 0.500")
    assert out.splitlines()[-1].startswith("  Training:  20 %, 8 h 53 min left")


def test_keras_that_is_told_to_put_channels_first_is_told_in_one_line():
    """Its error about the shape after some layer says nothing of that."""
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(
            InputError, match=r"^Images are \[H, W, C\] here: set image_data_format to channels_last in"
        ):
            models.network(SETTINGS, (8, 8, 1), 10)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert models.network(SETTINGS, (8, 8, 1), 10).output_shape == (None, 10)


def test_a_network_of_ones_own_has_new_layers_at_each_call(tmp_path, monkeypatch):
    """The second run of a sweep went on from the weights of the first, whose layers it shared."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shares_layers.py").write_text(
        "import keras\nFLAT, SHARED = keras.layers.Flatten(), keras.layers.Dense(4)\ndef make(shape, classes):\n"
        "    images = keras.Input(shape)\n"
        "    return keras.Model(images, keras.layers.Dense(classes)(SHARED(FLAT(images))))\n"
    )
    settings = SETTINGS | {"network": "shares_layers:make"}
    made = models.network(settings, (8, 8, 1), 10)
    with pytest.raises(InputError, match=r"must have new layers at each call, .* Received: dense.* once more$"):
        models.network(settings, (8, 8, 1), 10)
    made.layers[2].trainable = False  # as in a backbone that is only used
    assert models.network(settings, (8, 8, 1), 10).output_shape == (None, 10)
