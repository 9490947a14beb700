"""Random requests for the benchmarks: every sample has its own full history, none is shared."""

import functools

import numpy as np

from tfrec_diffusion.datasets.requests import RequestBuilder, Split
from tfrec_diffusion.schema import FIRST_INDEX, Feature, Schema, Table

FEATURES = (
    Feature("item", "candidate", "item"),
    Feature("category", "candidate", "category"),
    Feature("history_item", "history", "item"),
    Feature("history_category", "history", "category"),
)


def schema(history_length, items=50_000, categories=3_000, clusters=False):
    """Item and category of dim 8, as in the published comparisons.

    Args:
        history_length: Behaviors of each request.
        items, categories: Rows of the tables.
        clusters: Whether the behaviors are clusters, whose sizes TWIN-V2 needs.
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


def requests(schema, count, candidates=1, seed=0):
    """`count` random requests with full histories.

    Returns:
        dict of int32 arrays as `Schema.keras_inputs`, float32 labels (count, candidates).
    """
    rng = np.random.default_rng(seed)
    features = {}
    for feature in schema.features:
        of_history = feature.group in ("history", "behavior")
        length = schema.history_length if of_history else candidates
        rows = schema.table(feature.table).rows
        features[feature.name] = rng.integers(FIRST_INDEX, rows, (count, length), dtype=np.int32)
    return features, rng.integers(0, 2, (count, candidates)).astype(np.float32)


class RandomRequests(RequestBuilder):
    """A prepared data set of random requests, written as every other."""

    VERSION = "1.0.0"
    features = FEATURES

    def __init__(self, *, data_dir, count=20_000, history_length=1000):
        self.count = count
        self.history_length = history_length
        super().__init__(raw_dir=data_dir, data_dir=data_dir)

    def convert(self):
        made = schema(self.history_length)
        parts = [
            range(start, min(start + 1000, self.count)) for start in range(0, self.count, 1000)
        ]
        return made, {}, {"train": Split(functools.partial(_keyed_requests, made), parts)}


def _keyed_requests(schema, numbers):
    features, labels = requests(schema, len(numbers), seed=numbers.start)
    for i, number in enumerate(numbers):
        request = {name: value[i] for name, value in features.items()}
        yield number, {**request, "label": labels[i], "group_id": number}
