"""Training is a function of its settings: where it starts, is killed and goes on changes nothing."""

import json
import math
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import backups, models, stability, training
from pipeline.components import trainer
from pipeline.errors import InputError
from pipeline.examples import Examples, evenly_spaced

SETTINGS = {
    "sigma": 0.25, "network": "small_cnn", "num_samples": 2, "lam": 4.0, "gamma": 8.0, "beta": 16.0, "epochs": 4,
    "batch_size": 16, "learning_rate": 0.05, "lr_schedule": "cosine", "lr_drop_epochs": [], "lr_drop_factor": 0.1,
    "momentum": 0.9, "l2": 1e-4, "clip_norm": 1.0, "lam_start_epoch": 2, "crop_padding": 1, "flip": True,
    "train_examples": None, "seed": 5, "method": "macer", "attack": None, "epsilon": None, "attack_steps": None,
    "warmup_epochs": 0, "precision": "float32", "microbatch": None, "strategy": "auto",
}  # fmt: skip


@pytest.fixture(scope="module")
def numbered():
    """37 images of 2x2, image i all pixels i, so that a batch tells which images it holds."""
    images = np.broadcast_to(np.arange(37, dtype=np.uint8)[:, None, None, None], (37, 2, 2, 1))
    labels = np.arange(37, dtype=np.int64) % 10
    return Examples({"train": images}, {"train": labels}, {}, 255, tuple("0123456789"))


def batches(examples, ids, first_step=0, epochs=3, seed=1, padding=0, flip=False, batch_size=8):
    dataset = training.batches(
        examples, ids, batch_size=batch_size, seed=seed, first_step=first_step, epochs=epochs, crop_padding=padding,
        flip=flip,
    )  # fmt: skip
    return [(images.numpy(), labels.numpy()) for images, labels in dataset]


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
    from pipeline import examples

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


def test_another_seed_is_another_order(numbered):
    assert order(batches(numbered, np.arange(37))) != order(batches(numbered, np.arange(37), seed=2))


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1])
def test_every_seed_the_settings_accept_works(numbered, seed):
    assert sorted(order(batches(numbered, np.arange(37), epochs=1, seed=seed, padding=1))) != []


@pytest.mark.parametrize("channels", [1, 3])
def test_no_padding_and_no_flip_is_the_identity(channels):
    images = np.random.default_rng(0).random((9, 4, 5, channels), np.float32)
    np.testing.assert_array_equal(training.augment(images, tf.constant([1, 2], tf.int64), 0, False), images)


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
        augmented = training.augment(np.stack([image] * copies), tf.constant([7, step], tf.int64), padding, flip)
        assert augmented.shape == (copies, height, width, channels)
        for result in augmented.numpy():
            seen[result.tobytes()] += 1  # KeyError: not a crop or flip of its image
    share = np.array(list(seen.values())) / (3 * copies)
    expected = 1 / len(possible)
    assert np.abs(share - expected).max() < 5 * math.sqrt(expected / (3 * copies))


def test_each_image_stays_in_its_place():
    images = np.arange(1, 6, dtype=np.float32)[:, None, None, None] * np.ones((1, 6, 6, 3), np.float32)
    augmented = training.augment(images, tf.constant([0, 0], tf.int64), 1, True).numpy()
    np.testing.assert_array_equal(augmented[:, 2, 2, 0], [1, 2, 3, 4, 5])


def rates(settings, steps):
    schedule = training.schedule({**SETTINGS, **settings}, steps)
    return [float(schedule(step)) for step in range(settings["epochs"] * steps)]


def test_a_step_schedule_drops_at_the_first_step_of_its_epochs():
    settings = {"lr_schedule": "step", "lr_drop_epochs": [2, 3], "learning_rate": 1.0, "epochs": 5}
    np.testing.assert_allclose(rates(settings, 3), [1] * 6 + [0.1] * 3 + [0.01] * 6, rtol=1e-6)


@pytest.mark.parametrize("drops", [[], None])
def test_a_step_schedule_without_drops_is_constant(drops):
    model = models.build({**SETTINGS, "lr_schedule": "step", "lr_drop_epochs": drops}, (8, 8, 1), 10, 3)
    assert training.learning_rate(model) == pytest.approx(0.05)


def test_cosine_starts_at_the_rate_and_ends_at_0():
    drawn = rates({"lr_schedule": "cosine", "learning_rate": 2.0, "epochs": 4}, 5)
    # 2 * (1 + cos(pi t / 20)) / 2: 2 at step 0, 1 in the middle, and 0 behind step 19.
    np.testing.assert_allclose(drawn, [1 + math.cos(math.pi * step / 20) for step in range(20)], atol=1e-6)
    assert float(training.schedule({**SETTINGS, "epochs": 4}, 5)(20)) == pytest.approx(0, abs=1e-8)


class Kill(stability.StopOnDivergence):
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
    runs = {}

    def run(name, kill=None, **changed):
        if name not in runs:
            runs[name] = execution({"examples": digit_examples}, ("model",), {**SETTINGS, **changed}, name)
        with monkeypatch.context() as patch:
            if kill is not None:
                patch.setattr(Kill, "after", kill)
                patch.setattr(stability, "StopOnDivergence", Kill)
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
    assert "Training goes on after epoch 1 of 4." in out
    assert "Training goes on after epoch 2 of 4." in out
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
    assert "Training goes on after epoch 0 of 4 and 1 of 5 steps of the next." in out
    assert "Training goes on after epoch 2 of 4 and 4 of 5 steps of the next." in out
    assert_equal_states(killed, undisturbed)


@pytest.mark.usefixtures("back_up_every_step")
def test_the_loss_scale_of_float16_survives_a_kill(train):
    changed = {"precision": "mixed_float16", "microbatch": 6, "epochs": 1, "lam_start_epoch": 0}
    undisturbed = state(train("undisturbed", **changed))
    with pytest.raises(KeyboardInterrupt):
        train("killed", 4, **changed)
    assert_equal_states(state(train("killed")), undisturbed)


@pytest.mark.usefixtures("back_up_every_step")
def test_the_metrics_within_an_epoch_are_needed_for_that(train, undisturbed):
    """Without them the weights would be the same, but not what is reported: the tests above can fail."""
    with pytest.raises(KeyboardInterrupt):
        train("killed", 9)
    (backup,) = (train.executions["killed"].scratch / "backup").glob("*-step-*")
    content = json.loads((backup / "state.json").read_text())
    content["metrics"] = [0.0] * len(content["metrics"])
    (backup / "state.json").write_text(json.dumps(content))
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
    with pytest.raises(InputError, match=rf"backup {last} .*; delete it to go on from {older}\.$"):
        train("killed")
    shutil.rmtree(last)
    assert_equal_states(state(train("killed")), undisturbed)


def poison(monkeypatch, after):
    """After so many steps the weights become NaN, before they are backed up."""

    class Poison(stability.StopOnDivergence):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self._record.done == after:
                self.model.set_weights([weights * np.nan for weights in self.model.get_weights()])

    monkeypatch.setattr(stability, "StopOnDivergence", Poison)


def test_divergence_names_epoch_and_step_and_keeps_the_last_good_weights(train, monkeypatch):
    """The weights of epoch 2, step 3 become NaN, so the loss of step 4 is."""
    poison(monkeypatch, 8)
    with pytest.raises(
        InputError, match=r"Training diverged: loss nan at epoch 2, step 4, learning rate 0.0289"
    ) as error:
        train("diverged")
    kept = train.executions["diverged"].scratch / "backup" / "epoch-00001"
    assert (
        f"The last good weights, also the best by smoothed training accuracy, are kept in {kept}/model.keras."
        in str(error.value)
    )
    # lam is deferred: it is 0 there.
    assert str(error.value).endswith("Try a lower --learning_rate or --clip_norm 1.")
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
        f"training accuracy in {folder}/epoch-{best:05d}/model.keras. Try a lower --learning_rate, --clip_norm 1 or a "
        "smaller --lam."
    )
    assert expected in str(error.value)
    assert {path.name for path in folder.iterdir()} == {"epoch-00002-step-0000003", f"epoch-{best:05d}"}
    for path in folder.iterdir():
        model = keras.models.load_model(path / "model.keras")
        assert all(np.isfinite(weights).all() for weights in model.get_weights())


def test_weights_that_diverge_in_an_epochs_last_step_are_not_backed_up(train, monkeypatch):
    poison(monkeypatch, 5)
    with pytest.raises(
        InputError, match=r"diverged: weights that are not finite at epoch 1, step 5.* No weights were kept yet"
    ):
        train("diverged")
    assert not list((train.executions["diverged"].scratch).glob("backup/epoch*"))


def test_a_learning_rate_too_high_is_told(train):
    with pytest.raises(InputError, match=r"Training diverged: loss (nan|inf) at epoch \d+, step \d+, learning rate"):
        train("diverged", learning_rate=1e6, clip_norm=None, lr_schedule="step")


def test_lam_is_deferred():
    model = SimpleNamespace(lam=None)
    callback = training.DeferLam(12.0, 2)
    callback.set_model(model)
    lams = []
    for epoch in range(4):
        callback.on_epoch_begin(epoch)
        lams.append(model.lam)
    assert lams == [0, 0, 12, 12]


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


def test_cohen_is_macer_on_one_copy_without_its_robustness_term(train):
    finished = train("cohen", method="cohen", lam=0.0, num_samples=1)
    model = models.load(finished.outputs["model"] / "model.keras")
    assert (type(model).__name__, model.lam, model.num_samples) == ("MACERModel", 0.0, 1)
