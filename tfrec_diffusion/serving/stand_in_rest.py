"""The REST API of the stand-in for TF Serving: HTTP, and tensors as columnar JSON."""

import base64
import http.server
import json
import re
import urllib.parse

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2

from tfrec_diffusion.serving.loaded_version import RequestError, invalid

_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
# What the real server converts from JSON, and to it. It has no JSON for tensors of other types,
# such as bfloat16.
_FROM_JSON = {tf.float32, tf.float64, tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint32,
              tf.uint64, tf.bool, tf.string}  # fmt: skip
_TO_JSON = _FROM_JSON | {tf.float16}


class RestServer(http.server.ThreadingHTTPServer):
    """Listens for REST requests from its construction on; `serve_forever` answers them.

    Args:
        address: tuple of str and int. Host and port; port 0 takes a free one.
        stand_in: `StandIn`. Answers the requests.
    """

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, address, stand_in):
        super().__init__(address, _Handler)
        self.stand_in = stand_in


class _Handler(http.server.BaseHTTPRequestHandler):
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
                raise invalid(f"Content-Length must be a number: {length}")
            body = self.rfile.read(int(length))
            match = re.fullmatch(
                r"/v1/models/([^/:]+)(?:/(?:versions/(\d+)|labels/([^/:]+)))?" + action, self.path
            )
            if match is None:
                raise invalid(f"Malformed request: {self.command} {self.path}")
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
            raise invalid(f"expected an object with an object 'inputs': {error!r}") from error
        signature = version.signatures.get(spec.signature_name)
        if signature is None:
            raise invalid(f'Serving signature name: "{spec.signature_name}" not found')
        missing = sorted(set(signature.inputs) - set(given))
        if missing:
            raise invalid(f"Missing named input: {missing} in 'inputs' object.")
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
        raise invalid(f"{name} is not of expected type: {dtype.name}: {error!r}") from error
    return tf.make_tensor_proto(values, dtype)


def _to_json(tensor):
    """Nested lists of a `TensorProto`."""
    array, dtype = tf.make_ndarray(tensor), tf.as_dtype(tensor.dtype)
    if array.size and dtype not in _TO_JSON:
        raise invalid(f"{dtype.name} is not converted to JSON")
    return array.tolist()


def _leaf(value, dtype):
    if dtype == tf.string:
        return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()
    kinds = bool if dtype.is_bool else (int, float) if dtype.is_floating else int
    if not isinstance(value, kinds) or (isinstance(value, bool) and not dtype.is_bool):
        raise TypeError(f"Received: {value!r}")
    return value
