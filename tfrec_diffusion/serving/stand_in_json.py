"""Tensors as JSON, by the rules of TF Serving's REST API: in rows or in columns.

Rows are `{"instances": [...]}`, answered with `{"predictions": [...]}`; columns are
`{"inputs": ...}`, answered with `{"outputs": ...}`. A signature's only input or output has no name
there.
"""

import base64
import contextlib
import json

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from tfrec_diffusion.serving.loaded_version import RequestError, invalid

# What the real server converts from JSON, and to it. It has no JSON for tensors of other types,
# such as bfloat16.
_FROM_JSON = {tf.float32, tf.float64, tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint32,
              tf.uint64, tf.bool, tf.string}  # fmt: skip
_TO_JSON = _FROM_JSON | {tf.float16}
_KINDS = {type(None): "Null", str: "String", dict: "Object", list: "Array", int: "Number",
          float: "Number"}  # fmt: skip


def parse(body):
    """The content of a predict request, and the signature that it asks for.

    Args:
        body: bytes.

    Returns:
        dict and str.

    Raises:
        RequestError: If it is not an object with a string as `signature_name`.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"JSON Parse error: {error}") from error
    if not isinstance(content, dict):
        raise invalid(f"JSON Value: {_text(content)} Is not object")
    name = content.get("signature_name", "serving_default")
    if not isinstance(name, str):
        raise invalid(f"'signature_name' key must be a string value: {_text(name)}")
    return content, name or "serving_default"


def read_inputs(content, specs):
    """The tensors of a predict request.

    Args:
        content: dict. What `parse` returned.
        specs: dict of `TensorInfo` by name. The signature's inputs.

    Returns:
        dict of `TensorProto` by name, and whether they came in rows.

    Raises:
        RequestError: If they are not the signature's inputs, or no tensors of their types.
    """
    in_rows, in_columns = "instances" in content, "inputs" in content
    if in_rows and in_columns:
        raise invalid("expecting only one of 'inputs' or 'instances' keys to exist")
    if not in_rows and not in_columns:
        raise invalid("Missing 'inputs' or 'instances' key")
    try:
        if in_rows:
            arrays = _from_rows(content["instances"], specs)
        else:
            arrays = _from_columns(content["inputs"], specs)
    except RecursionError as error:
        raise invalid("lists are nested too deeply") from error
    return {n: tf.make_tensor_proto(x, specs[n].dtype) for n, x in arrays.items()}, in_rows


def write_outputs(outputs, in_rows):
    """The answer to a predict request.

    Args:
        outputs: dict of `TensorProto` by name.
        in_rows: bool. Whether the request came in rows.

    Returns:
        dict.

    Raises:
        RequestError: If an output has no JSON or, of a request in rows, no rows.
    """
    columns = {name: _values(name, tensor) for name, tensor in outputs.items()}
    if not in_rows:
        return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}
    for name, column in columns.items():
        if not isinstance(column, list):
            raise invalid(f"Tensor name: {name} has no shape information")
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise invalid(f"outputs have inconsistent batch size: {sizes}")
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    rows = zip(*columns.values(), strict=True)
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in rows]}


def _from_columns(given, specs):
    if not isinstance(given, dict) or _is_base64(given):
        if len(specs) > 1:
            raise invalid("inputs is a plain value/list, but there are multiple input tensors")
        given = dict.fromkeys(specs, given)
    arrays = {}
    for name, spec in specs.items():
        if name not in given:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        with _naming(name):
            arrays[name] = _array(given[name], spec)
    return arrays


def _from_rows(rows, specs):
    if not isinstance(rows, list):
        raise invalid("Expecting 'instances' to be a list/array")
    if not rows:
        raise invalid("No values in 'instances' array")
    named = _is_row(rows[0])
    if not named and len(specs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as there are multiple input "
            "tensors"
        )
    arrays = {name: [] for name in specs}
    for number, row in enumerate(rows):
        if _is_row(row) != named:
            expected = "object" if named else "value/list"
            raise invalid(f"Expecting {expected} at item {number} of 'instances' list")
        row = row if named else dict.fromkeys(specs, row)
        with _naming(f"Failed to process element: {number} of 'instances' list"):
            if row.keys() != specs.keys():
                raise invalid(f"keys must be equal to: {','.join(sorted(specs))}")
            for name, spec in specs.items():
                with _naming(name):
                    array = _array(row[name], spec)
                    first = arrays[name][0] if number else array
                    if array.shape != first.shape:
                        raise invalid(f"Expecting shape {first.shape} but got: {array.shape}")
                arrays[name].append(array)
    return {name: np.stack(of_rows) for name, of_rows in arrays.items()}


@contextlib.contextmanager
def _naming(place):
    try:
        yield
    except RequestError as error:
        raise RequestError(error.code, f"{place}: {error}") from error


def _array(value, spec):
    """The array of nested lists, which have the shape of their first elements."""
    dtype, shape, leaves, first = tf.as_dtype(spec.dtype), [], [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    _collect(value, shape, 0, dtype, leaves)
    return np.array(leaves, dtype.as_numpy_dtype).reshape(shape)


def _collect(value, shape, level, dtype, leaves):
    """Adds the values of nested lists that must have a shape."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {_text(value)} found at incorrect level: {level + 1}. "
                f"Expected at level: {len(shape)}"
            )
        leaves.append(_leaf(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for entry in value:
        _collect(entry, shape, level + 1, dtype, leaves)


def _leaf(value, dtype):
    if dtype not in _FROM_JSON:
        raise RequestError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"Conversion of JSON Value: {_text(value)} to type: {_name(dtype)}",
        )
    if dtype == tf.string:
        if isinstance(value, dict):
            return _decoded(value)
        if isinstance(value, str):
            return value.encode()
    elif dtype.is_bool:
        if isinstance(value, bool):
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if dtype.is_floating:
            return _not_rounded(value, dtype)
        if isinstance(value, int) and dtype.min <= value <= dtype.max:
            return value
    kind = str(value) if isinstance(value, bool) else _KINDS[type(value)]
    raise invalid(
        f"JSON Value: {_text(value)} Type: {kind} is not of expected type: {_name(dtype)}"
    )


def _not_rounded(value, dtype):
    """The number, unless it is too large, or a whole one with more digits than the type."""
    whole = 2 ** (24 if dtype == tf.float32 else 53) - 1
    largest = whole if isinstance(value, int) else dtype.max
    if abs(value) > largest and abs(value) != np.inf:
        raise invalid(
            f"Cannot convert JSON value: {_text(value)} to {_name(dtype)} without loss of "
            "precision."
        )
    return value


def _is_row(value):
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value):
    return value.keys() == {"b64"} and isinstance(value["b64"], str)


def _decoded(value):
    if not _is_base64(value):
        raise invalid(f"JSON Value: {_text(value)} not formatted correctly for base64 data")
    try:
        return base64.b64decode(value["b64"])
    except ValueError as error:
        raise invalid(f"Unable to base64 decode: {error}") from error


def _values(name, tensor):
    """Nested lists of a `TensorProto`."""
    array, dtype = tf.make_ndarray(tensor), tf.as_dtype(tensor.dtype)
    if array.size and dtype not in _TO_JSON:
        raise invalid(f"Failed to write JSON value for tensor type: {_name(dtype)}")
    if dtype != tf.string:
        return array.tolist()
    # The name tells which strings are bytes.
    encode = _encoded if name.endswith("_bytes") else lambda value: value.decode(errors="replace")
    return (
        np.array([encode(value) for value in array.ravel()], object).reshape(array.shape).tolist()
    )


def _encoded(value):
    return {"b64": base64.b64encode(value).decode()}


def _name(dtype):
    """As the real server writes it: `float` for float32."""
    return types_pb2.DataType.Name(dtype.as_datatype_enum).removeprefix("DT_").lower()


def _text(value):
    return json.dumps(value)[:200]
