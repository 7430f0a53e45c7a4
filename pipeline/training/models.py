"""Models: settings -> a compiled model to train; and a file that was trained here -> the model."""

import contextlib
import re
import weakref

import keras
import numpy as np
import tensorflow as tf

from macer_tf import base_classifier, networks, probing
from macer_tf.inference import InferenceGraph, own_precision
from macer_tf.noisy_training import NoisyTrainingModel
from macer_tf.optimizers import SGD
from macer_tf.smoothing import rows_of_a_pass
from pipeline.training import schedules
from pipeline.utils import code
from pipeline.utils.errors import InputError, reason

# What matters in Keras' page about a file; otherwise, it is at the end of the page.
_CAUSE = re.compile(r"Could not locate \w+ '\w+'|a `Lambda` layer whose `function` is a Python lambda")
_LAST_CHARACTERS = 200
# The layers of the users' networks that were built in this process.
_BUILT: weakref.WeakSet = weakref.WeakSet()


def build(make, settings, image_shape, num_classes, steps):
    """The compiled model of these settings, initialised from settings["seed"]; `steps` make an epoch.

    settings["precision"] is the Keras dtype policy of the network, which is saved in the model's file; logits and
    objective are always float32. settings["strategy"] says whether a `MirroredStrategy` shares the batches among
    devices; the learning rate is the same with and without it.

    Args:
        make: called with (network: images -> logits, settings); returns the training method's model to compile.
        settings: name -> value.
        image_shape, num_classes: of the network.
        steps: steps in an epoch.

    Raises:
        InputError: if there is no such network, or it does not take such images.
    """
    keras.utils.set_random_seed(settings["seed"])
    with _strategy_scope(settings["strategy"]):
        with _dtype_policy(settings["precision"]):
            base = network(settings, image_shape, num_classes)
        model = make(base, settings)
        _check_made(model, settings)
        model.compile(
            SGD(
                learning_rate=schedules.schedule(settings, steps),
                momentum=settings["momentum"],
                l2=settings["l2"],
                global_clipnorm=settings["clip_norm"],
                use_ema=settings["ema"] > 0,
                ema_momentum=settings["ema"],
            )
        )
        model.optimizer.build(model.trainable_variables)
    return model


def _check_made(model, settings):
    """Refuses what a user's own method made, if it cannot be trained or would not be what is certified."""
    if not isinstance(model, NoisyTrainingModel):
        raise InputError(
            f"A method's model must be a macer_tf.NoisyTrainingModel. Received: {type(model).__name__} from the method "
            f"{settings['method']}"
        )
    if model.sigma != settings["sigma"]:
        raise InputError(
            f"The method {settings['method']} must train at the sigma that is certified, {settings['sigma']:g}. "
            f"Received: a model with sigma={model.sigma:g}"
        )


def network(settings, image_shape, num_classes):
    """The network of these settings, images -> logits.

    Raises:
        InputError: if there is no such network, it does not take such images, or Keras is told to take others.
    """
    if keras.config.image_data_format() != "channels_last":
        raise InputError(
            "Images are [H, W, C] here: set image_data_format to channels_last in Keras' settings (keras.json). "
            f"Received: {keras.config.image_data_format()}"
        )
    name = settings["network"] or network_for(image_shape)
    if ":" in name:
        return _users_network(name, tuple(image_shape), num_classes)
    try:
        return networks.build(name, tuple(image_shape), num_classes)
    except ValueError as error:
        raise InputError(str(error)) from None


def _users_network(name, image_shape, num_classes):
    """What the function package.module:function returns for (image_shape, num_classes)."""
    function = code.attribute(name)
    try:
        made = function(image_shape, num_classes)
        base_classifier.check(made)
        base_classifier.check_returns_logits(made)
        shapes = [getattr(made, shape, None) for shape in ("input_shape", "output_shape")]
    except (Exception, SystemExit) as error:  # whatever someone's code raises
        raise InputError(
            f"The network {name} cannot be built for images {image_shape} of {num_classes} classes "
            f"({type(error).__name__}: {reason(error)})."
        ) from error
    if None in shapes:  # a subclassed model, or one that is not built
        raise InputError(
            f"The network {name} must say what shapes it takes and returns: return keras.Model(images, "
            f"network(images)), with images = keras.Input(image_shape). Received: {type(made).__name__}"
        )
    if shapes != [(None, *image_shape), (None, num_classes)]:
        raise InputError(
            f"The network {name} must map images {(None, *image_shape)} to logits {(None, num_classes)}. "
            f"Received: {shapes[0]} to {shapes[1]}"
        )
    _check_is_new(name, made)
    for layer in made._flatten_layers():
        if not _is_kept_in_a_file(getattr(layer, "activation", None)):
            raise InputError(
                f"The network {name} has a custom activation in the layer {layer.name}, which could not be restored "
                "from the model's file; register it with keras.saving.register_keras_serializable."
            )
    return made


def _check_is_new(name, made):
    """Refuses a network with layers of an earlier one, from whose trained weights its training would go on."""
    layers = list(made._flatten_layers())
    again = next((layer.name for layer in layers if layer in _BUILT and layer.trainable_weights), None)
    if again is not None:
        raise InputError(
            f"The network {name} must have new layers at each call, or the runs of a sweep would go on from each "
            f"other's weights: make its layers inside the function. Received: {again} once more"
        )
    _BUILT.update(layers)


def check_comes_back(model, path, image_shape):
    """Checks that a network is a function of one image, and that its model's file, which is certified, restores it.

    A user's own layer may leave a setting out of `get_config`, or keep numbers that are not weights.

    Raises:
        InputError: in one line, if the network is not such a function or returns probabilities, the file cannot be
            loaded, its network computes something else, or it could not be exported.
    """
    precision = own_precision(model.classifier)
    try:
        before = probing.probe(model.inference, image_shape, precision, rows_of_a_pass(image_shape))
    except ValueError as error:
        raise InputError(f"The network cannot be certified: {error}") from error
    if probing.are_probabilities(before):
        raise InputError("The network must return logits, but it returns probabilities; remove its softmax.")
    try:
        loaded = load(path)
        after = probing.probe(loaded.inference, image_shape, precision)
    except (Exception, SystemExit) as error:  # whatever Keras raises, or someone's code
        raise InputError(
            "The model could not be loaded from its file: register your own layers, functions and models by "
            "keras.saving.register_keras_serializable, let get_config return the arguments of __init__, which must "
            f"also take **kwargs, and replace a Lambda by a layer. Received: {type(error).__name__}: {_cause(error)}"
        ) from error
    if not probing.agree(before, after, precision):
        raise InputError(
            "The model's file loads as another network: a layer's get_config must return all arguments of its "
            "__init__, and what add_weight did not make is not saved. The largest difference of its outputs is "
            f"{np.abs(before - after).max():.3g}."
        )
    try:
        InferenceGraph(loaded.classifier).check_all_kept(image_shape)
    except ValueError as error:
        raise InputError(str(error)) from error


def _cause(error):
    found = _CAUSE.search(str(error))
    return found[0] if found else f"... {reason(str(error)[-_LAST_CHARACTERS:])}"


def _is_kept_in_a_file(activation):
    """Whether Keras, which saves an activation by its name, finds the same one by that name."""
    if activation is None or isinstance(activation, keras.Layer):
        return True
    try:
        return keras.activations.get(keras.activations.serialize(activation)) is activation
    except Exception:  # for a function that has no name, or an unknown one
        return False


def network_for(image_shape: tuple[int, int, int]) -> str:
    """The network for images [H, W, C] of a data set without a preset: the paper's for this size."""
    side = min(image_shape[:2])
    if side < 16:
        return "small_cnn"
    if side < 64:
        return "lenet" if image_shape[2] == 1 else "cifar_resnet110"
    return "resnet50"


def load(path, custom_objects=None):
    """The model in a file that was trained here, without its optimizer; `custom_objects` as Keras takes them."""
    return keras.models.load_model(path, custom_objects, compile=False)


def _strategy_scope(strategy):
    """The scope to build and compile in; "auto" is "mirrored" if there are two GPUs or more."""
    mirrored = strategy == "mirrored" or (strategy == "auto" and len(tf.config.list_logical_devices("GPU")) > 1)
    return tf.distribute.MirroredStrategy().scope() if mirrored else contextlib.nullcontext()


@contextlib.contextmanager
def _dtype_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
