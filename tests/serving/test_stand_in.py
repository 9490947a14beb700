"""The stand-in for TF Serving answers as the real server's protos and sources say."""

import http.client
import json
import shutil
import types

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from tfrec_diffusion.serving import stand_in
from tfrec_diffusion.serving.stand_in_server import StandIn


class Doubler(tf.Module):
    """`serving_default`: x by a factor, and how many; `join`: its one output is not named in REST;
    `half`: an output of a type that JSON has not, and `whole`: such an input; `both`: several
    outputs of each row, of which one is bytes."""

    def __init__(self, factor):
        super().__init__()
        self.factor = tf.Variable(factor, dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, name="x")])
    def scale(self, x):
        return {"scaled": self.factor * x, "rows": tf.shape(x)[0]}

    @tf.function(
        input_signature=[
            tf.TensorSpec((None,), tf.string, name="text"),
            tf.TensorSpec((None,), tf.int64, name="number"),
        ]
    )
    def join(self, text, number):
        tf.debugging.assert_greater_equal(number, tf.constant(-1, tf.int64), "too small")
        return {"length": tf.strings.length(text) + tf.cast(number % 10, tf.int32)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, name="x")])
    def half(self, x):
        return {"half": tf.cast(x, tf.bfloat16)}

    @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, name="x")])
    def both(self, x):
        name = tf.fill(tf.shape(x)[:1], b"\xff")
        scaled = self.factor * x
        return {"scaled": scaled, "sum": tf.reduce_sum(scaled, axis=1), "name_bytes": name}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.bfloat16, name="half")])
    def whole(self, half):
        return {"x": tf.cast(half, tf.float32)}


def save(factor, directory, warm_up=()):
    model = Doubler(factor)
    signatures = {"serving_default": model.scale, "join": model.join}
    signatures |= {"half": model.half, "whole": model.whole, "both": model.both}
    tf.saved_model.save(model, str(directory), signatures)
    if warm_up:
        (directory / "assets.extra").mkdir()
        with tf.io.TFRecordWriter(
            str(directory / "assets.extra" / "tf_serving_warmup_requests")
        ) as writer:
            for request in warm_up:
                log = prediction_log_pb2.PredictionLog()
                log.predict_log.request.CopyFrom(request)
                writer.write(log.SerializeToString())


def predict_request(signature="", version=None, model="doubler", **inputs):
    request = predict_pb2.PredictRequest(
        inputs={name: tf.make_tensor_proto(value) for name, value in inputs.items()}
    )
    request.model_spec.name, request.model_spec.signature_name = model, signature
    if version is not None:
        request.model_spec.version.value = version
    return request


X = np.array([[1, 2]], "f")


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Version 2 doubles, version 10 multiplies by ten; the rest is not a version."""
    directory = tmp_path_factory.mktemp("doubler")
    save(2.0, directory / "2", warm_up=[predict_request(x=X)])
    save(10.0, directory / "10")
    (directory / "incomplete.11").mkdir()
    return directory


@pytest.fixture(scope="module")
def server(versions):
    with StandIn({"doubler": versions}) as server:
        yield server


@pytest.fixture(scope="module")
def service(server):
    with grpc.insecure_channel(server.address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def rest(server):
    """`rest(path, body)`: status and decoded answer; a body that is bytes goes as it is."""
    connection = http.client.HTTPConnection(server.rest_address)

    def ask(path, body=None):
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body)
        connection.request("GET" if body is None else "POST", path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    yield ask
    connection.close()


def test_the_newest_version_by_number_answers(service):
    answer = service.Predict(predict_request(x=X))
    assert tf.make_ndarray(answer.outputs["scaled"]).tolist() == [[10, 20]]
    assert tf.make_ndarray(answer.outputs["rows"]) == 1
    assert answer.model_spec.version.value == 10
    assert answer.model_spec.signature_name == "serving_default"


def test_a_version_may_be_asked_for(service):
    answer = service.Predict(predict_request(x=X, version=2))
    assert tf.make_ndarray(answer.outputs["scaled"]).tolist() == [[2, 4]]


def test_only_the_outputs_asked_for(service):
    request = predict_request(x=X)
    request.output_filter.append("rows")
    assert list(service.Predict(request).outputs) == ["rows"]


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (predict_request(x=X, model="other"), "NOT_FOUND", "other"),
        (predict_request(x=X, version=3), "NOT_FOUND", "Specific(doubler, 3)"),
        (predict_request("absent", x=X), "FAILED_PRECONDITION", '"absent" not found'),
        (predict_request(), "INVALID_ARGUMENT", "Missing but required: ['x']"),
        (predict_request(x=X, y=X), "INVALID_ARGUMENT", "Sent extra: ['y']"),
        (predict_request(x=[[1, 2]]), "INVALID_ARGUMENT", "x is expected to be float32 but int32"),
        (predict_request(x=X[0]), "INVALID_ARGUMENT", "x is expected to have the shape (None, 2)"),
        (predict_request("join", text=["a"], number=tf.constant([-2], tf.int64)),
         "INVALID_ARGUMENT", "too small"),
    ],
)  # fmt: skip
def test_a_wrong_request_gets_a_code_and_a_reason(service, request_, code, message):
    with pytest.raises(grpc.RpcError) as error:
        service.Predict(request_)
    assert error.value.code().name == code
    assert message in error.value.details()


def test_a_tensor_whose_bytes_do_not_fit_its_shape(service):
    request = predict_request(x=X)
    request.inputs["x"].tensor_content = b"123"
    with pytest.raises(grpc.RpcError) as error:
        service.Predict(request)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "tensor parsing error: x" in error.value.details()


def test_bfloat16_over_grpc(service):
    half = service.Predict(predict_request("half", x=tf.constant([0.5]))).outputs["half"]
    request = predict_request("whole")
    request.inputs["half"].CopyFrom(half)
    assert tf.make_ndarray(service.Predict(request).outputs["x"]).tolist() == [0.5]


def test_metadata_over_both_protocols(service, rest):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "doubler"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    answer = service.GetModelMetadata(request)
    assert answer.metadata["signature_def"].Unpack(signatures)
    x = signatures.signature_def["serving_default"].inputs["x"]
    assert (x.dtype, [dim.size for dim in x.tensor_shape.dim]) == (tf.float32, [-1, 2])
    status, answer = rest("/v1/models/doubler/versions/2/metadata")
    assert (status, answer["model_spec"]["version"]) == (200, "2")
    x = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]["x"]
    assert x["dtype"] == "DT_FLOAT"
    assert x["tensor_shape"]["dim"] == [{"size": "-1"}, {"size": "2"}]


def test_rest_answers_in_columns(rest):
    body = {"inputs": {"x": [[1, 2.5]]}}
    assert rest("/v1/models/doubler:predict", body) == (
        200,
        {"outputs": {"scaled": [[10, 25]], "rows": 1}},
    )
    _, answer = rest("/v1/models/doubler/versions/2:predict", body)
    assert answer["outputs"]["scaled"] == [[2, 5]]


def test_a_single_output_has_no_name_in_rest_and_base64_is_bytes(rest):
    body = {
        "signature_name": "join",
        "inputs": {"text": ["é", {"b64": "/w=="}], "number": [2**53 + 1, 0]},  # ends in 3
    }
    assert rest("/v1/models/doubler:predict", body) == (200, {"outputs": [5, 1]})


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("other:predict", {"inputs": {"x": [[1, 2]]}}, 404, "other"),
        ("doubler/versions/3:predict", {"inputs": {"x": [[1, 2]]}}, 404, "3"),
        ("doubler/labels/new:predict", {"inputs": {"x": [[1, 2]]}}, 400, "label: new"),
        ("doubler:classify", {}, 400, "Malformed"),
        ("doubler/versions/99999999999999999999:predict", {}, 400, "to numeric"),
        ("doubler:predict", b"", 400, "JSON Parse error: The document is empty"),
        ("doubler:predict", b"{", 400, "JSON Parse error"),
        ("doubler:predict", b"[" * 10_000, 400, "JSON Parse error"),
        ("doubler:predict", b"\xff", 400, "JSON Parse error"),
        ("doubler:predict", [1], 400, "JSON Value: [1] Is not object"),
        ("doubler:predict", {"signature_name": 1, "inputs": {}}, 400, "must be a string value"),
        ("doubler:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        ("doubler:predict", {"inputs": [], "instances": []}, 400, "only one of 'inputs' or"),
        ("doubler:predict", {"signature_name": "absent", "inputs": {}}, 400, '"absent" not found'),
        ("doubler:predict", {"inputs": {}}, 400, "Missing named input: x in 'inputs' object."),
        ("doubler:predict", {"inputs": {"x": [[1, 2, 3]]}}, 400, "shape"),
        ("doubler:predict", {"signature_name": "half", "inputs": {"x": [0.5]}}, 400, "bfloat16"),
        (
            "doubler:predict",
            {"signature_name": "whole", "inputs": {"half": [0.5]}},
            501,
            "bfloat16",
        ),
    ],
)
def test_a_wrong_rest_request_gets_a_status_and_a_reason(rest, path, body, status, message):
    given, answer = rest(f"/v1/models/{path}", body)
    assert given == status and message in answer["error"]
    assert rest("/v1/models/doubler:predict", {"inputs": {"x": [[1, 2]]}})[0] == 200


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([["a", 2]], 'JSON Value: "a" Type: String is not of expected type: float'),
        ([[None, 2]], "JSON Value: null Type: Null is not of expected type: float"),
        ([[True, 2]], "JSON Value: true Type: True is not of expected type: float"),
        ([[{"b64": "eA=="}, 2]], 'JSON Value: {"b64": "eA=="} Type: Object is not of expected'),
        ([[1e39, 2]], "Cannot convert JSON value: 1e+39 to float without loss of precision."),
        ([[2**24, 2]], "Cannot convert JSON value: 16777216 to float without loss of precision."),
        ([[1], [1, 2]], "Encountered list at unexpected size: 2 at level: 1 expected size: 1"),
        ([[1, 2], 3], "JSON Value: 3 found at incorrect level: 2. Expected at level: 2"),
        ([[1, 2], [3, [4]]], "Encountered list at unexpected level: 2 expected < 2"),
    ],
    ids=str,
)
def test_ragged_lists_and_wrong_types(rest, x, message):
    for content in ({"inputs": {"x": x}}, {"inputs": x}):
        status, answer = rest("/v1/models/doubler:predict", content)
        assert status == 400 and answer["error"].startswith(f"x: {message}")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (1.0, "JSON Value: 1.0 Type: Number is not of expected type: int64"),
        (2**63, "JSON Value: 9223372036854775808 Type: Number is not of expected type: int64"),
    ],
)
def test_only_integers_are_integers(rest, number, message):
    body = {"signature_name": "join", "inputs": {"text": ["a"], "number": [number]}}
    status, answer = rest("/v1/models/doubler:predict", body)
    assert status == 400 and answer["error"] == f"number: {message}"


@pytest.mark.parametrize("text", [{"b64": "a"}, {"b64": "YQ==", "as": "text"}, {"text": "a"}, 7])
def test_what_is_no_text(rest, text):
    body = {"signature_name": "join", "inputs": {"text": [text], "number": [1]}}
    status, answer = rest("/v1/models/doubler:predict", body)
    assert status == 400 and answer["error"].startswith("text: ")


def test_nan_and_infinity_are_numbers(rest):
    """Which JSON by itself does not know, but the real server and Python do."""
    body = b'{"inputs": {"x": [[Infinity, -Infinity], [NaN, 1e38]]}}'
    _, answer = rest("/v1/models/doubler/versions/2:predict", body)
    first, (nan, large) = answer["outputs"]["scaled"]
    assert first == [np.inf, -np.inf] and np.isnan(nan) and large == pytest.approx(2e38)


# === Rows ===


def test_rows_are_answered_with_rows(rest):
    rows = [{"text": "é", "number": 3}, {"text": {"b64": "/w=="}, "number": 0}]
    body = {"signature_name": "join", "instances": rows}
    assert rest("/v1/models/doubler:predict", body) == (200, {"predictions": [5, 1]})


def test_rows_of_a_single_input_need_no_name(rest):
    for rows in ([[1, 2.5], [3, 4]], [{"x": [1, 2.5]}, {"x": [3, 4]}]):
        body = {"signature_name": "both", "instances": rows}
        assert rest("/v1/models/doubler:predict", body) == (
            200,
            {
                "predictions": [
                    {"scaled": [10, 25], "sum": 35, "name_bytes": {"b64": "/w=="}},
                    {"scaled": [30, 40], "sum": 70, "name_bytes": {"b64": "/w=="}},
                ]
            },
        )


@pytest.mark.parametrize(
    ("signature", "instances", "message"),
    [
        ("join", {}, "Expecting 'instances' to be a list/array"),
        ("join", [], "No values in 'instances' array"),
        ("join", ["a"], "instances is a plain list, but expecting list of objects"),
        (
            "join",
            [{"text": "a"}],
            "element: 0 of 'instances' list: keys must be equal to: number,t",
        ),
        ("join", [{"text": "a", "number": 1, "more": 1}], "keys must be equal to: number,text"),
        ("both", [[1, 2], {"x": [1, 2]}], "Expecting value/list at item 1 of 'instances'"),
        ("both", [{"x": [1, 2]}, [1, 2]], "Expecting object at item 1 of 'instances'"),
        ("both", [[1, 2], [1]], "element: 1 of 'instances' list: x: Expecting shape (2,) but got"),
        ("both", [[1, [2]]], "element: 0 of 'instances' list: x: Encountered list at unexpected"),
        ("both", [[1, "a"]], "element: 0 of 'instances' list: x: JSON Value: \"a\" Type: String"),
        ("serving_default", [[1, 2]], "Tensor name: rows has no shape information"),
    ],
)
def test_wrong_rows_get_a_reason(rest, signature, instances, message):
    body = {"signature_name": signature, "instances": instances}
    status, answer = rest("/v1/models/doubler:predict", body)
    assert status == 400 and message in answer["error"]


# === The state of a model ===


def available(version):
    status = {"error_code": "OK", "error_message": ""}
    return {"version": version, "state": "AVAILABLE", "status": status}


def test_the_state_of_a_model_over_both_protocols(server, rest):
    both = {"model_version_status": [available("10"), available("2")]}
    assert rest("/v1/models/doubler") == (200, both)
    assert rest("/v1/models/doubler/versions/2") == (
        200,
        {"model_version_status": [available("2")]},
    )
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "doubler"
    with grpc.insecure_channel(server.address) as channel:
        answer = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request)
    assert [status.version for status in answer.model_version_status] == [10, 2]
    assert answer.model_version_status[0].state == get_model_status_pb2.ModelVersionStatus.AVAILABLE


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models/other", 404),
        ("/v1/models/doubler/versions/3", 404),
        ("/v1/models/doubler/labels/new", 400),
        ("/v1/models", 400),
        ("/v2/models/doubler", 404),
    ],
)
def test_a_state_of_nothing(rest, path, status):
    given, answer = rest(path)
    assert given == status and list(answer) == ["error"]


def test_paths_are_read_as_the_real_server_reads_them(rest):
    assert rest("/V1/Models/doubler?verbose=1")[0] == 200


@pytest.mark.parametrize("length", ["-1", "many"])
def test_a_body_of_no_length(server, length):
    connection = http.client.HTTPConnection(server.rest_address)
    connection.putrequest("POST", "/v1/models/doubler:predict")
    connection.putheader("Content-Length", length)
    connection.endheaders()
    assert connection.getresponse().status == 400


def test_a_version_whose_warm_up_fails_is_refused(versions, tmp_path):
    shutil.copytree(versions / "10", tmp_path / "1")
    save(1.0, tmp_path / "12", warm_up=[predict_request(x=X), predict_request(x=X[0])])
    with pytest.raises(ValueError, match=r"12/assets.extra.*warm-up request 1 failed: x is"):
        StandIn({"doubler": tmp_path})


def test_a_directory_without_versions(tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold versions"):
        StandIn({"doubler": tmp_path})


@pytest.mark.parametrize("taken", ["address", "rest_address"])
def test_a_port_that_is_taken(server, taken):
    port = int(getattr(server, taken).split(":")[1])
    ports = {"port" if taken == "address" else "rest_port": port}
    with pytest.raises(OSError, match=f"must be free. Received: .*{port}"):
        StandIn({}, **ports)


@pytest.mark.parametrize("model", ["/serving/din", "ranking=", "=/serving/din"])
def test_a_model_without_a_name_or_a_directory(model):
    with pytest.raises(
        ValueError, match=f"`model` must be NAME=DIRECTORY. Received: model={model}"
    ):
        stand_in.main(types.SimpleNamespace(model=[model]))
