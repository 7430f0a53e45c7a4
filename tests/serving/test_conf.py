"""The model server's configuration: each file parsed by its message, and the health check run."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from tests.serving import threshold_model
from tests.serving.model_server import ModelServer

CONF = Path(__file__).resolve().parents[2] / "serving" / "conf"
_FIELD = descriptor_pb2.FieldDescriptorProto
_INT64, _BOOL = ".google.protobuf.Int64Value", _FIELD.TYPE_BOOL


@pytest.fixture(scope="module")
def messages():
    """BatchingParameters and MonitoringConfig, which tensorflow-serving-api leaves out.

    Fields as in session_bundle_config.proto and monitoring_config.proto of TensorFlow Serving.
    """
    fields = {
        "BatchingParameters": [
            ("max_batch_size", 1, _INT64), ("batch_timeout_micros", 2, _INT64), ("max_enqueued_batches", 3, _INT64),
            ("num_batch_threads", 4, _INT64), ("thread_pool_name", 5, ".google.protobuf.StringValue"),
            ("pad_variable_length_inputs", 7, _BOOL),
            ("enable_large_batch_splitting", 8, ".google.protobuf.BoolValue"),
            ("max_execution_batch_size", 9, _INT64),
        ],
        "PrometheusConfig": [("enable", 1, _BOOL), ("path", 2, _FIELD.TYPE_STRING)],
        "MonitoringConfig": [("prometheus_config", 1, ".conf_test.PrometheusConfig")],
    }  # fmt: skip
    file = descriptor_pb2.FileDescriptorProto(name="conf_test.proto", package="conf_test", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for message, members in fields.items():
        added = file.message_type.add(name=message)
        for name, number, kind in members:
            field = added.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL)
            if isinstance(kind, str):
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, kind
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"conf_test.{name}"))
        for name in ("BatchingParameters", "MonitoringConfig")
    }


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((CONF / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def service(compose):
    (service,) = compose["services"].values()
    return service


@pytest.fixture(scope="module")
def models():
    parsed = text_format.Parse((CONF / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    return parsed.model_config_list.config


def test_one_model_by_its_highest_version(models):
    (model,) = models
    assert (model.name, model.base_path, model.model_platform) == ("classifier", "/models/classifier", "tensorflow")
    assert model.model_version_policy.WhichOneof("policy_choice") == "latest"
    assert model.model_version_policy.latest.num_versions == 1


def test_batching_parameters_are_what_the_server_accepts(messages):
    parsed = text_format.Parse((CONF / "batching.config").read_text(), messages["BatchingParameters"]())
    values = [getattr(parsed, name).value for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads")]
    assert all(value >= 1 for value in values)
    assert parsed.batch_timeout_micros.value >= 0


def test_monitoring_is_on_and_compose_mounts_it(messages, service):
    parsed = text_format.Parse((CONF / "monitoring.config").read_text(), messages["MonitoringConfig"]())
    assert parsed.prometheus_config.enable
    assert parsed.prometheus_config.path.startswith("/")
    assert "--monitoring_config_file=/config/monitoring.config" in service["command"]


def test_a_misspelt_field_would_not_pass(messages):
    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batch_sise { value: 8 }", messages["BatchingParameters"]())


def test_batching_is_off(service):
    assert not [argument for argument in service["command"] if "batching" in argument]


def test_the_server_may_write_nothing_and_is_not_root(service):
    assert service["read_only"] is True
    assert service["user"].split(":")[0] not in ("0", "root")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] == service["memswap_limit"] == "${MACER_SERVING_MEMORY:-4g}"
    assert 0 < service["pids_limit"] <= 4096
    assert all(volume["read_only"] for volume in service["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_every_file_named_is_mounted_and_there(service, models):
    targets = {volume["target"]: volume["source"] for volume in service["volumes"]}
    named = [argument.split("=")[1] for argument in service["command"] if "_config_file=" in argument]
    assert len(named) == 2
    for name in named:
        assert (CONF / targets[name]).is_file()
    assert models[0].base_path in targets


def test_the_image_is_of_the_tensorflow_that_exports(service):
    pinned = (CONF.parents[1] / "requirements.txt").read_text().splitlines()
    (version,) = [line.split("==")[1] for line in pinned if line.startswith("tensorflow==")]
    chosen, default = re.fullmatch(r"\$\{(\w+):-(.+)\}", service["image"]).groups()
    name, tag = default.split(":")
    assert (chosen, name) == ("MACER_SERVING_IMAGE", "tensorflow/serving")
    assert tag.split(".")[:2] == version.split(".")[:2]


def test_the_health_check_tells_a_server_that_serves_from_one_that_does_not(service, tmp_path):
    program, option, command = service["healthcheck"]["test"][1:]
    assert (service["healthcheck"]["test"][0], program, option) == ("CMD", "bash", "-c")

    def healthy(port):
        here = command.replace("127.0.0.1/8501", f"127.0.0.1/{port}")
        assert here != command
        return subprocess.run([program, option, here], capture_output=True, timeout=30).returncode == 0

    threshold_model.write(tmp_path / "model")
    with ModelServer(tmp_path / "model") as server:
        port = int(server.rest_url.rsplit(":", 1)[1])
        assert healthy(port)
        server.state = "LOADING"
        assert not healthy(port)
        server.model = "other"
        assert not healthy(port)
    assert not healthy(port)
