"""The model server's configuration, read as it reads them, and the health check run as Docker runs it."""

import subprocess
from pathlib import Path

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from tests.serving import threshold_model
from tests.serving.model_server import ModelServer

CONF = Path(__file__).resolve().parents[2] / "serving" / "conf"
FIELD = descriptor_pb2.FieldDescriptorProto


def message_type(name, messages):
    """A message class from what its .proto declares: message -> [(field, scalar type or message)].

    For those which tensorflow-serving-api leaves out.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="tensorflow.serving", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for message, fields in messages.items():
        declared = file.message_type.add(name=message)
        for number, (field, kind) in enumerate(fields, start=1):
            scalar = isinstance(kind, int)
            added = declared.field.add(name=field, number=number, label=FIELD.LABEL_OPTIONAL)
            added.type = kind if scalar else FIELD.TYPE_MESSAGE
            if not scalar:
                added.type_name = kind
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))


def compose():
    return yaml.safe_load((CONF / "docker-compose.yml").read_text())["services"]["model_server"]


def models():
    config = model_server_config_pb2.ModelServerConfig()
    return text_format.Parse((CONF / "models.config").read_text(), config).model_config_list.config


def test_one_model_is_served_in_its_highest_version():
    (model,) = models()
    assert (model.name, model.base_path, model.model_platform) == ("classifier", "/models/classifier", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 1


def test_batching_is_off_and_never_larger_than_a_model_takes():
    """The fields of tensorflow_serving/servables/tensorflow/session_bundle_config.proto."""
    wrapped = ".google.protobuf.Int64Value"
    parameters = message_type(
        "BatchingParameters",
        {"BatchingParameters": [
            ("max_batch_size", wrapped), ("batch_timeout_micros", wrapped), ("max_enqueued_batches", wrapped),
            ("num_batch_threads", wrapped),
        ]},
    )  # fmt: skip
    batching = text_format.Parse((CONF / "batching.config").read_text(), parameters())
    assert batching.max_batch_size.value == 128
    assert batching.HasField("batch_timeout_micros")
    assert batching.batch_timeout_micros.value == 0
    # The server refuses to start with the one and not the other.
    assert not [flag for flag in compose()["command"] if "batching" in flag]


def test_metrics_are_on():
    """The fields of tensorflow_serving/config/monitoring_config.proto."""
    monitoring = message_type(
        "MonitoringConfig",
        {"PrometheusConfig": [("enable", FIELD.TYPE_BOOL), ("path", FIELD.TYPE_STRING)],
         "MonitoringConfig": [("prometheus_config", ".tensorflow.serving.PrometheusConfig")]},
    )  # fmt: skip
    config = text_format.Parse((CONF / "monitoring.config").read_text(), monitoring())
    assert config.prometheus_config.enable
    assert config.prometheus_config.path.startswith("/monitoring/")


def test_what_the_container_is_told_is_there():
    service = compose()
    repository, tag = service["image"].split(":")
    assert repository == "tensorflow/serving"
    assert all(part.isdecimal() for part in tag.split(".")), "pinned"
    mounts = [volume.rsplit(":", 2) for volume in service["volumes"]]
    assert {mode for *_, mode in mounts} == {"ro"}
    assert models()[0].base_path in {target for _, target, _ in mounts}
    for flag in service["command"]:
        name, value = flag.removeprefix("--").split("=")
        if name.endswith("_file"):
            assert (CONF / Path(value).relative_to("/conf")).is_file()
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served") / "saved_model"
    threshold_model.save(directory)
    with ModelServer(directory) as running:
        yield running


@pytest.mark.parametrize(("versions", "healthy"), [((1, 2), True), ((), False)])
def test_healthy_is_who_has_a_version(server, versions, healthy):
    server.versions = versions
    port = server.rest_url.rsplit(":", 1)[1]
    kind, *command = [word.replace("8501", port) for word in compose()["healthcheck"]["test"]]
    assert kind == "CMD"
    assert (subprocess.run(command, timeout=30).returncode == 0) == healthy


def test_unhealthy_is_where_nobody_listens():
    command = [word.replace("8501", "1") for word in compose()["healthcheck"]["test"][1:]]
    process = subprocess.run(command, timeout=30, capture_output=True)
    assert process.returncode == 1
