"""A SavedModel that does more than compute is refused without being loaded; the usual ones pass."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from serving.graph_safety import check_effects


class Module(tf.Module):
    """Two classes of an image, with something else on the side."""

    def __init__(self, extra, path):
        super().__init__()
        self.weights = tf.Variable(np.ones((4, 2), np.float32))
        self._extra, self._path = extra, path

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 2, 1], tf.float32, name="images")])
    def __call__(self, images):
        self._extra(images, self._path)
        return {"outputs": tf.reshape(images, [-1, 4]) @ self.weights}


def written(extra, directory):
    module = Module(extra, str(directory / "elsewhere"))
    tf.saved_model.save(module, str(directory / "model"), signatures=module.__call__)
    return directory / "model"


def in_a_branch(images, path):
    tf.cond(tf.reduce_sum(images) > 1e9, lambda: tf.io.write_file(path, "x"), lambda: tf.no_op())


def in_a_loop(images, path):
    def body(i):
        tf.io.write_file(path, "x")
        return (i + 1,)

    tf.while_loop(lambda i: i < 1, body, (0,))


# The operations that each is refused for.
EFFECTS = {
    "WriteFile": lambda images, path: tf.io.write_file(path, "x"),
    "ReadFile": lambda images, path: tf.print(tf.io.read_file(path)),
    "MatchingFiles": lambda images, path: tf.io.matching_files(path),
    "PrintV2": lambda images, path: tf.print("x", output_stream=f"file://{path}"),
    "EagerPyFunc": lambda images, path: tf.py_function(lambda: 1.0, [], tf.float32),
    "PyFunc": lambda images, path: tf.numpy_function(lambda: np.float32(1), [], tf.float32),
    "SaveV2": lambda images, path: tf.raw_ops.SaveV2(
        prefix=path, tensor_names=["x"], shape_and_slices=[""], tensors=[images]
    ),
    "RestoreV2": lambda images, path: tf.raw_ops.RestoreV2(
        prefix=path, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32]
    ),
    "MergeV2Checkpoints": lambda images, path: tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[path], destination_prefix=path
    ),
    "TensorDataset": lambda images, path: tf.data.Dataset.from_tensors(images).cache(path).reduce(0, lambda s, x: s),
    "TextLineDataset": lambda images, path: tf.data.TextLineDataset(path).reduce(0, lambda s, x: s),
    "DebugIdentityV2": lambda images, path: tf.raw_ops.DebugIdentityV2(input=images, debug_urls=[f"file://{path}"]),
    "CreateSummaryFileWriter": lambda images, path: tf.raw_ops.CreateSummaryFileWriter(
        writer=tf.raw_ops.SummaryWriter(), logdir=path, max_queue=1, flush_millis=1, filename_suffix=""
    ),
    "DecodeProtoV2": lambda images, path: tf.raw_ops.DecodeProtoV2(
        bytes=["x"], message_type="m", field_names=[], output_types=[], descriptor_source=path
    ),
    "QueueEnqueueV2": lambda images, path: tf.raw_ops.QueueEnqueueV2(
        handle=tf.raw_ops.FIFOQueueV2(component_types=[tf.float32]), components=[images]
    ),
    "Abort": lambda images, path: tf.raw_ops.Abort(error_msg="x"),
    "If|WriteFile": in_a_branch,
    "While|WriteFile": in_a_loop,
}


@pytest.mark.parametrize("name", EFFECTS)
def test_an_operation_with_effects_is_refused_by_name_and_nothing_is_written(tmp_path, name):
    path = written(EFFECTS[name], tmp_path)
    with pytest.raises(ValueError, match=rf"does more than compute: its operations .*({name}).* could reach") as error:
        check_effects(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "elsewhere").exists()


def test_a_graph_that_only_computes_passes(tmp_path):
    def plain(images, path):
        tf.debugging.assert_greater(tf.reduce_sum(images), -1e9)
        tf.random.normal([2])
        tf.map_fn(lambda image: image * 2, images)

    check_effects(written(plain, tmp_path))


def test_exports_of_keras_and_of_this_library_pass(exported, tmp_path):
    check_effects(exported)
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.BatchNormalization()(keras.layers.RandomFlip()(keras.layers.Resizing(4, 4)(inputs)))
    outputs = keras.layers.Dense(3)(keras.layers.Dropout(0.5)(keras.layers.Flatten()(outputs)))
    keras.Model(inputs, outputs).export(tmp_path / "model", verbose=False)
    check_effects(tmp_path / "model")


def altered(directory, change):
    """The SavedModel in `directory` with `change` made to its graph."""
    file = directory / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(saved.meta_graphs[0])
    file.write_bytes(saved.SerializeToString())
    return directory


def as_initializer(graph):
    graph.signature_def["__saved_model_init_op"].outputs[
        "__saved_model_init_op"
    ].name = graph.saver_def.save_tensor_name


def in_a_collection(graph):
    graph.collection_def["table_initializer"].node_list.value.append(graph.saver_def.save_tensor_name)


def as_restoring(graph):
    graph.saver_def.restore_op_name = graph.saver_def.save_tensor_name.partition(":")[0]


def behind_a_signature(graph):
    output = graph.signature_def["serving_default"].outputs["outputs"].name.partition(":")[0]
    node = next(node for node in graph.graph_def.node if node.name == output)
    node.input.append("^" + graph.saver_def.save_tensor_name.partition(":")[0])


def as_a_function(graph):
    names = [function.signature.name for function in graph.graph_def.library.function]
    graph.object_graph_def.concrete_functions[next(name for name in names if "traced_save" in name)].SetInParent()


def unknown(graph):
    graph.graph_def.node.add(name="strange", op="StrangeOp")


def unreached(graph):
    graph.graph_def.node.add(name="calls_the_host", op="XlaHostCompute")


ALTERATIONS = {
    as_initializer: "SaveV2",
    in_a_collection: "SaveV2",
    as_restoring: "SaveV2",
    behind_a_signature: "SaveV2",
    as_a_function: "SaveV2",
    unknown: "StrangeOp",
    unreached: "XlaHostCompute",
}


@pytest.mark.parametrize("change", ALTERATIONS)
def test_the_saver_may_not_be_turned_on_other_files(tmp_path, change):
    path = written(lambda images, path: None, tmp_path)
    check_effects(path)
    with pytest.raises(ValueError, match=rf"its operations .*{ALTERATIONS[change]}"):
        check_effects(altered(path, change))


def test_what_is_no_saved_model_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"is not a SavedModel: cannot read saved_model\.pb \(No such file"):
        check_effects(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\xff" * 50)
    with pytest.raises(ValueError, match=r"its saved_model\.pb is damaged"):
        check_effects(tmp_path)
    (tmp_path / "saved_model.cpb").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds saved_model\.cpb, which may be a different graph"):
        check_effects(tmp_path)
