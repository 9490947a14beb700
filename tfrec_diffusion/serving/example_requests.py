"""Example requests, made up from a schema: they warm servers up, load them and check them."""

import functools
import itertools
import pathlib

import numpy as np
import tensorflow as tf

_VALUES = 1000


def example_requests(schema, batch=1, candidates=100, length=None, seed=0, vocabularies=None):
    """Requests as clients send them, with values that the vocabularies know.

    Args:
        schema: `Schema`.
        batch: int. Number of requests. Defaults to `1`.
        candidates: int. Candidates of each. Defaults to `100`.
        length: int or `None`. Behaviors of each. If `None`, the schema's `history_length`. Defaults
            to `None`.
        seed: int. Seed of the choice. Defaults to `0`.
        vocabularies: str, `pathlib.Path` or `None`. Directory of the vocabulary files, such as the
            `assets` of an exported version. If `None`, that of the schema. Defaults to `None`.

    Returns:
        dict of arrays as `Schema.serving_signature`: int64, float32, or object of `str`.
    """
    rng = np.random.default_rng(seed)
    length = schema.history_length if length is None else length
    shapes = {"candidate": (batch, candidates), "history": (batch, length)}
    shapes["behavior"] = shapes["history"]
    requests = {}
    for feature in schema.features:
        table = schema.table(feature.table)
        path = pathlib.Path(vocabularies or pathlib.Path(schema.vocabulary_path(table)).parent)
        values = _values(table, path / f"{table.name}.txt", rng)
        shape = (*shapes.get(feature.group, (batch,)), *schema.entry_shape(feature))
        requests[feature.name] = rng.choice(values, shape)
    return requests


def _values(table, vocabulary, rng):
    if table.is_numeric:
        return rng.normal(table.mean, table.deviation, _VALUES).astype("float32")
    if table.kind == "boundaries":
        low, high = (table.boundaries[0], table.boundaries[-1]) if table.boundaries else (0, 1)
        return rng.uniform(low - 1, high + 1, _VALUES).astype("float32")
    known = _first_lines(vocabulary) if table.kind == "vocabulary" else ()
    values = list(known) or rng.integers(0, 10**9, _VALUES).astype(str).tolist()
    return np.array(values, object) if table.dtype == "string" else np.array(values).astype("int64")


@functools.lru_cache
def _first_lines(path):
    # Kept, because a soak asks for thousands of requests.
    with open(path, encoding="utf-8", newline="\n") as lines:
        return tuple(line.removesuffix("\n") for line in itertools.islice(lines, _VALUES))


def as_examples(requests):
    """Requests as serialized `tf.train.Example`s.

    Args:
        requests: dict of arrays, as `example_requests` gives it.

    Returns:
        Object array of bytes of shape (batch,).
    """
    examples = []
    for values in zip(*requests.values(), strict=True):
        example = tf.train.Example()
        for name, value in zip(requests, values, strict=True):
            value = np.ravel(value)
            entry = example.features.feature[name]
            if value.dtype.kind == "i":
                entry.int64_list.value.extend(value)
            elif value.dtype.kind == "f":
                entry.float_list.value.extend(value)
            else:
                entry.bytes_list.value.extend(text.encode() for text in value)
        examples.append(example.SerializeToString())
    return np.array(examples, object)
