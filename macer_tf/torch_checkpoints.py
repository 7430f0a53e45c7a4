"""Loads released PyTorch checkpoints (MACER's authors', Cohen's, Salman's) into the networks of `networks.py`.

Reading the file needs torch, which nothing else in `macer_tf` does: `pip install torch`.
"""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

# Channel means and standard deviations of Cohen's and Salman's normalisation layers, for pixels in [0, 1]. It is the
# first layer of their networks, after the noise; its constants are not in their checkpoints.
NORMALIZATIONS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

# Where the weights are: Cohen's and Salman's in "state_dict", the MACER authors' in "net".
_KEYS = ("state_dict", "net", "model")
# DataParallel prefixes every name with "module."; a Sequential with a normalisation layer first, with "1.".
_PREFIX = re.compile(r"(?:module\.|1\.)*")
_STATISTIC = re.compile(r"(?:module\.)*0\.(means|sds)")


class _Slot(NamedTuple):
    """Where one tensor of a checkpoint goes: a Keras variable, the tensor's shape in torch, and its conversion."""

    variable: keras.Variable
    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray]


def load(
    path: str | Path,
    model: keras.Model,
    normalization: str | tuple[Sequence[float], Sequence[float]] | None = None,
) -> keras.Model:
    """Loads the weights in `path` into `model`; every tensor is used once, and after an error no weight has changed.

    Args:
        path: a .pth or .pth.tar file of a LeNet, a CIFAR ResNet or a ResNet-50, as `torch.save` wrote it: a state_dict,
            or a dictionary that holds one as "state_dict", "net" or "model". Only weights are read: a file that would
            run code is refused.
        model: the network that the checkpoint was trained with, from `macer_tf.networks`.
        normalization: the normalisation in front of the network, for pixels in [0, 1]: "cifar10" (Cohen's and Salman's
            CIFAR-10, and Salman's ImageNet at 32x32), "imagenet", or a pair (means, standard deviations), each with one
            number per channel. None for a network without one, such as the MACER authors', and for a checkpoint that
            holds the constants.

    Returns:
        `model` itself, or a new model of images [batch, H, W, C] in [0, 1] -> logits: the normalisation, then `model`.

    Raises:
        ImportError: without torch.
        OSError: if the file is missing or cannot be read.
        ValueError: if the file is damaged or holds more than weights, does not fit `model`, or was trained behind a
            normalisation that is not given.
    """
    slots = _slots(model)
    channels = model.input_shape[-1]
    constants = _constants(normalization, channels)
    weights, statistics, behind_layer = _strip(_read(path), path)
    if statistics is not None:
        saved = _constants(statistics, channels)
        if constants is not None and not np.allclose(saved, constants, rtol=1e-5):
            raise ValueError(
                f"{path} holds its own, different normalisation; pass normalization=None. "
                f"Received: normalization={normalization}"
            )
        constants = saved
    if behind_layer and constants is None:
        raise ValueError(
            f"{path} was trained behind a normalisation layer, whose constants it does not hold; give the one it was "
            "trained with, e.g. normalization='cifar10' or 'imagenet'. Received: normalization=None"
        )
    _check_fits(weights, slots, model.name, path)
    for name, slot in slots.items():
        slot.variable.assign(slot.convert(weights[name]))
    return model if constants is None else _normalized(model, *constants)


def _read(path):
    """The file's tensors by name, as NumPy arrays."""
    try:
        import torch
    except ImportError:
        raise ImportError(
            "Reading a PyTorch checkpoint needs torch, which is not installed: pip install torch"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on a file that it then refuses
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # Damaged bytes end in errors of almost any type, deep inside the unpickler.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and found:
            raise ValueError(
                f"{path} is refused: it holds more than weights ({found[1]}), which could run code. If you trust who "
                "made it, load it with torch.load(path, weights_only=False) and save its state_dict alone."
            ) from None
        raise ValueError(f"{path} is damaged or not a PyTorch checkpoint; download it again.") from None
    candidates = [checkpoint]
    if isinstance(checkpoint, Mapping):
        candidates += [checkpoint.get(key) for key in _KEYS]
    for state in candidates:
        if isinstance(state, Mapping) and state and all(isinstance(value, torch.Tensor) for value in state.values()):
            return {str(name): tensor.detach().float().numpy() for name, tensor in state.items()}
    held = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
    raise ValueError(f"{path} holds no weights: no state_dict, alone or under {', '.join(_KEYS)}. Found: {held[:200]}")


def _strip(state, path):
    """Weights by their names without prefix, the normalisation's (means, sds) or None, and whether one comes first."""
    statistics = {match[1]: key for key in state if (match := _STATISTIC.fullmatch(key))}
    pair = None
    if len(statistics) == 2:
        pair = state.pop(statistics["means"]), state.pop(statistics["sds"])
    prefixes = sorted({_PREFIX.match(key)[0] for key in state})
    if len(prefixes) > 1:
        raise ValueError(
            f"{path} mixes names with different prefixes ({', '.join(map(repr, prefixes))}): it is not one network."
        )
    prefix = prefixes[0] if prefixes else ""
    return {key[len(prefix) :]: value for key, value in state.items()}, pair, "1." in prefix


def _slots(model):
    """The tensors that `model` needs, by their torch names: a layer has the name of the torch module it stands for."""
    layers = model.layers if getattr(model, "built", False) else []
    flattened = {id(layer.output): layer.input for layer in layers if isinstance(layer, keras.layers.Flatten)}
    slots = {}
    for layer in layers:
        vectors = {"bias": getattr(layer, "bias", None)}
        if isinstance(layer, keras.layers.Conv2D):
            height, width, channels, filters = layer.kernel.shape
            slots[f"{layer.name}.weight"] = _Slot(layer.kernel, (filters, channels, height, width), _convolution)
        elif isinstance(layer, keras.layers.Dense):
            image = flattened.get(id(layer.input))
            convert = np.transpose if image is None else _dense_behind(image.shape[1:])
            slots[f"{layer.name}.weight"] = _Slot(layer.kernel, tuple(layer.kernel.shape[::-1]), convert)
        elif isinstance(layer, keras.layers.BatchNormalization):
            vectors = {
                "weight": layer.gamma,
                "bias": layer.beta,
                "running_mean": layer.moving_mean,
                "running_var": layer.moving_variance,
            }
        for name, variable in vectors.items():
            if variable is not None:
                slots[f"{layer.name}.{name}"] = _Slot(variable, tuple(variable.shape), np.asarray)
    if not slots or len(slots) != len(model.variables):
        raise ValueError(
            "A checkpoint can be loaded only into a network of macer_tf.networks, before it is wrapped. "
            f"Received: {type(model).__name__} {getattr(model, 'name', '')}"
        )
    return slots


def _convolution(weight):
    return weight.transpose(2, 3, 1, 0)


def _dense_behind(shape):
    """Conversion of the dense layer after a flattened [H, W, C], which torch flattens as [C, H, W]."""
    height, width, channels = shape

    def convert(weight):
        weight = weight.reshape(-1, channels, height, width)
        return weight.transpose(2, 3, 1, 0).reshape(height * width * channels, -1)

    return convert


def _check_fits(weights, slots, model_name, path):
    # A count of training steps, which the network does not use; absent before torch 0.4.1.
    counts = {f"{name.removesuffix('.running_mean')}.num_batches_tracked" for name in slots if "running_mean" in name}
    missing = [name for name in slots if name not in weights]
    unexpected = [name for name in weights if name not in slots and name not in counts]
    if missing or unexpected:
        kind = _kind(weights)
        if kind in (None, model_name):
            advice = "the file is incomplete, or another network's"
        else:
            advice = f"build the network it was trained with, macer_tf.networks.build('{kind}', ...)"
        raise ValueError(
            f"{path} does not fit {model_name}: {len(missing)} missing{_some(missing)}, "
            f"{len(unexpected)} left over{_some(unexpected)}; {advice}."
        )
    for name, slot in slots.items():
        if weights[name].shape != slot.shape:
            raise ValueError(
                f"{path} does not fit {model_name}: {name} has shape {weights[name].shape}, expected {slot.shape}; "
                "build the network with the image shape and the number of classes that it was trained with."
            )
        if not np.isfinite(weights[name]).all():
            raise ValueError(f"{path} is damaged: {name} holds NaN or Inf; download it again, or use an earlier one.")


def _some(names):
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def _kind(weights):
    """The name in `networks.build` of the network with these tensors, or None."""
    if {"conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"} <= weights.keys():
        return "lenet"
    blocks = {match[1] for name in weights if (match := re.match(r"(layer\d+\.\d+)\.conv2\.weight", name))}
    stages = [sum(block.startswith(f"layer{stage}.") for block in blocks) for stage in range(1, 5)]
    bottlenecks = any(".conv3." in name for name in weights)
    if bottlenecks and stages == [3, 4, 6, 3]:
        return "resnet50"
    if not bottlenecks and stages[0] and stages == [stages[0]] * 3 + [0]:
        return f"cifar_resnet{6 * stages[0] + 2}"
    return None


def _constants(normalization, channels):
    """(means, standard deviations) as float32 [channels] each, or None for none."""
    if normalization is None:
        return None
    if isinstance(normalization, str) and normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization must be {', '.join(NORMALIZATIONS)}, a pair (means, standard deviations) or None. "
            f"Received: {normalization}"
        )
    pair = NORMALIZATIONS[normalization] if isinstance(normalization, str) else normalization
    try:
        constants = [np.asarray(values, np.float32) for values in pair]
    except (TypeError, ValueError):
        raise ValueError(
            f"normalization must be a pair of means and standard deviations, or a name. Received: {normalization!r}"
        ) from None
    # With an infinite one, every image would be the same to the network, and have the largest radius.
    is_fine = [values.shape for values in constants] == [(channels,)] * 2 and (constants[1] > 0).all()
    if not is_fine or not np.isfinite(constants).all():
        raise ValueError(
            f"normalization must hold a mean and a standard deviation above 0, both finite, for each of the network's "
            f"{channels} channels. Received: {', '.join(str(values.tolist()) for values in constants)}"
        )
    return constants


def _normalized(model, means, deviations):
    inputs = keras.Input(model.input_shape[1:])
    # In the weights' type: in bfloat16 the constants themselves would be off by up to 0.4 %.
    layer = keras.layers.Normalization(mean=means, variance=deviations**2, dtype=model.variables[0].dtype)
    return keras.Model(inputs, model(layer(inputs)), name=model.name)
