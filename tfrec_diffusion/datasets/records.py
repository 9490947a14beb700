"""Encodes the requests of a data set as the records of its TFRecord files."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from tfrec_diffusion import schema as schema_lib

# An entry of a request that is counted and not written: days since 1970 on the log's own clock. No
# feature can have the name.
DAY = "day of the log"


class Split(NamedTuple):
    """How the requests of a split are made, in parts that any process can work on.

    Args:
        encode: callable. Takes a part and returns an iterator of `(unique key, request)`. It can be
            pickled. A request is a dict by name: integers for user and context features and for
            `group_id`, which is one number per user; int32 arrays for candidate, history and
            behavior features, the newest of at most `history_length` behaviors last; float32
            arrays for `Schema.targets`; and an integer for `DAY` where that is known. Features of
            several values, numbers and vectors have arrays of the schema's `entry_shape` and
            `input_dtype` in the place of integers, also those of user and context.
        parts: list. What `encode` is called with, in this order.
    """

    encode: Callable
    parts: list


class RecordEncoder:
    """Serializes requests as the `tf.train.Example`s that `Schema.record_spec` parses.

    Args:
        schema: `schema.Schema`. Schema of the data set.
        group_by: str. As in `preparation.Preparation`.
    """

    def __init__(self, schema, group_by):
        self._schema = schema
        self._grouped = group_by == "request"
        of_request = schema.group("user", "context")
        self._shared = (schema_lib.GROUP_ID, *(f.name for f in of_request))
        self._scalars = (
            schema_lib.GROUP_ID,
            *(f.name for f in of_request if schema.is_scalar(f)),
        )
        self._arrays = tuple(f.name for f in of_request if not schema.is_scalar(f))
        self._entries = {
            f.name: (schema.entry_shape(f), np.dtype(schema.input_dtype(f)).newbyteorder("<"))
            for f in schema.features
        }
        self._targets = schema.targets
        self._candidates = tuple(f.name for f in schema.group("candidate"))
        self._history = tuple(f.name for f in schema.group("history", "behavior"))

    def __call__(self, split, part, counts):
        """Makes the records of a part of a split.

        Args:
            split: `Split`. The split.
            part: One of `split.parts`.
            counts: `collections.Counter`. Counts of the split, to which those of the part are
                added.

        Yields:
            Pairs of a unique key (str or int) and a record (bytes).

        Raises:
            ValueError: If a request's lists do not have the lengths that they must have.
        """
        requests = split.encode(part)
        for key, request in self._joined(requests) if self._grouped else requests:
            targets = {name: np.asarray(request[name], "<f4") for name in self._targets}
            labels = targets[schema_lib.LABEL]
            yield key, self._serialized(request, targets)
            clicks = int(labels.sum())
            counts["requests"] += 1
            counts["candidates"] += labels.size
            counts["clicks"] += clicks
            for name in self._targets[1:]:
                counts[name] += float(targets[name].sum())
            counts["behaviors"] += len(request[self._history[0]])
            if DAY in request:
                counts["candidates", int(request[DAY])] += labels.size
                counts["clicks", int(request[DAY])] += clicks

    def _joined(self, requests):
        first_key, joined = None, []
        for key, request in requests:
            if joined and not self._alike(joined[0], request):
                yield first_key, self._join(joined)
                joined = []
            first_key = first_key if joined else key
            joined.append(request)
        if joined:
            yield first_key, self._join(joined)

    def _alike(self, one, other):
        names = (*self._shared, *self._history)
        return one.get(DAY) == other.get(DAY) and all(
            np.array_equal(one[name], other[name], equal_nan=self._has_floats(name))
            for name in names
        )

    def _join(self, requests):
        if len(requests) == 1:
            return requests[0]
        names = (*self._targets, *self._candidates)
        lists = {name: np.concatenate([request[name] for request in requests]) for name in names}
        return {**requests[0], **lists}

    def _serialized(self, request, targets):
        # Entries in the order of their names, so that equal requests are equal bytes.
        record = tf_example_pb2.Example()
        entries = record.features.feature
        for name in self._scalars:
            entries[name].int64_list.value.append(int(request[name]))
        for name, values in targets.items():
            entries[name].bytes_list.value.append(values.tobytes())
        self._add(entries, request, self._arrays)
        self._add(entries, request, self._candidates, targets[schema_lib.LABEL].size)
        length = len(request[self._history[0]])
        if length > self._schema.history_length:
            raise ValueError(
                f"{self._history[0]!r} must have at most {self._schema.history_length} behaviors. "
                f"Received: {length}"
            )
        self._add(entries, request, self._history, length)
        return record.SerializeToString(deterministic=True)

    def _has_floats(self, name):
        return name in self._entries and self._entries[name][1].kind == "f"

    def _add(self, entries, request, names, *length):
        for name in names:
            entry, dtype = self._entries[name]
            values = np.asarray(request[name], dtype)
            expected = length + entry
            # No entries at all may be of any width.
            if values.shape != expected and (values.size or math.prod(expected)):
                what = f"{length[0]} entries" if length and not entry else f"shape {expected}"
                raise ValueError(f"{name!r} must have {what}. Received: shape {values.shape}")
            entries[name].bytes_list.value.append(values.tobytes())
