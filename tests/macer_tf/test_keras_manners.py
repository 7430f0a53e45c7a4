"""The same uses of plain `keras.Model` and of `MACERModel`: each works in both, or is listed below with the reason."""

import contextlib
import math

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers

from macer_tf.model import MACERModel

pytestmark = [
    # h5py's datasets, which Keras saves weights in, under NumPy 2.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    # What plain Keras warns of in these uses.
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:.shuffle=True. was passed"),
    pytest.mark.filterwarnings("ignore:Your input ran out of data"),
    pytest.mark.filterwarnings("ignore:Layer .* does not have a .quantize. method"),
    pytest.mark.filterwarnings("ignore:The model does not have any trainable weights"),
    pytest.mark.filterwarnings("ignore:The structure of .inputs. doesn't match"),
    pytest.mark.filterwarnings("ignore:.*received .from_logits=True.*:UserWarning"),
]

SHAPE = (4, 4, 1)
RNG = np.random.default_rng(0)
X, Y = RNG.random((16, *SHAPE), np.float32), RNG.integers(3, size=16)
W = RNG.random(16).astype(np.float32)

# Use -> why a MACERModel refuses what plain Keras does, as its one line says it; no other use may differ.
DIFFERENCES = {
    "compile: a loss": "MACERModel has its own loss; do not pass one",
    "fit: pixels in 0..255": r"pixels must lie in \[0, 1\]; scale the images first",
    "fit: bytes": r"Images must be floats in \[0, 1\]; divide bytes by 255",
    "train_on_batch: pixels in 0..255": r"pixels must lie in \[0, 1\]; scale the images first",
    "test_on_batch: pixels in 0..255": r"pixels must lie in \[0, 1\]; scale the images first",
    "fit: images alone, the loss added inside": "MACERModel needs labels",
    "fit: smoothed labels": "rows of one-hot labels must hold one 1",
    "classifier: a softmax": r"must return logits, but its last layer \(head\) applies softmax",
    "classifier: bytes as its input": "The classifier's input is uint8",
    "classifier: rows of pixels as its input": r"must take images \[height, width, channels\]; begin it with",
    "classifier: images without channels as its input": r"must take images \[height, width, channels\]; begin it with",
    "classifier: two inputs": "The classifier must take images as its only input. Received: 2 inputs",
    "classifier: outputs by name": "The classifier must return one tensor",
    "jit_compile after gamma above 14": "jit_compile=True needs gamma <= 14",
}  # fmt: skip


def network(head=None, **options):
    """A functional classifier, images named "image" -> three logits."""
    inputs = keras.Input(SHAPE, name="image")
    x = layers.Dense(4, activation="relu")(layers.Flatten()(inputs))
    return keras.Model(inputs, layers.Dense(3, activation=head, name="head", **options)(x))


class Plain:
    """Plain Keras with the loss that fits."""

    @staticmethod
    def wrap(classifier, **_):
        return classifier

    @staticmethod
    def compile(model, optimizer="sgd", one_hot=False, **options):
        kind = keras.losses.CategoricalCrossentropy if one_hot else keras.losses.SparseCategoricalCrossentropy
        model.compile(optimizer, **{"loss": kind(from_logits=True), "metrics": ["accuracy"], **options})
        return model


class Macer:
    @staticmethod
    def wrap(classifier, **options):
        return MACERModel(classifier, 0.25, num_samples=2, seed=1, **options)

    @staticmethod
    def compile(model, optimizer="sgd", one_hot=False, **options):
        model.compile(optimizer, **{"metrics": ["accuracy"], **options})
        return model


def made(kit, classifier=None, **options):
    """A fresh model, compiled."""
    keras.utils.set_random_seed(0)
    return kit.compile(kit.wrap(classifier or network()), **options)


_SHARED = {}


def shared(kit):
    """One compiled model for all uses that leave it as it is but for its weights."""
    if kit not in _SHARED:
        _SHARED[kit] = made(kit)
    return _SHARED[kit]


def fit(model, *args, **options):
    """Fits, and returns how many epochs were reported and by which of Keras' own names."""
    history = model.fit(*args, **{"verbose": 0, "batch_size": 8, **options}).history
    assert all(math.isfinite(value) for values in history.values() for value in values)
    ours = ("classification_loss", "robustness_loss", "smoothed_accuracy", "hinge_fraction", "soft_radius")
    return len(history["loss"]), sorted(name for name in history if name.removeprefix("val_") not in ours)


def fit_data(model, *args, **options):
    return fit(model, *args, batch_size=None, **options)


def dataset(*tensors, batch=8):
    return tf.data.Dataset.from_tensor_slices(tensors).batch(batch)


def unknown_shapes():
    spec = (tf.TensorSpec((None, None, 1), tf.float32), tf.TensorSpec((), tf.int64))
    return tf.data.Dataset.from_generator(lambda: zip(X, Y, strict=True), output_signature=spec).batch(8)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[8 * index : 8 * index + 8], Y[8 * index : 8 * index + 8]


def generator():
    while True:
        yield X[:8], Y[:8]


class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.flatten, self.dense = layers.Flatten(), layers.Dense(3)

    def call(self, images):
        return self.dense(self.flatten(images))


def through(*some, head=True):
    inputs = x = keras.Input(SHAPE)
    for layer in some:
        x = layer(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)) if head else x)


class AddsLoss(layers.Layer):
    def call(self, images):
        self.add_loss(0.1 * keras.ops.mean(images**2))
        return images


def weight_shared():
    inputs, dense = keras.Input(SHAPE), layers.Dense(3)
    x = layers.Flatten()(inputs)
    return keras.Model(inputs, dense(x) + dense(x))


def two_inputs():
    one, two = keras.Input(SHAPE), keras.Input(SHAPE)
    return keras.Model([one, two], layers.Dense(3)(layers.Flatten()(one + two)))


def named_outputs():
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, {"logits": layers.Dense(3)(layers.Flatten()(inputs))})


def callbacks(kit, *some, **options):
    return fit(made(kit), X, Y, epochs=2, validation_data=(X, Y), callbacks=list(some), **options)


def saved_and_loaded(model, path):
    fit(model, X, Y)
    model.save(path)
    loaded = keras.models.load_model(path)
    for ours, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(model.predict(X, verbose=0), loaded.predict(X, verbose=0))
    return loaded


def weights_saved_and_loaded(kit, path):
    shared(kit).save_weights(path)
    other = made(kit)
    other.load_weights(path)
    np.testing.assert_array_equal(shared(kit).predict(X, verbose=0), other.predict(X, verbose=0))


def exported(kit, model, path):
    model.export(path, verbose=False)
    artifact = tf.saved_model.load(path)
    np.testing.assert_allclose(artifact.serve(X), model.predict(X, verbose=0), atol=1e-6)


def copied(model, copy):
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(copy.predict(X, verbose=0), model.predict(X, verbose=0))
    return type(copy) is type(model), copy.count_params() - model.count_params()


def frozen(kit, whole):
    model = kit.wrap(network())
    (model if whole else model.get_layer(index=0)).trainable = False
    kit.compile(model)
    before = model.get_weights()
    result = fit(model, X, Y)
    return result, len(model.trainable_variables) if whole else None, whole and len(before)


def twice(kit):
    results = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        model = kit.compile(kit.wrap(through(layers.Dropout(0.5))))
        fit(model, X, Y, epochs=2)
        results.append(model.predict(X, verbose=0))
    np.testing.assert_array_equal(*results)


def mixed(kit, policy):
    keras.config.set_dtype_policy(policy)
    try:
        return fit(made(kit), X, Y)
    finally:
        keras.config.set_dtype_policy("float32")


def summary(model):
    lines = []
    model.summary(print_fn=lambda line, *_, **__: lines.append(line))
    return "Trainable params" in "".join(lines)


def quantized(kit):
    model = made(kit)
    model.quantize("int8")
    return model.predict(X, verbose=0).shape


def one_hot(model, labels):
    return fit(model, X, labels)


USES = {
    "fit: arrays": lambda kit, tmp: fit(shared(kit), X, Y),
    "fit: tensors": lambda kit, tmp: fit(shared(kit), tf.constant(X), tf.constant(Y)),
    "fit: float64 images": lambda kit, tmp: fit(shared(kit), X.astype(np.float64), Y),
    "fit: lists of one": lambda kit, tmp: fit(shared(kit), [X], [Y]),
    "fit: a list of images": lambda kit, tmp: fit(shared(kit), [X], Y),
    "fit: a tuple of images": lambda kit, tmp: fit(shared(kit), (X,), Y),
    "fit: images by name": lambda kit, tmp: fit(shared(kit), {"image": X}, Y),
    "fit: grey images without their last axis": lambda kit, tmp: fit(made(kit), X[..., 0], Y),
    "fit: tf.data": lambda kit, tmp: fit_data(shared(kit), dataset(X, Y)),
    "fit: tf.data with weights": lambda kit, tmp: fit_data(shared(kit), dataset(X, Y, W)),
    "fit: tf.data of nested images": lambda kit, tmp: fit_data(shared(kit), dataset((X,), Y)),
    "fit: tf.data of images by name": lambda kit, tmp: fit_data(shared(kit), dataset({"image": X}, Y)),
    "fit: tf.data of unknown shapes": lambda kit, tmp: fit_data(shared(kit), unknown_shapes()),
    "fit: a generator": lambda kit, tmp: fit_data(shared(kit), generator(), steps_per_epoch=2),
    "fit: PyDataset": lambda kit, tmp: fit_data(shared(kit), Batches()),
    "fit: labels as a column": lambda kit, tmp: fit(made(kit), X, Y[:, None]),
    "fit: float labels": lambda kit, tmp: fit(shared(kit), X, Y.astype(np.float32)),
    "fit: byte labels": lambda kit, tmp: fit(shared(kit), X, Y.astype(np.uint8)),
    "fit: one-hot labels": lambda kit, tmp: fit(made(kit, one_hot=True), X, np.eye(3)[Y]),
    "fit: smoothed labels": lambda kit, tmp: fit(made(kit, one_hot=True), X, 0.9 * np.eye(3)[Y] + 0.1 / 3),
    "fit: one-hot labels with class weights": lambda kit, tmp: fit(
        made(kit, one_hot=True), X, np.eye(3)[Y], class_weight={0: 1, 1: 2, 2: 3}
    ),
    "fit: sample weights": lambda kit, tmp: fit(shared(kit), X, Y, sample_weight=W),
    "fit: sample weights as a column": lambda kit, tmp: fit(made(kit), X, Y, sample_weight=W[:, None]),
    "fit: class weights": lambda kit, tmp: fit(shared(kit), X, Y, class_weight={0: 1.0, 1: 2.0, 2: 0.5}),
    "fit: a validation split": lambda kit, tmp: fit(shared(kit), X, Y, validation_split=0.5),
    "fit: validation arrays": lambda kit, tmp: fit(shared(kit), X, Y, validation_data=(X, Y, W)),
    "fit: validation tf.data": lambda kit, tmp: fit(shared(kit), X, Y, validation_data=dataset(X, Y)),
    "fit: validation every other epoch": lambda kit, tmp: fit(
        shared(kit), X, Y, epochs=2, validation_data=(X, Y), validation_freq=2, validation_batch_size=4
    ),
    "fit: steps of an endless data set": lambda kit, tmp: fit_data(
        shared(kit), dataset(X, Y).repeat(), steps_per_epoch=3, epochs=2
    ),
    "fit: from a later epoch": lambda kit, tmp: fit(shared(kit), X, Y, initial_epoch=1, epochs=3),
    "fit: without shuffling": lambda kit, tmp: fit(shared(kit), X, Y, shuffle=False),
    "fit: an uneven last batch": lambda kit, tmp: fit(shared(kit), X, Y, batch_size=7),
    "fit: pixels in 0..255": lambda kit, tmp: fit(shared(kit), 255 * X, Y),
    "fit: bytes": lambda kit, tmp: fit(shared(kit), (255 * X).astype(np.uint8), Y),
    "fit: images alone, the loss added inside": lambda kit, tmp: fit(
        made(kit, network(activity_regularizer="l2"), metrics=None, **({"loss": None} if kit is Plain else {})), X
    ),
    "fit: before compile": lambda kit, tmp: kit.wrap(network()).fit(X, Y),
    "evaluate: a list": lambda kit, tmp: len(shared(kit).evaluate(X, Y, verbose=0)) >= 2,
    "evaluate: a dict": lambda kit, tmp: {"loss", "accuracy"} <= set(
        shared(kit).evaluate(X, Y, verbose=0, return_dict=True)
    ),
    "evaluate: tf.data and steps": lambda kit, tmp: len(shared(kit).evaluate(dataset(X, Y), steps=1, verbose=0)) >= 2,
    "evaluate: weights": lambda kit, tmp: len(shared(kit).evaluate(X, Y, sample_weight=W, verbose=0)) >= 2,
    "predict: arrays": lambda kit, tmp: shared(kit).predict(X, verbose=0).shape,
    "predict: by name": lambda kit, tmp: shared(kit).predict({"image": X}, verbose=0).shape,
    "predict: tf.data with labels": lambda kit, tmp: shared(kit).predict(dataset(X, Y), verbose=0).shape,
    "predict_on_batch": lambda kit, tmp: shared(kit).predict_on_batch(X).shape,
    "train_on_batch": lambda kit, tmp: "loss" in shared(kit).train_on_batch(X, Y, return_dict=True),
    "train_on_batch: class weights": lambda kit, tmp: len(
        shared(kit).train_on_batch(X, Y, class_weight={0: 1.0, 1: 2.0, 2: 0.5})
    )
    >= 2,
    "train_on_batch: pixels in 0..255": lambda kit, tmp: len(shared(kit).train_on_batch(255 * X, Y)) >= 2,
    "test_on_batch": lambda kit, tmp: "loss" in shared(kit).test_on_batch(X, Y, W, return_dict=True),
    "test_on_batch: pixels in 0..255": lambda kit, tmp: len(shared(kit).test_on_batch(255 * X, Y)) >= 2,
    "callbacks: EarlyStopping": lambda kit, tmp: callbacks(
        kit, keras.callbacks.EarlyStopping("val_accuracy", min_delta=1.0, patience=0, restore_best_weights=True)
    )[1],
    "callbacks: the best checkpoint": lambda kit, tmp: (
        callbacks(kit, keras.callbacks.ModelCheckpoint(tmp / "m.keras", monitor="val_accuracy", save_best_only=True)),
        (tmp / "m.keras").exists(),
    ),
    "callbacks: checkpoints of weights": lambda kit, tmp: (
        callbacks(kit, keras.callbacks.ModelCheckpoint(tmp / "{epoch}.weights.h5", save_weights_only=True)),
        len(list(tmp.glob("*.h5"))),
    ),
    "callbacks: rates, logs, NaN, EMA": lambda kit, tmp: (
        fit(
            made(kit, optimizer=keras.optimizers.SGD(0.1, use_ema=True)), X, Y, epochs=2, validation_data=(X, Y),
            callbacks=[
                keras.callbacks.ReduceLROnPlateau("val_loss", patience=0, min_delta=10.0),
                keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
                keras.callbacks.CSVLogger(tmp / "log.csv"),
                keras.callbacks.TerminateOnNaN(),
                keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs["val_loss"]),
                keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
            ],
        ),
        len((tmp / "log.csv").read_text().splitlines()),
    ),
    "callbacks: BackupAndRestore": lambda kit, tmp: callbacks(kit, keras.callbacks.BackupAndRestore(tmp / "backup")),
    "callbacks: one that is not in a list": lambda kit, tmp: fit(
        shared(kit), X, Y, callbacks=keras.callbacks.TerminateOnNaN()
    ),
    "callbacks: in a CallbackList": lambda kit, tmp: fit(
        shared(kit), X, Y, callbacks=keras.callbacks.CallbackList([keras.callbacks.History()], model=shared(kit))
    ),
    "compile: metrics as objects": lambda kit, tmp: fit(
        made(
            kit,
            metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2)],
            weighted_metrics=[keras.metrics.SparseCategoricalAccuracy()],
        ),
        X,
        Y,
        sample_weight=W,
    ),
    "compile: metrics of one-hot labels": lambda kit, tmp: fit(
        made(kit, one_hot=True, metrics=["accuracy", keras.metrics.CategoricalAccuracy()]), X, np.eye(3)[Y]
    ),
    "compile: an optimizer with a schedule": lambda kit, tmp: fit(
        made(kit, optimizer=keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.1, 10), clipnorm=1.0)), X, Y
    ),
    "compile: eagerly": lambda kit, tmp: fit(made(kit, run_eagerly=True), X, Y),
    "compile: two steps at once": lambda kit, tmp: fit(made(kit, steps_per_execution=2), X, Y),
    "compile: XLA": lambda kit, tmp: fit(made(kit, jit_compile=True), X, Y),
    "jit_compile after gamma above 14": lambda kit, tmp: fit(
        kit.compile(kit.wrap(network(), gamma=20.0), jit_compile=True), X, Y
    ),
    "compile: without scaling the loss": lambda kit, tmp: fit(made(kit, auto_scale_loss=False), X, Y),
    "compile: a loss": lambda kit, tmp: fit(made(kit, loss="sparse_categorical_crossentropy"), X, Y),
    "compile: again": lambda kit, tmp: fit(kit.compile(kit.compile(kit.wrap(network())), "adam"), X, Y),
    "save: .keras": lambda kit, tmp: fit(saved_and_loaded(made(kit), tmp / "m.keras"), X, Y),
    "save: .h5": lambda kit, tmp: fit(kit.compile(saved_and_loaded(made(kit), tmp / "m.h5")), X, Y),
    "save: weights": lambda kit, tmp: weights_saved_and_loaded(kit, tmp / "m.weights.h5"),
    "export: after fit": lambda kit, tmp: exported(kit, shared(kit), tmp / "e"),
    "export: at once": lambda kit, tmp: exported(kit, kit.wrap(network()), tmp / "e"),
    "export: after load": lambda kit, tmp: (
        shared(kit).save(tmp / "m.keras"),
        exported(kit, keras.models.load_model(tmp / "m.keras"), tmp / "e"),
    )[1],
    "clone_model": lambda kit, tmp: copied(shared(kit), keras.models.clone_model(shared(kit))),
    "from_config": lambda kit, tmp: copied(
        shared(kit), type(shared(kit)).from_config(shared(kit).get_config())
    ),
    "to_json": lambda kit, tmp: copied(shared(kit), keras.models.model_from_json(shared(kit).to_json())),
    "summary": lambda kit, tmp: summary(shared(kit)),
    "as a layer of another model": lambda kit, tmp: through(made(kit), head=False).predict(X, verbose=0).shape,
    "all frozen": lambda kit, tmp: frozen(kit, True)[:2],
    "a part frozen": lambda kit, tmp: frozen(kit, False)[0],
    "mixed bfloat16": lambda kit, tmp: mixed(kit, "mixed_bfloat16"),
    "mixed float16": lambda kit, tmp: mixed(kit, "mixed_float16"),
    "a global seed makes it reproducible": lambda kit, tmp: twice(kit),
    "quantize": lambda kit, tmp: quantized(kit),
    "classifier: regularised": lambda kit, tmp: fit(
        made(kit, network(kernel_regularizer="l2", activity_regularizer="l2")), X, Y
    ),
    "classifier: with a loss inside": lambda kit, tmp: fit(made(kit, through(AddsLoss())), X, Y),
    "classifier: batch norm and dropout": lambda kit, tmp: fit(
        made(kit, through(layers.BatchNormalization(), layers.Dropout(0.5), layers.GaussianNoise(0.1))), X, Y
    ),
    "classifier: sequential": lambda kit, tmp: fit(
        made(kit, keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(3)])), X, Y
    ),
    "classifier: sequential, built late": lambda kit, tmp: fit(
        made(kit, keras.Sequential([layers.Flatten(), layers.Dense(3)])), X, Y
    ),
    "classifier: nested": lambda kit, tmp: fit(made(kit, through(network(), head=False)), X, Y),
    "classifier: subclassed": lambda kit, tmp: fit(made(kit, Subclassed()), X, Y),
    "classifier: a layer called twice": lambda kit, tmp: fit(made(kit, weight_shared()), X, Y),
    "classifier: a softmax": lambda kit, tmp: fit(made(kit, network("softmax")), X, Y),
    "classifier: bytes as its input": lambda kit, tmp: fit(
        made(kit, keras.Sequential([keras.Input(SHAPE, dtype="uint8"), layers.Flatten(), layers.Dense(3)])), X, Y
    ),
    "classifier: rows of pixels as its input": lambda kit, tmp: fit(
        made(kit, keras.Sequential([keras.Input((16,)), layers.Dense(3)])), X.reshape(16, 16), Y
    ),
    "classifier: images without channels as its input": lambda kit, tmp: fit(
        made(kit, keras.Sequential([keras.Input((4, 4)), layers.Flatten(), layers.Dense(3)])), X[..., 0], Y
    ),
    "classifier: two inputs": lambda kit, tmp: fit(made(kit, two_inputs()), [X, X], Y),
    "classifier: outputs by name": lambda kit, tmp: fit(
        made(kit, named_outputs(), **({} if kit is Macer else {"metrics": None})), X, Y
    ),
}  # fmt: skip


def outcome(use, kit, folder):
    """(True, what a use returned), or (False, its error's type)."""
    folder.mkdir()
    try:
        return True, use(kit, folder)
    except Exception as error:
        return False, error


@pytest.mark.parametrize("name", USES)
def test_what_plain_keras_does_macer_does_or_refuses_in_one_line(name, tmp_path):
    plain_works, plain = outcome(USES[name], Plain, tmp_path / "plain")
    works, ours = outcome(USES[name], Macer, tmp_path / "macer")
    if name in DIFFERENCES:
        assert plain_works, f"no difference any more: {plain!r}"
        assert not works
        with pytest.raises(ValueError, match=DIFFERENCES[name]) as caught:
            raise ours
        assert "\n" not in str(caught.value)
    elif not plain_works:
        assert not works, plain
        assert (type(ours), str(ours)) == (type(plain), str(plain))
    else:
        with contextlib.nullcontext() if works else pytest.fail(f"{type(ours).__name__}: {ours}"):
            assert ours == plain


def test_a_label_without_a_class_weight_is_one_line():
    with pytest.raises(ValueError, match=r"Received: weights for 0 to 1, and a label 2$") as caught:
        shared(Macer).fit(dataset(X, Y), class_weight={0: 1.0, 1: 2.0}, verbose=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (tf.data.Dataset.from_tensor_slices((X, Y)), r"shape=\(\), a single label; `batch` the data set"),
        (
            tf.data.Dataset.from_tensors({"image": X, "label": Y}),
            "Received: a dict of image, label in place of one",
        ),
    ],
)
def test_a_data_set_of_another_form_is_told_in_one_line(data, line):
    with pytest.raises(ValueError, match=line) as caught:
        made(Macer).fit(data, verbose=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"sample_weight": np.linspace(-1, 1, 16)}, "sample weights and class weights must be finite numbers from 0"),
        ({"sample_weight": np.full(16, np.nan)}, "sample weights and class weights must be finite numbers from 0"),
        ({"class_weight": {0: -1.0}}, "sample weights and class weights must be finite numbers from 0"),
        (
            {"class_weight": [1.0, 2.0, 1.0]},
            r"class_weight must be a dict .* such as \{0: 1.0, 1: 2.5\}. Received: list",
        ),
        (
            {"class_weight": {"0": 1.0, "1": 2.0, "2": 1.0}},
            r"The keys of class_weight must be classes, whole numbers from 0\. Received: '0'$",
        ),
    ],
)
def test_weights_that_would_train_to_nothing_are_refused(arguments, line):
    with pytest.raises(ValueError, match=line) as caught:
        made(Macer).fit(X, Y, verbose=0, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels", "weights", "line"),
    [
        (X, pd.Series(["a", "b"] * 8), None, r"numbers\. Received: dtype=(str|object)"),
        (X, pd.Series(["a", "b"] * 8, dtype="category"), None, r"numbers\. Received: dtype=category"),
        (X.astype(object), Y, None, r"numbers\. Received: dtype=object"),
        (X, Y, np.array(["a"] * 16), r"numbers\. Received: dtype=str"),
        (((X, np.array(["a"] * 16)) for _ in range(2)), None, None, r"numbers\. Received: dtype=str"),
        (X.tolist(), Y, None, r"Images must be an array, such as .* Received: a list"),
        (X, Y.tolist(), None, r"Labels must be an array, such as .* Received: a list"),
        (X, tuple(Y.tolist()), None, r"Labels must be an array, such as .* Received: a tuple"),
        (X, Y, [1.0] * 16, r"Sample weights must be an array, such as .* Received: a list"),
    ],
)
def test_what_is_no_array_of_numbers_is_told_in_one_line(images, labels, weights, line):
    with pytest.raises(ValueError, match=line) as caught:
        shared(Macer).fit(images, labels, sample_weight=weights, verbose=0)
    assert len(str(caught.value)) < 120
    assert "\n" not in str(caught.value)


def test_class_weights_may_have_any_whole_numbers_as_keys():
    shared(Macer).fit(X, Y, class_weight={0.0: 1.0, np.int64(1): 2.0, 2: 0.5}, verbose=0)


def test_masked_images_and_labels_are_refused():
    with pytest.raises(ValueError, match=r"Pixels must not be masked; leave masked ones out. Received: 256 masked"):
        made(Macer).fit(np.ma.masked_array(X, mask=True), Y, verbose=0)
    with pytest.raises(ValueError, match=r"Labels must not be masked; leave masked ones out. Received: 16 masked"):
        made(Macer).evaluate(X, np.ma.masked_array(Y, mask=True), verbose=0)
    with pytest.raises(ValueError, match="Pixels must not be masked"):
        made(Macer).fit(X, Y, validation_data=[np.ma.masked_array(X, mask=True), Y], verbose=0)
    with pytest.raises(ValueError, match="Sample weights must not be masked"):
        made(Macer).fit(X, Y, sample_weight=np.ma.masked_array(np.ones(len(Y)), mask=True), verbose=0)
    with pytest.raises(ValueError, match="Labels must not be masked"):
        made(Macer).train_on_batch(X, np.ma.masked_array(Y, mask=True))
    with pytest.raises(ValueError, match="Pixels must not be masked"):
        made(Macer).test_on_batch(np.ma.masked_array(X, mask=True), Y)
