"""Directories that look like exported SavedModels, variables included, and the blessing for them; none has a graph."""

import hashlib
import json

import numpy as np

from serving import card, manifest
from serving.fingerprints import sealed, weights_fingerprint

CARD = {
    "format": 3, "sigma": 0.25, "levels": 255, "n0": 100, "n": 1000, "alpha": 0.001,
    "max_n": 100_000, "max_batch_size": 128,
    "microbatch": 500, "image_shape": [8, 8, 1], "scaling": "divide by 16", "normalization": "none",
    "precision": "float32", "class_names": ["zero", "one"], "fingerprint": "0123456789abcdef" * 4,
    "library_version": "0.1.0",
}  # fmt: skip


def model(content):
    """What a blessing calls the model whose SavedModel has this content."""
    return hashlib.sha256(content.encode()).hexdigest()


def weights(content):
    """The one variable of the SavedModel with this content."""
    return np.frombuffer(content.encode(), np.uint8).astype(np.float32)


def write_variables(directory, content):
    """Writes the variables of a SavedModel with this content, as TensorFlow does."""
    import tensorflow as tf

    (directory / "variables").mkdir(exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(directory / "variables" / "variables"),
        tensor_names=["model_variables/0/.ATTRIBUTES/VARIABLE_VALUE"],
        shape_and_slices=[""],
        tensors=[weights(content)],
    )


def write(directory, content="graph"):
    """Writes a SavedModel of this content, as the pipeline's Exporter leaves it -> its directory."""
    (directory / "assets.extra").mkdir(parents=True)
    (directory / "saved_model.pb").write_text(content)
    write_variables(directory, content)
    about = {**CARD, "model": model(content), "fingerprint": weights_fingerprint([weights(content)])}
    write_card(directory, about)
    (directory / "saved_model.pb").chmod(0o600)
    return directory


def write_card(directory, about):
    """Gives a SavedModel another card, as if it had been exported with it."""
    (directory / "assets.extra" / card.NAME).write_text(card.to_json(about))
    manifest.write(directory)


def write_blessing(path, content="graph", *, weights_of=None, **changed):
    """Writes the Evaluator's blessing of the model of this content, with its checksum -> its path."""
    about = {"model": model(content), "weights": weights_fingerprint([weights(weights_of or content)]), "sigma": 0.25}
    blessing = {"blessed": True, "reasons": [], **about, "n": 10_000, "alpha": 0.001, **changed}
    path.write_text(json.dumps(sealed(blessing)))
    return path
