"""Clients of a model in TF Serving, over gRPC and over REST: requests in, click probabilities out.

    >>> from tfrec_diffusion.serving.client import GrpcClient
    >>> client = GrpcClient("localhost:8500", "ranking")
    >>> client.score({"user": "ann", "item": [17, 4], "history_item": [3, 17], ...})  # float32 (2,)

The server is TF Serving, or a stand-in for it:

    python -m tfrec_diffusion.serving.stand_in --model=ranking=serving/din

A request is a dict of raw values by the names of the features: a single value of each user and
context feature, and a sequence of each candidate, history and behavior feature. Behaviors are in
the order of time, the oldest first. Features that a signature does not take are not sent. Where a
feature has several values (tags) or is a vector, a sequence takes the place of a value: of tags it
may have any length, and `None` stands for a vector that is missing.

`score` sends a request as tensors. `score_examples` sends many as `tf.train.Example`s, which is
safe when the server batches. If the model has the signature `user_state`, the method of that name
returns what the model computes of the user alone: keep it, and give it to `score` with other
candidates. A state belongs to the version that computed it: where several versions are live, give
the client its `version`.

Threads may share a client.
"""

import base64
import collections
import contextlib
import http.client
import json
import random
import time
import urllib.parse

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tfrec_diffusion.serving import OUTPUT

# What stands for a missing value of a type, see `schema.Table.missing`.
_MISSING = {
    tf.int64.as_datatype_enum: -1,
    tf.string.as_datatype_enum: b"",
    tf.float32.as_datatype_enum: float("nan"),
}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5  # seconds between tries


class ServingError(OSError):
    """A call failed; the message is that of the server, if it sent one."""


class InvalidRequest(ServingError):
    """The request does not fit the signature, or the model has no such signature."""


class ModelNotFound(ServingError):
    """The server has no model of that name and version."""


class DeadlineExceeded(ServingError):
    """No answer came in time."""


class Unavailable(ServingError):
    """Until the deadline, no server answered, or it was temporarily unavailable."""


class Overloaded(Unavailable):
    """The server had too much to do until the deadline."""


_GRPC_ERRORS = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: ModelNotFound,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
}
_HTTP_ERRORS = {
    400: InvalidRequest,
    404: ModelNotFound,
    504: DeadlineExceeded,
    503: Unavailable,
    429: Overloaded,
}


class _Client:
    """What both protocols share: the signatures, tensors of requests, deadlines and retries.

    A call that ends in `Unavailable` or `Overloaded` is tried again until the deadline, which does
    no harm, because scoring changes nothing. A call that ends in `InvalidRequest` is tried once
    more if a version with other signatures has gone live meanwhile.
    """

    def __init__(self, address, model, version=None, version_label=None, deadline=1.0):
        if version is not None and version_label is not None:
            raise ValueError(
                "one of `version` and `version_label` must be None. "
                f"Received: {version} and {version_label!r}"
            )
        self.address = address
        self.model = model
        self.version = version
        self.version_label = version_label
        self.deadline = deadline
        self._signatures = None

    def score(self, request, state=None):
        """The click probabilities of the candidates of a request.

        Args:
            request: dict. A request, as the module describes it. With a state, its context and
                candidate features are enough.
            state: dict or `None`. What `user_state` returned for the user. Defaults to `None`.

        Returns:
            float32 array of shape (candidates,).

        Raises:
            ServingError: If the call fails.
        """
        name = "serving_default" if state is None else "score"
        outputs = self._predict(name, lambda inputs: _tensors(name, inputs(name), request, state))
        return outputs[OUTPUT][0]

    def score_examples(self, requests, key):
        """The click probabilities of the candidates of many requests.

        Args:
            requests: list of dict. Requests, with any numbers of candidates and behaviors.
            key: str. Name of a candidate feature. A request has as many candidates as values of it.

        Returns:
            list of float32 arrays of shape (candidates,), one of each request.

        Raises:
            ServingError: If the call fails.
        """
        if not requests:
            return []

        def tensors(inputs):
            specs = inputs("serving_default")
            examples = [_example(_tensors("examples", specs, request)) for request in requests]
            return {"examples": np.array(examples, object)}

        scores = self._predict("examples", tensors)[OUTPUT]
        return [row[: len(request[key])] for row, request in zip(scores, requests, strict=True)]

    def user_state(self, request):
        """What the model computes of the user and the history alone.

        Args:
            request: dict. A request. Its user, history and behavior features are enough.

        Returns:
            dict of arrays by name.

        Raises:
            ServingError: If the call fails.
        """
        name = "user_state"
        return self._predict(name, lambda inputs: _tensors(name, inputs(name), request))

    def _predict(self, name, tensors):
        """Calls a signature.

        Args:
            name: str. Name of the signature.
            tensors: callable. Called with a function from the name of any signature to the
                `TensorInfo`s of its inputs; returns the inputs, a dict of arrays.

        Returns:
            dict of arrays by name: the outputs of the signature.
        """
        end = time.monotonic() + self.deadline

        def predict(signatures):
            signature = self._signature(signatures, name)
            given = tensors(lambda name: self._signature(signatures, name).inputs)
            return _until(end, lambda left: self._send(name, signature, given, left))

        signatures = self._known_signatures(end)
        try:
            return predict(signatures)
        except InvalidRequest:
            if self.version is not None:  # its signatures stay
                raise
            with contextlib.suppress(ServingError):
                self._signatures = _until(end, self._get_signatures)
            renewed = self._signatures
            if renewed == signatures:
                raise
        return predict(renewed)

    def _known_signatures(self, end):
        if self._signatures is None:
            self._signatures = _until(end, self._get_signatures)
        return self._signatures

    def _signature(self, signatures, name):
        if name not in signatures:
            names = sorted(signatures)
            raise InvalidRequest(f"{self.model!r} has no signature {name!r}; there are {names}")
        return signatures[name]


class GrpcClient(_Client):
    """Scores over gRPC. Every method raises `ServingError` if its call fails.

    Args:
        address: str. `"host:port"` of the server's gRPC port, by custom 8500.
        model: str. Name of the model.
        version: int or `None`. Number of the version. If `None`, the newest version. Defaults to
            `None`.
        version_label: str or `None`. Label of a version, in place of its number. Defaults to
            `None`.
        deadline: float. Seconds that a call may take, with all its tries. The first call also
            connects and asks for the signatures. Defaults to `1.0`.

    Raises:
        ValueError: If both `version` and `version_label` are given.
    """

    def __init__(self, address, model, version=None, version_label=None, deadline=1.0):
        super().__init__(address, model, version, version_label, deadline)
        options = {
            "grpc.max_send_message_length": -1,
            "grpc.max_receive_message_length": -1,
            # A server that was down is tried at the pace of the retries.
            "grpc.initial_reconnect_backoff_ms": int(1000 * _FIRST_PAUSE),
            "grpc.min_reconnect_backoff_ms": int(1000 * _FIRST_PAUSE),
            "grpc.max_reconnect_backoff_ms": int(1000 * _LONGEST_PAUSE),
        }
        self._channel = grpc.insecure_channel(address, options=list(options.items()))
        self._service = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def close(self):
        """Closes the connection."""
        self._channel.close()

    def message(self, signature, request, state=None):
        """A message for `send`, which a load test may send many times.

        Args:
            signature: str. Name of the signature.
            request: dict. A request.
            state: dict or `None`. As in `score`. Defaults to `None`.

        Returns:
            `PredictRequest`.
        """
        signatures = self._known_signatures(time.monotonic() + self.deadline)
        specs = self._signature(signatures, signature).inputs
        return self._message(signature, specs, _tensors(signature, specs, request, state))

    def send(self, message):
        """Sends a message, without waiting for the answer and without a second try.

        Args:
            message: `PredictRequest`. What `message` returned.

        Returns:
            `grpc.Future` of a `PredictResponse`.
        """
        return self._service.Predict.future(message, timeout=self.deadline)

    def _get_signatures(self, left):
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._model_spec(), metadata_field=["signature_def"]
        )
        answer = _answer(self._service.GetModelMetadata, request, left)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(signatures)
        return dict(signatures.signature_def)

    def _send(self, name, signature, tensors, left):
        message = self._message(name, signature.inputs, tensors)
        answer = _answer(self._service.Predict, message, left)
        return {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}

    def _message(self, signature, specs, tensors):
        inputs = {
            name: tf.make_tensor_proto(array, specs[name].dtype) for name, array in tensors.items()
        }
        return predict_pb2.PredictRequest(model_spec=self._model_spec(signature), inputs=inputs)

    def _model_spec(self, signature=""):
        spec = model_pb2.ModelSpec(name=self.model, signature_name=signature)
        if self.version is not None:
            spec.version.value = self.version
        elif self.version_label is not None:
            spec.version_label = self.version_label
        return spec


class RestClient(_Client):
    """Scores over REST. Every method raises `ServingError` if its call fails.

    Args:
        address: str. `"host:port"` of the server's REST port, by custom 8501.
        model: str. Name of the model.
        version: int or `None`. Number of the version. If `None`, the newest version. Defaults to
            `None`.
        version_label: str or `None`. Label of a version, in place of its number. Defaults to
            `None`.
        deadline: float. Seconds that a call may take, with all its tries. The first call also
            connects and asks for the signatures. Defaults to `1.0`.

    Raises:
        ValueError: If both `version` and `version_label` are given.
    """

    def __init__(self, address, model, version=None, version_label=None, deadline=1.0):
        super().__init__(address, model, version, version_label, deadline)
        self._idle = collections.deque()  # of open connections, safe for threads
        self._path = f"/v1/models/{urllib.parse.quote(model, safe='')}"
        if version is not None:
            self._path += f"/versions/{version}"
        elif version_label is not None:
            self._path += f"/labels/{urllib.parse.quote(version_label, safe='')}"

    def close(self):
        """Closes the connections that no call uses."""
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _get_signatures(self, left):
        answer = self._ask("GET", self._path + "/metadata", None, left)
        return {
            name: json_format.ParseDict(
                signature, meta_graph_pb2.SignatureDef(), ignore_unknown_fields=True
            )
            for name, signature in answer["metadata"]["signature_def"]["signature_def"].items()
        }

    def _send(self, name, signature, tensors, left):
        inputs = {name: _to_json(array.tolist()) for name, array in tensors.items()}
        body = json.dumps({"signature_name": name, "inputs": inputs})
        outputs = self._ask("POST", self._path + ":predict", body.encode(), left)["outputs"]
        specs = signature.outputs
        if not isinstance(outputs, dict):  # of a single one the API leaves the name out
            outputs = {next(iter(specs)): outputs}
        if outputs.keys() != set(specs):
            raise InvalidRequest(
                f"{name!r} must give {sorted(specs)}: another version may be live by now. "
                f"Received: {sorted(outputs)}"
            )
        return {name: np.array(outputs[name], _numpy(spec)) for name, spec in specs.items()}

    def _ask(self, method, path, body, left):
        try:
            connection = self._idle.pop()
            connection.sock.settimeout(left)
        except IndexError:
            connection = http.client.HTTPConnection(self.address, timeout=left)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except TimeoutError as error:
            connection.close()
            raise DeadlineExceeded(f"{self.address} gave no answer within {left:.3f} s") from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.close()  # the server may be another one now: the next try connects anew
            raise Unavailable(f"{self.address}: {error!r}") from error
        if connection.sock is not None:
            self._idle.append(connection)
        if response.status != 200:
            raise _HTTP_ERRORS.get(response.status, ServingError)(_message_of(text))
        try:
            return json.loads(text)
        except ValueError as error:
            raise ServingError(f"{self.address} gave an answer that is no JSON: {error}") from error


def _until(end, call):
    """The result of `call(seconds left)`, which is called again while it is `Unavailable`."""
    longest = _FIRST_PAUSE
    while True:
        left = end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline is over before the call was sent")
        try:
            return call(left)
        except Unavailable:
            pause = random.uniform(0, longest)  # so that clients do not come back all at once
            if time.monotonic() + pause >= end:
                raise
            time.sleep(pause)
            longest = min(2 * longest, _LONGEST_PAUSE)


def _tensors(signature, specs, request, state=None):
    """dict of the arrays that a signature takes, of one request and a state."""
    given = {**request, **(state or {})}
    missing = sorted(set(specs) - set(given))
    if missing:
        raise InvalidRequest(f"the signature {signature!r} also needs {missing}")
    return {
        name: given[name] if name in (state or {}) else _array(name, given[name], spec)
        for name, spec in specs.items()
    }


def _array(name, value, spec):
    """One value of a request with the batch's axis in front, as the server takes it."""
    shape = tuple(axis.size for axis in spec.tensor_shape.dim[1:])
    whole = _filled_up(value, shape, _MISSING.get(spec.dtype))
    array = _text(whole) if spec.dtype == tf.string.as_datatype_enum else _number(whole, spec)
    if array is None or array.ndim != len(shape):
        kind = ("a value", "a sequence", "a sequence of sequences")[len(shape)]
        dtype = tf.as_dtype(spec.dtype).name
        raise InvalidRequest(f"{name!r} must be {kind} of {dtype}. Received: {value!r}")
    return array[None]


def _filled_up(value, shape, missing):
    """Several values of entries, all with as many as the most have, and vectors in place of None.

    Args:
        value: The value of a request.
        shape: tuple of int. Its shape in a signature; -1 for axes of any length.
        missing: int, float or bytes. What stands for a missing value.

    Returns:
        The value, as it is where it needs nothing.
    """
    if len(shape) == 1 and shape[0] > 0 and value is None:
        return [missing] * shape[0]
    texts = (str, bytes)
    if len(shape) < 2 or isinstance(value, (np.ndarray, *texts)):
        return value
    try:
        if any(isinstance(entry, texts) for entry in value):
            return value
        entries = [() if entry is None else tuple(entry) for entry in value]
    except TypeError:  # no sequence of sequences
        return value
    most = max(shape[1], 1, *map(len, entries))
    if shape[1] > 0 and any(len(entry) not in (0, most) for entry in entries):
        return value  # a vector lacks some of its numbers
    filled = np.full((len(entries), most), missing, object)
    for row, entry in zip(filled, entries, strict=True):
        row[: len(entry)] = entry
    return filled if isinstance(missing, bytes) else filled.tolist() or np.zeros((0, most))


def _text(value):
    array = np.asarray(value, object)  # NumPy's own strings lose a zero byte at the end
    flat = [text.encode() if isinstance(text, str) else text for text in array.ravel()]
    if not all(isinstance(text, bytes) for text in flat):
        return None
    encoded = np.empty(array.shape, object)
    encoded.ravel()[:] = flat
    return encoded


def _number(value, spec):
    dtype = _numpy(spec)
    try:
        array = np.asarray(value)
    except ValueError:  # lists of several lengths
        return None
    # A number that would be another one as an integer is none; one rounded to float32 is.
    casting = "same_kind" if np.issubdtype(dtype, np.floating) else "safe"
    fits = array.dtype != bool and np.can_cast(array.dtype, dtype, casting)
    return array.astype(dtype) if fits or array.size == 0 else None


def _numpy(spec):
    return tf.as_dtype(spec.dtype).as_numpy_dtype


def _example(tensors):
    """A serialized `tf.train.Example` of the arrays of one request."""
    example = tf.train.Example()
    for name, array in tensors.items():
        values = array.ravel().tolist()
        feature = example.features.feature[name]
        if array.dtype == object:
            feature.bytes_list.value.extend(values)
        elif array.dtype == np.float32:
            feature.float_list.value.extend(values)
        else:
            feature.int64_list.value.extend(values)
    return example.SerializeToString()


def _answer(method, request, left):
    try:
        return method(request, timeout=left)
    except grpc.RpcError as error:
        raise _GRPC_ERRORS.get(error.code(), ServingError)(error.details()) from error


def _to_json(values):
    """Nested lists for the REST API: bytes as text, or in base 64 where they are none."""
    if isinstance(values, list):
        return [_to_json(value) for value in values]
    if not isinstance(values, bytes):
        return values
    try:
        return values.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(values).decode()}


def _message_of(text):
    """The message of an error; TF Serving escapes it as C does, which JSON may not know."""
    try:
        return json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return text
