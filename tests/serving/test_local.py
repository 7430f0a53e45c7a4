"""The small server as a command and by hand: what it serves, what it refuses, and that it says so in one line."""

import http.client
import json
import shutil
import signal
import socket
import threading
import urllib.request

import grpc
import numpy as np
import pytest
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving import local, rest_format
from serving.client import RefusedError, RestClient
from serving.local import LocalServer
from serving.terminal import printable
from serving.versions import versions
from tests.serving import threshold_model
from tests.serving.model_server import wait_until

IMAGE = np.ones((1, 2, 2, 1), np.float32)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base with the versions 1 and 3; its name is one that TensorFlow would take for a pattern."""
    base = tmp_path_factory.mktemp("base") / "models [old]"
    base.mkdir()
    threshold_model.write(base / "3")
    shutil.copytree(base / "3", base / "1")
    return base


@pytest.fixture(scope="module")
def server(base):
    with LocalServer(base / "3", "digits", 3) as server:
        yield server


@pytest.fixture(scope="module")
def ask(server):
    """A function: method, path, body and headers -> status and JSON value."""

    def ask(method, path, body=None, **headers):
        connection = http.client.HTTPConnection(server.rest_url.removeprefix("http://"), timeout=30)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    return ask


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def test_its_health_is_told_as_tensorflow_serving_tells_it(ask):
    available = {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("", "/versions/3"):
        assert ask("GET", f"/v1/models/digits{path}") == (200, {"model_version_status": [available]})


def test_its_metadata_are_the_signatures(ask):
    status, told = ask("GET", "/v1/models/digits/metadata")
    assert (status, told["model_spec"]) == (200, {"name": "digits", "signature_name": "", "version": "3"})
    signatures = told["metadata"]["signature_def"]["signature_def"]
    assert {"serving_default", "certify_custom", "predict"} <= signatures.keys()
    default = signatures["serving_default"]
    assert default["inputs"]["images"]["dtype"] == "DT_FLOAT"
    sizes = [dim["size"] for dim in default["inputs"]["images"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "2", "2", "1"]
    assert set(default["outputs"]) == {"predicted_class", "radius", "p_lower", "votes", "seed"}
    assert default["method_name"] == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/", 404, "Malformed request: GET /"),
        ("GET", "/v1/models/digits:predict", 404, "Malformed request: GET"),
        ("POST", "/v1/models/digits", 404, "Malformed request: POST"),
        ("GET", "/v1/models/other", 404, "Servable not found for request: Latest(other)"),
        ("GET", "/v1/models/digits/versions/1", 404, "Servable not found for request: Specific(digits, 1)"),
        ("GET", "/v1/models/digits/labels/a/metadata", 404, "Servable not found for request: Latest(digits, a)"),
        ("GET", f"/v1/models/digits/versions/{2**63}", 404, "Servable not found for request"),
        ("PUT", "/v1/models/digits", 501, "Unsupported method ('PUT')"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(ask, method, path, status, said):
    told = ask(method, path, b"{}" if method == "POST" else None)
    assert told[0] == status
    assert told[1].keys() == {"error"}
    assert told[1]["error"].startswith(said)


ROWS = [[[0.0], [1.0]], [[1.0], [1.0]]]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "JSON Parse error"),
        (b"[" * 100_000, "JSON Parse error"),
        (b"[]", "JSON Value: expected an object with either 'instances' or 'inputs'"),
        (b"{}", "JSON Value: expected an object"),
        (b'{"inputs": [], "instances": []}', "JSON Value: expected an object"),
        (b'{"inputs": [], "signature_name": 3}', "JSON Value: 'signature_name' must be text"),
        (b'{"inputs": [], "signature_name": "\\ud800"}', "JSON Value: 'signature_name' must be text"),
        (b'{"inputs": [], "signature_name": "x"}', 'Serving signature name: "x" not found'),
        (b'{"instances": []}', "JSON Value: the inputs are not a list"),
        (b'{"instances": 3}', "JSON Value: the inputs are not a list"),
        (b'{"instances": [{"images": 1}, {}]}', "JSON Value: the inputs are not a list"),
        (b'{"inputs": {"image": []}}', "Missing named input: images in 'inputs' object"),
        (b'{"inputs": {"images": [], "n": 1}}', "Unknown named input: n in 'inputs' object"),
        (b'{"inputs": [[1], [1, 2]]}', "JSON Value: images must be a list of float32"),
        (b'{"inputs": ["1"]}', "JSON Value: images must be a list of float32"),
        (b'{"inputs": [true]}', "JSON Value: images must be a list of float32"),
        (b'{"inputs": null}', "JSON Value: images must be a list of float32"),
        (b'{"inputs": [[[[2], [0]], [[0], [0]]]]}', "assertion failed: [images must be finite"),
        (b'{"inputs": [0.5]}', ""),
    ],
)
def test_a_request_that_is_none_is_refused_and_the_next_one_answered(ask, body, said):
    status, told = ask("POST", "/v1/models/digits:predict", body)
    assert (status, told.keys()) == (400, {"error"})
    assert told["error"].startswith(said)
    assert ask("POST", "/v1/models/digits:predict", json.dumps({"inputs": [ROWS]}))[0] == 200


@pytest.mark.parametrize("length", [None, "-1", "x", str(2**40), "1e3"])
def test_a_body_without_end_is_not_waited_for(server, length):
    with socket.create_connection(server.rest_url.removeprefix("http://").split(":"), timeout=30) as connection:
        header = "" if length is None else f"Content-Length: {length}\r\n"
        connection.sendall(f"POST /v1/models/digits:predict HTTP/1.1\r\nHost: a\r\n{header}\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"A request must have a Content-Length of at most 268,435,456 bytes." in answer


def test_a_shape_that_a_few_bytes_declare_is_refused_before_it_is_filled(server):
    """In a tensor's message one value may stand for all."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    tensor = request.inputs["images"]
    tensor.dtype = types_pb2.DT_FLOAT
    for size in (10**8, 2, 2, 1):
        tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.append(0.5)
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Predict(request, timeout=30)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "A request's tensors must take at most 268,435,456 bytes."


def test_rows_and_columns_are_answered_alike(ask):
    """Mean pixels 0.75 and 0: classes 1 and 0."""
    images = [ROWS, [[[0], [0]], [[0], [0]]]]
    for named in (images, {"images": images}):
        _, told = ask("POST", "/v1/models/digits:predict", json.dumps({"inputs": named}))
        assert told["outputs"]["predicted_class"] == [1, 0]
    for named in (images, [{"images": image} for image in images]):
        _, told = ask("POST", "/v1/models/digits:predict", json.dumps({"instances": named}))
        assert [row["predicted_class"] for row in told["predictions"]] == [1, 0]
        assert told["predictions"][0]["votes"] == [250, 750]


def test_an_output_that_is_the_only_one_and_text_are_written_as_tensorflow_serving_writes_them():
    text = np.array([b'{"a": "\xc3\xa9"}'], object)
    assert json.loads(rest_format.body_of({"card": text}, False)) == {"outputs": ['{"a": "é"}']}
    assert json.loads(rest_format.body_of({"card": text}, True)) == {"predictions": ['{"a": "é"}']}
    both = {"a": np.array([[1, 2]]), "b": np.array([0.1], np.float32)}
    assert json.loads(rest_format.body_of(both, False)) == {"outputs": {"a": [[1, 2]], "b": [0.1]}}
    assert json.loads(rest_format.body_of(both, True)) == {"predictions": [{"a": [1, 2], "b": 0.1}]}
    request = rest_format.request_of(b'{"inputs": ["x"]}')
    assert rest_format.inputs_of(request, {"query": np.dtype(object)})["query"].tolist() == ["x"]


def test_what_cannot_be_loaded_is_told_in_one_line(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be loaded \\(") as error:
        LocalServer(tmp_path)
    assert "\n" not in str(error.value)


def test_the_command_serves_the_highest_version_until_ctrl_c(base, capsys, monkeypatch):
    ports = free_ports(2)
    answers = []

    def look_and_interrupt():
        try:
            url = f"http://127.0.0.1:{ports[1]}"

            def is_up():
                try:
                    with urllib.request.urlopen(f"{url}/v1/models/digits", timeout=5) as status:
                        return b"AVAILABLE" in status.read()
                except OSError:
                    return False

            wait_until(is_up)
            answers.append(RestClient(url, "digits", version=3).certify(IMAGE).predictions.tolist())
            with pytest.raises(RefusedError):
                RestClient(url, "digits", version=1).certify(IMAGE)
        finally:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=look_and_interrupt)
    thread.start()
    options = ["--name", "digits", "--port", str(ports[0]), "--rest_port", str(ports[1])]
    assert local.main([str(base), *options]) == 130
    thread.join()
    assert answers == [[1]]
    out, err = capsys.readouterr()
    assert err == "\nInterrupted. The model is no longer served.\n"
    assert f"Loading {versions(base)[-1]} ..." in out
    assert "Version 3 is served as digits until Ctrl-C; not for production." in out
    assert f"gRPC:     127.0.0.1:{ports[0]}\n" in out
    assert f"http://127.0.0.1:{ports[1]}/v1/models/digits:predict" in out
    assert "Everybody" not in out
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[1]), timeout=5)


@pytest.mark.parametrize("which", ["--port", "--rest_port"])
def test_a_port_that_is_taken_is_told_in_one_line(base, capsys, which):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = "--rest_port" if which == "--port" else "--port"
        assert local.main([str(base), which, str(port), other, "0"]) == 2
    err = capsys.readouterr().err
    assert err == f"error: Cannot listen on 127.0.0.1:{port} (Address already in use); give another port.\n"


@pytest.mark.parametrize("host", ["host.invalid", "192.0.2.1", "\udcff"])
def test_an_address_of_another_machine_is_told_as_one(base, capsys, host):
    assert local.main([str(base), "--host", host, "--port", "0", "--rest_port", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: Cannot listen on {printable(host)}:0 (")
    assert line.endswith("); give another host, an address of this machine.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: base; see python -m serving.local --help"),
        (["absent"], "There is no directory absent; give the one that a run or serving.publish published to."),
        (["."], "There is no version in .; give the directory that versions are published to."),
        (["BASE", "--port", "65536"], "argument --port: must be a port, 0 to 65535. Received: '65536'; see"),
        (["BASE", "--rest_port", "x"], "argument --rest_port: must be a port, 0 to 65535. Received: 'x'; see"),
        ([""], "base must not be empty. Received: ''; see python -m serving"),
        (["BASE", "--port", "8500", "--port", "8500"], "--port is given twice; give it once; see python -m serving"),
        (["odd"], "A model server takes 'odd/007' for version 7; rename it."),
    ],
)
def test_bad_input_is_one_line(base, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd" / "007").mkdir(parents=True)
    assert local.main([argument.replace("BASE", str(base)) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_a_graph_that_does_more_than_compute_is_served_on_trust_alone(tmp_path, capsys):
    import tensorflow as tf

    class Writing(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, names):
            with tf.control_dependencies([tf.io.write_file(names[0], "x")]):
                return tf.size(names)

    module = Writing()
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=module.__call__)
    assert local.main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "its operations WriteFile could reach files" in err
    assert err.endswith("--trust_model serves it anyway.\n")
    assert err.count("\n") == 1
