import collections
import copy
import csv
import functools
import gzip
import io
import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import small_specs

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import tables
from tfrec_diffusion.datasets.logs_spec import Spec
from tfrec_diffusion.datasets.preparation import Preparation, prepare
from tfrec_diffusion.prepared_directory import PreparedDirectory

ANY_ROWS = Preparation(max_bad_rows=1)
SPEC = {
    "splits": {"train_until": "1970-01-01T00:01:40", "validation_until": "1970-01-01T00:03:20"},
    "impressions": {
        "files": "impressions.csv",
        "user": "who",
        "time": "at",
        "time_unit": "s",
        "label": "clicked",
        "join": [{"files": "users.csv", "on": "who"}],
    },
    "behaviors": {
        "files": "behaviors.csv",
        "user": "user",
        "time": "ms",
        "time_unit": "ms",
        "keep": {"event": ["click", "buy"]},
        "join": [{"files": "items.csv", "on": "item"}],
    },
    "tables": {
        "user": {"kind": "hash", "dtype": "string", "buckets": 50},
        "age": {"kind": "boundaries", "dtype": "float32", "buckets": 2},
        "item": {"kind": "vocabulary", "dtype": "int64"},
        "shop": {"kind": "vocabulary", "dtype": "string", "min_count": 2},
    },
    "features": {
        "user": {"group": "user", "column": "who", "table": "user"},
        "age": {"group": "user", "column": "age", "table": "age"},
        "item": {"group": "candidate", "column": "item", "table": "item"},
        "shop": {"group": "candidate", "column": "shop", "table": "shop"},
        "history_item": {"group": "history", "column": "item", "table": "item"},
        "history_shop": {"group": "history", "column": "shop", "table": "shop"},
    },
}

GAP, AGE = "minutes_since_previous", "minutes_before_impression"

# Unsorted. Training ends at 100 s, validation at 200 s.
IMPRESSIONS = """\
at,who,item,shop,clicked,unused
250,bob,7,x,1,
50,ann,7,x,1,
30,ann,8,,0,
150,ann,9,y,1,
60,bob,9,x,0,
40,cat,,x,0,
"""
BEHAVIORS = """\
user,item,event,ms
ann,2,click,30000
ann,1,click,10000
ann,3,watch,11000
ann,4,buy,29999
ann,5,click,30000
bob,1,click,199000
ann,6,click,100000
zoe,1,click,5
bob,,click,6
"""
USERS = "who,age\nann,30\nbob,20\nbob,99\n"
ITEMS = "item,shop\n1,x\n2,z\n4,\n6,z\n"


def prepare_tables(directory, spec=SPEC, files=(), preparation=ANY_ROWS, **options):
    files = {
        "impressions.csv": IMPRESSIONS,
        "behaviors.csv": BEHAVIORS,
        "users.csv": USERS,
        "items.csv": ITEMS,
        **dict(files),
    }
    raw_dir = directory / f"raw{len(list(directory.iterdir()))}"
    raw_dir.mkdir()
    for name, content in files.items():
        (raw_dir / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    path = raw_dir / "shop.json"
    path.write_text(spec if isinstance(spec, str) else json.dumps(spec))
    return prepare(
        "logs",
        raw_dir=raw_dir,
        data_dir=raw_dir / "data",
        spec=str(path),
        preparation=preparation,
        **options,
    )


@pytest.fixture
def prepared(tmp_path):
    """`prepared(spec, files, **options)`: directory of the requests of hand-written tables."""
    return functools.partial(prepare_tables, tmp_path)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Directory of the requests of the tables above, for tests that only read."""
    return prepare_tables(tmp_path_factory.mktemp("logs"))


changed = functools.partial(small_specs.changed, SPEC)


def with_minutes(column, *boundaries, **table):
    """SPEC with the feature `minutes` of that column of the behaviors."""
    return changed(
        features__minutes={"group": "behavior", "column": column, "table": "minutes"},
        tables__minutes={
            "kind": "boundaries",
            "dtype": "float32",
            "boundaries": boundaries,
            **table,
        },
    )


def by_label(found, *names):
    return sorted((r["label"], *(r[name] for name in names)) for r in found)


def test_worked_out_by_hand(directory, read_requests):
    assert directory.parts[-3:] == ("logs", "shop", "1.2.0")
    # ann at 30 s: the behaviors at 10 and 29.999 s, not those at 30 s nor the watch. Shop z was
    # seen once in training; item 4 has no shop. At 50 s: 2 before 5, as in the file.
    # Item 6 was bought when training ended, so that it is unknown.
    train = read_requests(directory, "train")
    assert by_label(train, "item", "shop", "history_item", "history_shop") == [
        ([0.0], [8], [None], [1, 4], ["x", None]),
        ([0.0], [9], ["x"], [], []),
        ([1.0], [7], ["x"], [1, 4, 2, 5], ["x", None, "?", None]),
    ]
    (validation,) = read_requests(directory, "validation")
    assert validation["item"] == [9]
    assert validation["shop"] == ["?"]
    assert validation["history_item"] == [1, 4, 2, 5, "?"]
    (test,) = read_requests(directory, "test")
    assert (test["item"], test["history_item"]) == ([7], [1])
    # The same user has the same number, another one another.
    numbers = {r["item"][0]: r["group_id"] for r in train}
    assert numbers[7] == numbers[8] == validation["group_id"] != numbers[9] == test["group_id"]
    # Ages 30, 30 and 20 in training: two intervals that part at 30. The first row of bob counts.
    ages = {r["item"][0]: r["age"] for r in train}
    assert ages == {7: 3, 8: 3, 9: 2}
    schema = schema_lib.Schema.load(directory)
    assert schema.name == "shop"
    assert schema.history_length == 100
    assert schema.table("age").boundaries == (30.0,)


def test_report(directory):
    report = PreparedDirectory(directory).report
    dropped = {
        source: {reason: drop["rows"] for reason, drop in rows["dropped"].items()}
        for source, rows in report["sources"].items()
    }
    assert dropped == {
        "impressions": {"no item": 1},
        "impressions join users.csv": {"who repeated": 1},
        "behaviors": {"event not kept": 1, "no item": 1},
        "behaviors join items.csv": {},
    }
    assert report["splits"]["train"]["label_rate"] == 1 / 3


def test_history_keeps_the_newest(prepared, read_requests):
    directory = prepared(history_length=2)
    train = read_requests(directory, "train")
    assert by_label(train, "history_item")[2] == ([1.0], [2, 5])


def test_gaps_of_behaviors(prepared, read_requests):
    # ann's behaviors but the watch: at 10, 29.999, 30, 30 and 100 s. In rows: none, 0.333 minutes,
    # 0.00002, 0 and 1.167.
    spec = with_minutes(GAP, 0, 0.00001, 0.325, 1)
    rows = [0, 5, 4, 3, 6]
    directory = prepared(spec)
    (validation,) = read_requests(directory, "validation")
    assert (validation["history_item"], validation["minutes"]) == ([1, 4, 2, 5, "?"], rows)
    train = read_requests(directory, "train")
    assert by_label(train, "minutes") == [([0.0], []), ([0.0], rows[:2]), ([1.0], rows[:4])]
    (test,) = read_requests(directory, "test")
    assert test["minutes"] == [0]
    # A behavior that the history has no room for is a previous one nevertheless.
    (validation,) = read_requests(prepared(spec, history_length=2), "validation")
    assert (validation["history_item"], validation["minutes"]) == ([5, "?"], rows[-2:])
    assert schema_lib.Schema.load(directory).table("minutes").boundaries == tuple(
        np.float32([0, 0.00001, 0.325, 1]).tolist()
    )


def test_ages_of_behaviors(prepared, read_requests):
    spec = with_minutes(AGE, 0.01, 0.33334, 2, 2.3)
    directory = prepared(spec)
    # ann at 30 s: 0.333 and 0.00002 minutes. At 50 s: 0.667, 0.33335, and 0.33333 twice.
    train = read_requests(directory, "train")
    assert by_label(train, "minutes") == [([0.0], []), ([0.0], [3, 2]), ([1.0], [4, 4, 3, 3])]
    # The same behaviors at 150 s: 2.333, 2.00002, 2 twice, and one of 0.833.
    (validation,) = read_requests(directory, "validation")
    assert validation["minutes"] == [6, 5, 5, 5, 4]
    (test,) = read_requests(directory, "test")
    assert test["minutes"] == [4]  # 0.85
    (validation,) = read_requests(prepared(spec, history_length=2), "validation")
    assert (validation["history_item"], validation["minutes"]) == ([5, "?"], [5, 4])


def test_gaps_in_intervals_of_equally_many(prepared):
    # Those of the behaviors before 100 s: unknown (ann's and zoe's first), 0.333, 0.00002 and 0.
    spec = with_minutes(GAP, buckets=3)
    schema = schema_lib.Schema.load(prepared(spec))
    assert schema.table("minutes").boundaries == pytest.approx((1 / 60000, 19.999 / 60))


@pytest.mark.parametrize("column", [GAP, AGE])
def test_minutes_of_timestamps(prepared, digests, tmp_path, column):
    frame = pd.read_csv(io.StringIO(BEHAVIORS)).astype({"item": "Int64"})
    frame["ms"] = pd.to_datetime(frame["ms"], unit="ms")
    frame.to_parquet(tmp_path / "behaviors.parquet")
    spec = with_minutes(column, 0.00001, 0.325, 1)
    of_file = copy.deepcopy(spec)
    of_file["behaviors"]["files"] = "behaviors.parquet"
    files = {"behaviors.parquet": (tmp_path / "behaviors.parquet").read_bytes()}
    one, other = digests(prepared(spec)), digests(prepared(of_file, files))
    assert one.pop("report.json") != other.pop("report.json")
    assert one == other


@pytest.mark.parametrize("column", [GAP, AGE])
def test_minutes_of_the_logs_own(prepared, read_requests, column):
    lines = [f"{line},{minutes}" for minutes, line in enumerate(BEHAVIORS.splitlines())]
    lines[0] = f"user,item,event,ms,{column}"
    directory = prepared(with_minutes(column, *range(10)), {"behaviors.csv": "\n".join(lines)})
    (validation,) = read_requests(directory, "validation")
    assert validation["minutes"] == [2 + line + 1 for line in (2, 4, 1, 5, 7)]


def test_tiers_of_popularity(prepared):
    schema = schema_lib.Schema.load(prepared(changed(tables__item__tiers=2)))
    # Training sees item 1 twice, and 2, 4, 5, 7, 8, 9 once: 1, 2 and 4 are half of it.
    assert schema.table("item").tiers == (5,)
    assert schema.table("shop").tiers == ()


def test_unusable_rows_are_counted(prepared):
    rows = [
        "50,,7,x,1,",  # no user
        ",ann,7,x,1,",  # no time
        "-5,ann,7,x,1,",  # before 1970
        "99999999999999,ann,7,x,1,",  # after 2262
        "50,ann,7,x,,",  # no label
        "50,ann,7,x,2,",
        "50,ann,7,x,0.5,",
        "50,ann,7,x,yes,",
        "50,ann,7,x",
        "5o,ann,7,x,1,",
    ]
    directory = prepared(files={"impressions.csv": IMPRESSIONS + "\n".join(rows)})
    impressions = PreparedDirectory(directory).report["sources"]["impressions"]
    assert impressions["read"] == 16
    assert impressions["kept"] == 5
    reasons = {reason: drop["rows"] for reason, drop in impressions["dropped"].items()}
    assert reasons == {
        "at is not a number": 1,
        "clicked is not a number": 1,
        "too few columns": 1,
        "no user": 1,
        "no time, or out of range": 3,
        "clicked neither 0 nor 1": 3,
        "no item": 1,
    }
    places = impressions["dropped"]["too few columns"]["places"]
    assert places == ["impressions.csv:16"]


def test_features_that_are_not_numbers_are_missing(prepared, read_requests):
    users = USERS.replace("ann,30", "ann,thirty")
    directory = prepared(files={"users.csv": users})
    report = PreparedDirectory(directory).report
    assert report["impressions join users.csv: age not a number, taken for missing"] == 1
    assert report["sources"]["impressions"]["kept"] == 5
    (ann, other), (bob,) = [
        [r["age"] for r in read_requests(directory, "train") if r["item"][0] in items]
        for items in ((7, 8), (9,))
    ]
    assert ann == other == 0 != bob


def test_which_labels_are_positive(prepared, directory, digests):
    """Ratings: 4 and 5 are clicks; one without a rating is no impression."""
    header, *rows = IMPRESSIONS.splitlines()
    ratings = iter(["4", "5", "1", "5", "3", "2"])
    rated = [
        ",".join([*row.split(",")[:4], rating, ""])
        for row, rating in zip(rows, ratings, strict=True)
    ]
    files = {"impressions.csv": "\n".join([header, *rated, "60,bob,9,x,,", ""])}
    spec = changed(impressions__positive=["4", "5"])
    of_ratings = prepared(spec, files, preparation=ANY_ROWS)
    report = PreparedDirectory(of_ratings).report["sources"]["impressions"]
    assert report["dropped"]["no value of clicked"]["rows"] == 1
    never = prepared(changed(impressions__positive=["4.0"]), files, preparation=ANY_ROWS)
    warnings, others = (PreparedDirectory(d).report["warnings"] for d in (never, of_ratings))
    (warning,) = set(warnings) - set(others)
    assert warning.startswith("clicked is in no row one of its positive values, '4.0': it is, for")
    one, other = digests(directory), digests(of_ratings)
    assert one.pop("report.json") != other.pop("report.json")
    assert one == other


def test_timestamps_and_boolean_labels_of_parquet(prepared, directory, digests, tmp_path):
    frame = pd.read_csv(io.StringIO(IMPRESSIONS)).astype({"item": "Int64", "clicked": bool})
    frame["at"] = pd.to_datetime(frame["at"], unit="s")
    frame.to_parquet(tmp_path / "impressions.parquet")
    of_parquet = prepared(
        changed(impressions__files="impressions.parquet", impressions__time_unit="ms"),
        {"impressions.parquet": (tmp_path / "impressions.parquet").read_bytes()},
    )
    one, other = digests(directory), digests(of_parquet)
    assert one.pop("report.json") != other.pop("report.json")
    assert one == other


def test_value_with_a_line_break_is_unknown_and_counted(prepared, read_requests):
    directory = prepared(changed(tables__shop__min_count=1), {"items.csv": 'item,shop\n1,"p\nq"\n'})
    assert (
        PreparedDirectory(directory).report["shop: values with a line break, taken for unknown"]
        == 1
    )
    (test,) = read_requests(directory, "test")
    assert test["history_shop"] == ["?"]


def test_integer_users(prepared, read_requests):
    spec = changed(tables__user={"kind": "vocabulary", "dtype": "int64"})
    names = {"ann": "3", "bob": "10", "cat": "5", "zoe": "7"}
    files = {}
    for file, content in (
        ("impressions.csv", IMPRESSIONS),
        ("behaviors.csv", BEHAVIORS),
        ("users.csv", USERS),
    ):
        for name, number in names.items():
            content = content.replace(name, number)
        files[file] = content
    directory = prepared(spec, files)
    (test,) = read_requests(directory, "test")
    assert (test["user"], test["history_item"]) == (10, [1])


def test_parquet_gzip_and_several_files_give_the_same(prepared, directory, digests, tmp_path):
    header, *rows = IMPRESSIONS.splitlines(keepends=True)
    pd.read_csv(io.StringIO(BEHAVIORS)).astype({"item": "Int64"}).to_parquet(
        tmp_path / "behaviors.parquet"
    )
    spec = changed(impressions__files="part-*.csv.gz", behaviors__files="behaviors.parquet")
    of_files = prepared(
        spec,
        {
            "part-0.csv.gz": gzip.compress((header + "".join(rows[:2])).encode()),
            "part-1.csv.gz": gzip.compress((header + "".join(rows[2:])).encode()),
            "behaviors.parquet": (tmp_path / "behaviors.parquet").read_bytes(),
        },
    )
    one, other = digests(directory), digests(of_files)
    assert one.pop("report.json") != other.pop("report.json")
    assert one == other


def test_parts_of_users_make_no_difference(prepared, directory, digests, monkeypatch):
    monkeypatch.setattr(tables.Database, "part_rows", 2)
    assert digests(prepared()) == digests(directory)


# Page p is shown from 30 to 50 s, page q from 90 to 110 s; those of no page are alone.
PAGES = """\
at,who,item,shop,clicked,page
50,ann,7,x,1,p
30,ann,8,x,0,p
20,ann,8,x,1,
40,ann,9,x,0,
30,bob,9,x,0,p
110,ann,9,x,1,q
90,ann,7,x,0,q
150,ann,9,x,1,r
250,bob,7,x,1,r
"""


def test_impressions_of_one_request(prepared, read_requests):
    spec = with_minutes(AGE, 0.2, 1)
    spec["impressions"]["request"] = "page"
    files = {"impressions.csv": PAGES}
    directory = prepared(spec, files)
    # The behaviors at 30 s (2 and 5) are before ann's impression at 50 s, and after page p began;
    # that at 100 s (6) is between the impressions of page q. Ages are those at 30 and 90 s.
    train = by_label(read_requests(directory, "train"), "item", "history_item", "minutes")
    assert train == [
        ([0.0], [7], [1, 4, 2, 5], [4, 4, 4, 4]),
        ([0.0], [8], [1, 4], [3, 2]),
        ([0.0], [9], [], []),
        ([0.0], [9], [1, 4, 2, 5], [3, 2, 2, 2]),
        ([1.0], [7], [1, 4], [3, 2]),
        ([1.0], [8], [1], [2]),
        # Shown when training was over, on a page of the training.
        ([1.0], [9], [1, 4, 2, 5], [4, 4, 4, 4]),
    ]
    (validation,) = read_requests(directory, "validation")
    assert validation["history_item"] == [1, 4, 2, 5, "?"]

    grouped = prepared(spec, files, Preparation("request", max_bad_rows=1))
    train = by_label(read_requests(grouped, "train"), "item", "history_item")
    assert train == [
        ([0.0], [9], []),
        ([0.0], [9], [1, 4, 2, 5]),
        ([0.0, 1.0], [7, 9], [1, 4, 2, 5]),
        ([0.0, 1.0], [8, 7], [1, 4]),
        ([1.0], [8], [1]),
    ]


def test_two_requests_at_one_time(prepared, read_requests):
    pages = """\
at,who,item,shop,clicked,page
30,ann,7,x,1,2
30,ann,8,x,0,1
31,ann,9,x,0,1
32,ann,7,x,0,2
150,ann,9,x,1,3
250,bob,7,x,1,4
"""
    spec = changed(
        impressions__request="page",
        tables__page={"kind": "vocabulary", "dtype": "int64"},
        features__page={"group": "context", "column": "page", "table": "page"},
    )
    preparation = Preparation("request", max_bad_rows=1)
    train = read_requests(prepared(spec, {"impressions.csv": pages}, preparation), "train")
    assert by_label(train, "item", "page") == [([0.0, 0.0], [8, 9], 1), ([1.0, 0.0], [7, 7], 2)]


def test_a_spec_without_requests_has_the_digest_of_before(tmp_path):
    # Data sets that were prepared before there was the key stay valid.
    (tmp_path / "shop.json").write_text(json.dumps(SPEC))
    assert Spec.load(tmp_path / "shop.json").digest == "0405b70cf11254d4"


def test_later_days_change_no_vocabulary(prepared, directory):
    schema = schema_lib.Schema.load(directory)
    later = {
        "impressions.csv": IMPRESSIONS + "100,ann,70,x,1,\n250,dan,71,v,1,\n",
        "behaviors.csv": BEHAVIORS + "ann,72,buy,100000\n",
        "items.csv": ITEMS + "72,w\n",
    }
    assert schema_lib.Schema.load(prepared(files=later)).digest() == schema.digest()


def test_too_many_bad_rows(prepared):
    impressions = "".join(line for line in IMPRESSIONS.splitlines(True) if "cat" not in line)
    behaviors = "".join(line for line in BEHAVIORS.splitlines(True) if "bob,," not in line)
    files = {"impressions.csv": impressions, "behaviors.csv": behaviors}
    strict = Preparation(max_bad_rows=0)
    # Events that are not kept and a user's second row are no bad rows.
    prepared(files=files, preparation=strict)
    files["impressions.csv"] += "50,,7,x,1,\n"
    message = r"shop\.json: impressions: 1 of 6 rows are bad, .*: no user \(impressions\.csv:7 "
    with pytest.raises(ValueError, match=message):
        prepared(files=files, preparation=strict)


def test_label_rate_of_each_day(prepared):
    files = {
        "impressions.csv": "at,who,item,shop,clicked\n"
        + "".join(f"{time},ann,7,x,{click}\n" for time, click in DAYS_AND_CLICKS)
    }
    spec = changed(
        splits={"train_until": "1970-01-02", "validation_until": "1970-01-03"},
        time_zone_hours=5.5,
    )
    splits = PreparedDirectory(prepared(spec, files)).report["splits"]
    assert [splits[name]["days"] for name in ("train", "validation", "test")] == [
        {"1970-01-01": {"candidates": 2, "clicks": 1}},
        {"1970-01-02": {"candidates": 2, "clicks": 1}},
        {
            "1970-01-03": {"candidates": 1, "clicks": 1},
            "1970-01-04": {"candidates": 1, "clicks": 0},
        },
    ]


# 66,600 s are midnight where clocks are 5.5 hours ahead.
DAYS_AND_CLICKS = [
    (0, 1),
    (66599, 0),
    (66600, 0),
    (66600 + 86399, 1),
    (66600 + 86400, 1),
    (66600 + 2 * 86400, 0),
]


def test_time_zone(prepared):
    spec = changed(
        splits={"train_until": "1970-01-01T08:01:40", "validation_until": "1970-01-01T00:03:20Z"}
    )
    spec["time_zone_hours"] = 8
    counts = PreparedDirectory(prepared(spec)).report["splits"]
    assert [counts[split]["requests"] for split in ("train", "validation", "test")] == [3, 1, 1]
    spec["splits"]["train_until"] = "1970-01-01T05:31:40"
    spec["time_zone_hours"] = 5.5
    assert PreparedDirectory(prepared(spec)).report["splits"] == counts


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{", "shop.json: Expecting property name"),
        ("[]", r"'the whole' must be an object. It is: \[\]"),
        (changed(extra=1), "'extra' is not a key; there are impressions, behaviors"),
        (changed(impressions__joins=[]), "'impressions.joins' is not a key; there are files"),
        (changed(splits=None), "'splits' is missing"),
        (changed(impressions__label=None), "'impressions.label' must be the name of a column"),
        (changed(behaviors__time_unit="minutes"), "'behaviors.time_unit' must be one of"),
        (changed(impressions__join=[{"files": "x"}]), r"'impressions.join\[0\].on' is missing"),
        (changed(behaviors__request="page"), "'behaviors.request' must stand in 'impressions'"),
        (changed(behaviors__positive=["1"]), "'behaviors.positive' must stand in 'impressions'"),
        (
            changed(impressions__positive=[4]),
            r"'impressions.positive\[0\]' must be a text. It is: 4",
        ),
        (changed(impressions__request="page"), "must have a column 'page'. It has: at, who, item"),
        (changed(impressions__user=5), "'impressions.user' must be a text. It is: 5"),
        (changed(tables__shop__min_count="2"), "'tables.shop.min_count' must be an integer"),
        (changed(tables__shop__min_count=True), "'tables.shop.min_count' must be an integer"),
        (changed(tables__shop__min_count=0), "'tables.shop.min_count' must be a positive"),
        (changed(tables__user__buckets=0), "'tables.user.buckets' must be at least 1. It is: 0"),
        (changed(tables__age__buckets=1), "'tables.age.buckets' must be at least 2"),
        (changed(tables__item__tiers=0), "'tables.item.tiers' must be a positive integer"),
        (changed(tables__user__tiers=2), "and 1 unless the kind is 'vocabulary'. It is: 2"),
        (changed(tables__item__boundaries=[1]), "'tables.item.boundaries' must stand in a table"),
        (changed(tables__age__boundaries=[1]), "'boundaries', in the place of 'buckets'"),
        (
            with_minutes(GAP, 30, 30),
            r"`boundaries` must be increasing numbers. Received: \[30, 30\]",
        ),
        (
            with_minutes(GAP, "30"),
            r"'tables.minutes.boundaries\[0\]' must be a number. It is: '30'",
        ),
        (
            with_minutes(GAP, kind="vocabulary", dtype="int64"),
            "'tables.minutes.dtype' must be 'float32' for 'minutes_since_previous'. It is: 'int64'",
        ),
        (
            with_minutes(AGE, kind="vocabulary", dtype="int64"),
            "'tables.minutes.dtype' must be 'float32' for 'minutes_before_impression'. It is: 'int",
        ),
        (
            with_minutes(AGE, buckets=5),
            "'tables.minutes.boundaries' must be given for 'minutes_before_impression'",
        ),
        (
            changed(features__gap={"group": "behavior", "column": GAP, "table": "item"}),
            "must have a table of its own",
        ),
        (changed(tables__shop__kind="list"), "`kind` must be one of .* Received: 'list'"),
        (changed(tables__shop__dtype="float32"), "`dtype` of a vocabulary table must be one of"),
        (changed(features__shop__group="item"), "`group` must be one of .* Received: 'item'"),
        (changed(features__shop__table="no"), "names the table 'no'; there are"),
        (changed(features__history_shop__table="age"), "no candidate or context feature shares"),
        (changed(splits__train_until="soon"), "'splits.train_until' must be a time in ISO 8601"),
        (changed(splits__train_until="1971-01-01"), "'splits.validation_until' must be a time af"),
        (changed(behaviors__keep={"event": "click"}), "'behaviors.keep.event' must be a list"),
        (changed(tables__more=SPEC["tables"]["item"]), "'tables.more' is used by no feature"),
        (changed(time_zone_hours="8"), "'time_zone_hours' must be a number. It is: '8'"),
        # Against the files.
        (changed(impressions__files="no*.csv"), r"must hold a file 'no\*.csv'. It holds: behav"),
        (changed(impressions__label="click"), "must have a column 'click'. It has: at, who, item"),
        (changed(features__age__column="born"), "impressions must have a column 'born' in one of"),
        (changed(features__age__column=AGE), "impressions must have a column 'minutes_before_imp"),
        (
            changed(impressions__join=[{"files": "items.csv", "on": "who"}]),
            "items.csv must have a c",
        ),
    ],
)
def test_wrong_specs(prepared, spec, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        prepared(spec)
    assert "shop.json: " in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spec": 1}, "`spec` must be the path of a JSON file. Received: 1"),
        ({"spec": None}, "`spec` must be the path of a JSON file. Received: None"),
        ({"history_length": True}, "`history_length` must be an integer of at least 1"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    options = {"spec": "experiments/kuairand.json", **options}
    with pytest.raises(ValueError, match=message):
        prepare("logs", raw_dir=tmp_path, data_dir=tmp_path, **options)


def test_one_column_has_one_type(prepared):
    spec = changed(features__shop__column="item")
    with pytest.raises(ValueError, match="column 'item' of impressions must be of one type"):
        prepared(spec)


def test_empty_split(prepared):
    spec = changed(splits__validation_until="1975-01-01")
    with pytest.raises(ValueError, match="split 'test' of logs got no request"):
        prepared(spec)


def test_changed_spec_under_the_same_name(prepared, tmp_path):
    directory = prepared()
    raw_dir = directory.parents[3]
    spec = raw_dir / "shop.json"
    arguments = {
        "raw_dir": raw_dir,
        "data_dir": raw_dir / "data",
        "spec": str(spec),
        "preparation": ANY_ROWS,
    }
    spec.write_text(json.dumps({**SPEC, "comment": "the same"}))
    assert prepare("logs", **arguments) == directory
    changed_spec = changed(features__shop=None, features__history_shop=None, tables__shop=None)
    spec.write_text(json.dumps(changed_spec))
    with pytest.raises(ValueError, match=r"was prepared with spec='shop.json \(.*--overwrite"):
        prepare("logs", **arguments)
    prepare("logs", **arguments, overwrite=True)
    assert "shop" not in [f.name for f in schema_lib.Schema.load(directory).features]


@pytest.mark.slow
def test_real_sample(samples, tmp_path, read_requests):
    # Every eighth user: enough, and quicker.
    raw_dir = tmp_path / "raw"
    raw_dir.mkdir()
    for path in (samples / "kuairand").iterdir():
        with gzip.open(path, "rt") as file, gzip.open(raw_dir / path.name, "wt") as eighth:
            eighth.write(next(file))
            for line in file:
                if path.name == "videos.csv.gz" or int(line.partition(",")[0]) % 8 == 0:
                    eighth.write(line)
    directory = prepare(
        "logs", raw_dir=raw_dir, data_dir=tmp_path, spec="experiments/kuairand.json"
    )
    splits = PreparedDirectory(directory).report["splits"]
    assert {split: counts["requests"] for split, counts in splits.items()} == {
        "train": 20_991,
        "validation": 3_421,
        "test": 3_695,
    }

    # An independent reading of the raw files, in Python: each request of the test, by what it says.
    def rows(name):
        with gzip.open(raw_dir / name, "rt", newline="") as file:
            yield from csv.DictReader(file)

    tags = {row["video_id"]: row["tag"] for row in rows("videos.csv.gz")}
    histories = collections.defaultdict(list)
    for row in rows("behaviors.csv.gz"):
        if row["event"] != "watch":
            histories[row["user_id"]].append((int(row["time_ms"]), row["video_id"]))
    seen = collections.defaultdict(set)
    train_until = 1651680000000  # 5 May 2022, 00:00 in China
    for history in histories.values():
        history.sort(key=lambda behavior: behavior[0])
        seen["video"].update(video for time, video in history if time < train_until)
    impressions = list(rows("impressions.csv.gz"))
    for row in impressions:
        if int(row["time_ms"]) < train_until:
            seen["video"].add(row["video_id"])
            seen["user"].add(row["user_id"])

    def known(table, value):
        return int(value) if value in seen[table] else "?"

    minute = 60 * 1000
    expected = collections.Counter()
    for row in impressions:
        time = int(row["time_ms"])
        if time >= train_until + 2 * 24 * 60 * minute:
            past = [b for b in histories[row["user_id"]] if b[0] < time]
            starts = [later - earlier >= 30 * minute for (earlier, _), (later, _) in pairwise(past)]
            gaps = tuple([0, *(3 if start else 2 for start in starts)][: len(past)][-100:])
            past = past[-100:]
            minutes = [np.float32((time - earlier) / minute) for earlier, _ in past]
            ages = tuple(2 + min(int(age).bit_length(), 20) for age in minutes)
            videos = tuple(known("video", video) for _, video in past)
            past_tags = tuple(tags[video] or None for _, video in past)
            expected[
                known("user", row["user_id"]),
                known("video", row["video_id"]),
                float(row["is_click"]),
                int(row["tab"]),
                int(row["hour"]),
                videos,
                past_tags,
                gaps,
                ages,
            ] += 1
    found = collections.Counter(
        (
            r["user"],
            r["video"][0],
            r["label"][0],
            r["tab"],
            r["hour"],
            tuple(r["history_video"]),
            tuple(r["history_tag"]),
            tuple(r["history_gap"]),
            tuple(r["history_age"]),
        )
        for r in read_requests(directory, "test")
    )
    assert found == expected


def test_example_spec_is_valid():
    spec = Spec.load("experiments/kuairand.json")
    assert np.datetime64(spec.train_until, "ns") == np.datetime64("2022-05-04T16:00")
