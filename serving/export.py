"""A trained classifier -> a SavedModel that returns the smoothed prediction with its certified radius."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

import macer_tf
from macer_tf import base_classifier
from macer_tf.checks import levels_of
from macer_tf.noisy_training import NoisyTrainingModel
from macer_tf.smoothing import default_microbatch
from serving import card, manifest
from serving.files import EXTRA, WARMUP, check_local
from serving.signatures import SmoothedSignatures


def export(
    model: NoisyTrainingModel,
    directory: str | Path,
    *,
    n0: int,
    n: int,
    alpha: float,
    class_names: Iterable[str] | None = None,
    pixel_max: int = 255,
    max_n: int | None = None,
    max_batch_size: int = 128,
    model_fingerprint: str | None = None,
) -> None:
    """Writes a SavedModel that a model server can load: no Python, no Keras, only plain variables.

    Its signatures are those of `SmoothedSignatures`: `serving_default` certifies, `certify_custom` does so with the
    request's `n` and `alpha`, `predict` returns only the class, sooner, and `metadata` the model card. A
    certificate is false with probability at most alpha. Besides the graph, assets.extra has model_card.json (see
    `serving.card`); manifest.json (see `serving.manifest`), by which publishing detects damage; and a warm-up request
    for every signature: a model server runs them as it loads a version, and does not serve one that fails them.

    The graph holds the key from which the noise is drawn: whoever chooses images must not be able to read the file.

    Args:
        model: a `MACERModel` or another `NoisyTrainingModel`.
        directory: where to write; created if it does not exist.
        n0, n, alpha: see `SmoothedClassifier.certify`.
        class_names: one per class, all different; by default their numbers.
        pixel_max: what a stored pixel is divided by to lie in [0, 1]. Images are served on the grid of
            `macer_tf.checks.levels_of(pixel_max)`.
        max_n: largest n that `certify_custom` takes; by default 100,000, or n if that is larger.
        max_batch_size: most images in one request.
        model_fingerprint: what a blessing calls the model (see `serving.blessing`); without it, no blessing applies.

    Raises:
        ValueError: if n and alpha could never certify an image, or an option is out of range; if the model is not a
            `NoisyTrainingModel`; if its classifier does not take floats, does not say what shapes it takes and returns,
            returns more than one tensor, is not a function of one image (see `macer_tf.probing`), or reads a variable
            or a table that is not among its weights.
    """
    check_local(directory)
    if not isinstance(model, NoisyTrainingModel):
        raise ValueError(
            f"The model must be a macer_tf.NoisyTrainingModel, such as a MACERModel. Received: {type(model).__name__}"
        )
    directory, classifier = Path(directory), model.classifier
    _check_shapes(classifier)
    num_classes = classifier.output_shape[-1]
    if isinstance(class_names, str) or not (class_names is None or isinstance(class_names, Iterable)):
        raise ValueError(f"class_names must be a list of strings. Received: {class_names!r}")
    names = [str(number) for number in range(num_classes)] if class_names is None else list(class_names)
    n0, n, alpha, pixel_max, max_n, max_batch_size = map(_plain, (n0, n, alpha, pixel_max, max_n, max_batch_size))
    if len(names) != num_classes:
        raise ValueError(f"class_names must be one per class. Received: {len(names)} for {num_classes} classes")
    if len(set(names)) < num_classes:
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"class_names must be different, one per class. Received: {twice!r} more than once")
    image_shape = classifier.input_shape[1:]
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty; give a new or empty folder for the SavedModel.")
    about = _card(model, n0, n, alpha, max_n, max_batch_size, names, pixel_max, model_fingerprint)
    text = card.to_json(about)
    limits = {name: about[name] for name in ("max_n", "max_batch_size")}
    module = SmoothedSignatures(classifier, model.sigma, about["levels"], n0, n, alpha, **limits, model_card=text)
    tf.saved_model.save(module, str(directory), signatures=module.signatures())
    (directory / EXTRA).mkdir()
    (directory / EXTRA / card.NAME).write_text(text, encoding="utf-8")
    with tf.io.TFRecordWriter(str(directory / WARMUP)) as writer:
        for log in _warmup(image_shape, n, alpha):
            writer.write(log.SerializeToString())
    manifest.write(directory)


def _check_shapes(classifier):
    """Raises ValueError unless a classifier says that it takes images of one size, and how many classes it returns."""
    base_classifier.check(classifier)
    shapes = [getattr(classifier, name, None) for name in ("input_shape", "output_shape")]
    if None in shapes or None in shapes[0][1:]:
        raise ValueError(
            "Only a classifier of images of one size can be exported: keras.Model(images, classifier(images)), with "
            f"images = keras.Input((height, width, channels)). Received: {type(classifier).__name__} of images "
            f"{shapes[0] or 'of unknown shape'}"
        )


def _plain(number):
    """A NumPy scalar as a Python number, which JSON takes; anything else unchanged."""
    return number.item() if isinstance(number, np.generic) else number


def _card(model, n0, n, alpha, max_n, max_batch_size, names, pixel_max, model_fingerprint):
    """The model card, as JSON values."""
    classifier = model.classifier
    image_shape = classifier.input_shape[1:]
    most = max(n, 100_000) if isinstance(n, int) else 100_000  # the card refuses any other type
    about = {
        "format": card.FORMAT,
        "sigma": model.sigma,
        "levels": levels_of(pixel_max),
        "n0": n0,
        "n": n,
        "alpha": alpha,
        "max_n": most if max_n is None else max_n,
        "max_batch_size": max_batch_size,
        "microbatch": default_microbatch(image_shape),
        "image_shape": list(image_shape),
        "scaling": f"divide by {pixel_max}",
        "normalization": "none before the model, which adds its noise to pixels in [0, 1]",
        "precision": "+".join(sorted({layer.compute_dtype for layer in classifier.layers})),
        "class_names": names,
        "fingerprint": card.fingerprint(classifier),
        "library_version": macer_tf.__version__,
    }
    if model_fingerprint is not None:
        about["model"] = model_fingerprint
    return about


def _warmup(image_shape, n, alpha):
    """A `PredictionLog` for each signature. Every input is batch-major, as server-side batching requires."""
    images = {"images": np.zeros((1, *image_shape), np.float32)}
    requests = {
        "serving_default": images,
        "certify_custom": {**images, "n": np.array([n], np.int64), "alpha": np.array([alpha], np.float64)},
        "predict": images,
        "metadata": {"query": np.array([""])},
    }
    for signature, inputs in requests.items():
        request = predict_pb2.PredictRequest()
        request.model_spec.signature_name = signature
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
        yield prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
