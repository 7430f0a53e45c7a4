"""Checks of base classifiers: float images in, one row of outputs per image; and whether those outputs are logits."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

import keras

# The outputs of these are not logits, whether they are used as a layer, an activation or an operation.
_NO_LOGITS = {
    name.replace("_", ""): name
    for name in ("softmax", "log_softmax", "sparsemax", "sigmoid", "log_sigmoid", "hard_sigmoid", "sparse_sigmoid")
}
# Layers and operations that return probabilities if all their inputs are probabilities.
_PASS_ON = {
    *("Identity", "Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization"),
    *("Flatten", "Reshape", "Squeeze", "Cast", "Clip", "StopGradient", "Average", "Add", "TrueDivide"),
}


def check(classifier: keras.Model) -> None:
    """Raises a one-line ValueError unless `classifier` takes float images and returns rows, as far as can be told.

    Args:
        classifier: a Keras model, images [batch, ...] -> [batch, classes], two classes or more.
    """
    if not isinstance(classifier, keras.Model):
        raise ValueError(f"classifier must be a keras.Model. Received: {type(classifier).__name__}")
    inputs = keras.tree.flatten(_inputs(classifier))
    if len(inputs) > 1:
        raise ValueError(f"The classifier must take images as its only input. Received: {len(inputs)} inputs")
    if inputs and len(inputs[0].shape) != 4:
        raise ValueError(
            "The classifier must take images [height, width, channels]; begin it with keras.Input((height, width, "
            f"channels)) and a layers.Reshape. Received: input shape {tuple(inputs[0].shape)}"
        )
    dtype = _integer_input(classifier)
    if dtype:
        raise ValueError(
            f"The classifier's input is {dtype}, which truncates pixels in [0, 1] to whole numbers; make its input "
            f"float, keras.Input(shape), and scale inside it, e.g. by Rescaling(255). Received: input dtype {dtype}"
        )
    outputs = getattr(classifier, "_outputs_struct", None)
    # Keras unwraps a list of one tensor.
    if isinstance(outputs, dict) or len(keras.tree.flatten(outputs)) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in keras.tree.flatten(outputs))
        received = f"a dict of {', '.join(outputs)}" if isinstance(outputs, dict) else f"outputs of shapes {shapes}"
        raise ValueError(
            "The classifier must return one tensor [batch, classes]; wrap one of its outputs in a keras.Model. "
            f"Received: {received}"
        )
    shape = getattr(classifier, "output_shape", None) if classifier.built else None
    if shape is not None and (not isinstance(shape, tuple) or len(shape) != 2 or shape[-1] is None or shape[-1] < 2):
        # With a single output, the largest is always class 0, and everything would be certified.
        raise ValueError(
            f"The classifier must return [batch, classes] for two classes or more. Received: output shape {shape}"
        )


def image_shape(classifier: keras.Model) -> tuple[int | None, ...] | None:
    """The shape of a classifier's images, (None, ...), or None if it is not known."""
    inputs = keras.tree.flatten(_inputs(classifier))
    return tuple(inputs[0].shape) if len(inputs) == 1 else None


def check_returns_logits(classifier: keras.Model) -> None:
    """Raises a one-line ValueError if it can be seen that a classifier's outputs are not logits."""
    found = _activation_of_model(classifier)
    if found:
        activation, name = found
        raise ValueError(
            f"The classifier must return logits, but its last layer ({name}) applies {activation}; "
            "remove that activation."
        )


def _inputs(model):
    """The inputs of a functional or sequential model, or [] if they are not known."""
    try:
        return getattr(model, "inputs", None) or []
    except AttributeError:
        return []


def _integer_input(model):
    """The dtype that a model casts its images to, if it is not a float type; else None."""
    inputs = keras.tree.flatten(_inputs(model))
    for tensor in inputs:
        if not keras.backend.is_float_dtype(tensor.dtype):
            return keras.backend.standardize_dtype(tensor.dtype)
    if isinstance(model, keras.Sequential):
        first = model.layers[:1]
    else:
        ids = {id(tensor) for tensor in inputs}
        nodes = [node for level in (model._nodes_by_depth.values() if inputs else []) for node in level]
        first = [node.operation for node in nodes if ids & {id(tensor) for tensor in node.input_tensors}]
    # The integer input may belong to a nested model.
    return next(filter(None, (_integer_input(layer) for layer in first if isinstance(layer, keras.Model))), None)


def _activation_of_model(model):
    """(activation, name of the layer that applies it) if a model's outputs are not logits; else None."""
    if isinstance(model, keras.Sequential) or not _inputs(model):
        # A subclassed model does not say what it calls last; in most, it is the last layer.
        for layer in reversed(getattr(model, "layers", [])):
            found = _activation_of(layer)
            if found or not _passes_on(layer):
                return found
        return None
    found = [_activation_of_tensor(tensor) for tensor in model.outputs]
    return next(filter(None, found), None)


def _activation_of_tensor(tensor):
    operation, node, _ = tensor._keras_history
    found = _activation_of(operation)
    if found or not _passes_on(operation):
        return found
    sources = [_activation_of_tensor(source) for source in operation._inbound_nodes[node].input_tensors]
    return sources[0] if sources and all(sources) else None


def _activation_of(operation):
    if isinstance(operation, keras.Model):
        return _activation_of_model(operation)
    functions = [getattr(operation, name, None) for name in ("activation", "function")]
    names = [getattr(function, "__name__", type(function).__name__) for function in functions]
    for name in (*names, type(operation).__name__):
        known = _NO_LOGITS.get(name.lower().replace("_", "").removesuffix("v2"))
        if known:
            return known, operation.name
    return None


def _passes_on(operation):
    name = type(operation).__name__
    is_linear = getattr(getattr(operation, "activation", None), "__name__", "") == "linear"
    return name in _PASS_ON or name.startswith("SpatialDropout") or (name == "Activation" and is_linear)
