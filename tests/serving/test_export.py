import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from macer_tf import networks
from macer_tf.model import MACERModel
from serving import validate
from serving.export import export


@pytest.fixture(scope="module")
def exported(tmp_path_factory, digits):
    """A SavedModel of a briefly trained network with batch norm, its directory and four images."""
    images, labels = digits
    keras.utils.set_random_seed(0)
    model = MACERModel(networks.cifar_resnet(8, (8, 8, 1), 10), sigma=0.25, num_samples=2, lam=0.0, seed=0)
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(images[:512], labels[:512], epochs=4, verbose=0)
    directory = tmp_path_factory.mktemp("export") / "saved_model"
    export(model, directory, n0=100, n=300, alpha=0.001)
    return directory, images[:4]


def test_a_fresh_process_without_our_code_loads_it_and_gets_possible_answers(exported, tmp_path):
    directory, images = exported
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, json, numpy as np; from serving import validate;"
        "answers = validate.run(sys.argv[1], np.load(sys.argv[2]));"
        "assert not [name for name in sys.modules if name.startswith('macer_tf')], 'needs our code';"
        "print(json.dumps({name: values.tolist() for name, values in answers.items()}))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, directory, tmp_path / "images.npy"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    answers = json.loads(process.stdout)
    assert sorted(answers) == ["predicted_class", "radius", "vote_share"]
    for prediction, radius, share in zip(
        answers["predicted_class"], answers["radius"], answers["vote_share"], strict=True
    ):
        assert (prediction == -1 and radius == 0) or (0 <= prediction < 10 and radius >= 0 and share > 0.5)
    assert max(answers["predicted_class"]) >= 0


def test_the_signature_is_batch_major_and_named_as_promised(exported):
    directory, images = exported
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signature = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(directory)).signature_def
    served = signature["serving_default"]
    assert list(served.inputs) == ["images"]
    assert [dimension.size for dimension in served.inputs["images"].tensor_shape.dim] == [-1, *images.shape[1:]]
    dtypes = {name: tf.as_dtype(tensor.dtype).name for name, tensor in served.outputs.items()}
    assert dtypes == {"predicted_class": "int64", "radius": "float32", "vote_share": "float32"}


def test_the_card_says_what_it_was_exported_with(exported):
    directory, _ = exported
    card = json.loads((directory / "assets.extra" / "model_card.json").read_text())
    assert card == {"sigma": 0.25, "n0": 100, "n": 300, "alpha": 0.001, "image_shape": [8, 8, 1], "classes": 10}


def test_validation_fails_a_model_without_its_variables(exported, tmp_path):
    directory, images = exported
    damaged = tmp_path / "damaged"
    shutil.copytree(directory, damaged)
    (damaged / "variables" / "variables.index").unlink()
    with pytest.raises(ValueError, match="not a valid checkpoint"):
        validate.run(str(damaged), images)


def test_validation_fails_a_model_that_answers_to_nan(tmp_path):
    class Careless(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="images")])
        def certify(self, images):
            return {"predicted_class": tf.zeros_like(images[:, 0], tf.int64)}

    careless = Careless()
    tf.saved_model.save(careless, str(tmp_path), signatures={"serving_default": careless.certify})
    with pytest.raises(ValueError, match="certified an image of pixels nan"):
        validate.run(str(tmp_path), np.zeros((1, 2), np.float32))
