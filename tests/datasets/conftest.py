"""Reads prepared requests back as the raw values that they were made from."""

import hashlib
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import tables


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
def digests():
    """`digests(directory)`: hash of each file below a directory."""

    def of(directory):
        directory = pathlib.Path(directory)
        return {
            str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }

    return of


@pytest.fixture
def taobao_in_parts(tmp_path, monkeypatch):
    """Directory of a raw file of Taobao's that `Database.cut` makes several parts of."""
    monkeypatch.setattr(tables.Database, "part_rows", 20)
    raw_dir = tmp_path / "raw"
    raw_dir.mkdir()
    lines = [
        f"{user},{(user + 3 * time) % 11},1,pv,{1511539200 + time}\n"
        for user in range(20)
        for time in range(8)
    ]
    (raw_dir / "UserBehavior.csv").write_text("".join(lines))
    return raw_dir


@pytest.fixture(scope="session")
def samples():
    """Directory of the real samples; skips the test where they are absent."""
    path = pathlib.Path(__file__).parents[3] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real samples in {path}")
    return path
