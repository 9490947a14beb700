import multiprocessing
import resource
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfrec_diffusion import locking
from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import requests, vocabularies


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
        splits = {"train": self.requests(), "test": self.requests()}
        return schema, {"user": user, "item": item}, splits

    def requests(self):
        self.report.read("table", self.count + 1)
        self.report.drop("table", "odd", 1, ["line 7"])
        for i in range(self.count):
            yield i, self.request(i)

    def request(self, i):
        return {
            "user": 3,
            "group_id": 2**40,
            "item": np.array([2, 3], np.int32),
            "history_item": np.arange(i % 5, dtype=np.int32),
            "label": np.array([0, 1], np.float32),
        }


class Broken(Toy):
    """Fails after the first split."""

    def requests(self):
        yield from super().requests()
        raise KeyboardInterrupt


class Endless(Toy):
    """Never ends."""

    def requests(self):
        for i in range(10**9):
            time.sleep(0.01 if i else 0)
            yield i, self.request(i)


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


def test_same_bytes_in_another_process(toy, tmp_path, digests):
    process = multiprocessing.get_context("spawn").Process(
        target=_write, args=(Toy, tmp_path, tmp_path / "other")
    )
    process.start()
    process.join()
    assert digests(tmp_path / "other" / "toy" / "1.0.0") == digests(toy.data_dir)


def test_report():
    report = requests.Report()
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


def test_an_interrupted_run_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Broken(raw_dir=tmp_path, data_dir=tmp_path / "data").write()
    assert left_in(tmp_path) == []


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


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    # A limit on the size of files stands for the disk.
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_write_in_little_room, args=(tmp_path, queue))
    process.start()
    error = queue.get()
    process.join()
    assert error.startswith("OSError")
    assert left_in(tmp_path) == []


def test_wrong_requests_are_not_written(tmp_path):
    for wrong, message in (
        ({"item": np.array([1], np.int32)}, "'item' must have 2 entries"),
        ({"history_item": np.arange(6)}, "'history_item' must have at most 5 behaviors"),
    ):

        class Wrong(Toy):
            """Differs in one feature."""

            def request(self, i, wrong=wrong):
                return {**super().request(i), **wrong}

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
    another = locking.lock(tmp_path / "data" / "toy", "preparing")
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

    def requests(self):
        raise KeyboardInterrupt
        yield


def _write(builder_class, raw_dir, data_dir):
    builder_class(raw_dir=raw_dir, data_dir=data_dir).write()


def _write_in_little_room(tmp_path, queue):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        Toy(raw_dir=tmp_path, data_dir=tmp_path / "data", count=3000).write()
        queue.put("written")
    except BaseException as error:
        queue.put(f"{type(error).__name__}: {error}")
