import collections

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import next_item
from tfrec_diffusion.datasets.preparation import Preparation
from tfrec_diffusion.prepared_directory import PreparedDirectory

# Categories are item / 10.
HISTORIES = {10: [20, 10, 21, 22, 11], 11: [30, 31, 32], 2: [10, 11, 12, 13, 14]}
SPLITS = ("train", "validation", "test", "test_popularity", "test_99")


class Shop(next_item.NextItem):
    VERSION = tfds.core.Version("1.0.0")
    dtype = "int64"
    exact_times = True

    def load(self, database):
        types = dict.fromkeys(("user", "item", "category"), "BIGINT") | {"time": "BIGINT"}
        database.load("behaviors", [self.raw_file("behaviors.csv", "a shop")], types)


class Diary(Shop):
    dtype = "string"
    exact_times = False

    def load(self, database):
        types = dict.fromkeys(("user", "item", "category"), "VARCHAR") | {"time": "BIGINT"}
        database.load("behaviors", [self.raw_file("behaviors.csv", "a friend")], types)


def row(user, item, time, category=None):
    return (user, item, item // 10 if category is None else category, time)


def rows(histories):
    return [row(u, item, t) for u, items in histories.items() for t, item in enumerate(items)]


@pytest.fixture
def prepared(tmp_path):
    """`prepared(rows, **options)`: directory of the requests made from rows of behaviors."""

    def make(rows, builder=Shop, **options):
        raw_dir = tmp_path / f"raw{len(list(tmp_path.iterdir()))}"
        raw_dir.mkdir()
        lines = ["user,item,category,time", *(",".join(map(str, row)) for row in rows)]
        (raw_dir / "behaviors.csv").write_text("\n".join(lines) + "\n")
        builder = builder(raw_dir=raw_dir, data_dir=f"{raw_dir}_data", **options)
        builder.write(Preparation(max_bad_rows=1))
        return builder.data_path

    return make


def positives(requests):
    """History and item of each user's positives."""
    found = {r["group_id"]: (r["history_item"], r["item"]) for r in requests if r["label"] == [1]}
    assert len(found) == len(requests) / 2
    return found


def test_last_behaviors(prepared, read_requests):
    directory = prepared(rows(HISTORIES))
    # Training sees 20, 10, 21 of user 10 and 10, 11, 12 of user 2; the other items are unknown.
    assert positives(read_requests(directory, "train")) == {
        10: ([20, 10], [21]),
        2: ([10, 11], [12]),
    }
    assert positives(read_requests(directory, "validation")) == {
        10: ([20, 10, 21], ["?"]),
        2: ([10, 11, 12], ["?"]),
    }
    assert positives(read_requests(directory, "test")) == {
        10: ([20, 10, 21, "?"], [11]),
        2: ([10, 11, 12, "?"], ["?"]),
    }
    popularity = read_requests(directory, "test_popularity")
    assert positives(popularity) == positives(read_requests(directory, "test"))
    (first,) = [r for r in popularity if r["label"] == [1] and r["group_id"] == 2]
    assert first["user"] == 2
    assert first["category"] == [1]
    assert first["history_category"] == [1, 1, 1, 1]
    schema = schema_lib.Schema.load(directory)
    assert {table.name: table.rows for table in schema.tables} == {
        "user": 4,
        "item": 7,
        "category": 4,
        "gap": 4,
        "age": 23,
    }


def test_user_with_too_few_behaviors_is_dropped_but_its_items_are_negatives(prepared):
    directory = prepared(rows(HISTORIES))
    (source,) = PreparedDirectory(directory).report["sources"].values()
    assert source["dropped"]["user with fewer than 4 behaviors"]["rows"] == 3
    assert source["kept"] == 10


def test_more_train_positives(prepared, read_requests):
    directory = prepared(rows({1: [1, 2, 3, 4, 5, 6], 2: [1, 2, 3, 4]}), train_positives=3)
    found = collections.Counter(
        (r["group_id"], len(r["history_item"]))
        for r in read_requests(directory, "train")
        if r["label"] == [1]
    )
    # The first behavior of a user has no history to be predicted from.
    assert found == {(1, 3): 1, (1, 2): 1, (1, 1): 1, (2, 1): 1}


TIMES = {5: 9, 1: 3, 2: 3, 3: 7, 4: 7, 6: 9, 7: 20}
# Another user lets training see the items.
TIED = [row(1, item, time) for item, time in TIMES.items()] + rows({2: [1, 2, 3, 4, 5, 6, 7, 8, 9]})


def test_history_is_of_earlier_times_in_order_of_time(prepared, read_requests):
    directory = prepared(TIED)
    assert positives(read_requests(directory, "test"))[1] == ([1, 2, 3, 4, 5, 6], [7])
    # 6 is the last but one, and 5 of the same time.
    assert positives(read_requests(directory, "validation"))[1] == ([1, 2, 3, 4], [6])


def test_inexact_times_leave_the_order_to_the_file(prepared, read_requests):
    directory = prepared(TIED, Diary)
    histories = [
        request["history_item"]
        for request in read_requests(directory, "validation")
        if request["label"] == [1] and request["item"] == ["6"]
    ]
    assert histories == [["1", "2", "3", "4", "5"]]
    assert not schema_lib.Schema.load(directory).group("behavior")


def test_gaps_are_minutes_since_the_previous_behavior(prepared, read_requests):
    # Less than 30 minutes is within a session, row 2; from 30 minutes on one begins, row 3.
    times = [0, 1799, 1799 + 1800, 9999, 9999, 10100]
    content = [row(1, item, time) for item, time in enumerate(times)] + rows({2: range(6)})
    directory = prepared(content)
    (request,) = [
        r for r in read_requests(directory, "test") if r["label"] == [1] and r["group_id"] == 1
    ]
    # The user's first behavior has no gap, row 0.
    assert request["history_gap"] == [0, 2, 3, 3, 2]
    # A behavior that the history's length cuts off still counts as the previous one.
    directory = prepared(content, history_length=4)
    gaps = [r["history_gap"] for r in read_requests(directory, "test") if r["group_id"] == 1]
    assert gaps == [[2, 3, 3, 2]] * 2
    schema = schema_lib.Schema.load(directory)
    assert schema.table("gap").boundaries == (30.0,)
    assert [f.name for f in schema.group("behavior")] == ["history_gap", "history_age"]


def test_ages_are_minutes_before_the_positive(prepared, read_requests):
    # The last behavior is the test's positive, the last but one that of validation. The intervals
    # begin at 1, 2, 4, .. minutes, rows 3, 4, 5, .., and at 2^19 minutes, about a year, row 22.
    year = 2**19 * 60
    ages = [year, year - 60, 120, 119, 60, 60, 59, 0]
    content = [row(1, item, year - age) for item, age in enumerate(ages)] + rows({2: range(8)})
    directory = prepared(content)

    def found(directory, split):
        return [r["history_age"] for r in read_requests(directory, split) if r["group_id"] == 1]

    # A positive and its negatives are of one time.
    assert found(directory, "test") == [[22, 21, 4, 3, 3, 3, 2]] * 2
    assert found(directory, "test_popularity") == [[22, 21, 4, 3, 3, 3, 2]] * 2
    assert found(directory, "test_99") == [[22, 21, 4, 3, 3, 3, 2]]
    # 59 seconds earlier: 120 and 119 have become 61 and 60.
    assert found(directory, "validation") == [[21, 21, 3, 3, 2, 2]] * 2
    # The positive of training, at 60 before the end, has another of its time, not in its history.
    assert found(directory, "train") == [[21, 21, 3, 2]] * 2
    assert found(prepared(content, history_length=3), "test") == [[3, 3, 2]] * 2
    boundaries = schema_lib.Schema.load(directory).table("age").boundaries
    assert boundaries == tuple(2.0**power for power in range(20))


def test_items_have_tiers_of_popularity(prepared):
    # Training sees item 1 four times, 2 and 3 twice each: the first alone is half.
    histories = {u: [1, 2 + u % 2, 90 + u, 80 + u] for u in range(4)}
    for options, tiers in (({}, (3,)), ({"popularity_tiers": 1}, ())):
        schema = schema_lib.Schema.load(prepared(rows(histories), **options))
        assert schema.table("item").tiers == tiers
        assert schema.table("category").tiers == schema.table("user").tiers == ()


def test_history_keeps_the_newest(prepared, read_requests):
    directory = prepared(rows({1: [1, 2, 3, 4, 5], 2: [5, 4, 3, 2, 1]}), history_length=2)
    assert positives(read_requests(directory, "test")) == {1: ([3, 4], [5]), 2: ([3, 2], [1])}


def test_min_count(prepared, read_requests):
    histories = {1: [1, 2, 3, 8, 9], 2: [1, 2, 4, 8, 9]}
    directory = prepared(rows(histories), min_count=2)
    assert positives(read_requests(directory, "train"))[1] == ([1, 2], ["?"])


def test_by_user(prepared, read_requests):
    # User u has items of its own and ends with one that all have.
    histories = {u: [1000 + u, 2000 + u, 5] for u in range(300)}
    directory = prepared(rows(histories), protocol="by_user")
    users = {
        split: set(positives(read_requests(directory, split)))
        for split in ("train", "validation", "test")
    }
    assert sorted(u for of_split in users.values() for u in of_split) == list(range(300))
    assert 200 < len(users["train"]) < 270
    assert 10 < len(users["test"]) < 60
    for user, (history, item) in positives(read_requests(directory, "train")).items():
        assert (history, item) == ([1000 + user, 2000 + user], [5])
    # Other users, and their items, are unknown.
    for request in read_requests(directory, "test"):
        assert request["user"] == "?"
        assert request["history_item"] == ["?", "?"]


def test_negatives_of_training_are_items_that_training_sees(prepared, read_requests):
    histories = {u: [u % 7, 100 + u % 5, 200 + u, 300 + u, 400 + u] for u in range(60)}
    directory = prepared(rows(histories))
    train = [r for r in read_requests(directory, "train") if r["label"] == [0]]
    assert len({r["item"][0] for r in train}) > 20
    assert all(r["item"] != ["?"] for r in train)


@pytest.mark.parametrize("builder", [Shop, Diary])
@pytest.mark.parametrize("min_count", [1, 2])
def test_unknown_items_do_not_tell_the_label(prepared, read_requests, builder, min_count):
    # Half of the users end with items that training sees, half with some of their own.
    histories = {
        u: [u % 7, 100 + u % 5, 200 + u, *((u % 6, 3) if u % 2 else (300 + u, 400 + u))]
        for u in range(60)
    }
    directory = prepared(rows(histories), builder, min_count=min_count)
    for split in SPLITS:
        by_user = collections.defaultdict(set)
        for request in read_requests(directory, split):
            by_user[request["group_id"]].update(item == "?" for item in request["item"])
        assert len(by_user) == 60
        # What the positive is, its negatives are.
        assert all(len(kinds) == 1 for kinds in by_user.values())
        if split not in ("train", "test_99"):
            assert sum(kinds == {True} for kinds in by_user.values()) == 30


def test_the_negative_is_never_the_positive_and_has_its_most_frequent_category(
    prepared, read_requests
):
    # Item 2 is more often in category 8 than in 9; item 3 as often in 6 as in 7.
    behaviors = [(2, 9), (2, 8), (2, 8)] * 3 + [(3, 7), (3, 6), (1, 5), (1, 5), (1, 5)]
    content = [
        row(u, item, t, category) for u in range(40) for t, (item, category) in enumerate(behaviors)
    ]
    requests = read_requests(prepared(content), "test_popularity")
    pairs = collections.Counter(
        (r["item"][0], r["category"][0]) for r in requests if r["label"] == [0]
    )
    assert set(pairs) == {(2, 8), (3, 6)}
    # Drawn 9 : 2.
    assert 28 <= pairs[2, 8] <= 37


def test_sampler_draws_by_weight():
    sampler = next_item._Sampler(np.array([5, 0, 1, 2]), np.ones(4, bool))
    for positive, numbers, expected in ((0, 3, [0, 0, 1, 2]), (2, 7, [5, 0, 0, 2])):
        drawn = sampler.draw(np.array([positive]), np.arange(numbers, dtype=np.uint64)[None])
        assert np.bincount(drawn[0], minlength=4).tolist() == expected


def test_sampler_draws_items_like_the_positive():
    sampler = next_item._Sampler(
        np.array([5, 3, 1, 2, 4]), np.array([True, False, True, False, False])
    )
    numbers = np.arange(12, dtype=np.uint64)[None].repeat(2, axis=0)
    drawn = sampler.draw(np.array([0, 1]), numbers)
    assert np.bincount(drawn[0], minlength=5).tolist() == [0, 0, 12, 0, 0]
    assert np.bincount(drawn[1], minlength=5).tolist() == [0, 0, 0, 4, 8]
    # Item 4 is alone of its kind: its negatives are any.
    sampler = next_item._Sampler(np.array([5, 3, 0, 2, 4]), np.arange(5) < 4)
    drawn = sampler.draw(np.array([4]), np.arange(10, dtype=np.uint64)[None])
    assert np.bincount(drawn[0], minlength=5).tolist() == [5, 3, 0, 2, 0]


def test_99_negatives(prepared, read_requests):
    histories = {u: [3 * u, 3 * u + 1, 3 * u + 2, 5 * u, 7 * u] for u in range(1, 40)}
    requests = read_requests(prepared(rows(histories)), "test_99")
    assert len(requests) == 39
    assert {len(r["item"]) for r in requests} == {len(r["label"]) for r in requests} == {100}
    assert {sum(r["label"]) for r in requests} == {1}
    places = {r["label"].index(1) for r in requests}
    assert len(places) > 20
    for request in requests:
        place = request["label"].index(1)
        assert request["item"][place] in (7 * request["group_id"], "?")


@pytest.mark.parametrize("builder", [Shop, Diary])
def test_the_order_of_users_changes_no_request(prepared, digests, builder):
    (one, other) = (
        digests(prepared(rows(histories), builder))
        for histories in (HISTORIES, dict(sorted(HISTORIES.items())))
    )
    requests = [name for name in one if "tfrecord" in name]
    assert len(requests) == len(SPLITS)
    assert [one[name] for name in requests] == [other[name] for name in requests]


def test_users_that_are_text_have_numbers_of_their_own(prepared, read_requests):
    directory = prepared(rows({u: [1, 2, 3, 4] for u in range(50)}), Diary)
    requests = read_requests(directory, "test")
    numbers = {request["user"]: request["group_id"] for request in requests}
    assert len(set(numbers.values())) == 50
    assert min(numbers.values()) >= 0
    assert len(requests) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history_length": 0}, "`history_length` must be an integer of at least 1. .*=0"),
        ({"min_count": "x"}, "`min_count` must be an integer of at least 1. .*='x'"),
        ({"train_positives": True}, "`train_positives` must be an integer .*=True"),
        ({"popularity_tiers": 0}, "`popularity_tiers` must be an integer of at least 1. .*=0"),
        ({"protocol": "mine"}, "`protocol` must be one of"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Shop(raw_dir=tmp_path, data_dir=tmp_path, **options)


def test_missing_raw_file(tmp_path):
    builder = Shop(raw_dir=tmp_path, data_dir=tmp_path / "data")
    with pytest.raises(
        FileNotFoundError, match=r"must hold behaviors\.csv or behaviors\.csv\.gz, from a shop"
    ):
        builder.write()
    assert not list(tmp_path.rglob("incomplete*"))


def test_nothing_to_choose_from(prepared):
    with pytest.raises(ValueError, match=r"two distinct items.*fewer than 4 behaviors"):
        prepared(rows({1: [7]}))
