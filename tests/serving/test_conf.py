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
# Of KServe's InferenceService (serving.kserve.io/v1beta1) and of the Kubernetes types in it: fields that it may have
# and their types, a list of one for lists of it; those with a star must be there.
_QUANTITIES = {"cpu": str, "memory": str}
_INFERENCE_SERVICE = {
    "apiVersion*": str,
    "kind*": str,
    "metadata*": {"name*": str, "namespace": str, "labels": dict, "annotations": dict},
    "spec*": {
        "predictor*": {
            "minReplicas": int, "maxReplicas": int, "timeout": int, "containerConcurrency": int,
            "serviceAccountName": str, "automountServiceAccountToken": bool,
            "volumes": [{"name*": str, "emptyDir": {"medium": str, "sizeLimit": str}}],
            "model": {
                "modelFormat*": {"name*": str, "version": str},
                "protocolVersion": str, "runtime": str, "runtimeVersion": str, "storageUri": str, "args": [str],
                "ports": [{"containerPort*": int, "name": str, "protocol": str}],
                "resources": {"requests": _QUANTITIES, "limits": _QUANTITIES},
                "securityContext": {
                    "runAsNonRoot": bool, "runAsUser": int, "readOnlyRootFilesystem": bool,
                    "allowPrivilegeEscalation": bool, "capabilities": {"drop": [str], "add": [str]},
                    "seccompProfile": {"type*": str},
                },
                "volumeMounts": [{"name*": str, "mountPath*": str, "readOnly": bool}],
            },
        }
    },
}  # fmt: skip
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
def inference_service():
    return yaml.safe_load((CONF / "inference_service.yml").read_text())


def differences(value, schema, where=""):
    """Where a YAML value is not as the schema has it."""
    if isinstance(schema, list):
        items = value if isinstance(value, list) else [None]
        return [found for i, item in enumerate(items) for found in differences(item, schema[0], f"{where}[{i}]")]
    if not isinstance(schema, dict):
        return [] if type(value) is schema else [where]
    if not isinstance(value, dict):
        return [where]
    fields = {name.removesuffix("*"): of for name, of in schema.items()}
    missing = [f"{where}.{name[:-1]}" for name in schema if name.endswith("*") and name[:-1] not in value]
    unknown = [f"{where}.{name}" for name in value.keys() - fields.keys()]
    for name in value.keys() & fields.keys():
        missing += differences(value[name], fields[name], f"{where}.{name}")
    return missing + unknown


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


def test_the_inference_service_is_as_kserve_has_it(inference_service):
    assert (inference_service["apiVersion"], inference_service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    assert differences(inference_service, _INFERENCE_SERVICE) == []
    model = inference_service["spec"]["predictor"]["model"]
    assert (model["modelFormat"]["name"], model["protocolVersion"]) == ("tensorflow", "v1")
    quantities = [value for of in model["resources"].values() for value in of.values()]
    assert all(re.fullmatch(r"[0-9]+(m|[KMG]i)?", value) for value in quantities)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [("storageUri", "storageURI", ".spec.predictor.model.storageURI"),
     ("maxReplicas: 1", 'maxReplicas: "1"', ".spec.predictor.maxReplicas"),
     ("        name: tensorflow\n", "        {}\n", ".spec.predictor.model.modelFormat.name"),
     ("[ALL]", "ALL", ".spec.predictor.model.securityContext.capabilities.drop[0]")],
)  # fmt: skip
def test_an_inference_service_that_is_none_would_not_pass(old, new, where):
    text = (CONF / "inference_service.yml").read_text()
    assert text.count(old) == 1
    assert differences(yaml.safe_load(text.replace(old, new)), _INFERENCE_SERVICE) == [where]


def test_the_inference_service_serves_what_compose_serves_and_may_as_little(inference_service, service, models):
    predictor = inference_service["spec"]["predictor"]
    model = predictor["model"]
    assert inference_service["metadata"]["name"] == models[0].name
    assert model["storageUri"].endswith(models[0].base_path.removeprefix("/models"))
    tag = re.fullmatch(r"\$\{\w+:-.+:(.+)\}", service["image"])[1]
    assert model["runtimeVersion"] == tag
    assert set(model["args"]) < set(service["command"])
    allowed = model["securityContext"]
    assert allowed["runAsNonRoot"] is allowed["readOnlyRootFilesystem"] is True
    assert allowed["allowPrivilegeEscalation"] is predictor["automountServiceAccountToken"] is False
    assert f"{allowed['runAsUser']}" == service["user"].split(":")[0]
    assert allowed["capabilities"] == {"drop": ["ALL"]}
    assert {mount["name"] for mount in model["volumeMounts"]} == {volume["name"] for volume in predictor["volumes"]}


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
