import numpy as np
import pytest

from tfrec_diffusion import input_pipeline
from tfrec_diffusion.datasets.requests import Preparation, RequestBuilder, Split
from tfrec_diffusion.input_pipeline import RequestData, find_prepared
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


def users(batches):
    return np.concatenate([batch[0]["user"] for batch in batches] or [[]]).astype(int).tolist()


def test_batches_of_data_by_request_have_alike_numbers_of_candidates(tmp_path):
    builder = Numbered(data_dir=tmp_path)
    builder.write(Preparation(group_by="request"))
    data = RequestData(builder.data_dir)

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
    lengths = [int(input_pipeline._padded_candidates(n)) for n in range(1, 1025)]
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
@pytest.mark.parametrize("first_batch", [0, 1, 5, 12])
def test_a_resumed_epoch_is_the_rest_of_it(directory, shuffle_seed, first_batch):
    data = RequestData(directory)
    arguments = {"batch_size": 8, "shuffle_seed": shuffle_seed, "epoch": 2, "shuffle_window": 20}
    whole = users(data.batches("train", **arguments))
    rest = data.batches("train", first_batch=first_batch, **arguments)
    assert users(rest) == whole[8 * first_batch :]
    assert len(rest) == data.num_batches("train", 8) - first_batch


def test_whole_shards_are_skipped(monkeypatch, directory):
    """Two shards of 60 and 40 records: the first is not even opened from record 60 on."""
    from tfrec_diffusion import input_pipeline

    (shard,) = RequestData(directory).shards("train")
    shards = [
        input_pipeline.Shard("not/there.tfrecord", 60),
        input_pipeline.Shard(shard.path, 40),
    ]
    assert len(list(input_pipeline._records(shards, 60, None, 20))) == 100
    assert len(list(input_pipeline._records(shards, 70, None, 20))) == 90


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
