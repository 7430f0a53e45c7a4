"""A classifier as it is certified and served: batch norm folded into the layer before it, at a chosen precision."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from macer_tf.layers import FusedBatchNormalization

PRECISIONS = ("float32", "bfloat16")

# Types of a layer's settings, besides functions.
_SETTINGS = (bool, int, float, str, tuple, list, dict, np.ndarray, np.generic, type(None))
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
_NORMS = (layers.BatchNormalization, FusedBatchNormalization)
# Layers that configuration and weights describe completely: rebuilt from both, they are the same function. This is not
# true of Lambda, Normalization and other preprocessing, of wrappers, or of layers that are not Keras' own.
_PLAIN = {
    *_NORMS,
    *(layers.InputLayer, layers.Identity, layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Dense),
    *(layers.LayerNormalization, layers.GroupNormalization, layers.Rescaling, layers.Dropout, layers.SpatialDropout2D),
    *(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU, layers.Softmax),
    *(layers.MaxPooling2D, layers.AveragePooling2D, layers.GlobalMaxPooling2D, layers.GlobalAveragePooling2D),
    *(layers.Flatten, layers.Reshape, layers.Permute, layers.ZeroPadding2D, layers.Cropping2D, layers.UpSampling2D),
    *(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum),
    layers.Concatenate,
}
_VARIABLES = tf.Variable, keras.Variable
# Operations that are no layers, and compute each row from the same row.
_OF_EACH_ROW = {"Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Negative", "Relu"}


class InferenceGraph:
    """The outputs of a Keras classifier in inference mode, as a function of images and the classifier's variables.

    Batch norm that directly follows a `Conv2D` or `Dense` layer of a functional or sequential model is folded into its
    kernel and bias, which changes outputs only by rounding. Folding is part of the graph and reads the classifier's
    variables whenever it runs, so there is no copy of the weights that could become outdated. What cannot be folded
    runs unchanged, and so does a whole model that is subclassed or has layers other than Keras' plain ones.

    To save it on a `tf.Module`, let the module track `variables` and nothing else of it: a Keras model tracked there
    loads in Python but fails in C++.

    Args:
        classifier: a Keras model, images [batch, H, W, C] -> [batch, classes].
        precision: "float32" or "bfloat16", what layers compute in; by default what their own dtype policies say. In
            bfloat16, variables and the last layer stay float32, as under Keras' policy "mixed_bfloat16". Another
            precision than the classifier's own makes another classifier, with other certificates.

    Raises:
        ValueError: for an unknown precision, or one that the classifier cannot be converted to.
    """

    def __init__(self, classifier: keras.Model, precision: str | None = None) -> None:
        if precision not in (None, *PRECISIONS):
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}. Received: precision={precision}")
        own = own_precision(classifier)
        has_norm = any(type(layer) in _NORMS for layer in classifier._flatten_layers())
        # Checked only where it matters: rebuilding a layer draws from Python's random numbers.
        is_plain = (has_norm or precision not in (None, own)) and _is_plain(classifier)
        if precision not in (None, own) and not is_plain:
            raise ValueError(
                f"The classifier computes in {own}; only functional and sequential models of plain Keras layers "
                f"can be converted to another precision. Received: precision={precision}, "
                f"{type(classifier).__name__}{_others_in_words(classifier)}"
            )
        self._precision = precision or own
        self._classifier = classifier
        self._rebuilt: keras.Model | None = None
        self._values: dict[int, Callable[[], tf.Tensor]] = {}
        self._made_of: list | None = None
        if is_plain:
            policy = None if self._precision == own else _POLICIES[self._precision]
            self._rebuilt = _rebuild(classifier, policy, "float32", self._values)
            self.check_unchanged()

    @property
    def precision(self) -> str:
        """What the classifier computes in, e.g. "float32"; its certificates hold for this precision only."""
        return self._precision

    @property
    def is_of_plain_layers(self) -> bool:
        """Whether it consists of Keras' own plain layers and sums alone: none changes when it runs, or counts rows."""

        def is_plain(layer):
            # Anyone's activation may do anything, and so may Keras' other functions, such as `keras.random.shuffle`.
            activation = getattr(layer, "activation", keras.activations.linear)
            is_known = activation is getattr(keras.activations, getattr(activation, "__name__", ""), None)
            if "call" in vars(layer) or not (is_known or type(activation) in _PLAIN):
                return False
            if isinstance(layer, keras.Model):  # which may also call operations that are no layers
                return _is_of_keras(layer) and all(map(_is_of_each_row, getattr(layer, "operations", ())))
            return type(layer) in _PLAIN and not _has_variable_settings(layer)

        return all(map(is_plain, self._classifier._flatten_layers()))

    @property
    def variables(self) -> list[tf.Variable]:
        """The tf.Variables that the graph reads: those of the classifier."""
        return [variable.value for variable in self._classifier.variables]

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Images float32 [batch, H, W, C] -> what the classifier returns, [batch, classes]."""
        if self._rebuilt is None:
            return self._classifier(images, training=False)
        trainable, other = (
            [self._values[id(variable)]() for variable in variables]
            for variables in (self._rebuilt.trainable_variables, self._rebuilt.non_trainable_variables)
        )
        return self._rebuilt.stateless_call(trainable, other, images, training=False)[0]

    def check_all_kept(self, image_shape: Sequence[int]) -> None:
        """Raises ValueError if the graph for images [H, W, C] reads a variable or a table that is not in `variables`.

        Neither a model's file nor a SavedModel of `variables` would hold it.
        """
        if self.is_of_plain_layers:  # tracing takes time
            return
        graph = tf.function(self, autograph=False).get_concrete_function(tf.TensorSpec([None, *image_shape])).graph
        # Under a distribution strategy, a variable is one per device.
        kept = {id(one.handle) for variable in self.variables for one in getattr(variable, "values", [variable])}
        if any(found.dtype == tf.resource and id(found) not in kept for found in graph.external_captures):
            raise ValueError(
                "Only what Keras keeps of a classifier can be exported, but one of its layers holds a tf.Variable, a "
                "table or the like of its own; make weights by add_weight. Received: "
                f"{type(self._classifier).__name__} {self._classifier.name}"
            )

    def weights_as_now(self) -> list[int]:
        """A hash of each weight's present content: this process's, as copies of the weights would take their memory."""
        return [hash(_content(weight)) for weight in self._classifier.weights]

    def checksums(self) -> tf.Tensor:
        """int64 [weights]: of each weight's present bits, to be computed beside the outputs, with the same weights."""
        return tf.convert_to_tensor([_checksum(weight) for weight in self._classifier.weights], tf.int64)

    @contextlib.contextmanager
    def held_still(self) -> Iterator[tuple[list[int], Callable[[tf.Tensor], None]]]:
        """Raises ValueError at its end if the classifier's weights changed meanwhile, as by training in a thread.

        Yields:
            `weights_as_now`, as it must stay; and a function that raises it at once if `checksums` of a pass are others
            than at the beginning, as where averaged weights take the weights' place and leave it again.
        """
        weights, before = [*self._classifier.weights], self.weights_as_now()
        # As in `checksums`, whose many small operations take long outside a graph.
        checksums = [_sum_of_words(_content(weight)) for weight in weights]

        def check(found, expected):
            for weight, now, then in zip(weights, found, expected, strict=True):
                if now != then:
                    raise ValueError(
                        "The classifier's weights changed while its votes were drawn, so they are votes of several "
                        f"classifiers; train before or after, or certify a copy. Received: changed {weight.path}"
                    )

        yield before, lambda of_pass: check(of_pass.numpy(), checksums)
        check([hash(_content(weight)) for weight in weights], before)

    def check_unchanged(self) -> None:
        """Raises ValueError if variables, layers, or settings of Keras' layers or ours, are no longer what they were.

        The first call records them, so make it once the classifier has its variables. A graph that was traced before
        such a change computes another function.
        """
        now = _made_of(self._classifier)
        if self._made_of is None:
            self._made_of = now
        elif len(now) != len(self._made_of) or not all(map(_is_same, now, self._made_of)):
            raise ValueError(
                "The classifier's layers have changed since this object was made from it. Make a new object from the "
                f"changed classifier. Received: {type(self._classifier).__name__} {self._classifier.name}"
            )


def _content(weight):
    """The bytes of a weight: NaN is not equal to itself, and comparing tensors takes longer."""
    # `weight.numpy` would copy it more often and take longer.
    return np.asarray(tf.convert_to_tensor(weight.value)).tobytes()


def _sum_of_words(content):
    """The sum of bytes, padded with zeros, in words of 64 bits; it wraps around."""
    return np.frombuffer(content + bytes(-len(content) % 8), np.int64).sum()


def _checksum(weight):
    """`_sum_of_words` of a weight's content, int64. This takes little more than reading it."""
    value = tf.reshape(tf.convert_to_tensor(weight.value), [-1])
    value = tf.cast(value, tf.int8) if value.dtype == tf.bool else value
    words = tf.bitcast(value, {1: tf.int8, 2: tf.int16, 4: tf.int32, 8: tf.int64, 16: tf.int64}[value.dtype.size])
    parts = 8 // words.dtype.size
    if parts > 1:
        missing = -words.shape[0] % parts
        words = tf.pad(words, [[0, missing]]) if missing else words
        words = tf.bitcast(tf.reshape(words, [-1, parts]), tf.int64)
    return tf.reduce_sum(words)


def _is_of_keras(thing):
    return getattr(thing, "__module__", "").startswith("keras.")


def _is_of_each_row(operation):
    # Layers are looked at by themselves. A cumulative sum, for one, may let the first hundred rows pass.
    if isinstance(operation, keras.Layer):
        return True
    operands = keras.tree.flatten([[node.arguments.args, node.arguments.kwargs] for node in operation._inbound_nodes])
    is_known = type(operation).__name__ in _OF_EACH_ROW and _is_of_keras(operation)
    return is_known and not any(isinstance(operand, _VARIABLES) for operand in operands)


def _made_of(classifier):
    """The variables of a model, its layers, and the settings of those layers that are Keras' own or ours."""
    parts = [*classifier.variables]
    for layer in classifier._flatten_layers():
        parts += [layer, ("compute_dtype", layer.compute_dtype)]
        if isinstance(layer, keras.Model) or not (_is_of_keras(layer) or type(layer) in _NORMS):
            continue
        for name, value in sorted(vars(layer).items()):
            if name.startswith("_") or name == "trainable":
                continue
            if isinstance(value, tf.Tensor):  # compared by identity: adapting a `Normalization` replaces it
                parts.append(value)
            elif callable(value) or isinstance(value, _SETTINGS):
                parts.append((name, _as_now(value)))
    return parts


def _as_now(value):
    """The present value of a setting, copied because the contents of a list, a dict or an array may change."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _as_now(part) for name, part in value.items()}
    return [_as_now(part) for part in value] if isinstance(value, (list, tuple)) else value


def _is_same(now, before):
    if not isinstance(now, tuple):
        return now is before
    try:
        return bool(now == before)
    except Exception:  # as of two tensors among a Lambda's arguments; one and the same is equal to itself
        return False


def own_precision(classifier: keras.Model) -> str:
    """What a Keras model computes in, e.g. "float32": the narrowest type among its layers with weights."""
    weighted = [layer for layer in classifier._flatten_layers() if layer.weights and not isinstance(layer, keras.Model)]
    types = {layer.compute_dtype for layer in weighted} or {classifier.compute_dtype}
    return min(sorted(types), key=lambda name: tf.as_dtype(name).size)


def _is_plain(model):
    """Whether the model is a graph of plain layers, which can be rebuilt from its configuration and weights."""
    is_graph = model.built and getattr(model, "inputs", None)
    if not _is_of_keras(model) or not is_graph or "call" in vars(model):
        return False
    return all(
        _is_plain(layer) if isinstance(layer, keras.Model) else type(layer) in _PLAIN and _can_be_recreated(layer)
        for layer in model.layers
    )


def _others_in_words(model):
    """The kinds of its layers that are not plain, as the end of a message."""
    layers = (layer for layer in model._flatten_layers() if not isinstance(layer, keras.Model))
    others = sorted({type(layer).__name__ for layer in layers if type(layer) not in _PLAIN})
    return f" with {', '.join(others)}" if others else ""


def _has_variable_settings(layer):
    """Whether a setting, such as the scale of a `Rescaling`, is a variable: a copy of the layer would not follow it."""
    settings = inspect.signature(type(layer).__init__).parameters
    return any(isinstance(getattr(layer, name, None), _VARIABLES) for name in settings)


def _can_be_recreated(layer):
    """Whether the layer's configuration and weights completely determine what it computes."""
    if layer.quantization_mode is not None or getattr(layer, "lora_rank", None) is not None or "call" in vars(layer):
        return False
    activation = getattr(layer, "activation", None)
    is_simple = type(activation) in _PLAIN and not activation.variables and not hasattr(activation, "activation")
    if isinstance(activation, keras.Layer) and not is_simple:
        return False
    try:
        _recreated(layer)
    except Exception:  # whatever the user's function, initialiser or constraint raises
        return False
    return not _has_variable_settings(layer)


def _recreated(layer, **changes):
    """A new layer with the same configuration, apart from `changes`, and the same activation."""
    config = {**layer.get_config(), **changes}
    if not hasattr(layer, "activation") or isinstance(layer.activation, keras.Layer):
        return type(layer).from_config(config)
    # A configuration holds the name of an activation, which may also be the name of another function.
    new = type(layer).from_config({**config, "activation": "linear"})
    new.activation = layer.activation
    return new


def _rebuild(model, policy, last_policy, values):
    """The model rebuilt, with batch norms folded and its layers under a dtype policy (None: their own).

    Args:
        policy, last_policy: dtype policies of the layers, and of the layer that makes the outputs.
        values: is filled, by the id of each variable of the new model, with what computes its value from the old ones.
    """
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    config = model.get_config()
    folded = _foldable(model, config)
    norms = {norm.name for norm in folded.values()}
    last = {name for name, *_ in _histories(config["output_layers"])}

    def new_layer(layer):
        if not isinstance(layer, keras.Layer) or layer.name in norms:
            return layer  # an operation has neither weights nor a policy, and a folded norm is not called
        own_policy = policy and (last_policy if layer.name in last else policy)
        if isinstance(layer, keras.Model):
            return _rebuild(layer, policy, own_policy, values)
        changes = {"dtype": own_policy} if own_policy else {}
        return _recreated(layer, **changes, **({"use_bias": True} if layer.name in folded else {}))

    def call(layer, inputs, *others, **options):
        return inputs if layer in folded.values() else layer(inputs, *others, **options)

    rebuilt = keras.models.clone_model(model, clone_function=new_layer, call_function=call)
    for layer in model.layers:
        if isinstance(layer, keras.Model) or layer.name in norms or not layer.variables:
            continue
        new = rebuilt.get_layer(layer.name)
        if layer.name in folded:
            norm = folded[layer.name]
            values[id(new.kernel)] = partial(_folded_kernel, layer, norm)
            values[id(new.bias)] = partial(_folded_bias, layer, norm)
        else:
            for old_variable, new_variable in zip(layer.variables, new.variables, strict=True):
                values[id(new_variable)] = partial(_read, old_variable, new_variable.dtype)
    return rebuilt


def _foldable(model, config):
    """Name of a layer -> the batch norm that is its only consumer, and is to be folded into it.

    Args:
        config: what `model.get_config` returns, which says what is called on what.
    """
    calls = {layer["name"]: layer["inbound_nodes"] for layer in config["layers"]}
    consumers = {}
    for name, nodes in calls.items():
        for producer, *_ in _histories(nodes):
            consumers.setdefault(producer, []).append(name)
    outputs = {name for name, *_ in _histories(config["output_layers"])}
    layers_by_name = {layer.name: layer for layer in model.layers}  # a raw operation, as in `x + y`, is not a layer
    folded = {}
    for norm in model.layers:
        if type(norm) not in _NORMS or len(calls[norm.name]) != 1 or norm.renorm:
            continue
        (call,) = calls[norm.name]
        (producer, *_), *_ = _histories(call)  # the others are of its mask, if it was called with one
        layer = layers_by_name.get(producer)
        if (
            type(layer) in (layers.Conv2D, layers.Dense)
            and getattr(layer, "data_format", "channels_last") == "channels_last"
            and layer.activation is keras.activations.linear
            and layer.compute_dtype == norm.compute_dtype
            and norm.axis in (-1, len(layer.output.shape) - 1)
            and len(calls[producer]) == 1
            and consumers[producer] == [norm.name]
            and producer not in outputs
            # Called with training=True, it would not use its moving statistics.
            and all(value is None for value in call["kwargs"].values())
        ):
            folded[producer] = norm
    return folded


def _histories(config):
    """All (layer name, node, tensor) in a part of a functional model's configuration."""
    if isinstance(config, dict):
        if "keras_history" in config:
            return [config["keras_history"]]
        config = list(config.values())
    if not isinstance(config, (list, tuple)):
        return []
    if len(config) == 3 and isinstance(config[0], str) and isinstance(config[1], int):
        return [config]
    return [history for part in config for history in _histories(part)]


def _read(variable, dtype):
    return tf.cast(variable.value, dtype)


def _scale(norm):
    """What the batch norm multiplies its inputs by, [channels]."""
    scale = tf.math.rsqrt(norm.moving_variance.value + norm.epsilon)
    return scale * norm.gamma.value if norm.scale else scale


def _folded_kernel(layer, norm):
    kernel = layer.kernel.value
    return kernel * tf.cast(_scale(norm), kernel.dtype)


def _folded_bias(layer, norm):
    offset = -norm.moving_mean.value
    if layer.use_bias:
        offset += tf.cast(layer.bias.value, offset.dtype)
    bias = offset * _scale(norm)
    if norm.center:
        bias += norm.beta.value
    return tf.cast(bias, layer.variable_dtype)
