import itertools
import types

import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion import input_pipeline
from tfrec_diffusion.datasets.preparation import Preparation
from tfrec_diffusion.datasets.records import Split
from tfrec_diffusion.datasets.requests import RequestBuilder
from tfrec_diffusion.input_pipeline import RequestData, Shard
from tfrec_diffusion.prepared_directory import find_prepared
from tfrec_diffusion.schema import Feature, Schema, Table


class Numbered(RequestBuilder):
    """Request i asks user i for i % 3 + 1 candidates after i % 6 behaviors with growing gaps."""

    VERSION = "1.0.0"
    features = (
        Feature("user", "user", "user"),
        Feature("item", "candidate", "item"),
        Feature("history_item", "history", "item"),
        Feature("history_gap", "behavior", "gap"),
    )

    def __init__(self, *, data_dir, history_length=5):
        self.history_length = history_length
        super().__init__(raw_dir=data_dir, data_dir=data_dir)

    def convert(self):
        tables = [
            Table("user", "hash", "int64", 1000),
            Table("item", "hash", "int64", 100),
            Table("gap", "boundaries", "float32", 12, boundaries=range(9)),
        ]
        schema = Schema("numbered", self.features, tables, self.history_length)
        return (
            schema,
            {},
            {
                "train": Split(self.requests, [100]),
                "test": Split(self.requests, [7]),
            },
        )

    @staticmethod
    def requests(count):
        for i in range(count):
            candidates, behaviors = np.arange(i % 3 + 1), np.arange(i % 6)
            yield (
                i,
                {
                    "user": i,
                    "item": candidates + 2,
                    "history_item": behaviors + 10,
                    "history_gap": behaviors * 2,
                    "label": candidates == 0,
                    "group_id": i * 1000,
                },
            )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    builder = Numbered(data_dir=tmp_path_factory.mktemp("data"))
    builder.write()
    return builder.data_dir


@pytest.fixture(scope="module")
def by_request(tmp_path_factory):
    builder = Numbered(data_dir=tmp_path_factory.mktemp("by_request"))
    builder.write(Preparation(group_by="request"))
    return builder.data_dir


def in_shards(directory, folder, lengths):
    """The data set whose "train" is the first requests of it, in files of these lengths."""
    data = RequestData(directory)
    records = tf.data.TFRecordDataset(data.shards("train")[0].path).as_numpy_iterator()
    shards = [Shard(str(folder / f"{i}.tfrecord"), length) for i, length in enumerate(lengths)]
    for shard in shards:
        with tf.io.TFRecordWriter(shard.path) as writer:
            for record in itertools.islice(records, shard.records):
                writer.write(record)
    data.shards = lambda split: shards
    return data


def part(data, batch_size, worker, workers, local_replicas=1, **arguments):
    """Batches that one of the workers reads, as arrays with the group id."""
    context = tf.distribute.InputContext(workers, worker, workers * local_replicas)
    batches = data.batches(
        "train", batch_size, input_context=context, with_group_id=True, **arguments
    )
    return list(batches.as_numpy_iterator())


def real_users(batches):
    """Of the requests that are not all padding."""
    return [user for batch in batches for user in batch[0]["user"][batch[2].any(axis=1)].tolist()]


def users(batches):
    return np.concatenate([batch[0]["user"] for batch in batches] or [[]]).astype(int).tolist()


def test_batches_of_data_by_request_have_alike_numbers_of_candidates(by_request):
    data = RequestData(by_request)

    def epoch(**arguments):
        return list(data.batches("train", 10, shuffle_seed=0, **arguments))

    batches = epoch()
    assert sorted(users(batches)) == list(range(100))
    most = [label.shape[1] for _, label, _ in batches]
    # Of 34 requests with one candidate and 33 each with two and three, in batches of ten.
    assert sorted(most) == [1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert most != sorted(most), "batches are permuted"
    padded = sum(float((weight.numpy() == 0).sum()) for _, _, weight in batches)
    assert padded < 20
    assert users(epoch(epoch=1)) != users(batches)
    assert users(epoch(first_batch=3)) == users(batches[3:])


def test_batches_have_few_numbers_of_candidates():
    lengths = input_pipeline._padded_candidates(tf.range(1, 1025)).numpy().tolist()
    assert sorted(set(lengths))[:16] == [*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32]
    assert len(set(lengths)) == 8 + 4 * 7
    assert all(n <= length <= 1.25 * n for n, length in enumerate(lengths, 1))
    assert lengths[99] == 112


def test_a_batch_holds_padded_requests(directory):
    data = RequestData(directory)
    (batch,) = data.batches("test", batch_size=10, with_group_id=True)
    features, label, weight, group_id = (batch[0], *(part.numpy() for part in batch[1:]))
    order = np.argsort(features["user"])
    assert features["user"].numpy()[order].tolist() == list(range(7))
    assert features["item"].numpy()[order][:3].tolist() == [[2, 0, 0], [2, 3, 0], [2, 3, 4]]
    assert features["history_item"].numpy()[order][[0, 1, 5]].tolist() == [
        [0, 0, 0, 0, 0],
        [10, 0, 0, 0, 0],
        [10, 11, 12, 13, 14],
    ]
    assert features["history_gap"].numpy()[order][[0, 1, 5]].tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 2, 4, 6, 8],
    ]
    assert label[order][:2].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert weight[order][:3].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert group_id[order].tolist() == [i * 1000 for i in range(7)]
    assert (
        features["item"].dtype == features["history_gap"].dtype == "int32"
        and label.dtype == weight.dtype == np.float32
    )


def test_a_shorter_history_keeps_the_newest(directory):
    data = RequestData(directory, history_length=2)
    assert data.schema.history_length == 2
    (batch,) = data.batches("test", batch_size=10)
    features = {name: value.numpy().tolist() for name, value in batch[0].items()}
    items = dict(zip(features["user"], features["history_item"], strict=True))
    assert items[0] == [0, 0] and items[1] == [10, 0] and items[5] == [13, 14]
    gaps = dict(zip(features["user"], features["history_gap"], strict=True))
    assert gaps[0] == [0, 0] and gaps[2] == [0, 2] and gaps[5] == [6, 8]


def test_an_epoch_is_a_permutation_of_its_own(directory):
    data = RequestData(directory)
    epochs = [users(data.batches("train", 8, shuffle_seed=1, epoch=epoch)) for epoch in (0, 1, 0)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(100))
    assert epochs[0] != epochs[1] and epochs[0] == epochs[2]
    other_seed = users(data.batches("train", 8, shuffle_seed=2))
    assert other_seed != epochs[0]


@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_a_resumed_epoch_is_the_rest_of_it(directory, shuffle_seed):
    data = RequestData(directory)
    arguments = {"batch_size": 8, "shuffle_seed": shuffle_seed, "epoch": 2, "shuffle_window": 20}
    whole = users(data.batches("train", **arguments))
    assert len(whole) == 100
    for first_batch in (1, 5, 12):
        rest = data.batches("train", first_batch=first_batch, **arguments)
        assert users(rest) == whole[8 * first_batch :]
        assert len(rest) == data.num_batches("train", 8) - first_batch


def test_the_order_of_a_seed_is_for_good(directory, tmp_path):
    """A run that an older version began goes on where it stopped."""
    data = in_shards(directory, tmp_path, [60, 40])
    batches = data.batches("train", 10, shuffle_seed=1, epoch=2, shuffle_window=20, first_batch=3)
    assert users(batches)[:15] == [85, 75, 68, 70, 9, 11, 2, 7, 42, 57, 64, 6, 50, 25, 81]


def test_only_files_with_records_to_read_are_opened(directory, tmp_path):
    data = in_shards(directory, tmp_path, [30, 40, 30])
    order, whole = data.order("train"), users(data.batches("train"))
    order = order._replace(paths=["not/there", order.paths[1], "not/there"])
    assert users(data.read(order, 10, first_batch=3).take(4)) == whole[30:70]
    assert users(data.read(order.part(1, 3), 10)) == whole[33:66]
    assert users(data.read(order.part(1, 3), 10, first_batch=4)) == [], "40 of its 33"


@pytest.mark.parametrize(
    "lengths, workers, local_replicas",
    [
        ([100], 1, 2),
        ([100], 3, 1),
        ([60, 40], 2, 2),
        ([60, 40], 5, 1),
        ([20, 3, 17, 0, 30, 8, 21], 2, 1),
        ([20, 3, 17, 0, 30, 8, 21], 3, 2),
        ([20, 3, 17, 0, 30, 8, 21], 5, 1),
        ([2, 1], 5, 2),
    ],
)
def test_workers_read_every_request_once(directory, tmp_path, lengths, workers, local_replicas):
    data = in_shards(directory, tmp_path, lengths)
    batch_size = 4 * workers * local_replicas
    parts = [part(data, batch_size, worker, workers, local_replicas) for worker in range(workers)]
    batches = data.num_batches("train", batch_size) * local_replicas
    assert [len(part) for part in parts] == [batches] * workers
    read = [real_users(part) for part in parts]
    assert list(itertools.chain(*read)) == users(data.batches("train"))
    sizes = [len(part) for part in read]
    assert max(sizes) - min(sizes) <= 1
    for features, label, weight, group_id in itertools.chain(*parts):
        assert label.shape == weight.shape == features["item"].shape
        assert label.shape[0] == 4 and label.shape[1] >= 1
        padding = ~weight.any(axis=1)
        for value in (*features.values(), label, group_id):
            assert not value[padding].any()


@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_a_resumed_worker_reads_the_rest_of_its_part(directory, tmp_path, shuffle_seed):
    """Of three workers with two replicas: 33 requests in steps of 10, the last 7 are padding."""
    data = in_shards(directory, tmp_path, [60, 40])
    arguments = {"shuffle_seed": shuffle_seed, "shuffle_window": 8}
    whole = part(data, 30, 0, 3, 2, **arguments)
    for done in (1, 3, 4):
        rest = part(data, 30, 0, 3, 2, first_batch=done, **arguments)
        tf.nest.map_structure(np.testing.assert_array_equal, rest, whole[2 * done :])


def test_each_worker_shuffles_in_its_own_way(directory):
    data = RequestData(directory)
    place = {user: i for i, user in enumerate(users(data.batches("train")))}

    def places(worker, epoch):
        batches = part(data, 20, worker, 2, shuffle_seed=1, epoch=epoch)
        return [place[user] - 50 * worker for user in real_users(batches)]

    first = places(0, epoch=0)
    others = [places(1, epoch=0), places(0, epoch=1), places(1, epoch=1)]
    assert all(sorted(other) == sorted(first) == list(range(50)) for other in others)
    assert len({tuple(each) for each in (first, *others)}) == 4
    assert places(0, epoch=0) == first
    alone = part(data, 20, 0, 1, shuffle_seed=1)
    assert real_users(alone) == users(data.batches("train", 20, shuffle_seed=1))


def test_replicas_of_a_worker_read_alike_numbers_of_candidates(by_request):
    data = RequestData(by_request)
    parts = [part(data, 20, worker, 2, local_replicas=2, shuffle_seed=0) for worker in range(2)]
    assert sorted(real_users(parts[0]) + real_users(parts[1])) == list(range(100))
    for batches in parts:
        # 50 requests in steps of two batches, of about 17 each with one, two and three candidates.
        most = np.reshape([label.shape[1] for _, label, _, _ in batches], (5, 2))
        assert sorted(most.max(axis=1)) == [1, 2, 2, 3, 3]
        assert sum(most[:, 0] != most[:, 1]) <= 2


def test_a_batch_size_that_replicas_cannot_share(directory):
    with pytest.raises(ValueError, match="multiple of the number of replicas, 6.*batch_size=8"):
        part(RequestData(directory), 8, 0, 3, 2)


def test_a_graph_reads_any_batches_of_any_epoch(by_request, tmp_path):
    data = in_shards(by_request, tmp_path, [60, 40])
    traces = []

    @tf.function
    def two_batches(order, first_batch):
        traces.append(order)
        batches = data.read(order, 8, first_batch, shuffle_window=20).take(2)
        user = batches.map(lambda features, *_: features["user"])
        return user.unbatch().batch(16).get_single_element()

    for epoch in range(2):
        whole = users(data.batches("train", 8, shuffle_seed=3, epoch=epoch, shuffle_window=20))
        order = data.order("train", 3, epoch)
        for first in (0, 7, 11):
            read = two_batches(order, tf.constant(first))
            assert read.numpy().tolist() == whole[8 * first : 8 * first + 16]
    assert len(traces) == 1
    read = two_batches(data.order("train"), tf.constant(7))
    assert read.numpy().tolist() == users(data.batches("train"))[56:72]


def test_a_missing_file_is_named_before_the_epoch(directory):
    data = RequestData(directory)
    data.shards = lambda split: [Shard("not/there.tfrecord", 100)]
    with pytest.raises(FileNotFoundError, match="not/there.tfrecord is missing: prepare"):
        data.order("train")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def lose_a_record(path):
    *records, _ = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, r"1.tfrecord is damaged \(corrupted record at \d+\): prepare the data set"),
        (cut, r"1.tfrecord is damaged \(truncated record at \d+\): prepare"),
        (lose_a_record, "1.tfrecord has 39 records in the place of 40: prepare"),
    ],
)
@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_a_damaged_file_is_named(directory, tmp_path, damage, message, shuffle_seed):
    data = in_shards(directory, tmp_path, [30, 40, 30])
    damage(tmp_path / "1.tfrecord")
    with pytest.raises(OSError, match=message), data.naming_damage("train"):
        list(data.batches("train", 8, shuffle_seed=shuffle_seed))


def test_an_error_that_is_not_of_the_files_stays_as_it_is(directory, tmp_path):
    data = in_shards(directory, tmp_path, [30, 40, 30])
    with pytest.raises(tf.errors.FailedPreconditionError), data.naming_damage("train"):
        raise tf.errors.FailedPreconditionError(None, None, "a machine is lost")


@pytest.mark.parametrize("history_length", [0, 6])
def test_a_wrong_history_length_names_what_was_prepared(directory, history_length):
    with pytest.raises(ValueError, match=r"must be in \[1, 5\].*Received: history_length="):
        RequestData(directory, history_length=history_length)


def test_an_unknown_split_lists_those_there_are(directory):
    with pytest.raises(ValueError, match=r"one of \['test', 'train'\]. Received: 'valid'"):
        RequestData(directory).batches("valid")


def test_a_trained_model_is_no_data_set(directory, tmp_path):
    RequestData(directory).schema.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="has a schema but no records: expected"):
        RequestData(tmp_path)


def test_the_newest_version_is_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected what `python -m tfrec_diffusion.prepare"):
        find_prepared(tmp_path, "taobao")
    for version in ("1.9.0", "1.10.0", "incomplete.1.11.0"):
        (tmp_path / "taobao" / version).mkdir(parents=True)
        (tmp_path / "taobao" / version / "schema.json").touch()
    assert find_prepared(tmp_path, "taobao").name == "1.10.0"


class Rich(RequestBuilder):
    """Requests of the features that arrays hold, one after the other."""

    VERSION = "1.0.0"

    def __init__(self, *, data_dir, schema, requests):
        self.features, self._schema, self._requests = schema.features, schema, requests
        super().__init__(raw_dir=data_dir, data_dir=data_dir)

    numeric_tables = ("age", "mood", "price", "image", "watched")
    options = types.MappingProxyType({})

    def convert(self):
        return self._schema, {}, {"train": Split(self.one_by_one, [None])}

    def one_by_one(self, _):
        for i in range(len(self._requests["user"])):
            request = {name: x[i] for name, x in self._requests.items()}
            length = int((request["history_item"] > 0).sum())
            for name in request:
                if name.startswith("history"):
                    request[name] = request[name][:length]
            yield i, {**request, "label": np.array([1, 0]), "group_id": i}


def test_several_values_numbers_and_vectors_come_back(rich_schema, make_rich_requests, tmp_path):
    written = make_rich_requests(batch=20, candidates=2, length=12)
    written["user"] = np.arange(20, dtype="int32")
    builder = Rich(data_dir=tmp_path, schema=rich_schema, requests=written)
    builder.write()
    ((features, label, _),) = RequestData(builder.data_dir).batches("train", 20)
    assert label.shape == (20, 2)
    order = features["user"].numpy()
    inputs = rich_schema.keras_inputs()
    for name, expected in written.items():
        found = features[name].numpy()
        assert found.dtype == inputs[name].dtype == expected.dtype
        np.testing.assert_array_equal(found, expected[order], err_msg=name)

    # The newest behaviors of a shorter history, with all of their numbers.
    ((features, _, _),) = RequestData(builder.data_dir, history_length=3).batches("train", 20)
    lengths = (written["history_item"] > 0).sum(axis=1)[order]
    for name in ("history_tags", "history_price", "history_image"):
        for found, expected, length in zip(
            features[name].numpy(), written[name][order], lengths, strict=True
        ):
            newest = expected[max(0, length - 3) : length]
            np.testing.assert_array_equal(found[: len(newest)], newest)
