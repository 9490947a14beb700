"""The server behind the stand-in for TF Serving: versions of models over gRPC and over REST."""

import concurrent.futures
import os
import threading

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from tfrec_diffusion.serving.loaded_version import RequestError, invalid, load_versions
from tfrec_diffusion.serving.stand_in_rest import RestServer

_HOST = "127.0.0.1"


class StandIn:
    """The server, which answers from its construction to the end of its `with` block.

    Args:
        models: dict. The directory of the versions of each model, by the name of the model.
        port: int. Port of gRPC; 0 takes a free one. Defaults to `0`.
        rest_port: int. Port of REST; 0 takes a free one. Defaults to `0`.

    Attributes:
        address: str. `"host:port"` of gRPC.
        rest_address: str. `"host:port"` of REST.

    Raises:
        OSError: If a port is taken.
        ValueError: If a directory has no version, or a warm-up request fails.
    """

    def __init__(self, models, port=0, rest_port=0):
        self._models = {name: load_versions(directory) for name, directory in models.items()}
        threads = concurrent.futures.ThreadPoolExecutor(4 * os.cpu_count())
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        self._grpc = grpc.server(threads, options=unlimited)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _Service(self), self._grpc
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self), self._grpc)
        try:
            self.address = f"{_HOST}:{self._grpc.add_insecure_port(f'{_HOST}:{port}')}"
            self._rest = RestServer((_HOST, rest_port), self)
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
        """Waits until the server is stopped."""
        self._grpc.wait_for_termination()

    def version(self, spec):
        """The version that a request asks for.

        Args:
            spec: `ModelSpec`. If it has no version number, the newest version is meant.

        Returns:
            `LoadedVersion`.

        Raises:
            RequestError: If there is no such version.
        """
        versions = self._models.get(spec.name)
        if spec.version_label:
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        if versions and not spec.HasField("version"):
            return versions[max(versions)]
        if versions and spec.version.value in versions:
            return versions[spec.version.value]
        which = f"Specific({spec.name}, {spec.version.value})" if versions else spec.name
        raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {which}")

    def status(self, request):
        """Answers a `GetModelStatusRequest` with the states of versions, the newest first.

        Args:
            request: `GetModelStatusRequest`. If it has no version number, all versions are meant.

        Returns:
            `GetModelStatusResponse`. All versions that were loaded are available.

        Raises:
            RequestError: If there is no such model or version.
        """
        spec = request.model_spec
        if spec.HasField("version") or spec.version_label or spec.name not in self._models:
            numbers = [self.version(spec).number]
        else:
            numbers = sorted(self._models[spec.name], reverse=True)
        state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        statuses = [
            get_model_status_pb2.ModelVersionStatus(version=number, state=state, status={})
            for number in numbers
        ]
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=statuses)

    def predict(self, request):
        """Answers a `PredictRequest` with a `PredictResponse`.

        Args:
            request: `PredictRequest`.

        Returns:
            `PredictResponse`.

        Raises:
            RequestError: If there is no such version, or as `LoadedVersion.predict`.
        """
        return self.version(request.model_spec).predict(request)

    def metadata(self, request):
        """Answers a `GetModelMetadataRequest` with the signatures of a version.

        Args:
            request: `GetModelMetadataRequest`.

        Returns:
            `GetModelMetadataResponse`.

        Raises:
            RequestError: If there is no such version, or something else than signatures is asked
                for.
        """
        if list(request.metadata_field) != ["signature_def"]:
            raise invalid(f"metadata_field must be signature_def: {list(request.metadata_field)}")
        version = self.version(request.model_spec)
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=version.signatures)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version.number
        response.metadata["signature_def"].Pack(signatures)
        return response


class _Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, stand_in):
        self._stand_in = stand_in

    def Predict(self, request, context):
        return _answer(self._stand_in.predict, request, context)

    def GetModelMetadata(self, request, context):
        return _answer(self._stand_in.metadata, request, context)


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, stand_in):
        self._stand_in = stand_in

    def GetModelStatus(self, request, context):
        return _answer(self._stand_in.status, request, context)


def _answer(method, request, context):
    try:
        return method(request)
    except RequestError as error:
        context.abort(error.code, str(error))
    except Exception as error:
        context.abort(grpc.StatusCode.INTERNAL, repr(error))
