import json

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from commands import run

from tfrec_diffusion.datasets.preparation import prepare
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.inspection.counts import Counts

DAYS = {
    "train": {
        "2022-04-30": {"candidates": 1200, "clicks": 300},
        "2022-05-01": {"candidates": 40, "clicks": 7},
    },
    "validation": {"2022-05-02": {"candidates": 60, "clicks": 6}},
}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A small data set; it has days in its report, written here by hand, but for the test split."""
    directory = tmp_path_factory.mktemp("data")
    options = {"users": 60, "items": 60, "categories": 6, "history_length": 12, "min_count": 3}
    prepared = prepare("synthetic", data_dir=directory, **options)
    path = prepared / "report.json"
    report = json.loads(path.read_text())
    for split, days in DAYS.items():
        report["splits"][split]["days"] = days
    report["splits"]["test"].pop("days", None)
    path.write_text(json.dumps(report))
    return RequestData(prepared)


@pytest.fixture(scope="session")
def inspect(data):
    """Runs the command on a data set, the small one if it is not named."""

    def inspect(*arguments, dataset="synthetic"):
        root = data.directory.parent.parent
        return run("inspect", f"--dataset={dataset}", f"--data_dir={root}", *arguments)

    return inspect


@pytest.fixture(scope="session")
def report(inspect, tmp_path_factory):
    """What is printed of all splits, and what is drawn."""
    pytest.importorskip("matplotlib")
    picture = tmp_path_factory.mktemp("picture") / "picture.png"
    status, out, _ = inspect("--requests=2", f"--picture={picture}")
    assert status == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 30_000
    return out, pd.read_csv(picture.with_suffix(".csv"))


@pytest.fixture(scope="session")
def records(data):
    """By split, dicts of what each record holds, without the package's own parsing."""

    def parse(record):
        found = {}
        for name, value in tf.train.Example.FromString(record).features.feature.items():
            if value.int64_list.value:
                found[name] = value.int64_list.value[0]
            else:
                dtype = "<f4" if name == "label" else "<i4"
                found[name] = np.frombuffer(value.bytes_list.value[0], dtype)
        return found

    return {
        split: [
            parse(record)
            for path in sorted(data.directory.glob(f"synthetic-{split}.tfrecord-*"))
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        ]
        for split in data.splits
    }


@pytest.fixture
def counts(schema, make_requests):
    """Of three requests by hand: (5, 5, 6), (5, 6) and padding, (7, unknown, unknown)."""
    features = make_requests(batch=3, candidates=3)
    features["item"] = np.array([[5, 5, 6], [5, 6, 0], [7, 1, 1]])
    features["price"] = np.array([[0, 2, 2], [2, 0, 0], [2, 3, 4]])  # two of eight missing
    features["hour"] = np.array([4, 4, 9])
    features["history_item"] = np.zeros((3, 12), int)
    features["history_item"][0, :2] = 8
    features["history_item"][2] = [1] * 3 + [9] * 6 + [8] * 3
    features["history_category"] = np.where(features["history_item"] == 9, 0, 1)
    label = np.array([[1.0, 0, 0], [1, 1, 1], [0, 0, 1]])  # also one of the padding
    counts = Counts(schema, size=300)
    counts.add(features, label, (features["item"] > 0).astype("float32"), np.array([7, 7, 8]))
    return counts
