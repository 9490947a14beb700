"""A version of any model, loaded from its SavedModel: `PredictRequest`s in, responses out."""

import grpc
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from tfrec_diffusion.serving import WARM_UP_FILE, numbered_versions

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        code: `grpc.StatusCode`. The code that the real server gives.
        message: str. The reason.
    """

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def invalid(message):
    """The `RequestError` of a request that does not fit the model.

    Args:
        message: str. The reason.
    """
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


class LoadedVersion:
    """A version of a model, loaded and warmed up.

    Args:
        directory: `pathlib.Path`. The directory of the SavedModel; its name is a number.

    Attributes:
        number: int. The number of the version.
        signatures: dict of `SignatureDef` protos by name.

    Raises:
        ValueError: If a warm-up request fails.
    """

    def __init__(self, directory):
        self.number = int(directory.name)
        saved = saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes())
        self.signatures = dict(saved.meta_graphs[0].signature_def)
        self._model = tf.saved_model.load(str(directory))  # keeps what its functions use
        self._warm_up(directory / WARM_UP_FILE)

    def predict(self, request):
        """Runs a signature.

        Args:
            request: `PredictRequest`.

        Returns:
            `PredictResponse`.

        Raises:
            RequestError: If the request does not fit the signature, or the model refuses it.
        """
        name = request.model_spec.signature_name or "serving_default"
        function = self._model.signatures.get(name)
        if function is None:
            raise RequestError(
                grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
            )
        specs = self.signatures[name].inputs
        extra, missing = set(request.inputs) - set(specs), set(specs) - set(request.inputs)
        if extra or missing:
            raise invalid(
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
            raise invalid(f"output tensor alias not found in signature: {sorted(unknown)}")
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


def load_versions(directory):
    """Loads every version of a model.

    Args:
        directory: str or `pathlib.Path`. Directory of versions; what is not named by a number is
            ignored.

    Returns:
        dict of `LoadedVersion` by number.

    Raises:
        FileNotFoundError: If there is no version.
        ValueError: If a warm-up request fails.
    """
    versions = numbered_versions(directory)
    return {number: LoadedVersion(path) for number, path in versions.items()}


def _tensor(name, proto, spec):
    try:
        array = tf.make_ndarray(proto)
    except Exception as error:
        raise invalid(f"tensor parsing error: {name}: {error}") from error
    if proto.dtype != spec.dtype:
        expected, given = (tf.as_dtype(dtype).name for dtype in (spec.dtype, proto.dtype))
        raise invalid(f"{name} is expected to be {expected} but {given} is provided")
    shape = tf.TensorShape(spec.tensor_shape)
    if not shape.is_compatible_with(array.shape):
        raise invalid(f"{name} is expected to have the shape {shape} but has {array.shape}")
    return tf.constant(array, proto.dtype)
