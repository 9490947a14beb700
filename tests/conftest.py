"""A small schema and random requests that the tests share."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tests run each program a few times only: to compile it quickly saves more than a quick program.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

import gc
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from memory import let_go
from tensorflow_datasets.core import shuffle

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.schema import Feature, Schema, Table

# The same of graphs.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
# TensorFlow's own objects are no garbage; to look at them would take a second a module.
gc.freeze()


def pytest_collection_modifyitems(items):
    """Trainings come first: they need most memory, and what XLA compiles later is never freed."""
    items.sort(key=lambda item: item.path.name != "test_train.py")


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _let_go():
    """What a module's tests have built and compiled is not kept for the next module's."""
    yield
    let_go()


@pytest.fixture(scope="session", autouse=True)
def _few_buckets():
    """TFDS prepares a thousand files for a split that is larger than memory; none is here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "BUCKETS_NUMBER", 1)
        yield


@pytest.fixture(scope="session")
def schema():
    """User and hour beside item and category, the latter two in histories of up to 12 with
    gaps and, as if they were clusters, sizes."""
    return Schema(
        name="small",
        features=[
            Feature("user", "user", "user"),
            Feature("hour", "context", "hour"),
            Feature("item", "candidate", "item"),
            Feature("category", "candidate", "category"),
            Feature("price", "candidate", "price"),
            Feature("history_item", "history", "item"),
            Feature("history_category", "history", "category"),
            Feature("history_hour", "history", "hour"),
            Feature("history_gap", "behavior", "gap"),
            Feature("history_size", "behavior", "size"),
        ],
        tables=[
            Table("user", "hash", "string", rows=50, dim=4),
            Table("hour", "vocabulary", "int64", rows=26, dim=2),
            Table("item", "vocabulary", "int64", rows=40, dim=8, tiers=(9,)),
            Table("category", "vocabulary", "string", rows=10, dim=4),
            Table("price", "boundaries", "float32", rows=5, dim=2, boundaries=(1.0, 2.0)),
            Table("gap", "boundaries", "float32", rows=4, boundaries=(30.0,)),
            Table("size", "boundaries", "float32", rows=5, boundaries=(2.0, 3.0)),
        ],
        history_length=12,
    )


@pytest.fixture(scope="session")
def rich_schema():
    """Features of several values, numbers and vectors, in every group that may have them."""
    return Schema(
        name="rich",
        features=[
            Feature("user", "user", "user"),
            Feature("likes", "user", "tag", values=3),
            Feature("age", "user", "age"),
            Feature("mood", "context", "mood"),
            Feature("item", "candidate", "item"),
            Feature("tags", "candidate", "tag", values=2),
            Feature("price", "candidate", "price"),
            Feature("image", "candidate", "image"),
            Feature("history_item", "history", "item"),
            Feature("history_tags", "history", "tag", values=2),
            Feature("history_price", "history", "price"),
            Feature("history_image", "history", "image"),
            Feature("history_gap", "behavior", "gap"),
            Feature("history_watched", "behavior", "watched"),
        ],
        tables=[
            Table("user", "hash", "string", rows=50, dim=4),
            Table("tag", "hash", "string", rows=9, dim=4),
            Table("age", "number", "float32", rows=2, dim=2, mean=40.0, deviation=20.0),
            Table("mood", "vector", "float32", rows=2, dim=2, width=3),
            Table("item", "hash", "int64", rows=40, dim=6, tiers=()),
            Table("price", "number", "float32", rows=2, dim=2, mean=3.0, deviation=2.0),
            Table("image", "vector", "float32", rows=2, dim=4, width=5),
            Table("gap", "boundaries", "float32", rows=4, boundaries=(30.0,)),
            Table("watched", "number", "float32", rows=2, mean=0.5, deviation=0.3),
        ],
        history_length=12,
    )


@pytest.fixture(scope="session")
def make_requests(schema):
    """Random index tensors: `make_requests(batch, candidates, length)`."""
    return requests_of(schema)


@pytest.fixture(scope="session")
def make_rich_requests(rich_schema):
    """As `make_requests`, of `rich_schema`; a fifth of the numbers are missing."""
    return requests_of(rich_schema)


def requests_of(schema):
    def make(batch=16, candidates=3, length=12, seed=0):
        rng = np.random.default_rng(seed)
        used = np.arange(length) < rng.integers(0, length + 1, (batch, 1))
        of_behaviors = schema.group("history", "behavior")
        features = {}
        for feature in schema.features:
            shape = (batch,)
            if feature.group == "candidate":
                shape = (batch, candidates)
            elif feature in of_behaviors:
                shape = (batch, length)
            entry, table = schema.entry_shape(feature), schema.table(feature.table)
            if table.is_numeric:
                rows = rng.normal(table.mean, table.deviation, (*shape, *entry)).astype("f")
                rows[rng.random(shape) < 0.2] = np.nan
            else:
                # Of several values, some are padding.
                lowest = 0 if entry else 1
                rows = rng.integers(lowest, table.rows, (*shape, *entry), dtype=np.int32)
            if feature in of_behaviors:
                padding = np.zeros((), rows.dtype)
                rows = np.where(used[..., None] if entry else used, rows, padding)
            features[feature.name] = rows
        return features

    return make


@pytest.fixture(scope="session")
def read_records():
    """`read_records(directory, split)`: dicts of integers and arrays, as the records hold them."""

    def decoded(name, entry):
        if entry.int64_list.value:
            return entry.int64_list.value[0]
        dtype = np.dtype("<f4" if name == schema_lib.LABEL else "<i4")
        return np.frombuffer(entry.bytes_list.value[0], dtype)

    def read(directory, split):
        (shard,) = pathlib.Path(directory).glob(f"*-{split}.tfrecord-00000-of-00001")
        records = tf.data.TFRecordDataset(str(shard)).as_numpy_iterator()
        features = (tf.train.Example.FromString(record).features.feature for record in records)
        return [{name: decoded(name, entry) for name, entry in of.items()} for of in features]

    return read


@pytest.fixture(scope="session")
def read_requests(read_records):
    """`read_requests(directory, split)`: dicts of raw values; None is missing, "?" unknown.

    Values of tables without a vocabulary file stay rows.
    """

    def read(directory, split):
        schema = schema_lib.Schema.load(directory)
        values = {}
        for table in schema.tables:
            if table.kind == "vocabulary":
                lines = (
                    pathlib.Path(schema.vocabulary_path(table)).read_bytes().decode().split("\n")
                )
                convert = int if table.dtype == "int64" else str
                values[table.name] = [None, "?", *map(convert, lines[:-1])]
        requests = []
        for record in read_records(directory, split):
            request = {"label": record["label"].tolist(), "group_id": record["group_id"]}
            for feature in schema.features:
                rows = record[feature.name]
                rows = rows if isinstance(rows, int) else rows.tolist()
                if feature.table in values:
                    decode = values[feature.table].__getitem__
                    rows = decode(rows) if isinstance(rows, int) else [decode(row) for row in rows]
                request[feature.name] = rows
            requests.append(request)
        return requests

    return read


@pytest.fixture(scope="session")
def samples():
    """Directory of the real samples; skips the test where they are absent."""
    path = pathlib.Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real samples in {path}")
    return path
