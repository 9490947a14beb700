import dataclasses
import multiprocessing
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tfrec_diffusion import models
from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import clustered, clustering, requests, vocabularies
from tfrec_diffusion.datasets.preparation import prepare
from tfrec_diffusion.datasets.records import Split
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.prepared_directory import PreparedDirectory
from tfrec_diffusion.training.run_directory import RunDirectory

# Where the embeddings of items and categories are, on a line each.
ITEMS = {"a": 0.0, "b": 1.0}
CATEGORIES = {"X": 0.0, "Y": 50.0}
TIMELINE = ["aX", "aY", "bX", "bY", "aX", "bY", "aX", "bX", "aY"]
# The history of each request. The last has the items of number 6 with other categories.
HISTORIES = [*(TIMELINE[:n] for n in range(10)), ["aX", "aX", "bY", "bX", "aX", "bY"]]
BEHAVIORS = ("history_item", "history_category", "history_age")


class Toy(requests.RequestBuilder):
    """One request for each of the histories; up to three candidates."""

    VERSION = tfds.core.Version("1.0.0")

    features = (
        schema_lib.Feature("user", "user", "user"),
        schema_lib.Feature("item", "candidate", "item"),
        schema_lib.Feature("category", "candidate", "category"),
        schema_lib.Feature("history_item", "history", "item"),
        schema_lib.Feature("history_category", "history", "category"),
        schema_lib.Feature("history_age", "behavior", "age"),
    )

    def __init__(self, *, raw_dir, data_dir, history_length=9):
        self.history_length = history_length
        super().__init__(raw_dir=raw_dir, data_dir=data_dir)

    def convert(self):
        self.vocabs = {
            "user": vocabularies.HashBuckets("user", "int64", 10),
            "item": vocabularies.Vocabulary("item", "string", list(ITEMS), (3,)),
            "category": vocabularies.Vocabulary("category", "string", list(CATEGORIES)),
            "age": vocabularies.Boundaries("age", range(1, 20)),
        }
        self.report.note("best_reachable", {"test": {"auc": 0.9, "gauc": 0.8, "log_loss": 0.1}})
        schema = schema_lib.Schema(
            "toy",
            self.features,
            [vocabulary.table(dim=1) for vocabulary in self.vocabs.values()],
            self.history_length,
        )
        split = Split(self.requests, [HISTORIES])
        return schema, self.vocabs, {"train": split, "test": split}

    def requests(self, histories):
        for number, history in enumerate(histories):
            # The same behavior has another age in another request; those of number 9 are of one.
            ages = np.full(9, 5) if number == 9 else np.arange(len(history), 0, -1)
            candidates = slice(1 + number % 3)
            yield (
                number,
                {
                    "user": 2 + number % 5,
                    "group_id": number,
                    "item": self.vocabs["item"].encode(["a", "b", "c"][candidates]),
                    "category": self.vocabs["category"].encode(["Y", "X", "X"][candidates]),
                    "label": np.array([0, 1, 0], np.float32)[candidates],
                    "history_item": self.vocabs["item"].encode([b[0] for b in history]),
                    "history_category": self.vocabs["category"].encode([b[1] for b in history]),
                    "history_age": self.vocabs["age"].encode(ages),
                },
            )


class Weighed(Toy):
    """With another label and a weight of each candidate."""

    targets = ("label", schema_lib.label_key("bought"), schema_lib.WEIGHT)

    def convert(self):
        schema, *others = super().convert()
        return dataclasses.replace(schema, labels=("bought",), weighted=True), *others

    def requests(self, histories):
        for number, request in super().requests(histories):
            label = request["label"]
            yield (
                number,
                request | {self.targets[1]: 1 - label, self.targets[2]: label + number + 1},
            )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Directory of the prepared data set."""
    directory = tmp_path_factory.mktemp("source")
    builder = Toy(raw_dir=directory, data_dir=directory)
    builder.write()
    return pathlib.Path(builder.data_dir)


@pytest.fixture(scope="module")
def model_dir(source, tmp_path_factory):
    """Directory of a run with embeddings as above, trained on shorter histories."""
    directory = tmp_path_factory.mktemp("run")
    schema = RequestData(source, history_length=5).schema
    model = models.create("avg_pooling", schema=schema, tower_units=(4,))
    for name, places in (("item", ITEMS), ("category", CATEGORIES)):
        rows = np.array([0, -7, *places.values()], np.float32)[:, None]
        model.tables[name].embeddings.assign(rows)
    save_run(model, schema, directory)
    return directory


def save_run(model, schema, directory):
    model.save(directory / "model.keras")
    schema.save(directory)
    shutil.copytree(pathlib.Path(schema.directory, "vocabularies"), directory / "vocabularies")


@pytest.fixture
def cluster(source, model_dir, tmp_path):
    """`cluster(**options)`: directory of the toy data set with clusters."""

    def make(data_dir="data", recent=2, max_size=2, **options):
        arguments = {"raw_dir": source, "model_dir": model_dir, "recent": recent, **options}
        return prepare("clustered", data_dir=tmp_path / data_dir, max_size=max_size, **arguments)

    return make


@pytest.fixture(scope="module")
def clusters(source, model_dir, tmp_path_factory):
    """Directory of the toy data set with clusters, for tests that only read."""
    data_dir = tmp_path_factory.mktemp("clusters")
    return prepare(
        "clustered", raw_dir=source, data_dir=data_dir, model_dir=model_dir, recent=2, max_size=2
    )


def histories(requests):
    """Behaviors of each request, by their number: "aX", its age and size."""
    return {
        request["group_id"]: [
            (item + category, age - 2, size - 1)
            for item, category, age, size in zip(
                *(request[name] for name in (*BEHAVIORS, "history_size")), strict=True
            )
        ]
        for request in requests
    }


def test_old_behaviors_become_virtual_ones(clusters, read_requests):
    found = histories(read_requests(clusters, "test"))
    assert len(found) == len(HISTORIES)
    # Fewer than 2 * recent stay as they are.
    assert found[0] == []
    assert found[1] == [("aX", 1, 1)]
    assert found[3] == [("aX", 3, 1), ("aY", 2, 1), ("bX", 1, 1)]
    # The first two are no more than a cluster may have; the newest stands for them.
    assert found[4] == [("aY", 3, 2), ("bX", 2, 1), ("bY", 1, 1)]
    assert found[5] == [("aY", 4, 2), ("bX", 3, 1), ("bY", 2, 1), ("aX", 1, 1)]
    # Categories are further apart than items: {aX, bX} and {aY, bY}.
    assert found[6] == [("bX", 4, 2), ("bY", 3, 2), ("aX", 2, 1), ("bY", 1, 1)]
    assert found[7] == [("bX", 5, 2), ("bY", 4, 2), ("aX", 3, 1), ("bY", 2, 1), ("aX", 1, 1)]
    # {aX, aX, bX} is too large.
    assert found[10] == [("aX", 5, 2), ("bY", 4, 1), ("bX", 3, 1), ("aX", 2, 1), ("bY", 1, 1)]


def test_every_behavior_is_in_one_place(cluster, read_requests):
    for recent, max_size, group_feature in ((1, 2, None), (2, 3, None), (3, 2, "history_item")):
        directory = cluster(
            f"{recent}", recent=recent, max_size=max_size, group_feature=group_feature
        )
        found = histories(read_requests(directory, "train"))
        assert found.keys() == set(range(len(HISTORIES)))
        for number, history in found.items():
            behaviors, _, sizes = zip(*history, strict=True) if history else ((), (), ())
            assert sum(sizes) == len(HISTORIES[number])
            assert max(sizes, default=1) <= max_size
            assert list(behaviors[-recent:]) == HISTORIES[number][-recent:]
            assert set(sizes[-recent:]) <= {1}


def test_a_group_feature_parts_first(cluster, read_requests):
    found = histories(read_requests(cluster(group_feature="history_item"), "test"))
    assert found[4] == [("aY", 3, 2), ("bX", 2, 1), ("bY", 1, 1)]
    # Items, though they are nearer to each other than categories: {aX, aY} and {bX, bY}.
    assert found[6] == [("aY", 5, 2), ("bY", 3, 2), ("aX", 2, 1), ("bY", 1, 1)]
    # A feature of behaviors alone: {aY}, {bX}, {aX, aX} and {bY, bY} are of one age in number 9.
    found = histories(read_requests(cluster("ages", group_feature="history_age"), "test"))
    assert [size for *_, size in found[8]] == [1] * 8
    assert [size for *_, size in found[9]] == [1, 1, 2, 2, 1, 1, 1]


def test_all_else_is_the_same(clusters, source, read_requests):
    def rest(directory, split):
        return sorted(
            (
                {name: value for name, value in request.items() if "history" not in name}
                for request in read_requests(directory, split)
            ),
            key=lambda request: request["group_id"],
        )

    for split in ("train", "test"):
        assert rest(clusters, split) == rest(source, split)
        assert len(rest(clusters, split)) == len(HISTORIES)


def test_labels_and_weights_stay(model_dir, tmp_path):
    builder = Weighed(raw_dir=tmp_path, data_dir=tmp_path)
    builder.write()
    clusters = prepare(
        "clustered", raw_dir=builder.data_dir, data_dir=tmp_path / "data", model_dir=model_dir
    )
    for label in ("", "bought"):
        read = {}
        for directory in (builder.data_dir, clusters):
            batches = RequestData(directory, label=label).batches("train", with_group_id=True)
            _, labels, weights, groups = next(batches.as_numpy_iterator())
            order = np.argsort(groups)
            read[directory] = labels[order], weights[order]
        np.testing.assert_array_equal(*read.values())
        assert len(np.unique(weights)) > 10 and labels.any()


def test_what_training_reads(cluster, source, tmp_path):
    directory = cluster(recent=2, max_size=4)
    assert directory == tmp_path / "data" / "clustered" / "toy" / "1.0.0"
    before, after = RequestData(source), RequestData(directory)
    assert after.schema.features == (
        *before.schema.features,
        schema_lib.Feature("history_size", "behavior", "size"),
    )
    *same, size = after.schema.tables
    assert tuple(same) == before.schema.tables
    assert (size.name, size.kind, size.rows) == ("size", "boundaries", 6)
    assert size.boundaries == (2.0, 3.0, 4.0)
    # Of 7 the first 4 are a cluster, of 9 the first 6 are two: 4 and 5 behaviors at the most.
    assert (before.schema.history_length, after.schema.history_length) == (9, 5)
    assert after.best_reachable("test") == {"auc": 0.9, "gauc": 0.8, "log_loss": 0.1}
    assert after.best_reachable("train") is None
    vocabulary = pathlib.Path("vocabularies", "item.txt")
    assert (directory / vocabulary).read_bytes() == (source / vocabulary).read_bytes()
    features, label, _ = next(iter(after.batches("train", 11)))
    assert features["history_size"].shape == (11, 5)
    model = models.create("avg_pooling", schema=after.schema, tower_units=(4,))
    assert model(features).shape == label.shape


def test_report(clusters):
    report = PreparedDirectory(clusters).report
    assert report["sources"]["toy 1.0.0, test"] == {"read": 11, "kept": 11, "dropped": {}}
    # The first 2, 4 and 6 behaviors of the timeline, and the first 4 of the other history.
    assert report["clusters"] == {"count": 1 + 2 + 4 + 3, "members": 2 + 4 + 6 + 4}


def test_equal_older_parts_are_clustered_once(cluster, monkeypatch):
    lengths = []
    original = clustering.virtual_behaviors

    def counted(points, *arguments):
        lengths.append(len(points))
        return original(points, *arguments)

    monkeypatch.setattr(clustering, "virtual_behaviors", counted)
    cluster()
    assert sorted(lengths) == [0, 2, 4, 4, 6]


@pytest.mark.slow
def test_same_bytes_in_another_process(clusters, source, model_dir, tmp_path, digests):
    arguments = {"raw_dir": source, "data_dir": tmp_path / "other", "model_dir": model_dir}
    process = multiprocessing.get_context("spawn").Process(
        target=prepare, args=("clustered",), kwargs={**arguments, "recent": 2, "max_size": 2}
    )
    process.start()
    process.join()
    assert digests(tmp_path / "other" / "clustered" / "toy" / "1.0.0") == digests(clusters)


def test_another_model_is_another_option(cluster, clusters, source, model_dir, tmp_path):
    other = tmp_path / model_dir.name
    other.mkdir()
    schema = RequestData(source).schema
    save_run(models.create("avg_pooling", schema=schema, tower_units=(4,)), schema, other)
    with pytest.raises(ValueError, match=r"was prepared with model_dir='run0 \(\w{16}\)', not"):
        cluster(clusters.parents[2], model_dir=other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recent": 0}, "`recent` must be an integer of at least 1. Received: recent=0"),
        ({"max_size": 1}, "`max_size` must be an integer of at least 2. Received: max_size=1"),
        ({"max_size": 2.5}, "`max_size` must be an integer of at least 2. Received: max_size=2.5"),
        (
            {"group_feature": "item"},
            r"`group_feature` must be one of \['history_item', .*'history_age'\]. Received: 'item'",
        ),
        ({"model_dir": None}, "`model_dir` must be the directory of a trained model. Received: No"),
        ({"raw_dir": None}, "`raw_dir` must be the directory of a prepared data set. Received: No"),
    ],
)
def test_wrong_arguments(source, model_dir, tmp_path, options, message):
    arguments = {"raw_dir": source, "data_dir": tmp_path, "model_dir": model_dir, **options}
    with pytest.raises(ValueError, match=message):
        prepare("clustered", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_missing_directories(source, model_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.keras is missing: expected a --model_dir"):
        prepare("clustered", raw_dir=source, data_dir=tmp_path, model_dir=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"schema\.json is missing: expected a directory"):
        prepare("clustered", raw_dir=tmp_path / "none", data_dir=tmp_path, model_dir=model_dir)


def test_a_model_of_other_data(source, model_dir, tmp_path):
    other = tmp_path / "source"
    shutil.copytree(source, other)
    (other / "vocabularies" / "item.txt").write_text("b\na\n")
    with pytest.raises(ValueError, match="was trained on other data"):
        prepare("clustered", raw_dir=other, data_dir=tmp_path, model_dir=model_dir)


def test_behaviors_of_numbers_or_several_values(rich_schema, tmp_path):
    schema = dataclasses.replace(rich_schema, directory=str(tmp_path))
    (tmp_path / "run").mkdir()
    directory = RunDirectory(tmp_path / "run")
    directory.claim({}, {}, schema)
    directory.save_model(models.create("avg_pooling", schema=schema, tower_units=(4,)))
    message = "one embedded row of each feature. 'history_tags' has numbers or several values"
    with pytest.raises(ValueError, match=message):
        clustered._history_embeddings(directory.path, schema)
