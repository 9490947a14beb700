"""A stand-in for TF Serving's binary, which no package registry has, on Python's TensorFlow.

    PYTHONPATH=tools python -m serving.stand_in --model=ranking=serving/din

It speaks the PredictionService (Predict and GetModelMetadata) over gRPC, and the same over REST in
the columnar format; errors have the real server's codes. A version is refused if one of its warm-up
requests fails. Unlike the real server it loads every version there is, once, at the start; it
batches nothing, knows no labels, and checks shapes before the model runs. It listens on this
machine's loopback address only, on the real server's ports unless told otherwise.
"""

import base64
import concurrent.futures
import http.server
import json
import os
import pathlib
import re
import threading
import urllib.parse

import grpc
import numpy as np
import tensorflow as tf
from absl import flags
from google.protobuf import json_format
from serving import command
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

_HOST = "127.0.0.1"
_WARM_UP = pathlib.Path("assets.extra", "tf_serving_warmup_requests")
_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
# What the real server converts from JSON, and to it. Of tensors of other types, as bfloat16, it has
# no JSON.
_FROM_JSON = {tf.float32, tf.float64, tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint32,
              tf.uint64, tf.bool, tf.string}  # fmt: skip
_TO_JSON = _FROM_JSON | {tf.float16}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class RequestError(Exception):
    """A request that gets no answer but a code and a message."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Version:
    """A version of a model, loaded and warmed up.

    Args:
        directory: With `saved_model.pb`.

    Raises:
        ValueError: If a warm-up request fails.
    """

    def __init__(self, directory):
        self.number = int(directory.name)
        saved = saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes())
        self.signatures = dict(saved.meta_graphs[0].signature_def)
        self._model = tf.saved_model.load(str(directory))  # keeps what its functions use
        self._warm_up(directory / _WARM_UP)

    def predict(self, request):
        """The `PredictResponse` to a `PredictRequest`."""
        name = request.model_spec.signature_name or "serving_default"
        function = self._model.signatures.get(name)
        if function is None:
            raise RequestError(
                grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
            )
        specs = self.signatures[name].inputs
        extra, missing = set(request.inputs) - set(specs), set(specs) - set(request.inputs)
        if extra or missing:
            raise _invalid(
                f"input size does not match signature. Sent extra: {sorted(extra)}. "
                f"Missing but required: {sorted(missing)}."
            )
        tensors = {key: _tensor(key, request.inputs[key], spec) for key, spec in specs.items()}
        try:
            outputs = function(**tensors)
        except tf.errors.OpError as error:
            raise RequestError(_CODES[error.error_code], error.message) from error
        wanted = request.output_filter or outputs
        unknown = set(wanted) - set(outputs)
        if unknown:
            raise _invalid(f"output tensor alias not found in signature: {sorted(unknown)}")
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.signature_name = name
        response.model_spec.version.value = self.number
        for key in wanted:
            response.outputs[key].CopyFrom(tf.make_tensor_proto(outputs[key].numpy()))
        return response

    def _warm_up(self, path):
        if not path.exists():
            return
        for i, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
            try:
                log = prediction_log_pb2.PredictionLog.FromString(record)
                self.predict(log.predict_log.request)
            except Exception as error:
                raise ValueError(f"{path}: warm-up request {i} failed: {error}") from error


class StandIn:
    """The server, from its construction to the end of its `with` block.

    Args:
        models: dict of names of models to the directories of their versions.
        port: Of gRPC; 0 takes a free one.
        rest_port: Of REST; 0 takes a free one.

    Attributes:
        address: `"host:port"` of gRPC.
        rest_address: `"host:port"` of REST.
    """

    def __init__(self, models, port=0, rest_port=0):
        self._models = {name: _versions(pathlib.Path(path)) for name, path in models.items()}
        threads = concurrent.futures.ThreadPoolExecutor(4 * os.cpu_count())
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        self._grpc = grpc.server(threads, options=unlimited)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _Service(self), self._grpc
        )
        try:
            self.address = f"{_HOST}:{self._grpc.add_insecure_port(f'{_HOST}:{port}')}"
            self._rest = _RestServer((_HOST, rest_port), self)
        except (OSError, RuntimeError) as error:  # the latter is gRPC's
            raise OSError(
                f"`port` and `rest_port` must be free. Received: {port} and {rest_port} ({error})"
            ) from error
        self.rest_address = f"{_HOST}:{self._rest.server_address[1]}"
        self._grpc.start()
        threading.Thread(target=self._rest.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._rest.shutdown()
        self._rest.server_close()
        self._grpc.stop(grace=None).wait()

    def wait(self):
        self._grpc.wait_for_termination()

    def version(self, spec):
        """The `Version` that a `ModelSpec` names: the newest if it gives no number."""
        versions = self._models.get(spec.name)
        if spec.version_label:
            raise _invalid(f"Unrecognized servable version label: {spec.version_label}")
        if versions and not spec.HasField("version"):
            return versions[max(versions)]
        if versions and spec.version.value in versions:
            return versions[spec.version.value]
        which = f"Specific({spec.name}, {spec.version.value})" if versions else spec.name
        raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {which}")

    def predict(self, request):
        return self.version(request.model_spec).predict(request)

    def metadata(self, request):
        """The `GetModelMetadataResponse` to a `GetModelMetadataRequest`."""
        if list(request.metadata_field) != ["signature_def"]:
            raise _invalid(f"metadata_field must be signature_def: {list(request.metadata_field)}")
        version = self.version(request.model_spec)
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=version.signatures)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version.number
        response.metadata["signature_def"].Pack(signatures)
        return response


def _versions(directory):
    paths = [path for path in directory.iterdir() if path.name.isdecimal()]
    if not paths:
        raise ValueError(f"{directory} must hold versions, directories named by numbers")
    return {version.number: version for version in map(Version, paths)}


def _invalid(message):
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


def _tensor(name, proto, spec):
    try:
        array = tf.make_ndarray(proto)
    except Exception as error:
        raise _invalid(f"tensor parsing error: {name}: {error}") from error
    if proto.dtype != spec.dtype:
        expected, given = (tf.as_dtype(dtype).name for dtype in (spec.dtype, proto.dtype))
        raise _invalid(f"{name} is expected to be {expected} but {given} is provided")
    shape = tf.TensorShape(spec.tensor_shape)
    if not shape.is_compatible_with(array.shape):
        raise _invalid(f"{name} is expected to have the shape {shape} but has {array.shape}")
    return tf.constant(array, proto.dtype)


class _Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, stand_in):
        self._stand_in = stand_in

    def Predict(self, request, context):
        return _answer(self._stand_in.predict, request, context)

    def GetModelMetadata(self, request, context):
        return _answer(self._stand_in.metadata, request, context)


def _answer(method, request, context):
    try:
        return method(request)
    except RequestError as error:
        context.abort(error.code, str(error))
    except Exception as error:
        context.abort(grpc.StatusCode.INTERNAL, repr(error))


class _RestServer(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def __init__(self, address, stand_in):
        super().__init__(address, _RestHandler)
        self.stand_in = stand_in


class _RestHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections
    disable_nagle_algorithm = True
    timeout = 60

    def do_GET(self):
        self._respond(r"/metadata", self._metadata)

    def do_POST(self):
        self._respond(r":predict", self._predict)

    def log_message(self, *_):
        pass

    def _respond(self, action, method):
        try:
            length = self.headers.get("Content-Length", "0")
            if not length.isdecimal():
                self.close_connection = True  # where the next request starts is not known
                raise _invalid(f"Content-Length must be a number: {length}")
            body = self.rfile.read(int(length))
            match = re.fullmatch(
                r"/v1/models/([^/:]+)(?:/(?:versions/(\d+)|labels/([^/:]+)))?" + action, self.path
            )
            if match is None:
                raise _invalid(f"Malformed request: {self.command} {self.path}")
            model, number, label = match.groups()
            spec = model_pb2.ModelSpec(name=urllib.parse.unquote(model))
            if number is not None:
                spec.version.value = int(number)
            elif label is not None:
                spec.version_label = urllib.parse.unquote(label)
            status, answer = 200, method(spec, body)
        except RequestError as error:
            status, answer = _HTTP.get(error.code, 500), {"error": str(error)}
        except Exception as error:
            status, answer = 500, {"error": repr(error)}
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _metadata(self, spec, _):
        response = self.server.stand_in.metadata(
            get_model_metadata_pb2.GetModelMetadataRequest(
                model_spec=spec, metadata_field=["signature_def"]
            )
        )
        return json_format.MessageToDict(response, preserving_proto_field_name=True)

    def _predict(self, spec, body):
        version = self.server.stand_in.version(spec)
        try:
            content = json.loads(body)
            spec.signature_name = content.get("signature_name", "serving_default")
            given = dict(content["inputs"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _invalid(f"expected an object with an object 'inputs': {error!r}") from error
        signature = version.signatures.get(spec.signature_name)
        if signature is None:
            raise _invalid(f'Serving signature name: "{spec.signature_name}" not found')
        missing = sorted(set(signature.inputs) - set(given))
        if missing:
            raise _invalid(f"Missing named input: {missing} in 'inputs' object.")
        inputs = {
            name: _from_json(name, given[name], spec) for name, spec in signature.inputs.items()
        }
        request = predict_pb2.PredictRequest(model_spec=spec, inputs=inputs)
        outputs = self.server.stand_in.predict(request).outputs
        values = {name: _to_json(tensor) for name, tensor in outputs.items()}
        return {"outputs": values if len(values) > 1 else next(iter(values.values()))}


def _from_json(name, value, spec):
    """The `TensorProto` of nested lists."""
    dtype = tf.as_dtype(spec.dtype)
    array = np.array(value, object)
    if array.size and dtype not in _FROM_JSON:
        raise RequestError(
            grpc.StatusCode.UNIMPLEMENTED, f"{name}: JSON is not converted to {dtype.name}"
        )
    try:
        leaves = [_leaf(leaf, dtype) for leaf in array.ravel()]
        values = np.array(leaves, dtype.as_numpy_dtype).reshape(array.shape)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise _invalid(f"{name} is not of expected type: {dtype.name}: {error!r}") from error
    return tf.make_tensor_proto(values, dtype)


def _to_json(tensor):
    """Nested lists of a `TensorProto`."""
    array, dtype = tf.make_ndarray(tensor), tf.as_dtype(tensor.dtype)
    if array.size and dtype not in _TO_JSON:
        raise _invalid(f"{dtype.name} is not converted to JSON")
    return array.tolist()


def _leaf(value, dtype):
    if dtype == tf.string:
        return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()
    kinds = bool if dtype.is_bool else (int, float) if dtype.is_floating else int
    if not isinstance(value, kinds) or (isinstance(value, bool) and not dtype.is_bool):
        raise TypeError(f"Received: {value!r}")
    return value


def main(values):
    models = dict(_name_and_directory(model) for model in values.model)
    with StandIn(models, values.port, values.rest_port) as server:
        print(f"gRPC {server.address}, REST {server.rest_address}", flush=True)
        server.wait()


def _name_and_directory(model):
    name, _, directory = model.partition("=")
    if not name or not directory:
        raise ValueError(f"`model` must be NAME=DIRECTORY. Received: model={model}")
    return name, directory


if __name__ == "__main__":
    flags.DEFINE_multi_string("model", None, "NAME=DIRECTORY of versions, again for each model")
    flags.DEFINE_integer("port", 8500, "of gRPC; 0 takes a free one")
    flags.DEFINE_integer("rest_port", 8501, "of REST; 0 takes a free one")
    flags.mark_flag_as_required("model")
    command.run(main)
