"""Whether a SavedModel of unknown origin only computes. To find out, it is read, not loaded.

Loading a SavedModel already runs parts of its graph, and a graph can write files, read them and open connections.
"""

from pathlib import Path

# Operations whose state is the graph's own: variables, tables, lists, random numbers; also the time, control flow and
# assertions.
_STATEFUL = frozenset({
    "Assert", "Case", "CheckNumerics", "CheckNumericsV2", "DeepCopy", "DestroyResourceOp", "DisableCopyOnRead",
    "Empty", "GuaranteeConst", "If", "IsResourceHandleRefCounting", "StatefulPartitionedCall", "While", "_Arg",
    "_Retval", "AssignAddVariableOp", "AssignSubVariableOp", "AssignVariableOp", "ReadVariableOp",
    "ResourceCountUpTo", "ResourceGather", "ResourceGatherNd", "ResourceScatterAdd", "ResourceScatterDiv",
    "ResourceScatterMax", "ResourceScatterMin", "ResourceScatterMul", "ResourceScatterNdAdd",
    "ResourceScatterNdMax", "ResourceScatterNdMin", "ResourceScatterNdSub", "ResourceScatterNdUpdate",
    "ResourceScatterSub", "ResourceScatterUpdate", "ResourceStridedSliceAssign", "TemporaryVariable",
    "VarHandleOp", "VarIsInitializedOp", "Variable", "VariableShape", "VariableV2", "_ReadVariablesOp",
    "_VarHandlesOp", "AnonymousHashTable", "AnonymousMutableDenseHashTable", "AnonymousMutableHashTable",
    "AnonymousMutableHashTableOfTensors", "HashTable", "HashTableV2", "InitializeTableV2", "LookupTableExportV2",
    "LookupTableFindV2", "LookupTableImportV2", "LookupTableInsertV2", "LookupTableRemoveV2", "LookupTableSizeV2",
    "MutableDenseHashTable", "MutableDenseHashTableV2", "MutableHashTable", "MutableHashTableOfTensors",
    "MutableHashTableOfTensorsV2", "MutableHashTableV2", "Stack", "StackCloseV2", "StackPopV2", "StackPushV2",
    "StackV2", "TensorArray", "TensorArrayCloseV3", "TensorArrayConcatV3", "TensorArrayGatherV3",
    "TensorArrayGrad", "TensorArrayGradV2", "TensorArrayGradV3", "TensorArrayGradWithShape", "TensorArrayReadV3",
    "TensorArrayScatterV3", "TensorArraySizeV3", "TensorArraySplitV3", "TensorArrayV2", "TensorArrayV3",
    "TensorArrayWriteV3", "AnonymousRandomSeedGenerator", "AnonymousSeedGenerator", "DeleteRandomSeedGenerator",
    "DeleteSeedGenerator", "DummySeedGenerator", "Multinomial", "NonDeterministicInts",
    "ParameterizedTruncatedNormal", "RandomCrop", "RandomGamma", "RandomPoisson", "RandomPoissonV2",
    "RandomShuffle", "RandomStandardNormal", "RandomUniform", "RandomUniformInt", "RngReadAndSkip", "RngSkip",
    "SampleDistortedBoundingBox", "SampleDistortedBoundingBoxV2", "StatefulRandomBinomial",
    "StatefulStandardNormal", "StatefulStandardNormalV2", "StatefulTruncatedNormal", "StatefulUniform",
    "StatefulUniformFullInt", "StatefulUniformInt", "StatelessRandomGetAlg", "Timestamp", "TruncatedNormal"
})  # fmt: skip
# Only operations that take text (a path, an address or a name) can reach beyond the graph. Of these, the ones below
# only turn it into numbers.
_ON_TEXT = frozenset({
    "DecodeAndCropJpeg", "DecodeBase64", "DecodeBmp", "DecodeGif", "DecodeImage", "DecodeJpeg", "DecodePng",
    "DecodeRaw", "DecodeWebP", "EncodeBase64", "ExtractJpegShape", "ParseExample", "ParseExampleV2",
    "ParseSingleExample", "ReduceJoin", "RegexFullMatch", "RegexReplace", "ShardedFilename",
    "StaticRegexFullMatch", "StaticRegexReplace", "StringFormat", "StringJoin", "StringLength", "StringLower",
    "StringNGrams", "StringSplit", "StringSplitV2", "StringStrip", "StringToHashBucket", "StringToHashBucketFast",
    "StringToHashBucketStrong", "StringToNumber", "StringUpper", "Substr", "UnicodeDecode",
    "UnicodeDecodeWithOffsets", "UnicodeEncode", "UnicodeTranscode", "LookupTableFind", "LookupTableSize",
    "InitializeTable"
})  # fmt: skip
# Options that choose how something is computed.
_TEXT_OPTIONS = frozenset({
    "activation_mode", "align", "bad_indices_policy", "config", "config_proto", "container", "data_format",
    "density_unit", "dimension_numbers", "direction", "dst_format", "equation", "errors", "executor_type",
    "explicit_paddings", "fill", "fill_mode", "filter_format", "format", "frame_name", "fused_ops", "input_mode",
    "input_quant_mode", "interpolation", "kernel_type", "message", "method", "mode", "noise", "output_quant_mode",
    "padding", "pooling_type", "precision_config", "reduce_op", "rnn_mode", "round_mode", "row_partition_types",
    "set_operation", "shared_name", "src_format", "unit", "var_name", "xmp_metadata"
})  # fmt: skip
# Families that reach outside the graph by other means: input pipelines, accelerators' queues, dumps.
_OUTSIDE = ("Dataset", "Debug", "Infeed", "TPU", "Tpu")
# The operations of TensorFlow's own saver: it reads when a model is loaded, and writes when asked to by name.
_RESTORING = frozenset({"RestoreV2", "Restore", "RestoreSlice"})
_SAVING = _RESTORING | {"SaveV2", "Save", "SaveSlices", "MergeV2Checkpoints"}
_GRAPH = "saved_model.pb"
# Other forms of the same file, which some loaders read instead.
_OTHER_FORMS = ("saved_model.pbtxt", "saved_model.cpb")


def check_effects(directory):
    """Accepts a SavedModel whose graph only computes; it is read and not loaded.

    Every operation of every graph and function in it counts, whether or not it seems to be called. Saving and restoring
    of variables is left to the saver, and refused where a signature or an initialiser could reach it.

    Args:
        directory: directory of the SavedModel.

    Raises:
        ValueError: in one line, with the operations by name, if it could reach files, the network or the process it
            runs in, or has operations that TensorFlow does not know; or if it is not a SavedModel.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    directory = Path(directory)
    for name in _OTHER_FORMS:
        if (directory / name).exists():
            raise ValueError(f"The SavedModel {directory} holds {name}, which may be a different graph from {_GRAPH}.")
    try:
        saved = saved_model_pb2.SavedModel.FromString((directory / _GRAPH).read_bytes())
    except OSError as error:
        raise ValueError(f"{directory} is not a SavedModel: cannot read {_GRAPH} ({error.strerror}).") from None
    except DecodeError:
        raise ValueError(f"{directory} is not a SavedModel: its {_GRAPH} is damaged.") from None
    names = sorted({name for graph in saved.meta_graphs for name in _effects(graph)})
    if names:
        raise ValueError(
            f"The SavedModel {directory} does more than compute: its operations {', '.join(names)} could reach files, "
            "the network or the process that it runs in. Take it only from someone you trust."
        )


def _effects(meta_graph):
    """Names of the operations that are not allowed where they are."""
    graph = _Graph(meta_graph.graph_def)
    outputs = [
        tensor.name
        for signature in meta_graph.signature_def.values()
        for tensor in _tensors(signature.outputs.values())
    ]
    named = [name for collection in meta_graph.collection_def.values() for name in collection.node_list.value]
    run = graph.reached_from([*outputs, *named], meta_graph.object_graph_def.concrete_functions)
    restored = graph.reached_from([meta_graph.saver_def.restore_op_name], ())
    found = {op for op in graph.operations(run) if not graph.only_computes(op)}
    found |= {op for op in graph.operations(restored) if not graph.only_computes(op) and op not in _RESTORING}
    return found | {op for op in graph.operations() if not graph.only_computes(op) and op not in _SAVING}


def _tensors(infos):
    """The tensors that make up a signature's outputs: dense, sparse or composite."""
    for info in infos:
        kind = info.WhichOneof("encoding")
        if kind == "coo_sparse":
            sparse = info.coo_sparse
            names = (sparse.values_tensor_name, sparse.indices_tensor_name, sparse.dense_shape_tensor_name)
            yield from (type(info)(name=name) for name in names)
        elif kind == "composite_tensor":
            yield from _tensors(info.composite_tensor.components)
        else:
            yield info


class _Graph:
    """Nodes and functions of a GraphDef by name, and what each of them needs."""

    def __init__(self, graph_def):
        self._nodes = {node.name: [node] for node in graph_def.node}
        self._functions = {function.signature.name: function.node_def for function in graph_def.library.function}

    def reached_from(self, nodes, functions):
        """The nodes and functions that running these could run, as ("node" or "function", name)."""
        waiting = [*(("node", _node_name(name)) for name in nodes), *(("function", name) for name in functions)]
        reached = set()
        while waiting:
            what = waiting.pop()
            if what in reached:
                continue
            reached.add(what)
            for node in self._body(what):
                waiting += [("function", name) for name in (node.op, *_functions_in(node.attr.values()))]
                if what[0] == "node":
                    waiting += [("node", _node_name(name)) for name in node.input]
        return reached

    def operations(self, within=None):
        """Names of the operations in nodes and functions, all of them by default."""
        if within is None:
            within = [*(("node", name) for name in self._nodes), *(("function", name) for name in self._functions)]
        return {node.op for what in within for node in self._body(what)}

    def _body(self, what):
        kind, name = what
        return (self._nodes if kind == "node" else self._functions).get(name, ())

    def only_computes(self, op):
        """Whether an operation, or a function called like an operation, has no effect beyond the graph."""
        from tensorflow.python.framework import op_def_registry

        if op in self._functions:
            return True  # its body is checked by itself
        definition = op_def_registry.get(op)
        if definition is None:
            return False
        if definition.is_stateful:
            return op in _STATEFUL
        if any(family in op for family in _OUTSIDE):
            return False
        return op in _ON_TEXT or not any(_text_arguments(definition))


def _text_arguments(definition):
    """Which of an operation's inputs and options are text with a meaning outside the graph."""
    from tensorflow.core.framework import types_pb2

    yield from (argument.name for argument in definition.input_arg if argument.type == types_pb2.DT_STRING)
    for option in definition.attr:
        if option.type in ("string", "list(string)") and option.name not in _TEXT_OPTIONS:
            yield option.name


def _functions_in(attributes):
    for attribute in attributes:
        for function in (attribute.func, *attribute.list.func):
            if function.name:
                yield function.name
                yield from _functions_in(function.attr.values())


def _node_name(tensor):
    return tensor.removeprefix("^").partition(":")[0]
