import json
import multiprocessing
import pathlib
import resource
import signal
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfrec_diffusion import datasets, files, names
from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import requests, vocabularies
from tfrec_diffusion.datasets.preparation import Preparation
from tfrec_diffusion.datasets.records import DAY, Split
from tfrec_diffusion.datasets.report import Report


class Toy(requests.RequestBuilder):
    """As many requests as asked, of one user with a history of one behavior more in each."""

    VERSION = tfds.core.Version("1.0.0")

    features = (
        schema_lib.Feature("user", "user", "user"),
        schema_lib.Feature("item", "candidate", "item"),
        schema_lib.Feature("history_item", "history", "item"),
    )

    def __init__(self, *, raw_dir, data_dir, history_length=5, count=4):
        self.history_length = history_length
        self.count = count
        super().__init__(raw_dir=raw_dir, data_dir=data_dir)

    def convert(self):
        (self.scratch / "temporary").touch()
        user = vocabularies.HashBuckets("user", "int64", 10)
        item = vocabularies.Vocabulary("item", "string", ["a", "b"])
        schema = schema_lib.Schema(
            "toy", self.features, [user.table(), item.table()], self.history_length
        )
        self.report.read("table", self.count + 1)
        self.report.drop("table", "odd", 1, ["line 7"], bad=False)
        half = self.count // 2
        split = Split(self.encode, [range(half), range(half, self.count)])
        return schema, {"user": user, "item": item}, {"train": split, "test": split}

    @staticmethod
    def encode(part):
        for i in part:
            yield i, _request(i)


def _request(i, **changes):
    return {
        "user": 3,
        "group_id": 2**40,
        "item": np.array([2, 3], np.int32),
        "history_item": np.arange(i % 5, dtype=np.int32),
        "label": np.array([0, 1], np.float32),
        **changes,
    }


class Broken(Toy):
    """Fails after the first part."""

    @staticmethod
    def encode(part):
        if part.start:
            raise KeyboardInterrupt
        yield from Toy.encode(part)


class Endless(Toy):
    """Never ends."""

    @staticmethod
    def encode(part):
        for i in range(10**9):
            time.sleep(0.01 if i else 0)
            yield i, _request(i)


@pytest.fixture
def toy(tmp_path):
    builder = Toy(raw_dir=tmp_path, data_dir=tmp_path / "data")
    builder.write()
    return builder


def left_in(tmp_path):
    return sorted(path.name for path in (tmp_path / "data").glob("*/*"))


def test_records_are_parsed_by_the_schema(toy):
    schema = schema_lib.Schema.load(toy.data_dir)
    (path,) = tf.io.gfile.glob(f"{toy.data_dir}/toy-test.tfrecord*")
    records = list(tf.data.TFRecordDataset(path))
    assert len(records) == 4
    lengths = set()
    for record in records:
        parsed = tf.io.parse_single_example(record, schema.record_spec())
        assert parsed["group_id"] == 2**40
        assert parsed["user"] == 3
        assert tf.io.decode_raw(parsed["item"], tf.int32).numpy().tolist() == [2, 3]
        assert tf.io.decode_raw(parsed["label"], tf.float32).numpy().tolist() == [0, 1]
        history = tf.io.decode_raw(parsed["history_item"], tf.int32).numpy().tolist()
        assert history == list(range(len(history)))
        lengths.add(len(history))
    assert lengths == {0, 1, 2, 3}


def test_tfds_reads_it(toy):
    builder = tfds.builder_from_directory(toy.data_dir)
    assert builder.info.splits["train"].num_examples == 4
    example = next(iter(builder.as_dataset(split="train")))
    assert example["item"].dtype == tf.int32
    assert example["item"].numpy().tolist() == [2, 3]


def test_what_lies_beside_the_records(toy, digests):
    assert set(digests(toy.data_dir)) == {
        "dataset_info.json",
        "features.json",
        "report.json",
        "schema.json",
        "toy-test.tfrecord-00000-of-00001",
        "toy-train.tfrecord-00000-of-00001",
        "vocabularies/item.txt",
    }


@pytest.mark.slow
def test_same_bytes_in_another_process(toy, tmp_path, digests):
    process = multiprocessing.get_context("spawn").Process(
        target=_write, args=(Toy, tmp_path, tmp_path / "other")
    )
    process.start()
    process.join()
    assert digests(tmp_path / "other" / "toy" / "1.0.0") == digests(toy.data_dir)


def test_report():
    report = Report(max_bad_rows=0.8)
    report.read("a.csv", 10)
    report.drop("a.csv", "odd", 4, [f"a.csv:{i}" for i in range(1, 5)])
    report.drop("a.csv", "odd", 3, ["a.csv:5", "a.csv:6", "a.csv:7"])
    report.drop("a.csv", "even", 0)
    report.note("best_reachable", {"auc": 0.8})
    places = ["a.csv:1", "a.csv:2", "a.csv:3", "a.csv:4", "a.csv:5"]
    assert report.get_config() == {
        "sources": {
            "a.csv": {"read": 10, "kept": 3, "dropped": {"odd": {"rows": 7, "places": places}}}
        },
        "best_reachable": {"auc": 0.8},
    }


def test_bad_rows_are_counted_against_their_limit():
    report = Report(max_bad_rows=0.01)
    report.read("a.csv", 350)
    report.drop("a.csv", "not wanted", 150, bad=False)
    report.drop("a.csv", "odd", 2, ["a.csv:3"])
    with pytest.raises(
        ValueError,
        match=r"^a\.csv: 3 of 200 rows are bad, more than `max_bad_rows`=0\.01 of them\. "
        r"The last found: even \(a\.csv:7\)$",
    ):
        report.drop("a.csv", "even", 1, ["a.csv:7"])


class Pages(Toy):
    """One page of three items, shown once more; one of another length; one of another user."""

    pages = (
        ("a", _request(2, item=[2], label=[0])),
        ("b", _request(2, item=[3], label=[1])),
        ("c", _request(2, item=[2, 1], label=[0, 1])),
        ("d", _request(3, item=[3], label=[0])),
        ("e", _request(2, item=[3], label=[0])),
        ("f", _request(2, item=[3], label=[0], user=4)),
        ("g", _request(2, item=[2], label=[1], user=4, group_id=1)),
    )

    def convert(self):
        schema, vocabs, _ = super().convert()
        split = Split(iter, [self.pages[:5], self.pages[5:]])
        return schema, vocabs, {"test": split}


def test_requests_that_differ_in_candidates_only_are_joined(tmp_path):
    builder = Pages(raw_dir=tmp_path, data_dir=tmp_path)
    builder.write(Preparation(group_by="request"))
    read = tfds.builder_from_directory(builder.data_dir).as_dataset(split="test")
    joined = [
        (r["group_id"] == 1, int(r["user"]), r["item"].tolist(), r["label"].tolist(),
         len(r["history_item"]))
        for r in read.as_numpy_iterator()
    ]  # fmt: skip
    assert sorted(joined) == [
        (False, 3, [2, 3, 2, 1], [0, 1, 0, 1], 2),
        (False, 3, [3], [0], 2),
        (False, 3, [3], [0], 3),
        (False, 4, [3], [0], 2),
        (True, 4, [2], [1], 2),
    ]
    report = _read_report(builder)
    assert report["options"]["group_by"] == "request"
    assert report["splits"]["test"]["requests"] == 5
    assert report["splits"]["test"]["candidates"] == 8


class Diary(Toy):
    """A click on the second of May, and no click on the first."""

    def convert(self):
        schema, vocabs, _ = super().convert()
        days = {may: 19112 + may for may in (2, 1)}
        pages = [(may, _request(2, label=[may == 2, 0], **{DAY: day})) for may, day in days.items()]
        return schema, vocabs, {"test": Split(iter, [pages])}


@pytest.mark.parametrize("group_by", names.GROUPINGS)
def test_label_rates_of_days(tmp_path, group_by):
    builder = Diary(raw_dir=tmp_path, data_dir=tmp_path)
    builder.write(Preparation(group_by=group_by))
    days = _read_report(builder)["splits"]["test"]["days"]
    assert list(days.items()) == [
        ("2022-05-01", {"candidates": 2, "clicks": 0}),
        ("2022-05-02", {"candidates": 2, "clicks": 1}),
    ]


def _read_report(builder):
    return json.loads((pathlib.Path(builder.data_dir) / "report.json").read_text())


def test_without_beam_its_options_are_an_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "tfrec_diffusion.datasets.beam_writer", raising=False)
    monkeypatch.delattr(datasets, "beam_writer", raising=False)
    monkeypatch.setattr(Toy, "convert", None)
    with pytest.raises(
        ValueError, match=r"need Apache Beam \(pip install 'tfrec_diffusion\[beam\]"
    ):
        Toy(raw_dir=tmp_path, data_dir=tmp_path).write(Preparation(beam_options=[]))


def test_an_interrupted_run_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Broken(raw_dir=tmp_path, data_dir=tmp_path / "data").write()
    assert left_in(tmp_path) == []


def test_the_next_run_removes_what_a_killed_one_left(tmp_path):
    left = tmp_path / "data" / "toy" / "incomplete.ABC_1.0.0"
    (left / "scratch").mkdir(parents=True)
    (left / "scratch" / "temporary").touch()
    Toy(raw_dir=tmp_path, data_dir=tmp_path / "data").write()
    assert left_in(tmp_path) == ["1.0.0"]


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_looks_whole_and_the_next_starts_clean(tmp_path):
    process = multiprocessing.get_context("spawn").Process(
        target=_write, args=(Endless, tmp_path, tmp_path / "data"), daemon=True
    )
    process.start()
    directory = tmp_path / "data" / "endless"
    while not list(directory.glob("incomplete.*")):
        time.sleep(0.02)
    with pytest.raises(BlockingIOError, match="another process is preparing"):
        _Interrupted(raw_dir=tmp_path, data_dir=tmp_path / "data").write()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = directory.iterdir()
    assert left.name.startswith("incomplete.")
    with pytest.raises(KeyboardInterrupt):
        _Interrupted(raw_dir=tmp_path, data_dir=tmp_path / "data").write()
    assert list(directory.iterdir()) == []


@pytest.fixture
def little_room():
    """A limit on the size of files, which stands for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("little_room")
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="^cannot write .*/toy/1.0.0: "):
        Toy(raw_dir=tmp_path, data_dir=tmp_path / "data", count=3000).write()
    assert left_in(tmp_path) == []


def test_wrong_requests_are_not_written(tmp_path):
    for wrong, message in (
        ({"item": np.array([1], np.int32)}, "'item' must have 2 entries"),
        ({"history_item": np.arange(6)}, "'history_item' must have at most 5 behaviors"),
    ):

        class Wrong(Toy):
            """Differs in one feature."""

            @staticmethod
            def encode(part, wrong=wrong):
                yield 0, _request(0, **wrong)

        with pytest.raises(ValueError, match=message):
            Wrong(raw_dir=tmp_path, data_dir=tmp_path / "data").write()
        assert left_in(tmp_path) == []


def test_empty_split(tmp_path):
    with pytest.raises(ValueError, match=r"split 'train' of toy got no request.*odd"):
        Toy(raw_dir=tmp_path, data_dir=tmp_path / "data", count=0).write()


def test_no_raw_dir(tmp_path):
    with pytest.raises(ValueError, match="`raw_dir` must be the directory of the raw files"):
        Toy(raw_dir=None, data_dir=tmp_path)


def test_overwrite(toy, tmp_path, digests):
    before = digests(toy.data_dir)
    with pytest.raises(ValueError, match="got no request"):
        Toy.overwrite(raw_dir=tmp_path, data_dir=tmp_path / "data", count=0)
    assert digests(toy.data_dir) == before
    Toy.overwrite(raw_dir=tmp_path, data_dir=tmp_path / "data", count=2)
    assert digests(toy.data_dir) != before
    assert left_in(tmp_path) == ["1.0.0"]


def test_overwrite_holds_the_directory_before_it_moves_the_old_data(toy, tmp_path, digests):
    before = digests(toy.data_dir)
    another = files.lock(tmp_path / "data" / "toy", "preparing")
    with another, pytest.raises(BlockingIOError, match="another process is preparing"):
        Toy.overwrite(raw_dir=tmp_path, data_dir=tmp_path / "data")
    assert digests(toy.data_dir) == before
    assert left_in(tmp_path) == ["1.0.0"]


def test_the_next_run_puts_back_what_a_killed_overwrite_moved(toy, tmp_path, digests):
    before = digests(toy.data_dir)
    path = tmp_path / "data" / "toy" / "1.0.0"
    path.rename(path.with_name("replaced_1.0.0"))
    Toy(raw_dir=tmp_path, data_dir=tmp_path / "data", count=1).write()
    assert digests(path) == before
    assert left_in(tmp_path) == ["1.0.0"]


class _Interrupted(Endless):
    name = "endless"

    @staticmethod
    def encode(part):
        raise KeyboardInterrupt
        yield


def _write(builder_class, raw_dir, data_dir):
    builder_class(raw_dir=raw_dir, data_dir=data_dir).write()
