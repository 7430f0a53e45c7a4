"""Runs a base classifier on a few images: is it a function of each image alone, and what does it return?"""

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

_ROWS = 16
# How much outputs may differ, relative to an output minus what the classes that can win have in common. On a CPU, the
# same rows in passes of the same size give the same bits. A GPU may choose another algorithm the next time and then
# round to 11 binary digits (TF32) or, in 16-bit numbers, to 8, through many layers. Batch statistics and dropout change
# outputs by more.
_TOLERANCES = {"float32": 2e-3, "float64": 2e-3}
_TOLERANCE_16_BITS = 0.05
_SPACING_16_BITS = 2.0**-8
_TYPES_OF_16_BITS = tf.bfloat16.as_numpy_dtype, np.float16
# Operations that TensorFlow counts as stateful, although they only write what is not read, or read what stays as it is
# or lasts no longer than the run; and Python code, which only its author can vouch for. All others are refused, such as
# random numbers, however small: one that a whole pass shares makes all its votes depend on one another.
_MAY_RUN = frozenset({
    "Assert", "Case", "CheckNumerics", "CheckNumericsV2", "DeepCopy", "DisableCopyOnRead", "EagerPyFunc",
    "GuaranteeConst", "If", "Print", "PrintV2", "PyFunc", "StatefulPartitionedCall", "While", "XlaCallModule",
    "CudnnRNN", "CudnnRNNV2", "CudnnRNNV3", "StatelessRandomGetAlg", "IsVariableInitialized", "ReadVariableOp",
    "RefEnter", "RefExit", "RefIdentity", "RefMerge", "RefNextIteration", "RefSelect", "RefSwitch",
    "ResourceGather", "ResourceGatherNd", "VarHandleOp", "VarIsInitializedOp", "WriteFile", "Variable",
    "VariableShape", "VariableV2", "AnonymousHashTable", "AnonymousMutableDenseHashTable",
    "AnonymousMutableHashTable", "AnonymousMutableHashTableOfTensors", "HashTable", "HashTableV2",
    "InitializeTable", "InitializeTableV2", "LookupTableExport", "LookupTableExportV2", "LookupTableFind",
    "LookupTableFindV2", "LookupTableSize", "LookupTableSizeV2", "MutableDenseHashTable",
    "MutableDenseHashTableV2", "MutableHashTable",
    "MutableHashTableOfTensors", "MutableHashTableOfTensorsV2", "MutableHashTableV2", "Stack", "StackClose",
    "StackCloseV2", "StackPop", "StackPopV2", "StackPush", "StackPushV2", "StackV2", "TensorArray",
    "TensorArrayClose", "TensorArrayCloseV3", "TensorArrayConcat", "TensorArrayConcatV3", "TensorArrayGather",
    "TensorArrayGatherV3", "TensorArrayGrad", "TensorArrayGradV2", "TensorArrayGradV3", "TensorArrayGradWithShape",
    "TensorArrayPack", "TensorArrayRead", "TensorArrayReadV3", "TensorArrayScatter", "TensorArrayScatterV3",
    "TensorArraySize", "TensorArraySizeV3", "TensorArraySplit", "TensorArraySplitV3", "TensorArrayUnpack",
    "TensorArrayV2", "TensorArrayV3", "TensorArrayWrite", "TensorArrayWriteV3"
})  # fmt: skip
# What TensorFlow does not count as stateful, although it changes a tensor that others may read; reads files, which may
# change; or joins its rows with those of whatever else runs at the same time.
_STATEFUL_TOO = frozenset({
    "InplaceAdd", "InplaceSub", "InplaceUpdate", "GenerateVocabRemapping", "ImmutableConst", "MatchingFiles",
    "ReadFile", "Batch", "BatchFunction", "Unbatch"
})  # fmt: skip
# So are these, which draw the regions that they pool for all rows; but with a seed, they keep to the same ones.
_POOLS_AT_RANDOM = frozenset({"FractionalAvgPool", "FractionalMaxPool"})
_DEPENDS = (
    "The classifier's output for an image depends on the rest of its batch, for example through batch norm in "
    "training mode; only a function of one image can be certified."
)
# Pixels of a crowd that takes a batch's largest or least pixel, mean and spread to where noise may take them.
_FAR = 25.0
# Characters that we show of someone else's error; and how Keras makes some of them bold.
_REASON = 300
_BOLD = re.compile(r"\x1b\[\d*m")
# A class can win if its gap to the winner is at most this many times the runner-up's gap in the median image.
_WITHIN_REACH = 10


def probe(
    classifier: Callable[[tf.Tensor], tf.Tensor],
    image_shape: Sequence[int],
    precision: str = "float32",
    rows: int = 2 * _ROWS,
) -> np.ndarray:
    """What a classifier returns for a few random images, after checking that it is a function of each image alone.

    Randomised smoothing needs this: the votes of a classifier that is random, or whose output for an image depends on
    the rest of its batch, certify nothing. A dependence smaller than rounding, or one that these images do not show, is
    not found. Nor may it change variables, draw random numbers, read the time or files as it runs, however little that
    shows.

    Args:
        classifier: images [batch, H, W, C] -> [batch, classes].
        image_shape: (H, W, C).
        precision: what it computes in, e.g. "bfloat16".
        rows: images per pass in later use, at least 32. A layer may treat rows beyond some number differently, so the
            classifier is also tried at this size, unless it consists of Keras' own plain layers and sums, which do not.

    Returns:
        float32 [16, classes]; float64 if the classifier returns that.

    Raises:
        ValueError: in one line, if it is not a function of one image, changes variables, draws random numbers, reads
            the time or files, cannot run on as many images or on these, or does not return [batch, classes] of two
            classes or more.
    """
    rng = np.random.default_rng(0)
    # Brightness and contrast differ from image to image, so batch statistics do too.
    images, others = (
        rng.random((_ROWS, *image_shape)) * rng.random((_ROWS, 1, 1, 1)) + rng.normal(0, 0.25, (_ROWS, *image_shape))
        for _ in range(2)
    )
    others *= 3  # so that a batch's largest and smallest pixels are not in the images that both share
    kept, places = np.arange(1, _ROWS, 2), np.arange(_ROWS - 2, -1, -2)
    others[places] = images[kept]

    outputs_of = functools.partial(_outputs, classifier)
    outputs = outputs_of(images)
    if not agree(outputs, outputs_of(images), precision):
        raise ValueError(
            "The classifier returns different outputs for the same images, for example through dropout at inference; "
            "only a deterministic one can be certified."
        )
    among_others = outputs_of(others)[places], outputs_of(np.concatenate([images, others]))[kept]
    if not all(agree(outputs[kept], found, precision) for found in among_others):
        raise ValueError(_DEPENDS)
    _check_thresholds(outputs_of, image_shape, precision)
    if not getattr(classifier, "is_of_plain_layers", False):  # those stay as they are, and tracing takes time
        _check_full_passes(classifier, images, rows, precision)
    return outputs


def _check_thresholds(outputs_of, image_shape, precision):
    """Raises ValueError if a classifier treats images otherwise once a pixel of any, or all on average, pass a value.

    As one does that divides by 255 if it sees a pixel above 1: batches of noisy images are all on one side of that.
    """
    rng = np.random.default_rng(1)
    calm = rng.uniform(0.3, 0.5, (_ROWS, *image_shape))
    outputs, kept = outputs_of(calm), np.arange(_ROWS) % 2 == 1
    for far in (_FAR, -_FAR):
        crowd = np.where(kept.reshape(-1, 1, 1, 1), calm, far * rng.uniform(0.5, 1, calm.shape))
        if not agree(outputs[kept], outputs_of(crowd)[kept], precision):
            raise ValueError(_DEPENDS)


@contextlib.contextmanager
def _told_in_one_line(rows, image_shape):
    """Wraps what runs a classifier on so many images."""
    try:
        yield
    except Exception as error:  # whatever Keras, TensorFlow or someone's own layer raises
        line = " ".join(_BOLD.sub("", str(error)).split()).partition(" [Op:")[0]
        if isinstance(error, tf.errors.UnimplementedError):  # such as convolutions with channels first on a CPU
            raise ValueError(f"The classifier cannot run on this machine. TensorFlow says: {line}") from error
        line = line if len(line) <= _REASON else f"{line[:_REASON]} ..."
        raise ValueError(
            f"The classifier must take any number of noisy images {tuple(image_shape)}, whose pixels may lie outside "
            f"[0, 1]. Received, for {rows} images: {type(error).__name__}: {line}"
        ) from error


def _outputs(classifier, batch):
    """What a classifier returns for a batch, [batch, classes], float32 or, as votes depend on every digit, float64."""
    with _told_in_one_line(len(batch), batch.shape[1:]):
        outputs = classifier(tf.constant(batch, tf.float32))
    check_outputs(outputs, len(batch))
    return np.asarray(outputs if outputs.dtype == tf.float64 else tf.cast(outputs, tf.float32))


def _check_full_passes(classifier, images, rows, precision):
    """Raises ValueError if a classifier does not stay as it is, or if outputs depend on the rest of a full pass."""
    # In a graph, because eagerly a functional model would hold all its layers' outputs for so many rows at once.
    shape = tf.TensorSpec([rows, *images.shape[1:]], tf.float32)
    with _told_in_one_line(rows, images.shape[1:]):
        graph = tf.function(classifier, autograph=False).get_concrete_function(shape)
    _check_stays(graph.graph.as_graph_def())
    # As in certification, nearly all rows are copies of one image; without noise, so that all go the same way. Both
    # passes are of this graph, because others round differently, which 400 layers can amplify.
    before, after = (np.repeat(image[None], rows - len(images), axis=0) for image in images[[0, -1]])
    first = _outputs(graph, np.concatenate([images, after]))[: len(images)]
    last = _outputs(graph, np.concatenate([before, images]))[-len(images) :]
    if not agree(first, last, precision):
        raise ValueError(_DEPENDS)


def _check_stays(definition):
    """Raises ValueError unless a classifier stays as it is: what it returns might drift too slowly to be seen.

    This searches its graph, which also has the variables that Keras does not know about.
    """
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    found = sorted({node.op for node in nodes if not _may_run(node)})
    if found:
        raise ValueError(
            "The classifier changes variables whenever it runs, for example moving statistics that are also updated "
            "outside training, or draws random numbers, reads the time or files or the like; only one that stays as it "
            f"is can be certified. Received: {', '.join(found)}"
        )


def _may_run(node):
    """Whether an operation leaves a classifier as it is; or a function, whose own operations are looked at, too."""
    definition = op_def_registry.get(node.op)
    if node.op in _MAY_RUN or definition is None:
        return True
    if node.op in _POOLS_AT_RANDOM:
        return node.attr["deterministic"].b and bool(node.attr["seed"].i or node.attr["seed2"].i)
    return not (definition.is_stateful or any(one.is_ref for one in definition.input_arg) or node.op in _STATEFUL_TOO)


def agree(first: np.ndarray, second: np.ndarray, precision: str) -> bool:
    """Whether outputs [rows, classes] are the same up to rounding.

    The allowed difference is relative to the classes that can win, minus what these have in common: beside classes that
    are masked by -1e9, however many, or an offset of 1e5, everything else would look like rounding.
    """
    finite = np.isfinite(first) & np.isfinite(second)
    if not np.array_equal(np.isfinite(first), np.isfinite(second)):
        return False
    if not finite.any():
        return True
    raw, other = (np.where(finite, outputs, np.nan).astype(np.float64) for outputs in (first, second))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows with nothing finite, or with one output
        behind = np.nanmax(raw, axis=1, keepdims=True) - raw
        seconds = np.sort(behind, axis=1)[:, 1]  # NaN is sorted last
        can_win = (behind == 0) | (behind <= _WITHIN_REACH * np.nanmedian(seconds))
        common, common_of_other = (
            np.nanmedian(np.where(can_win, outputs, np.nan), axis=1, keepdims=True) for outputs in (raw, other)
        )
        centred = np.abs(raw - common)
        scale = np.nanmedian(np.nanmax(np.where(can_win, centred, np.nan), axis=1))
    tolerance = _TOLERANCES.get(precision, _TOLERANCE_16_BITS)
    spacing = max(_spacing(outputs, precision) for outputs in (first, second))
    allowed = tolerance * np.maximum(centred, scale) + 8 * spacing * np.maximum(np.abs(raw), np.abs(common))
    return bool((np.abs((raw - common) - (other - common_of_other)) <= allowed)[finite].all())


def _spacing(outputs, precision):
    """The relative spacing of the numbers that outputs are: of 16 bits, where they are such numbers, or of their type.

    After 16-bit layers, a last one in float32 may add what all classes have in common and digits that decide between
    them.
    """
    with np.errstate(over="ignore"):
        is_of_16_bits = precision not in _TOLERANCES and any(
            np.array_equal(outputs.astype(dtype).astype(outputs.dtype), outputs, equal_nan=True)
            for dtype in _TYPES_OF_16_BITS
        )
    return _SPACING_16_BITS if is_of_16_bits else float(np.finfo(outputs.dtype).eps)


def check_outputs(outputs: tf.Tensor, rows: int | None) -> None:
    """Raises a one-line ValueError unless they are one tensor [rows, classes] of two classes or more.

    Where `rows` or the tensor's are None, which a graph may not know, their number is not checked.
    """
    if not isinstance(outputs, tf.Tensor):  # such as a ragged or a sparse one
        names = f" of {', '.join(outputs)}" if isinstance(outputs, dict) else ""
        number = f", {len(outputs)} outputs" if isinstance(outputs, (dict, list, tuple)) else ""
        raise ValueError(
            f"The classifier must return one tensor [batch, classes]. Received: {type(outputs).__name__}{names}{number}"
        )
    if not outputs.dtype.is_floating:
        raise ValueError(f"The classifier must return floats. Received: outputs of {outputs.dtype.name}")
    if outputs.shape.rank != 2 or outputs.shape[-1] is None or outputs.shape[-1] < 2:
        # With a single output, the largest is always class 0, and everything would be certified.
        raise ValueError(
            "The classifier must return [batch, classes] for two classes or more. "
            f"Received: output shape {outputs.shape}"
        )
    if None not in (rows, outputs.shape[0]) and outputs.shape[0] != rows:
        # Votes of several rows of one image would be taken for votes of several noisy copies.
        raise ValueError(
            "The classifier must return one row of outputs for each image. Received: "
            f"{outputs.shape[0]} rows for {rows} images"
        )


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether each row of outputs [batch, classes] is a distribution, up to rounding to 8 binary digits."""
    return bool((outputs >= 0).all() and (np.abs(outputs.sum(axis=1) - 1) < 0.02).all())
