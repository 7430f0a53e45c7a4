"""Anyone's classifier: a .keras or .h5 file, or a SavedModel -> a Keras model that can be certified."""

from pathlib import Path

import keras
import tensorflow as tf

from macer_tf.inference import own_precision
from macer_tf.noisy_training import NoisyTrainingModel
from pipeline import models
from pipeline.errors import InputError

_SUFFIXES = (".keras", ".h5", ".hdf5")
_SIGNATURE = "serving_default"


def load(path):
    """The model in a file or a SavedModel's folder, without its optimizer.

    Keras' safe mode is on: a file that would run code of its own, as a Lambda layer does, is refused. What a SavedModel
    computes is its signature, and it computes in the precision it was saved in, which it does not tell.

    Returns:
        A Keras model, images [batch, H, W, C] -> [batch, classes], two classes or more; or a `NoisyTrainingModel` of
        one.

    Raises:
        InputError: in one line, if there is no such model, it cannot be loaded or is no such classifier.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"There is no model {path}.")
    try:
        if path.is_dir() and (path / "saved_model.pb").exists():
            return _of_signature(path)
        if path.suffix not in _SUFFIXES or path.is_dir():
            raise InputError(f"A model is a {', '.join(_SUFFIXES)} file or a SavedModel's folder. Received: {path}")
        model = models.load(path)
    except InputError:
        raise
    except Exception as error:  # whatever Keras or TensorFlow makes of someone's file
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"The model {path} cannot be loaded ({type(error).__name__}: {reason}).") from error
    _check(path, base(model))
    return model


def base(model):
    """The classifier itself, of one that was trained here too."""
    return model.classifier if isinstance(model, NoisyTrainingModel) else model


def precision(path, classifier):
    """What the classifier that was loaded from `path` computes in, e.g. "float32"; a SavedModel does not tell."""
    return "as saved" if Path(path).is_dir() else own_precision(classifier)


def _check(path, classifier):
    shapes = [getattr(classifier, name, None) for name in ("input_shape", "output_shape")]
    image, output = (shape if isinstance(shape, tuple) else () for shape in shapes)
    if len(image) != 4 or image[-1] not in (1, 3) or len(output) != 2 or (output[-1] or 0) < 2:
        raise InputError(
            f"The model {path} must map images [batch, H, W, 1 or 3] to [batch, classes], two classes or more. "
            f"Received: {shapes[0]} to {shapes[1]}"
        )


def _of_signature(path):
    signatures = tf.saved_model.load(path).signatures
    if _SIGNATURE not in signatures:
        raise InputError(f"The SavedModel {path} has no signature {_SIGNATURE}. It has: {', '.join(signatures)}")
    signature = signatures[_SIGNATURE]
    inputs = list(signature.structured_input_signature[1].values())
    outputs = {
        name: output
        for name, output in signature.structured_outputs.items()
        if output.shape.rank == 2 and output.dtype.is_floating and (output.shape[1] or 0) >= 2
    }
    if len(inputs) != 1 or inputs[0].shape.rank != 4 or inputs[0].dtype != tf.float32 or len(outputs) != 1:
        raise InputError(
            f"The signature {_SIGNATURE} of the SavedModel {path} must map float32 images [batch, H, W, C] to one "
            f"output [batch, classes], two classes or more. Received: {inputs} to {signature.structured_outputs}"
        )
    layer = keras.layers.TFSMLayer(str(path), call_endpoint=_SIGNATURE)
    images = keras.Input(inputs[0].shape[1:])
    model = keras.Model(images, layer(images)[next(iter(outputs))])
    _check(path, model)
    return model
