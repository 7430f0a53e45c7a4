"""Training is a function of its settings: where it starts, is killed and goes on changes nothing."""

import json
import math
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import models, training
from pipeline.components import trainer
from pipeline.errors import InputError
from pipeline.examples import Examples, evenly_spaced

SETTINGS = {
    "sigma": 0.25, "network": "small_cnn", "num_samples": 2, "lam": 4.0, "gamma": 8.0, "beta": 16.0, "epochs": 4,
    "batch_size": 16, "learning_rate": 0.05, "lr_schedule": "cosine", "lr_drop_epochs": [], "lr_drop_factor": 0.1,
    "momentum": 0.9, "l2": 1e-4, "clip_norm": 1.0, "lam_start_epoch": 2, "crop_padding": 1, "flip": True,
    "train_examples": None, "seed": 5, "method": "macer", "attack": None, "epsilon": None, "attack_steps": None,
    "warmup_epochs": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def numbered():
    """37 images of 2x2, image i all pixels i, so that a batch tells which images it holds."""
    images = np.broadcast_to(np.arange(37, dtype=np.uint8)[:, None, None, None], (37, 2, 2, 1))
    labels = np.arange(37, dtype=np.int64) % 10
    return Examples({"train": images}, {"train": labels}, {}, 255, tuple("0123456789"))


def batches(examples, ids, first_epoch=0, epochs=3, seed=1, padding=0, flip=False, batch_size=8):
    dataset = training.batches(
        examples, ids, batch_size=batch_size, seed=seed, first_epoch=first_epoch, epochs=epochs, crop_padding=padding,
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
    for first in range(4):
        tail = batches(data, ids, first, 4, padding=padding, flip=flip)
        assert len(tail) == (4 - first) * 9
        for (images, labels), (expected, expected_labels) in zip(tail, whole[first * 9 :], strict=True):
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


class Kill(training.LearningRateLog):
    def __init__(self, epoch, step):
        super().__init__()
        self.at = (epoch, step)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


@pytest.fixture
def train(execution, digit_examples, monkeypatch):
    """A function that runs the Trainer in an execution of a name, and kills it if told to -> its output folder."""
    runs = {}

    def run(name, kill=None, **changed):
        if name not in runs:
            runs[name] = execution({"examples": digit_examples}, ("model",), {**SETTINGS, **changed}, name)
        with monkeypatch.context() as patch:
            if kill:
                patch.setattr(training, "LearningRateLog", lambda: Kill(*kill))
            trainer.train(runs[name])
        return runs[name]

    run.executions = runs
    return run


def state(finished):
    model = keras.models.load_model(finished.outputs["model"] / "model.keras")
    history = (finished.outputs["model"] / "history.csv").read_text()
    variables = [*model.weights, *model.optimizer.variables]
    return [np.array(variable) for variable in variables], model.lam, history


def test_killed_training_goes_on_bit_for_bit(train, capsys):
    """Weights, momentum, the noise's counter and the history; killed before any backup, inside and after epochs."""
    weights, lam, history = state(train("undisturbed"))
    assert len(history.splitlines()) == 5
    capsys.readouterr()
    for kill in ((0, 2), (1, 0), (2, 3)):
        with pytest.raises(KeyboardInterrupt):
            train("killed", kill)
        assert not list(train.executions["killed"].outputs["model"].iterdir())
    resumed_weights, resumed_lam, resumed_history = state(train("killed"))
    out = capsys.readouterr().out
    assert "Training goes on after epoch 1 of 4." in out
    assert "Training goes on after epoch 2 of 4." in out
    for ours, theirs in zip(resumed_weights, weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (resumed_lam, resumed_history) == (lam, history)


def test_finished_training_is_only_saved_again(train, monkeypatch):
    weights, _, history = state(train("once"))
    monkeypatch.setattr("macer_tf.model.MACERModel.fit", lambda *arguments, **keywords: pytest.fail("trained again"))
    again, _, history_again = state(train("once"))
    assert history_again == history
    for ours, theirs in zip(again, weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_backup_is_kept_and_a_half_written_one_is_not_taken(train):
    with pytest.raises(KeyboardInterrupt):
        train("killed", (2, 0))
    backup = train.executions["killed"].scratch / "backup"
    assert [path.name for path in backup.iterdir()] == ["epoch-00002"]
    (backup / "epoch-00003.unfinished").mkdir()
    (backup / "epoch-00003.unfinished" / "model.weights.h5").write_text("half")
    assert training.Backup(backup).latest() == backup / "epoch-00002"
    train("killed")
    assert [path.name for path in backup.iterdir()] == ["epoch-00004"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "bytes", "no weights", "torn history"])
def test_a_damaged_backup_is_told_in_one_line(train, damage):
    with pytest.raises(KeyboardInterrupt):
        train("killed", (1, 0))
    latest = train.executions["killed"].scratch / "backup" / "epoch-00001"
    weights = latest / "model.weights.h5"
    content = weights.read_bytes()
    if damage == "no weights":
        weights.unlink()
    elif damage == "torn history":
        (latest / "history.json").write_text('[{"loss": 1.')
    else:
        weights.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "bytes": b"x" * 5000}[damage])
    with pytest.raises(
        InputError, match=r"Cannot read the training backup .*epoch-00001.*; delete it to train"
    ) as error:
        train("killed")
    assert "\n" not in str(error.value)


def test_divergence_names_epoch_and_step_and_keeps_the_last_good_weights(train, monkeypatch):
    """The weights of epoch 2, step 3 become NaN, so the loss of step 4 is."""

    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            if (self.epoch, batch) == (1, 2):
                self.model.set_weights([weights * np.nan for weights in self.model.get_weights()])

    monkeypatch.setattr(training, "LearningRateLog", Poison)
    with pytest.raises(
        InputError, match=r"Training diverged: loss nan at epoch 2, step 4, learning rate 0.0289"
    ) as error:
        train("diverged")
    kept = train.executions["diverged"].scratch / "backup" / "epoch-00001"
    assert f"kept in {kept}" in str(error.value)
    assert "--learning_rate" in str(error.value)
    assert "\n" not in str(error.value)
    model = models.build(SETTINGS, (8, 8, 1), 10, 5)
    assert training.Backup(kept.parent).restore(model) == 1
    assert all(np.isfinite(weights).all() for weights in model.get_weights())


def test_weights_that_diverge_in_an_epochs_last_step_are_not_backed_up(train, monkeypatch):
    class Poison(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                self.model.set_weights([weights * np.nan for weights in self.model.get_weights()])

    monkeypatch.setattr(training, "TrainingProgress", lambda *arguments: Poison())
    with pytest.raises(
        InputError, match=r"diverged: weights that are not finite at epoch 1, step 5.* No epoch was finis"
    ):
        train("diverged")
    assert training.Backup(train.executions["diverged"].scratch / "backup").latest() is None


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
    column = names.index("robustness_loss")
    robustness = [float(line.split(",")[column]) for line in history.splitlines()[1:]]
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
        train("killed", (2, 0))
    history = json.loads((train.executions["killed"].scratch / "backup" / "epoch-00002" / "history.json").read_text())
    assert len(history) == 2
    assert all(math.isfinite(value) for epoch in history for value in epoch.values())


def test_smoothadv_warms_its_epsilon_up(train):
    changed = {"method": "smoothadv", "attack": "pgd", "epsilon": 0.4, "attack_steps": 2, "warmup_epochs": 2}
    finished = train("smoothadv", **changed)
    model = models.load(finished.outputs["model"] / "model.keras")
    assert type(model).__name__ == "SmoothAdvModel"
    assert model.epsilon == pytest.approx(0.4)
    names, *rows = [line.split(",") for line in (finished.outputs["model"] / "history.csv").read_text().splitlines()]
    perturbation = [float(row[names.index("perturbation")]) for row in rows]
    # Half of epsilon in the first epoch; pixels at the border of [0, 1] keep some images below it.
    assert 0.1 < perturbation[0] <= 0.2 + 1e-6
    assert all(0.2 < value <= 0.4 + 1e-6 for value in perturbation[1:])


def test_cohen_is_macer_on_one_copy_without_its_robustness_term(train):
    finished = train("cohen", method="cohen", lam=0.0, num_samples=1)
    model = models.load(finished.outputs["model"] / "model.keras")
    assert (type(model).__name__, model.lam, model.num_samples) == ("MACERModel", 0.0, 1)
