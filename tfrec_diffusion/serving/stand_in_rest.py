"""The REST API of the stand-in for TF Serving, over HTTP; errors are `{"error": message}`."""

import http.server
import json
import re
import urllib.parse

import grpc
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from tfrec_diffusion.serving.loaded_version import RequestError, invalid
from tfrec_diffusion.serving.stand_in_json import parse, read_inputs, write_outputs

_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_MODEL = r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"


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
        self._respond({_MODEL: self._status, _MODEL + "/metadata": self._metadata})

    def do_POST(self):
        self._respond({_MODEL + ":predict": self._predict})

    def log_message(self, *_):
        pass

    def _respond(self, methods):
        try:
            status, answer = 200, self._answer(methods)
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

    def _answer(self, methods):
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal():
            self.close_connection = True  # where the next request starts is not known
            raise invalid(f"Content-Length must be a number: {length}")
        body = self.rfile.read(int(length))
        path = urllib.parse.urlsplit(self.path).path
        for pattern, method in methods.items():
            match = re.fullmatch(pattern, path, re.IGNORECASE)
            if match:
                return method(_model_spec(*match.groups()), body)
        if not path.lower().startswith("/v1/"):
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Not found: {path}")
        raise invalid(f"Malformed request: {self.command} {self.path}")

    def _status(self, spec, _):
        response = self.server.stand_in.status(
            get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
        )
        return json_format.MessageToDict(response, always_print_fields_with_no_presence=True)

    def _metadata(self, spec, _):
        response = self.server.stand_in.metadata(
            get_model_metadata_pb2.GetModelMetadataRequest(
                model_spec=spec, metadata_field=["signature_def"]
            )
        )
        return json_format.MessageToDict(response, preserving_proto_field_name=True)

    def _predict(self, spec, body):
        content, spec.signature_name = parse(body)
        version = self.server.stand_in.version(spec)
        signature = version.signatures.get(spec.signature_name)
        if signature is None:
            raise invalid(f'Serving signature name: "{spec.signature_name}" not found')
        inputs, in_rows = read_inputs(content, dict(signature.inputs))
        request = predict_pb2.PredictRequest(model_spec=spec, inputs=inputs)
        return write_outputs(self.server.stand_in.predict(request).outputs, in_rows)


def _model_spec(model, number, label):
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(model))
    if number is not None:
        try:
            spec.version.value = int(number)
        except ValueError as error:
            raise invalid(f"Failed to convert version: {number} to numeric.") from error
    elif label is not None:
        spec.version_label = urllib.parse.unquote(label)
    return spec
