"""The server's configuration, as far as it can be read without the server."""

import pathlib

import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

CONFIGURATION = pathlib.Path(__file__).parents[2] / "tools" / "serving"
Field = descriptor_pb2.FieldDescriptorProto
_NUMBER = (Field.TYPE_MESSAGE, ".google.protobuf.Int64Value")
# Of messages that are in TF Serving's sources but in no package: session_bundle_config.proto and
# monitoring_config.proto.
_MESSAGES = {
    "BatchingParameters": {
        "max_batch_size": _NUMBER,
        "batch_timeout_micros": _NUMBER,
        "max_enqueued_batches": _NUMBER,
        "num_batch_threads": _NUMBER,
        "allowed_batch_sizes": (Field.TYPE_INT64, None),
        "pad_variable_length_inputs": (Field.TYPE_BOOL, None),
    },
    "PrometheusConfig": {"enable": (Field.TYPE_BOOL, None), "path": (Field.TYPE_STRING, None)},
    "MonitoringConfig": {"prometheus_config": (Field.TYPE_MESSAGE, ".PrometheusConfig")},
}


def parsed(file, message):
    return text_format.Parse((CONFIGURATION / file).read_text(), message)


@pytest.fixture(scope="module")
def server_message():
    """`server_message(name)`: an empty message of those above."""
    file = descriptor_pb2.FileDescriptorProto(
        name="serving.proto", syntax="proto3", dependency=[wrappers_pb2.DESCRIPTOR.name]
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, (kind, type_name)) in enumerate(fields.items(), 1):
            repeated = field == "allowed_batch_sizes"
            label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            message.field.add(
                name=field, number=number, type=kind, type_name=type_name, label=label
            )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))()


def test_models():
    config = parsed("models.config", model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path) == ("ranking", "/models/ranking")
    assert model.model_version_policy.latest.num_versions == 2


def test_batching(server_message):
    """The server asks that the last size is the largest batch, and that sizes increase."""
    config = parsed("batching.config", server_message("BatchingParameters"))
    sizes = list(config.allowed_batch_sizes)
    assert sizes == sorted(set(sizes)) and sizes[-1] == config.max_batch_size.value
    assert not config.pad_variable_length_inputs


def test_monitoring(server_message):
    config = parsed("monitoring.config", server_message("MonitoringConfig"))
    assert config.prometheus_config.enable
    assert config.prometheus_config.path in (CONFIGURATION / "README.md").read_text()


def test_compose():
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((CONFIGURATION / "compose.yaml").read_text())["services"]
    assert sorted(services) == ["cpu", "gpu"]
    for service in services.values():
        assert service["ports"] == ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]
        assert any(volume.endswith(":/models/ranking:ro") for volume in service["volumes"])
        for flag in service["command"]:
            _, _, file = flag.partition("=/config/")
            assert not file or (CONFIGURATION / file).exists()
