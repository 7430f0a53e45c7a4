import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import macer_tf
from macer_tf.model import MACERModel
from serving import card, validate
from serving.export import WARMUP, export
from serving.fingerprints import directory_fingerprint

SIGNATURES = {
    "serving_default": {
        "predicted_class": "int64", "radius": "float32", "p_lower": "float64", "votes": "int64", "seed": "int64"
    },
    "certify_custom": {
        "predicted_class": "int64", "radius": "float32", "p_lower": "float64", "votes": "int64", "seed": "int64"
    },
    "predict": {"predicted_class": "int64", "p_value": "float64", "samples": "int64", "seed": "int64"},
    "metadata": {"model_card": "string"},
}  # fmt: skip


@pytest.fixture
def images(digits):
    return digits[0][:4]


@pytest.fixture
def damaged(exported, tmp_path):
    """A copy of the SavedModel, to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "damaged"))


def test_a_fresh_process_without_our_code_loads_it_and_it_passes_all_checks(exported, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys; from serving import validate; status = validate.main();"
        "assert not [name for name in sys.modules if name.startswith('macer_tf')], 'needs our code'; sys.exit(status)"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, exported, tmp_path / "images.npy"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    assert sorted(found["answers"]) == sorted(SIGNATURES["serving_default"])
    assert max(found["answers"]["predicted_class"]) >= 0
    assert len(found["checks"]) == 7


def test_the_signatures_are_batch_major_and_named_as_promised(exported, images):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        served = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(exported)).signature_def
    for name, outputs in SIGNATURES.items():
        dtypes = {output: tf.as_dtype(tensor.dtype).name for output, tensor in served[name].outputs.items()}
        assert dtypes == outputs
        assert all(tensor.tensor_shape.dim[0].size == -1 for tensor in served[name].outputs.values())
        if name != "metadata":
            shape = [dimension.size for dimension in served[name].inputs["images"].tensor_shape.dim]
            assert shape == [-1, *images.shape[1:]]
    defaults = {name: tf.make_ndarray(proto).tolist() for name, proto in served["certify_custom"].defaults.items()}
    assert defaults == {"n": 300, "alpha": 0.001}
    assert [sorted(served[name].inputs) for name in SIGNATURES] == [
        ["images"], ["alpha", "images", "n"], ["images"], ["query"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"class_names": ["cat", "cat"]},
            "class_names must be different, one per class. Received: 'cat' more than once",
        ),
        ({"class_names": ["cat"]}, "class_names must be one per class. Received: 1 for 2 classes"),
        ({"class_names": 5}, "class_names must be a list of strings. Received: 5"),
        ({"class_names": "ab"}, "class_names must be a list of strings. Received: 'ab'"),
        ({"n": "1000"}, "n in the model card must be a whole number from 1. Received: '1000'"),
        ({"alpha": 0.2}, r"alpha must lie in \[1e-06, 0.1\] to be served. Received: alpha=0.2"),
        ({"pixel_max": 0}, "pixel_max, what a stored pixel is divided by, must be a whole number from 1 to 65535"),
    ],
)
def test_bad_options_write_nothing(linear_classifier, tmp_path, options, message):
    model = MACERModel(linear_classifier(), sigma=0.25, seed=0)
    with pytest.raises(ValueError, match=f"^{message}"):
        export(model, tmp_path / "model", **{"n0": 10, "n": 50, "alpha": 0.01, **options})
    assert not (tmp_path / "model").exists()


def test_a_url_is_no_directory(linear_classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = MACERModel(linear_classifier(), sigma=0.25, seed=0)
    with pytest.raises(ValueError, match=r"Expected a path on this machine, not a URL\. Received: gs://bucket/m"):
        export(model, "gs://bucket/m", n0=10, n=50, alpha=0.01)
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers(linear_classifier, tmp_path):
    model = MACERModel(linear_classifier(), sigma=0.25, seed=0)
    whole = {"n0": 10, "n": 50, "max_n": 60, "max_batch_size": 7, "pixel_max": 255}
    names = np.array(["cat", "dog"])
    export(
        model,
        tmp_path,
        alpha=np.float32(0.01),
        class_names=names,
        **{name: np.int64(value) for name, value in whole.items()},
    )
    about = card.read(tmp_path)
    assert {name: about[name] for name in ("n0", "n", "max_n", "max_batch_size")} == {
        name: whole[name] for name in ("n0", "n", "max_n", "max_batch_size")
    }
    assert about["alpha"] == float(np.float32(0.01))


def test_what_the_pipeline_calls_the_model_is_in_the_card_and_in_the_graph(linear_classifier, tmp_path):
    settings = {"n0": 10, "n": 50, "alpha": 0.01}
    model = MACERModel(linear_classifier(), sigma=0.25, seed=0)
    with pytest.raises(ValueError, match="model in the model card must be a SHA-256 in hexadecimal"):
        export(model, tmp_path, **settings, model_fingerprint="abc")
    export(model, tmp_path, **settings, model_fingerprint="b" * 64)
    assert card.read(tmp_path)["model"] == "b" * 64
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        (text,) = validate.Server(session, tmp_path)("metadata")["model_card"]
    assert card.from_json(text.decode()) == card.read(tmp_path)


def test_a_classifier_that_is_no_function_of_an_image_is_not_exported(tmp_path):
    inputs = keras.Input((4, 4, 1))
    flat = keras.layers.Flatten()(inputs)
    by_batch = keras.Model(inputs, keras.layers.Dense(3)(flat - keras.ops.mean(flat, axis=0, keepdims=True)))
    with pytest.raises(ValueError, match="depends on the rest of its batch"):
        export(MACERModel(by_batch, sigma=0.25, seed=0), tmp_path / "m", n0=10, n=50, alpha=0.01)
    assert not (tmp_path / "m").exists()


def test_a_classifier_of_several_rows_for_an_image_is_not_exported(tmp_path):
    images = keras.Input((4, 4, 1))
    logits = keras.layers.Dense(3)(keras.layers.Flatten()(images))
    both = keras.ops.concatenate([logits, logits], axis=0)  # an image would have 2 n votes, of which n are enough
    model = MACERModel(keras.Model(images, both), sigma=0.25)
    with pytest.raises(ValueError, match=r"one row of outputs for each image\. Received: 32 rows for 16 images"):
        export(model, tmp_path / "exported", n0=10, n=100, alpha=0.001)


class Scales(keras.layers.Layer):
    """Has a variable that Keras does not know: neither a file of the model nor a SavedModel would hold it."""

    def __init__(self):
        super().__init__()
        self.scale = tf.Variable(2.0)

    def call(self, x):
        return self.scale * x


class LooksUp(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        pairs = tf.lookup.KeyValueTensorInitializer([0], [2.0])
        self.table = tf.lookup.StaticHashTable(pairs, 0.0)

    def call(self, x):
        return self.table.lookup(tf.constant(0)) * x


@pytest.mark.parametrize("layer", [Scales, LooksUp])
def test_a_classifier_with_variables_of_its_own_is_refused_in_one_line(layer, tmp_path):
    model = keras.Sequential([keras.Input((2, 2, 1)), layer(), keras.layers.Flatten(), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"Only what Keras keeps .* make weights by add_weight\.") as caught:
        export(MACERModel(model, sigma=0.25), tmp_path / "m", n0=10, n=50, alpha=0.01)
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "m").rglob("*"))  # so that the same folder can be given again


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flat, self.dense = keras.layers.Flatten(), keras.layers.Dense(3)

    def call(self, images):
        return self.dense(self.flat(images))


@pytest.mark.parametrize(
    ("classifier", "received"),
    [
        (Subclassed, "Subclassed of images of unknown shape"),
        (lambda: keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)]), "Sequential of images of unknown"),
        (
            lambda: keras.Sequential(
                [keras.Input((None, None, 1)), keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(3)]
            ),
            r"Sequential of images \(None, None, None, 1\)",
        ),
    ],
)
def test_a_classifier_of_no_one_size_is_not_exported(classifier, received, tmp_path):
    model = MACERModel(classifier(), sigma=0.25)
    with pytest.raises(ValueError, match=rf"Only a classifier of images of one size .* Received: {received}"):
        export(model, tmp_path / "exported", n0=10, n=100, alpha=0.001)


def test_only_a_model_that_has_a_sigma_is_exported(linear_classifier, tmp_path):
    with pytest.raises(ValueError, match=r"must be a macer_tf\.NoisyTrainingModel.* Received: Functional"):
        export(linear_classifier(), tmp_path / "exported", n0=10, n=100, alpha=0.001)


def test_only_plain_variables_are_tracked(exported, digits_model):
    # The C++ loader finds only what the checkpoint names, and a Keras model below it would name layers.
    names = {name for name, _ in tf.train.list_variables(str(exported / "variables" / "variables"))}
    variables = {
        f"model_variables/{i}/.ATTRIBUTES/VARIABLE_VALUE" for i in range(len(digits_model.classifier.variables))
    }
    assert names - {"_CHECKPOINTABLE_OBJECT_GRAPH"} == variables


def test_the_card_says_what_it_was_exported_with(exported, digits_model):
    assert card.read(exported) == {
        "format": 3,
        "levels": 256,
        "sigma": 0.25,
        "n0": 100,
        "n": 300,
        "alpha": 0.001,
        "max_n": 20_000,
        "max_batch_size": 8,
        "microbatch": 768,
        "image_shape": [8, 8, 1],
        "scaling": "divide by 16",
        "normalization": "none before the model, which adds its noise to pixels in [0, 1]",
        "precision": "float32",
        "class_names": [str(digit) for digit in range(10)],
        "fingerprint": card.fingerprint(digits_model.classifier),
        "library_version": macer_tf.__version__,
    }


def test_nothing_is_compiled_by_xla(exported):
    """XLA's noise is not what the library replays from the seed."""
    compiled = tf.function(lambda x: x + 1, jit_compile=True).get_concrete_function(tf.TensorSpec([]))
    assert b"_XlaMustCompile" in compiled.function_def.SerializeToString()
    assert b"_XlaMustCompile" not in (exported / "saved_model.pb").read_bytes()


def test_every_signature_has_a_warm_up_request_whose_inputs_are_batch_major(exported):
    requests = validate.read_warmup(exported)
    assert {name: sorted(inputs) for name, inputs in requests} == {
        "serving_default": ["images"], "certify_custom": ["alpha", "images", "n"], "predict": ["images"],
        "metadata": ["query"],
    }  # fmt: skip
    assert {len(values) for _, inputs in requests for values in inputs.values()} == {1}


def test_the_command_line_tool_of_tensorflow_runs_it(exported, images, tmp_path):
    np.savez(tmp_path / "inputs.npz", images=images)
    command = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run", "--dir", exported]
    command += ["--tag_set", "serve", "--signature_def", "serving_default", "--outdir", tmp_path]
    process = subprocess.run(
        [*command, "--inputs", f"images={tmp_path / 'inputs.npz'}[images]"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert np.load(tmp_path / "votes.npy").sum(axis=1).tolist() == [300] * 4
    radii, predicted = (np.load(tmp_path / f"{name}.npy") for name in ("radius", "predicted_class"))
    assert ((radii > 0) <= (predicted >= 0)).all()


def test_validation_fails_a_model_without_its_variables(damaged, images):
    (damaged / "variables" / "variables.index").unlink()
    with pytest.raises(ValueError, match="not a valid checkpoint"):
        validate.run(damaged, images)


def test_validation_fails_a_model_without_warm_up(damaged, images):
    (damaged / WARMUP).write_bytes(b"")
    with pytest.raises(ValueError, match=r"Warm-up requests are for \[\], not for every signature"):
        validate.run(damaged, images)


def test_validation_fails_a_model_whose_card_is_of_another(damaged, images):
    about = {**card.read(damaged), "sigma": 0.5}
    (damaged / "assets.extra" / card.NAME).write_text(card.to_json(about))
    with pytest.raises(ValueError, match="`metadata` does not return what is in model_card"):
        validate.run(damaged, images)


def test_validation_ignores_of_the_card_only_that_it_was_forced(exported, damaged, images):
    about = card.read(exported)
    (damaged / "assets.extra" / card.NAME).write_text(card.to_json({**about, "forced": True}))
    answers, checks = validate.run(damaged, images)
    assert (len(answers["radius"]), len(checks)) == (4, 7)
    # Of the other optional field, as of all, card and graph must say the same.
    (damaged / "assets.extra" / card.NAME).write_text(card.to_json({**about, "forced": True, "model": "a" * 64}))
    with pytest.raises(ValueError, match="`metadata` does not return what is in model_card"):
        validate.run(damaged, images)


def save_careless(directory, extra, outputs):
    """A SavedModel with our signatures, card and warm-up requests that answers the same to everything, NaN included."""
    text = (extra / card.NAME).read_text()
    images = tf.TensorSpec([None, 8, 8, 1], tf.float32, name="images")
    custom = [tf.TensorSpec([None], tf.int64, name="n"), tf.TensorSpec([None], tf.float64, name="alpha")]

    def answer(images):
        return {name: tf.repeat(np.array(row)[None], tf.shape(images)[0], axis=0) for name, row in outputs.items()}

    certify = tf.function(answer, input_signature=[images])
    defaults = tf.constant([300], tf.int64), tf.constant([0.001], tf.float64)

    @tf.function(input_signature=[images, *custom])
    def certify_custom(images, n=defaults[0], alpha=defaults[1]):
        return answer(images)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="query")])
    def metadata(query=tf.constant([""])):  # noqa: B008 (a default that is a tensor makes an input optional)
        return {"model_card": tf.constant([text])}

    signatures = {
        "serving_default": certify, "certify_custom": certify_custom, "predict": certify, "metadata": metadata
    }  # fmt: skip
    tf.saved_model.save(tf.Module(), str(directory), signatures=signatures)
    shutil.copytree(extra, directory / "assets.extra")


# 300 of 300 votes: Clopper-Pearson's bound is 0.001^(1/300) = 0.97724, and 0.25 * Phi^-1(0.9772) = 0.49977.
HONEST = {
    "predicted_class": np.int64(3), "radius": np.float32(0.4997), "p_lower": 0.9772,
    "votes": np.array([0, 0, 0, 300, 0, 0, 0, 0, 0, 0]), "p_value": 0.0005, "samples": np.int64(32),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "^serving_default did not refuse an image of pixels nan"),
        ({"radius": np.float32(0.4998)}, "Impossible certificate"),
        ({"p_lower": 0.9773}, "Impossible certificate"),
        ({"predicted_class": np.int64(2)}, "Impossible certificate"),
        ({"predicted_class": np.int64(10)}, "Impossible certificate"),
        ({"predicted_class": np.int64(-1)}, "Impossible certificate"),
        ({"votes": np.array([0, 0, 0, 301, 0, 0, 0, 0, 0, 0])}, "Impossible certificate"),
        ({"p_value": 0.002}, "Impossible prediction"),
    ],
)
def test_validation_fails_a_model_whose_answers_cannot_be(exported, images, tmp_path, change, message):
    save_careless(tmp_path / "careless", exported / "assets.extra", {**HONEST, **change})
    with pytest.raises(ValueError, match=message):
        validate.run(tmp_path / "careless", images)


def test_validation_does_not_load_a_graph_that_reaches_files_unless_it_is_trusted(tmp_path, images):
    class Module(tf.Module):
        @tf.function(input_signature=[])
        def run(self):
            tf.io.write_file(str(tmp_path / "elsewhere"), "x")
            return {"one": tf.constant(1)}

    module = Module()
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.run)
    with pytest.raises(ValueError, match="does more than compute: its operations WriteFile could reach files"):
        validate.run(tmp_path / "model", images)
    assert not (tmp_path / "elsewhere").exists()
    # Trusted, it gets as far as its card, which it has not.
    with pytest.raises(FileNotFoundError, match="model_card"):
        validate.run(tmp_path / "model", images, trust=True)


def test_an_export_never_lies_over_another(exported, digits_model):
    before = directory_fingerprint(exported)
    with pytest.raises(ValueError, match="is not empty; give a new or empty folder"):
        export(digits_model, exported, n0=10, n=50, alpha=0.01)
    assert directory_fingerprint(exported) == before
