"""Random data for the benchmarks: every sample has a full history of its own, none is shared."""

import functools

import keras
import numpy as np
import tensorflow as tf

from tfrec_diffusion.datasets.records import Split
from tfrec_diffusion.datasets.requests import RequestBuilder
from tfrec_diffusion.schema import FIRST_INDEX, Feature, Schema, Table

FEATURES = (
    Feature("item", "candidate", "item"),
    Feature("category", "candidate", "category"),
    Feature("history_item", "history", "item"),
    Feature("history_category", "history", "category"),
)


def random_schema(history_length, items=50_000, categories=3_000, clusters=False):
    """A schema of items and categories, each of dim 8, as in the published comparisons.

    Args:
        history_length: int. Behaviors of each request.
        items: int. Rows of the table of items. Defaults to `50000`.
        categories: int. Rows of the table of categories. Defaults to `3000`.
        clusters: bool. Whether the behaviors are clusters, whose sizes TWIN-V2 needs. Defaults to
            `False`.

    Returns:
        `Schema`.
    """
    tables = (
        Table("item", "hash", "int64", rows=items),
        Table("category", "hash", "int64", rows=categories),
    )
    if not clusters:
        return Schema("random", FEATURES, tables, history_length)
    size = Table("size", "boundaries", "float32", rows=22, boundaries=range(2, 21))
    features = (*FEATURES, Feature("history_size", "behavior", "size"))
    return Schema("random", features, (*tables, size), history_length)


def random_batch(schema, count, candidates=1, seed=0):
    """Random requests with full histories.

    Args:
        schema: `Schema` without user and context features.
        count: int. Number of requests.
        candidates: int. Candidates of each. Defaults to `1`.
        seed: int. Seed of the values. Defaults to `0`.

    Returns:
        dict of int32 arrays as `Schema.keras_inputs`, and float32 labels of shape
        (count, candidates).
    """
    rng = np.random.default_rng(seed)
    features = {}
    for feature in schema.features:
        of_history = feature.group in ("history", "behavior")
        length = schema.history_length if of_history else candidates
        rows = schema.table(feature.table).rows
        features[feature.name] = rng.integers(FIRST_INDEX, rows, (count, length), dtype=np.int32)
    return features, rng.integers(0, 2, (count, candidates)).astype(np.float32)


def random_tensors(schema, count, candidates=1, seed=0):
    """As `random_batch`, but tensors.

    Args:
        schema: `Schema`. As in `random_batch`.
        count: int. As in `random_batch`.
        candidates: int. As in `random_batch`. Defaults to `1`.
        seed: int. As in `random_batch`. Defaults to `0`.

    Returns:
        dict of int32 tensors, and a float32 tensor.
    """
    batch = random_batch(schema, count, candidates, seed)
    return keras.tree.map_structure(tf.constant, batch)


class RandomData(RequestBuilder):
    """A prepared data set of random requests with one split, `train`.

    Args:
        data_dir: str or `pathlib.Path`. Root of the prepared data sets.
        count: int. Number of requests. Defaults to `20000`.
        history_length: int. Behaviors of each request. Defaults to `1000`.
    """

    VERSION = "1.0.0"
    features = FEATURES

    def __init__(self, *, data_dir, count=20_000, history_length=1000):
        self.count = count
        self.history_length = history_length
        super().__init__(raw_dir=data_dir, data_dir=data_dir)

    def convert(self):
        schema = random_schema(self.history_length)
        parts = [
            range(start, min(start + 1000, self.count)) for start in range(0, self.count, 1000)
        ]
        return schema, {}, {"train": Split(functools.partial(_keyed_requests, schema), parts)}


def _keyed_requests(schema, numbers):
    features, labels = random_batch(schema, len(numbers), seed=numbers.start)
    for i, number in enumerate(numbers):
        request = {name: value[i] for name, value in features.items()}
        yield number, {**request, "label": labels[i], "group_id": number}
