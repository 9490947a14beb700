import collections
import gzip
import os

import numpy as np
import pytest

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import taobao
from tfrec_diffusion.prepare import _report, prepare

DAY_1 = 1511539200  # 25 November 2017, 00:00 in China
# Users in the order of their names as text, as in the true file. Categories are item / 10.
HISTORIES = {10: [20, 10, 21, 22, 11], 11: [30, 31, 32], 2: [10, 11, 12, 13, 14]}


def line(user, item, time, category=None):
    return f"{user},{item},{item // 10 if category is None else category},pv,{DAY_1 + time}"


def lines(histories):
    return [line(u, item, t) for u, items in histories.items() for t, item in enumerate(items)]


@pytest.fixture
def prepared(tmp_path):
    """`prepared(lines, **options)`: directory of the requests made from lines of the raw file."""

    def make(lines, **options):
        raw_dir = tmp_path / f"raw{len(list(tmp_path.iterdir()))}"
        raw_dir.mkdir()
        (raw_dir / "UserBehavior.csv").write_text("\n".join(lines) + "\n")
        return prepare("taobao", raw_dir=raw_dir, data_dir=f"{raw_dir}_data", **options)

    return make


def positives(requests):
    """History and item of each user's positives."""
    found = {r["group_id"]: (r["history_item"], r["item"]) for r in requests if r["label"] == [1]}
    assert len(found) == len(requests) / 2
    return found


def test_last_behaviors(prepared, read_requests):
    directory = prepared(lines(HISTORIES))
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
    }


def test_user_with_too_few_behaviors_is_dropped_but_its_items_are_negatives(prepared):
    directory = prepared(lines(HISTORIES))
    (source,) = _report(directory)["sources"].values()
    assert source["dropped"]["user with fewer than 4 behaviors"]["rows"] == 3
    assert source["kept"] == 10


def test_more_train_positives(prepared, read_requests):
    directory = prepared(lines({1: [1, 2, 3, 4, 5, 6], 2: [1, 2, 3, 4]}), train_positives=3)
    found = collections.Counter(
        (r["group_id"], len(r["history_item"]))
        for r in read_requests(directory, "train")
        if r["label"] == [1]
    )
    # The first behavior of a user has no history to be predicted from.
    assert found == {(1, 3): 1, (1, 2): 1, (1, 1): 1, (2, 1): 1}


def test_history_is_of_earlier_seconds_in_order_of_time(prepared, read_requests):
    times = {5: 9, 1: 3, 2: 3, 3: 7, 4: 7, 6: 9, 7: 20}
    directory = prepared(
        [line(1, item, time) for item, time in times.items()]
        # Another user lets training see the items.
        + lines({2: [1, 2, 3, 4, 5, 6, 7, 8, 9]})
    )
    assert positives(read_requests(directory, "test"))[1] == ([1, 2, 3, 4, 5, 6], [7])
    # 6 is the last but one, and 5 of the same second.
    assert positives(read_requests(directory, "validation"))[1] == ([1, 2, 3, 4], [6])


def test_history_keeps_the_newest(prepared, read_requests):
    directory = prepared(lines({1: [1, 2, 3, 4, 5], 2: [5, 4, 3, 2, 1]}), history_length=2)
    assert positives(read_requests(directory, "test")) == {1: ([3, 4], [5]), 2: ([3, 2], [1])}


def test_min_count(prepared, read_requests):
    histories = {1: [1, 2, 3, 8, 9], 2: [1, 2, 4, 8, 9]}
    directory = prepared(lines(histories), min_count=2)
    assert positives(read_requests(directory, "train"))[1] == ([1, 2], ["?"])


def test_by_user(prepared, read_requests):
    # User u has items of its own and ends with one that all have.
    histories = {u: [1000 + u, 2000 + u, 5] for u in range(300)}
    directory = prepared(lines(histories), protocol="by_user")
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
    directory = prepared(lines(histories))
    train = [r for r in read_requests(directory, "train") if r["label"] == [0]]
    assert len({r["item"][0] for r in train}) > 20
    assert all(r["item"] != ["?"] for r in train)


SPLITS = ("train", "validation", "test", "test_popularity", "test_99")


@pytest.mark.parametrize("min_count", [1, 2])
def test_unknown_items_do_not_tell_the_label(prepared, read_requests, min_count):
    # Half of the users end with items that training sees, half with some of their own.
    histories = {
        u: [u % 7, 100 + u % 5, 200 + u, *((u % 6, 3) if u % 2 else (300 + u, 400 + u))]
        for u in range(60)
    }
    directory = prepared(lines(histories), min_count=min_count)
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
        line(u, item, t, category)
        for u in range(40)
        for t, (item, category) in enumerate(behaviors)
    ]
    requests = read_requests(prepared(content), "test_popularity")
    pairs = collections.Counter(
        (r["item"][0], r["category"][0]) for r in requests if r["label"] == [0]
    )
    assert set(pairs) == {(2, 8), (3, 6)}
    # Drawn 9 : 2.
    assert 28 <= pairs[2, 8] <= 37


def test_sampler_draws_by_weight():
    sampler = taobao._Sampler(np.array([5, 0, 1, 2]), np.ones(4, bool))
    for positive, numbers, expected in ((0, 3, [0, 0, 1, 2]), (2, 7, [5, 0, 0, 2])):
        drawn = sampler.draw(np.array([positive]), np.arange(numbers, dtype=np.uint64)[None])
        assert np.bincount(drawn[0], minlength=4).tolist() == expected


def test_sampler_draws_items_like_the_positive():
    sampler = taobao._Sampler(
        np.array([5, 3, 1, 2, 4]), np.array([True, False, True, False, False])
    )
    numbers = np.arange(12, dtype=np.uint64)[None].repeat(2, axis=0)
    drawn = sampler.draw(np.array([0, 1]), numbers)
    assert np.bincount(drawn[0], minlength=5).tolist() == [0, 0, 12, 0, 0]
    assert np.bincount(drawn[1], minlength=5).tolist() == [0, 0, 0, 4, 8]
    # Item 4 is alone of its kind: its negatives are any.
    sampler = taobao._Sampler(np.array([5, 3, 0, 2, 4]), np.arange(5) < 4)
    drawn = sampler.draw(np.array([4]), np.arange(10, dtype=np.uint64)[None])
    assert np.bincount(drawn[0], minlength=5).tolist() == [5, 3, 0, 2, 0]


def test_99_negatives(prepared, read_requests):
    histories = {u: [3 * u, 3 * u + 1, 3 * u + 2, 5 * u, 7 * u] for u in range(1, 40)}
    requests = read_requests(prepared(lines(histories)), "test_99")
    assert len(requests) == 39
    assert {len(r["item"]) for r in requests} == {len(r["label"]) for r in requests} == {100}
    assert {sum(r["label"]) for r in requests} == {1}
    places = {r["label"].index(1) for r in requests}
    assert len(places) > 20
    for request in requests:
        place = request["label"].index(1)
        assert request["item"][place] in (7 * request["group_id"], "?")


def test_the_order_of_users_changes_no_request(prepared, digests):
    one = prepared(lines(HISTORIES))
    other = prepared(lines(dict(sorted(HISTORIES.items()))))
    assert (
        digests(one)["taobao-test_99.tfrecord-00000-of-00001"]
        == (digests(other)["taobao-test_99.tfrecord-00000-of-00001"])
    )


def test_bad_rows_are_counted_with_line_or_content(prepared, read_requests):
    content = lines({1: [1, 2, 3, 4, 5], 2: [5, 4, 3, 2, 1]})
    bad = [
        "1,x,1,pv,1511539300",
        ",7,1,pv,1511539300",
        "1,7,1,pv,1511539199",
        "1,7,1,pv,1512316800",
        "1,7,1,pv,",
        "1,7,1,pv,1511539300,9",
        "1,7,1,pv",
    ]
    directory = prepared(content[:3] + bad[:-1] + content[3:] + bad[-1:])
    (source,) = _report(directory)["sources"].values()
    assert source["read"] == 17
    assert source["kept"] == 10
    reasons = {reason: drop["rows"] for reason, drop in source["dropped"].items()}
    assert reasons == {
        "item is not a number": 1,
        "too many columns": 1,
        "too few columns": 1,
        "no user, item or category": 1,
        "time outside 25 November to 3 December 2017 (UTC+8)": 3,
    }
    assert source["dropped"]["too few columns"]["places"] == ["UserBehavior.csv:17"]
    assert positives(read_requests(directory, "test"))[1] == ([1, 2, 3, 4], [5])


def test_gzip_gives_the_same(tmp_path, prepared, digests):
    directory = prepared(lines(HISTORIES))
    with gzip.open(tmp_path / "UserBehavior.csv.gz", "wt") as file:
        file.write("\n".join(lines(HISTORIES)))
    other = prepare("taobao", raw_dir=tmp_path, data_dir=tmp_path / "gz")
    assert digests(directory) == digests(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history_length": 0}, "`history_length` must be an integer of at least 1. .*=0"),
        ({"min_count": "x"}, "`min_count` must be an integer of at least 1. .*='x'"),
        ({"train_positives": True}, "`train_positives` must be an integer .*=True"),
        ({"protocol": "mine"}, "`protocol` must be one of"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare("taobao", raw_dir=tmp_path, data_dir=tmp_path, **options)


def test_missing_raw_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold UserBehavior\.csv .*tianchi"):
        prepare("taobao", raw_dir=tmp_path, data_dir=tmp_path / "data")
    assert not list(tmp_path.rglob("incomplete*"))


def test_file_without_usable_rows(prepared):
    with pytest.raises(ValueError, match=r"two distinct items.*time outside 25 November"):
        prepared(["1,1,1,pv,5"])


def test_a_lone_quote_swallows_no_lines(prepared):
    content = lines(HISTORIES)
    directory = prepared([*content[:3], '"1,2,3,pv,1511539300', *content[3:]])
    (source,) = _report(directory)["sources"].values()
    assert (source["read"], source["dropped"]["user is not a number"]["rows"]) == (14, 1)


def test_unknown_items_do_not_tell_the_label_of_the_real_sample(samples, tmp_path, read_requests):
    directory = prepare("taobao", raw_dir=samples / "taobao", data_dir=tmp_path)
    for split in SPLITS:
        requests = read_requests(directory, split)
        unknown = np.array([[item == "?" for item in r["item"]] for r in requests])
        labels = np.array([r["label"] for r in requests])
        assert unknown[labels == 1].mean() == unknown[labels == 0].mean(), split


def test_real_sample(samples, tmp_path, read_requests):
    directory = prepare("taobao", raw_dir=samples / "taobao", data_dir=tmp_path)
    report = _report(directory)
    dropped = report["sources"]["behaviors"]["dropped"]
    assert dropped["too few columns"] == {"rows": 1, "places": ["UserBehavior.csv.gz:84476"]}
    assert dropped["time outside 25 November to 3 December 2017 (UTC+8)"]["rows"] == 35
    assert {split: counts["requests"] for split, counts in report["splits"].items()} == {
        "train": 1628,
        "validation": 1628,
        "test": 1628,
        "test_popularity": 1628,
        "test_99": 814,
    }
    # An independent reading of the raw file, in Python.
    histories = collections.defaultdict(list)
    with gzip.open(samples / "taobao" / "UserBehavior.csv.gz", "rt") as file:
        for number, text in enumerate(file):
            fields = text.rstrip(os.linesep).split(",")
            if len(fields) == 5 and DAY_1 <= int(fields[4]) < DAY_1 + 9 * 86400:
                user, item, category, _, time = fields
                histories[int(user)].append((int(time), number, int(item), int(category)))
    histories = {u: sorted(history) for u, history in histories.items() if len(history) >= 4}
    seen = {item for history in histories.values() for *_, item, _ in history[:-2]}
    requests = [r for r in read_requests(directory, "test") if r["label"] == [1]]
    assert len(requests) == len(histories)
    for request in requests:
        *past, (time, _, item, category) = histories[request["group_id"]]
        past = [entry for entry in past if entry[0] < time][-200:]
        assert request["item"] == [item if item in seen else "?"]
        assert request["category"] in ([category], ["?"])
        assert request["history_item"] == [i if i in seen else "?" for *_, i, _ in past]
