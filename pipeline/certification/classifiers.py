"""Anyone's classifier: a .keras or .h5 file, or a SavedModel -> a Keras model that can be certified."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np
import tensorflow as tf

from macer_tf import base_classifier
from macer_tf.inference import own_precision
from macer_tf.noisy_training import NoisyTrainingModel
from pipeline.certification import model_files
from pipeline.training import models
from pipeline.utils import code, places
from pipeline.utils.atomic_files import cannot_copy
from pipeline.utils.errors import InputError
from serving.files import for_tensorflow
from serving.fingerprints import fingerprint
from serving.graph_safety import check_effects

_SIGNATURE = "serving_default"
_TRIES = 3
# Images that show what a classifier does, and steps of the mean of each one's largest output.
_TRIED, _STEPS = 16, 20
# Characters that we show of someone else's error.
_REASON = 500
_UNKNOWN = re.compile(r"(?:Could not locate (?:class|function)|Unknown [a-z_ ]+:) '?(?:\w+>)?(\w+)'?")
_CONFIG = re.compile(r" using config=\{.*\}\.? ")


@dataclass(frozen=True)
class Loading:
    """How to load a model: plain values, so that they can be sent to any process.

    Attributes:
        output: which output is the classifier's, for a model with several; None if it has one.
        custom_objects: module that defines layers and functions of the model, or None. It is imported.
        trusts_model: whether a SavedModel may do more than compute, see `serving.graph_safety`.
        name: what messages call the model; by default its path.
        code: the digest of that module's code, as `code.digest` returns it; None: it is not compared.
    """

    output: str | None = None
    custom_objects: str | None = None
    trusts_model: bool = False
    name: str | None = None
    code: str | None = None

    def with_code(self):
        """A copy for other machines, whose module must be the same; the module was imported here."""
        if self.custom_objects is None:
            return self
        return dataclasses.replace(self, code=code.digest_as_imported(self.custom_objects))


DEFAULT = Loading()


@dataclass(frozen=True)
class Snapshot:
    """A copy of a model's file or folder that nobody else writes to.

    Attributes:
        path: of the copy.
        fingerprint: of the copy.
    """

    path: Path
    fingerprint: str

    def check(self):
        """Raises InputError if the copy was altered."""
        if model_fingerprint(self.path) != self.fingerprint:
            raise InputError(f"{self.path} was changed while the model was in use; run the same command again.")


def snapshot(path, folder):
    """A context with a `Snapshot`, in `folder`, of the model at `path`; it is removed at the end.

    A training run in progress writes its model's file again and again, but what is fingerprinted, what the driver loads
    and what workers load must be the same bytes.

    Args:
        path: of a model that `load` loads, or its URL.
        folder: used by nobody else; what a killed run left there is removed.

    Raises:
        InputError: in one line, if there is no such model, it cannot be copied, or it keeps changing.
    """
    if not places.is_url(path):
        model_files.check(path)
    return _snapshot(path, Path(folder))


@contextlib.contextmanager
def _snapshot(path, folder):
    try:
        yield _downloaded(path, folder) if places.is_url(path) else _copy(Path(path), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _downloaded(url, folder):
    shutil.rmtree(folder, ignore_errors=True)
    copy = places.download(url, folder)
    model_files.check(copy, url)
    return Snapshot(copy, model_fingerprint(copy))


def _copy(path, folder):
    copy = folder / path.name
    for left in reversed(range(_TRIES)):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)
            copied = model_fingerprint(copy)
            if copied == model_fingerprint(path):
                return Snapshot(copy, copied)
        except OSError as error:
            may_be_replaced = isinstance(error, (FileNotFoundError, shutil.Error))  # between two reads
            if may_be_replaced and not path.exists():
                raise InputError(f"The model {path} no longer exists.") from error
            if not (may_be_replaced and left):
                raise cannot_copy(f"the model {path}", folder, error) from error
    raise InputError(f"The model {path} is being written to; wait until that is done, or give a copy of it.")


def model_fingerprint(path):
    """Hexadecimal SHA-256 of a model's file, or of the names and contents in its folder."""
    return places.fingerprint_of(path)


def load(path, loading=DEFAULT):
    """The model in a file or a SavedModel's folder, without its optimizer.

    Keras' safe mode is on: a file that would run its own code, as a Lambda layer does, is refused, and so is a
    SavedModel that does more than compute. A SavedModel computes its signature, in the precision in which it was saved,
    which it does not state.

    Args:
        path: of a model that does not change meanwhile: see `snapshot`.
        loading: `Loading`.

    Returns:
        A Keras model, images [batch, H, W, C] -> [batch, classes], two classes or more; or a `NoisyTrainingModel` of
        one.

    Raises:
        InputError: in one line, if there is no such model, it cannot be loaded, or it is not such a classifier.
    """
    path = Path(path)
    name = loading.name or str(path)
    model_files.check(path, name)
    custom_objects = _custom_objects(loading)
    try:
        if path.is_dir():
            return _of_signature(path, loading, name)
        model = models.load(path, custom_objects)
        model = _of_one_output(_functional(model), loading.output, name)
    except InputError:
        raise
    except Exception as error:  # whatever Keras or TensorFlow raises for someone's file
        raise InputError(_why_not_loaded(path, name, error)) from error
    _check(name, base(model))
    return model


def base(model):
    """The classifier itself; for a model that was trained here, the one that it wraps."""
    return model.classifier if isinstance(model, NoisyTrainingModel) else model


def precision(path, classifier):
    """What the classifier that was loaded from `path` computes in, e.g. "float32"; a SavedModel does not say."""
    return "as saved" if Path(path).is_dir() else own_precision(classifier)


def behaviour(classifier, image_shape):
    """Identifies what a classifier returns for a few images [H, W, C], coarsely: rounding hardly ever changes it.

    Code does not tell what it reads from files.
    """
    images = np.random.default_rng(0).random((_TRIED, *image_shape)).astype(np.float32)
    outputs = np.asarray(classifier(images, training=False), np.float64)
    with np.errstate(all="ignore"):  # outputs that are not finite, which drawing refuses
        outputs -= np.median(outputs, axis=1, keepdims=True)
        largest = np.abs(outputs).max(axis=1).mean() or 1.0
        return fingerprint(np.nan_to_num(np.rint(_STEPS * outputs / largest)).tolist())


def _check(name, classifier):
    shapes = [getattr(classifier, attribute, None) for attribute in ("input_shape", "output_shape")]
    image, output = (shape if isinstance(shape, tuple) else () for shape in shapes)
    if len(image) != 4 or image[-1] not in (1, 3) or len(output) != 2 or (output[-1] or 0) < 2:
        raise InputError(
            f"The model {name} must map images [batch, H, W, 1 or 3] to [batch, classes], two classes or more. "
            f"Received: {shapes[0]} to {shapes[1]}"
        )
    try:
        base_classifier.check(classifier)
    except ValueError as error:
        raise InputError(f"The model {name} cannot be certified. {error}") from None


def _functional(model):
    """The model with known shapes: a subclassed one, which knows only the shape it was built for, is wrapped."""
    if isinstance(model, NoisyTrainingModel) or hasattr(model, "input_shape"):
        return model
    shape = (model.get_build_config() or {}).get("input_shape")
    if not isinstance(shape, (list, tuple)) or len(shape) != 4:
        return model
    images = keras.Input(shape[1:])
    return keras.Model(images, model(images, training=False))


def _of_one_output(model, wanted, name):
    """The model, or a model of the one output that is wanted."""
    outputs = getattr(base(model), "output", None)
    if isinstance(outputs, (list, tuple)):
        names = base(model).output_names
        outputs = dict(zip(names, outputs, strict=True)) if len(outputs) > 1 else outputs[0]
    if not isinstance(outputs, dict):
        if wanted is not None:
            raise InputError(f"The model {name} has one output; leave model_output out. Received: {wanted}")
        return model
    return keras.Model(model.inputs, outputs[_wanted(wanted, outputs, name)])


def _wanted(wanted, outputs, name):
    if wanted not in outputs:
        received = "none" if wanted is None else wanted
        raise InputError(
            f"The model {name} has outputs {', '.join(outputs)}: choose one (model_output). Received: {received}"
        )
    return wanted


def _of_signature(path, loading, name):
    if not loading.trusts_model:
        try:
            check_effects(path)
        except ValueError as error:
            raise InputError(f"{str(error).replace(str(path), name)} If you do, say so (trust_model=yes).") from None
    with for_tensorflow(path) as folder:
        loaded = tf.saved_model.load(folder)
    if _SIGNATURE not in loaded.signatures:
        raise InputError(f"The SavedModel {name} has no signature {_SIGNATURE}. It has: {', '.join(loaded.signatures)}")
    signature = loaded.signatures[_SIGNATURE]
    inputs = list(signature.structured_input_signature[1].values())
    outputs = {
        output_name: output
        for output_name, output in sorted(signature.structured_outputs.items())
        if output.shape.rank == 2 and output.dtype.is_floating and (output.shape[1] or 0) >= 2
    }
    if len(inputs) != 1 or inputs[0].shape.rank != 4 or inputs[0].dtype != tf.float32 or not outputs:
        raise InputError(
            f"The signature {_SIGNATURE} of the SavedModel {name} must map float32 images [batch, H, W, C] to one "
            f"output [batch, classes], two classes or more. Received: {inputs} to {signature.structured_outputs}"
        )
    if inputs[0].shape[0] is not None:
        raise InputError(
            f"The signature {_SIGNATURE} of the SavedModel {name} takes {inputs[0].shape[0]:,} images at once, no more "
            "and no fewer; save it with a batch size of None."
        )
    if len(outputs) > 1 or loading.output is not None:
        output = _wanted(loading.output, outputs, name)
    else:
        output = next(iter(outputs))
    images = keras.Input(inputs[0].shape[1:])
    model = keras.Model(images, _Signature(loaded, signature, output)(images))
    _check(name, model)
    return model


class _Signature(keras.layers.Layer):
    """One output of a SavedModel's signature."""

    def __init__(self, loaded, signature, output):
        super().__init__()
        self._loaded = loaded  # its variables live as long as it does
        self._signature, self._output = signature, output

    def call(self, images):
        return self._signature(images)[self._output]


def _custom_objects(loading):
    """What a module defines, by name; it is imported, from the current folder if it is there."""
    module = loading.custom_objects
    if module is None:
        return None
    imported = code.import_module(module)
    if loading.code not in (None, code.digest_as_imported(module)):
        raise InputError(
            f"The module {module} on {os.uname().nodename}, or a file that it imports, is not the same as where the "
            "certification began; install the same there."
        )
    return {
        name: value
        for name, value in vars(imported).items()
        if callable(value) and (getattr(value, "__module__", None) or "").startswith(module)
    }


def _why_not_loaded(path, name, error):
    text = " ".join(str(error).split()).replace(str(path), name)
    unknown = _UNKNOWN.search(text)
    is_foreign = unknown and not hasattr(keras.layers, unknown[1]) and not hasattr(keras, unknown[1])
    if is_foreign and unknown[1] != "Functional":
        return (
            f"The model {name} holds {unknown[1]}, which is not Keras' own: it can be loaded only with the module "
            "that defines it (custom_objects), whose code is run."
        )
    written_by = "" if "Lambda" in text else _keras_version(path)
    if written_by.startswith(("1.", "2.")):
        return (
            f"The model {name} cannot be loaded: it was written by Keras 2 ({written_by}); save it as a SavedModel "
            "there, and give that folder."
        )
    # What matters is at either end, with a layer's whole configuration in between.
    text = _CONFIG.sub(" ", text)
    if len(text) > _REASON:
        text = f"{text[: _REASON // 2]} ... {text[-_REASON // 2 :]}"
    return f"The model {name} cannot be loaded ({type(error).__name__}: {text})."


def _keras_version(path):
    """What a model's file says it was written by; empty if it does not say."""
    try:
        if path.suffix in model_files.HDF5:
            with h5py.File(path, "r") as file:
                version = file.attrs.get("keras_version", "")
                return version.decode() if isinstance(version, bytes) else str(version)
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
        return ""
