"""The Ele.me converter on small hand-written files whose right answer was worked out by hand."""

import hashlib
import pathlib
import pickle

import numpy as np
import pytest

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import ele_me
from tfrec_diffusion.datasets.preparation import Preparation
from tfrec_diffusion.prepared_directory import PreparedDirectory

_BLANK = dict.fromkeys(ele_me.COLUMNS, "")


def _row(label=0, user="u1", item="apple", category="fruit", history="", ages="", **columns):
    """A raw line; every behavior has the shop s-<item>, the category fruit, area -1 and hour 12."""
    items = history.split(";") if history else []
    lists = {
        "item_id_list": history,
        "shop_id_list": ";".join(f"s-{item}" for item in items),
        "category_1_id_list": ";".join("fruit" for _ in items),
        "shop_aoi_id_list": ";".join("-1" for _ in items),
        "hours_list": ";".join("12" for _ in items),
        "timediff_list": ages,
    }
    row = {**_BLANK, "label": str(label), "user_id": user, "item_id": item}
    row.update({"category_1_id": category, "hours": "12", "avg_price": "9.5", **lists, **columns})
    assert list(row) == list(ele_me.COLUMNS)
    return ",".join(row.values()) + "\n"


def _write(directory, days):
    """Files D1_0.csv to D8_0.csv; days not given hold two harmless rows."""
    for day in range(1, 9):
        lines = days.get(day, [_row(item="apple")] * 2)
        data = "".join(lines) if isinstance(lines, list) else lines
        data = data if isinstance(data, bytes) else data.encode()
        (directory / f"D{day}_0.csv").write_bytes(data)


@pytest.fixture
def prepared(tmp_path, read_records):
    """`prepared(days, **options)`: schema, report, and the requests by split. Day 6 trains."""

    def prepare(days, **options):
        raw_dir = tmp_path / f"raw{len(list(tmp_path.iterdir()))}"
        raw_dir.mkdir()
        _write(raw_dir, days)
        options = {"train_days": 1, **options}
        builder = ele_me.EleMe(raw_dir=raw_dir, data_dir=f"{raw_dir}_data", **options)
        # Some of these files have more bad rows than good ones.
        builder.write(Preparation(max_bad_rows=1))
        directory = PreparedDirectory(builder.data_dir)
        requests = {split: read_records(directory.path, split) for split in directory.splits()}
        return schema_lib.Schema.load(directory.path), directory.report, requests

    return prepare


def _raw(schema, table, row):
    """The raw value of a row of a vocabulary table."""
    path = pathlib.Path(schema.vocabulary_path(schema.table(table)))
    return [None, "?", *path.read_text().split("\n")][row]


def _items(schema, request):
    return [_raw(schema, "item_id", row) for row in request["item_id_list"]]


def test_history_is_ordered_by_age_whatever_the_raw_order(prepared):
    days = {8: [_row(item="plum", history="apple;pear;plum", ages="50;5000;500")]}
    days[6] = [_row(item=name) for name in ("apple", "pear", "plum")] * 2
    schema, _, requests = prepared(days)
    (request,) = requests["test"]
    assert _items(schema, request) == ["pear", "plum", "apple"]
    assert request["history_gap"].tolist() == [0, 3, 2]  # none, 75 minutes, 7.5 minutes
    assert [_raw(schema, "item_id", row) for row in request["item_id"]] == ["plum"]


def test_the_newest_behaviors_are_kept(prepared):
    days = {8: [_row(history="apple;pear;plum", ages="30;20;10")]}
    days[6] = [_row(item=name) for name in ("apple", "pear", "plum")] * 2
    schema, _, requests = prepared(days, history_length=2)
    assert schema.history_length == 2
    (request,) = requests["test"]
    assert _items(schema, request) == ["pear", "plum"]
    assert request["history_gap"].tolist() == [2, 2], "the gap to a behavior that is not kept"
    assert request["history_age"].tolist() == [2, 2]


def test_gaps_are_within_a_row_and_between_behaviors_that_count(prepared):
    days = {8: [_row(history="apple;;apple;apple", ages="3000;2000;1200;1200")] * 2}
    schema, _, requests = prepared(days)
    assert schema.table("gap").boundaries == (30.0,)
    for request in requests["test"]:
        assert request["history_gap"].tolist() == [0, 3, 2]  # none, 30 minutes, 0 minutes


def test_ages_are_minutes_before_the_impression(prepared):
    days = {8: [_row(history="apple;apple;apple;apple;apple", ages="60;59;3600;60;120")] * 2}
    schema, _, requests = prepared(days)
    assert [f.name for f in schema.group("behavior")] == ["history_gap", "history_age"]
    assert schema.table("age").boundaries == tuple(2.0**power for power in range(20))
    # An hour lies in the interval from 32 minutes on, the seventh; less than a minute in the first.
    for request in requests["test"]:
        assert request["history_age"].tolist() == [8, 4, 3, 3, 2]


def test_behaviors_not_before_the_impression_or_without_item_are_dropped(prepared):
    days = {8: [_row(history="apple;;apple;apple;apple", ages="40;30;0;-60;")]}
    schema, report, requests = prepared(days)
    assert _items(schema, requests["test"][0]) == ["apple"]
    dropped = report["sources"]["behaviors"]["dropped"]
    assert {reason: count["rows"] for reason, count in dropped.items()} == {
        "not before the impression": 3,
        "item_id_list is missing": 1,
    }


def test_vocabularies_hold_what_days_1_to_6_have_often_enough(prepared):
    days = {
        1: [_row(item="apple", history="pear", ages="1"), _row(item="pear"), _row(item="once")],
        6: [_row(item="apple")],
        7: [_row(item="later")] * 3,
        8: [_row(item="later", category="new")] * 3,
    }
    schema, _, requests = prepared(days, train_days=6, min_count=2)
    # apple: D1 and D6, and twice on each of days 2 to 5; pear: as a candidate and as a behavior.
    path = pathlib.Path(schema.vocabulary_path(schema.table("item_id")))
    assert path.read_text() == "apple\npear\n"
    # apple is ten of the thirteen items seen.
    assert schema.table("item_id").tiers == (3,)
    assert schema.table("shop_id").tiers == ()
    for request in requests["test"]:
        np.testing.assert_array_equal(request["item_id"], [schema_lib.OUT_OF_VOCABULARY])
        np.testing.assert_array_equal(request["category_1_id"], [schema_lib.OUT_OF_VOCABULARY])


def test_missing_values_are_row_0(prepared):
    missing = {"gender": "-99", "avg_price": "", "shop_aoi_id": "-1", "rank_7": "-1", "hours": ""}
    known = {"gender": "2", "avg_price": "1.5", "shop_aoi_id": "a", "rank_7": "3", "hours": "7"}
    days = {6: [_row(**known)] * 2, 8: [_row(**missing), _row(user="u2", **known)]}
    _, _, requests = prepared(days)
    first, second = sorted(requests["test"], key=lambda request: request["hours"])
    for name in missing:
        assert np.all(first[name] == 0), name
        assert np.all(second[name] >= 2), name


def test_numbers_are_cut_at_training_quantiles(prepared):
    prices = [str(price) for price in range(1, 101)]
    days = {6: [_row(avg_price=price) for price in prices]}
    days[8] = [_row(avg_price="0"), _row(avg_price="1000", user="u2")]
    schema, _, requests = prepared(days)
    boundaries = schema.table("avg_price").boundaries
    assert len(boundaries) == 19
    assert np.diff(boundaries).max() <= 6
    assert sorted(request["avg_price"] for request in requests["test"]) == [2, 2 + 19]


def test_users_are_told_apart_and_labels_kept(prepared):
    days = {8: [_row(1, "u1"), _row(0, "u2"), _row(0, "u1")]}
    _, report, requests = prepared(days)
    labels = {}
    for request in requests["test"]:
        labels.setdefault(request["group_id"], []).extend(request["label"])
    assert sorted(sorted(values) for values in labels.values()) == [[0.0], [0.0, 1.0]]
    assert report["splits"]["test"]["clicks"] == 1
    assert report["splits"]["train"]["requests"] == 2


def test_bad_rows_are_counted_with_file_and_line(prepared):
    good = _row()
    bad = {
        "too few columns": "1,2,3\n",
        "too many columns": good[:-1] + ",40\n",
        "not UTF-8": b"\xff\xfe" + good.encode(),
        "label is neither 0 nor 1": _row(label=2),
        "item_id is missing": _row(item=""),
        "user_id is missing": _row(user="-1"),
        "lists of unequal length": _row(history="apple;pear", ages="5"),
        "avg_price has what is no number": _row(avg_price="cheap"),
        "hours has what is no number": _row(hours="noon"),
        "weekdays has what is no number": _row(weekdays="inf"),
        "timediff_list has what is no number": _row(history="apple;pear", ages="5;soon"),
        "too few columns, cut": good[:30],
    }
    data = b"".join(
        good.encode() + (line if isinstance(line, bytes) else line.encode())
        for line in bad.values()
    )
    _, report, requests = prepared({8: data})
    source = report["sources"]["D8_0.csv"]
    # What is in a line may follow where it stands.
    found = {
        reason: [place.split()[0] for place in count["places"]]
        for reason, count in source["dropped"].items()
    }
    expected = {reason: [f"D8_0.csv:{2 * i}"] for i, reason in enumerate(bad, 1)}
    expected["too few columns"] += expected.pop("too few columns, cut")
    assert found == expected
    assert (source["read"], source["kept"]) == (2 * len(bad), len(bad))
    assert len(requests["test"]) == len(bad)


def test_rows_after_a_bad_one_keep_what_is_theirs(prepared):
    names = ("apple", "pear", "plum", "fig")
    days = {6: [_row(item=name, category=name) for name in names] * 2}
    days[8] = [
        _row(1, item="apple", category="apple", history="pear", ages="9"),
        _row(0, item="fig", category="fig", history="fig;fig", ages="9;8", weekdays="Monday"),
        _row(0, item="pear", category="pear"),
        _row(1, item="plum", category="plum", history="apple;fig", ages="9;8"),
    ]
    schema, _, requests = prepared(days)
    read = {
        _raw(schema, "item_id", int(request["item_id"][0])): (
            _raw(schema, "category_1_id", int(request["category_1_id"][0])),
            int(request["label"][0]),
            _items(schema, request),
        )
        for request in requests["test"]
    }
    assert read == {
        "apple": ("apple", 1, ["pear"]),
        "pear": ("pear", 0, []),
        "plum": ("plum", 1, ["apple", "fig"]),
    }


def test_too_many_bad_rows_are_an_error(tmp_path):
    _write(tmp_path, {7: [_row()] * 3 + [_row(label=2)]})
    builder = ele_me.EleMe(raw_dir=tmp_path, data_dir=tmp_path / "data", train_days=1)
    with pytest.raises(ValueError, match=r"D7_0\.csv: 1 of 4 rows are bad.*D7_0\.csv:4 "):
        builder.write(Preparation(max_bad_rows=0.2))


def test_parts_and_batches_do_not_change_the_requests(prepared, digests, monkeypatch):
    lines = [_row(user=f"u{i}", history="apple;pear", ages=f"{i % 9};4") for i in range(3000)]
    lines[4] = _row(user="u4")
    days = {8: [*lines, "short\n"]}
    whole, _, _ = prepared(days)
    # DuckDB makes row groups of at least 2048 rows: here one of them is a part of three batches.
    monkeypatch.setattr(ele_me, "_BATCH_ROWS", 700)
    monkeypatch.setattr(ele_me, "_PART_GROUPS", 1)
    pieces, report, _ = prepared(days)
    assert report["splits"]["test"]["requests"] == 3000
    assert digests(whole.directory) == digests(pieces.directory)


def _converted(raw_dir, data_dir, preparation=None, **options):
    """The schema, and the requests of each split in the order that they are given, with keys."""
    builder = ele_me.EleMe(raw_dir=raw_dir, data_dir=data_dir, **options)
    encoded = {}

    def convert(convert=builder.convert):
        schema, vocabularies, splits = convert()
        for name, split in splits.items():
            encode, parts = pickle.loads(pickle.dumps(split))
            encoded[name] = [item for part in parts for item in encode(part)]
        return schema, vocabularies, splits

    builder.convert = convert
    builder.write(preparation)
    return schema_lib.Schema.load(builder.data_dir), encoded


def test_negatives_are_chosen_by_a_hash_of_user_item_and_time(prepared):
    names = [(f"u{i}", f"i{i % 7}", str(1649347200 + i)) for i in range(400)]
    lines = [_row(int(i % 20 == 0), u, item, times=t) for i, (u, item, t) in enumerate(names)]
    hashes = [hashlib.md5(",".join(name).encode()).digest() for name in names]
    chosen = {
        name[0]
        for i, (name, digest) in enumerate(zip(names, hashes, strict=True))
        if i % 20 == 0 or int.from_bytes(digest[8:], "little") < 0.25 * 2**64
    }
    assert 20 + 70 < len(chosen) < 20 + 120
    days = {6: lines, 7: lines, 8: [*lines[:50], "short\n", *lines[:49:-1]]}
    schema, report, requests = prepared(days, negative_rate=0.25)
    assert schema.negative_rate == 0.25
    for split in ("train", "validation", "test"):
        assert len(requests[split]) == len(chosen)
        users = {request["group_id"] for request in requests[split]}
        assert users == {request["group_id"] for request in requests["test"]}
        assert sum(request["label"].sum() for request in requests[split]) == 20
    dropped = report["sources"]["D6_0.csv"]["dropped"]
    assert dropped["negative not kept"]["rows"] == 400 - len(chosen)
    places = report["sources"]["D8_0.csv"]["dropped"]["too few columns"]["places"]
    assert places == ["D8_0.csv:51"]


def test_vocabularies_do_not_count_behaviors_that_are_dropped(prepared):
    lines = [_row(history="apple;later;pear;;now", ages="5;-5;3;2;0", hours_list="1;2;3;4;5")]
    schema, _, _ = prepared({6: [*lines, _row()]}, min_count=1)
    for table, values in (("item_id", ["apple", "pear"]), ("hours", ["12", "1", "3"])):
        path = pathlib.Path(schema.vocabulary_path(schema.table(table)))
        assert path.read_text().split() == values


def test_lines_may_end_as_on_windows(prepared):
    lines = [_row(1, history="apple;apple", ages="5;4", geohash12="g"), _row(history="", ages="")]
    unix = prepared({8: "".join(lines)})
    windows = prepared({8: "".join(lines).replace("\n", "\r\n")})
    assert unix[:2] == windows[:2]
    for one, other in zip(unix[2]["test"], windows[2]["test"], strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])


def test_vocabularies_count_the_negatives_that_are_kept(prepared):
    lines = [_row(item=f"i{i}") for i in range(100)] + [_row(1, item="clicked")] * 2
    schema, _, _ = prepared({6: lines}, negative_rate=0.5, min_count=1)
    path = pathlib.Path(schema.vocabulary_path(schema.table("item_id")))
    kept = path.read_text().split()
    assert "clicked" in kept
    assert 30 < len(kept) < 70


def test_the_newest_days_train(tmp_path):
    _write(tmp_path, {6: [_row(item="six")] * 2})
    for day in range(1, 6):
        (tmp_path / f"D{day}_0.csv").unlink()
    schema, encoded = _converted(tmp_path, tmp_path / "data", train_days=1)
    path = pathlib.Path(schema.vocabulary_path(schema.table("item_id")))
    assert path.read_text() == "six\n"
    assert [key for key, _ in encoded["train"]] == ["D6_0.csv:1", "D6_0.csv:2"]
    builder = ele_me.EleMe(raw_dir=tmp_path, data_dir=tmp_path / "other", train_days=2)
    with pytest.raises(FileNotFoundError, match=r"no file of day 5: .*tianchi.*131047"):
        builder.write()


def test_label_rates_are_reported_by_day(prepared):
    days = {2: [_row(1), _row(0), _row(0)], 8: [_row(1)]}
    _, report, _ = prepared(days, train_days=6)
    assert report["splits"]["train"]["days"]["2022-04-02"] == {"candidates": 3, "clicks": 1}
    assert list(report["splits"]["train"]["days"]) == [f"2022-04-0{day}" for day in range(1, 7)]
    assert report["splits"]["test"]["days"] == {"2022-04-08": {"candidates": 1, "clicks": 1}}


def test_impressions_of_one_request_follow_each_other_where_they_are_joined(tmp_path):
    shown = [("u2", "9", "a"), ("u1", "7", "b"), ("u2", "8", "c"), ("u1", "7", "d")]
    _write(tmp_path, {8: [_row(user=user, times=time, item=item) for user, time, item in shown]})
    preparation = Preparation(group_by="request")
    _, encoded = _converted(tmp_path, tmp_path / "joined", preparation, train_days=1)
    users = [request["group_id"] for _, request in encoded["test"]]
    assert users[0] == users[1] != users[2] == users[3]
    report = PreparedDirectory(tmp_path / "joined/ele_me/1.3.0").report
    assert report["splits"]["test"]["candidates"] == 4
    assert report["splits"]["test"]["requests"] < 4
    _, encoded = _converted(tmp_path, tmp_path / "single", train_days=1)
    users = [request["group_id"] for _, request in encoded["test"]]
    assert users[0] == users[2] != users[1] == users[3], "as in the file"


def test_parts_of_a_day_come_in_the_order_of_their_numbers(tmp_path):
    names = [f"D1_{part}.csv" for part in range(30)]
    for name in (*reversed(names), "D1_x.csv", "D1_0.probability.csv", "D11_0.csv"):
        (tmp_path / name).touch()
    assert [path.name for path in ele_me.day_files(tmp_path, 1)] == names


def test_a_missing_day_is_named(tmp_path):
    _write(tmp_path, {})
    (tmp_path / "D7_0.csv").unlink()
    builder = ele_me.EleMe(raw_dir=tmp_path, data_dir=tmp_path / "data")
    with pytest.raises(FileNotFoundError, match=r"no file of day 7: expected D7_0\.csv.*/131047"):
        builder.write()
    assert not list((tmp_path / "data" / "ele_me").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history_length": 0}, "`history_length` must be an integer of at least 1. Received: "),
        ({"min_count": True}, "`min_count` must be an integer of at least 1. Received: "),
        ({"train_days": 0}, "`train_days` must be an integer of at least 1. Received: "),
        ({"train_days": 7}, "`train_days` must be at most 6. Received: train_days=7"),
        ({"negative_rate": 0}, r"`negative_rate` must be a number in \(0, 1\]. Received: .*=0"),
        ({"negative_rate": 1.5}, r"`negative_rate` must be a number in \(0, 1\]"),
        ({"negative_rate": True}, r"`negative_rate` must be a number in \(0, 1\]"),
        ({"negative_rate": "all"}, r"`negative_rate` must be a number in \(0, 1\]"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        ele_me.EleMe(raw_dir=tmp_path, data_dir=tmp_path / "data", **options)
    assert not list(tmp_path.iterdir())
