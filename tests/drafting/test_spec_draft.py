import bz2
import gzip
import itertools
import json

import pandas as pd
import pytest
from commands import run

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets.logs_spec import Spec
from tfrec_diffusion.datasets.preparation import prepare
from tfrec_diffusion.drafting import raw_samples, spec_draft

DAY = 24 * 60 * 60
MAY = 1_714_521_600  # 1 May 2024, 00:00 UTC

VOCABULARY = {"kind": "vocabulary", "dtype": "int64"}
TEXT = {"kind": "vocabulary", "dtype": "string"}
TIMES_OF_BEHAVIORS = {
    "history_gap": {"group": "behavior", "column": "minutes_since_previous", "table": "gap"},
    "history_age": {"group": "behavior", "column": "minutes_before_impression", "table": "age"},
}


def lines(columns, rows, delimiter=","):
    return "\n".join(delimiter.join(map(str, row)) for row in [columns, *rows]) + "\n"


def write(directory, **files):
    """Writes CSV files of texts and Parquet files of frames; `__` stands for the dot."""
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        path = directory / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pd.DataFrame):
            content.to_parquet(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return directory


def log(days=20, users=5):
    """Impressions `(user, item, seconds, label, ..)`: each user has one at each hour of a day."""
    for day, user, hour in itertools.product(range(days), range(users), range(2)):
        number = 7 * day + 3 * user + 5 * hour
        yield {
            "user": user,
            "item": number % 12,
            "ts": MAY + day * DAY + hour * 3600 + user,
            "label": int((day + user + hour) % 3 == 0),
            "position": number // 2 % 4,
            "device": ("phone", "desk", "tablet")[number % 5 % 3],
        }


def impressions(*names, **values):
    """Rows of the log: its entries, or what functions make of them."""
    for row in log():
        yield [values[name](row) if name in values else row[name] for name in names]


def shop(directory):
    """The raw files of a small shop."""
    events = [
        (row["user"], row["item"], pd.Timestamp(row["ts"] - DAY, unit="s"), event)
        for row, event in zip(log(), itertools.cycle(("view", "view", "buy")), strict=False)
    ]
    items = [
        (
            i,
            ("book", "toy", "tool")[i % 3],
            f"{1.5 + i:.2f}",
            "|".join(("new", "red", "big")[: i % 4]),
            f'"[{i / 8}, 0.5, -1.0]"',
            f"A very good thing of number {i}",
            "EUR",
        )
        for i in range(12)
    ]
    columns = ("user_id", "item_id", "ts", "position", "device", "label", "purchase")
    values = {
        "user_id": lambda row: row["user"],
        "item_id": lambda row: row["item"],
        "ts": lambda row: row["ts"],
        "purchase": lambda row: int(row["item"] == 3 and row["label"]),
    }
    return write(
        directory,
        impressions__csv=lines(columns, impressions(*columns, **values)),
        behaviors__parquet=pd.DataFrame(events, columns=("user_id", "item_id", "time", "event")),
        users__csv=lines(
            ("user_id", "age", "city", "signup"),
            ((u, 20 + u, ("Rome", "Oslo")[u % 2], "2020-01-01") for u in range(5)),
        ),
        items__csv=lines(
            ("item_id", "category", "price", "tags", "embedding", "title", "currency"), items
        ),
    )


def drafted(raw_dir):
    """What a draft of a directory has, and the lines of its summary."""
    path = raw_dir.parent / "draft.json"
    path.unlink(missing_ok=True)
    summary = list(spec_draft.draft(path, raw_dir))
    Spec.load(path)
    assert sorted(p.name for p in path.parent.glob("incomplete*")) == []
    return json.loads(path.read_text(encoding="utf-8")), summary


def bare(value):
    """A spec without its comments."""
    if isinstance(value, list):
        return list(map(bare, value))
    if not isinstance(value, dict):
        return value
    return {key: bare(item) for key, item in value.items() if key != "comment"}


def test_a_shop_as_one_would_write_it_by_hand(tmp_path):
    spec, summary = drafted(shop(tmp_path / "raw"))
    assert bare({**spec, "tables": None, "features": None}) == {
        "time_zone_hours": 0,
        "splits": {"train_until": "2024-05-17", "validation_until": "2024-05-19"},
        "impressions": {
            "files": "impressions.csv",
            "user": "user_id",
            "time": "ts",
            "time_unit": "s",
            "label": "label",
            "labels": {"purchase": {"column": "purchase"}},
            "join": [
                {"files": "items.csv", "on": "item_id"},
                {"files": "users.csv", "on": "user_id"},
            ],
        },
        "behaviors": {
            "files": "behaviors.parquet",
            "user": "user_id",
            "time": "time",
            "time_unit": "s",
            "join": [{"files": "items.csv", "on": "item_id"}],
        },
        "tables": None,
        "features": None,
    }
    assert bare(spec["features"]) == {
        "user": {"group": "user", "column": "user_id", "table": "user"},
        "age": {"group": "user", "column": "age", "table": "age"},
        "city": {"group": "user", "column": "city", "table": "city"},
        "position": {"group": "context", "column": "position", "table": "position"},
        "device": {"group": "context", "column": "device", "table": "device"},
        "item": {"group": "candidate", "column": "item_id", "table": "item"},
        "category": {"group": "candidate", "column": "category", "table": "category"},
        "price": {"group": "candidate", "column": "price", "table": "price"},
        "tags": {"group": "candidate", "column": "tags", "table": "tags", "values": 3},
        "embedding": {
            "group": "candidate", "column": "embedding", "table": "embedding", "separator": ","
        },
        "history_item": {"group": "history", "column": "item_id", "table": "item"},
        "history_category": {"group": "history", "column": "category", "table": "category"},
        "history_price": {"group": "history", "column": "price", "table": "price"},
        "history_tags": {"group": "history", "column": "tags", "table": "tags", "values": 3},
        "history_embedding": {
            "group": "history", "column": "embedding", "table": "embedding", "separator": ","
        },
        **TIMES_OF_BEHAVIORS,
        "history_age": {**TIMES_OF_BEHAVIORS["history_age"], "table": "behavior_age"},
    }  # fmt: skip
    tables = bare(spec["tables"])
    assert tables.pop("gap") == {"kind": "boundaries", "boundaries": [30]}
    assert tables.pop("behavior_age")["boundaries"][:3] == [1, 2, 4]
    assert tables == {
        "user": VOCABULARY,
        "age": VOCABULARY,
        "city": TEXT,
        "position": VOCABULARY,
        "device": TEXT,
        "item": VOCABULARY,
        "category": TEXT,
        "price": {"kind": "number"},
        "tags": TEXT,
        "embedding": {"kind": "vector", "width": 3},
    }
    # What is left out is said, and what must be decided is asked.
    for left_out in (
        "items.csv: title is free text",
        "items.csv: currency is constant",
        "users.csv: signup is a time",
        "behaviors.parquet: event is in the behaviors only",
    ):
        assert left_out in spec["comment"] and any(left_out in line for line in summary)
    assert "event is view, buy; keep can name" in spec["behaviors"]["comment"]
    assert "from 2024-05-01 to 2024-05-20 in UTC" in spec["splits"]["comment"]
    assert "80%, 10%, 10%" in spec["splits"]["comment"]
    asked = [line for line in summary if line.startswith("  - ")]
    assert [line.split(":")[0] for line in asked] == [
        "  - splits", "  - behaviors", "  - features.position"
    ]  # fmt: skip


def test_a_draft_prepares_as_it_is(tmp_path, read_requests):
    raw_dir = shop(tmp_path / "raw")
    path = tmp_path / "shop.json"
    spec_draft.draft(path, raw_dir)
    directory = prepare("logs", raw_dir=raw_dir, data_dir=tmp_path / "data", spec=str(path))
    schema = schema_lib.Schema.load(directory)
    assert schema.labels == ("purchase",)
    requests = read_requests(directory, "test")
    assert len(requests) == 20
    assert all(len(request["history_item"]) > 30 for request in requests)


def test_the_file_is_laid_out_to_be_edited(tmp_path):
    drafted(shop(tmp_path / "raw"))
    text = (tmp_path / "draft.json").read_text()
    assert '\n  "item": {"kind": "vocabulary", "dtype": "int64"},\n' in text
    assert '\n  "user": {"group": "user", "column": "user_id", "table": "user"},\n' in text
    assert '\n  "label": "label",\n' in text
    assert "\n    1, 2, 4, 8, 16," in text
    assert text.endswith("\n }\n}\n")


COLUMNS = ("user", "item", "ts", "label")


def one_file(**values):
    """A table of impressions alone, with columns of functions of the log's rows."""
    columns = dict.fromkeys((*COLUMNS, *values))
    return lines(columns, impressions(*columns, **values))


def test_of_one_file_earlier_clicks_are_the_history(tmp_path, read_requests):
    raw_dir = write(tmp_path / "raw", log__csv=one_file(device=lambda row: row["device"]))
    path = tmp_path / "draft.json"
    spec_draft.draft(path, raw_dir)
    spec = json.loads(path.read_text())
    assert bare(spec["behaviors"]) == {
        "files": "log.csv",
        "user": "user",
        "time": "ts",
        "time_unit": "s",
        "keep": {"label": ["1"]},
    }
    assert "no table of behaviors, so that earlier impressions" in spec["behaviors"]["comment"]
    assert bare(spec["features"]) == {
        "user": {"group": "user", "column": "user", "table": "user"},
        "device": {"group": "context", "column": "device", "table": "device"},
        "item": {"group": "candidate", "column": "item", "table": "item"},
        "history_item": {"group": "history", "column": "item", "table": "item"},
        **TIMES_OF_BEHAVIORS,
    }
    directory = prepare("logs", raw_dir=raw_dir, data_dir=tmp_path / "data", spec=str(path))
    clicks = {}
    for row in log():
        clicks.setdefault(row["user"], []).extend([(row["ts"], row["item"])] * row["label"])
    found = sorted(tuple(r["history_item"]) for r in read_requests(directory, "test"))
    expected = (
        tuple(item for seconds, item in clicks[row["user"]] if seconds < row["ts"])
        for row in log()
        if row["ts"] >= MAY + 18 * DAY
    )
    assert found == sorted(expected)


@pytest.mark.parametrize(
    ("time", "unit"),
    [
        (lambda row: row["ts"] * 1000 + 7, "ms"),
        (lambda row: row["ts"] * 10**6, "us"),
        (lambda row: pd.Timestamp(row["ts"], unit="s").isoformat(), "s"),
        (lambda row: pd.Timestamp(row["ts"], unit="s").isoformat(" ") + "Z", "s"),
    ],
)
def test_times(tmp_path, time, unit):
    # A date and an id beside it are no times.
    values = {
        "user": lambda row: row["user"] + 1_700_000_000,
        "day": lambda row: 20240501 + (row["ts"] - MAY) // DAY,
        "ts": time,
    }
    columns = ("day", "user", "item", "ts", "label")
    spec, summary = drafted(
        write(tmp_path / "raw", log__csv=lines(columns, impressions(*columns, **values)))
    )
    assert (spec["impressions"]["time"], spec["impressions"]["time_unit"]) == ("ts", unit)
    assert spec["impressions"]["user"] == "user"
    assert bare(spec["splits"]) == {"train_until": "2024-05-17", "validation_until": "2024-05-19"}
    assert "  log.csv: day is a time" in summary


@pytest.mark.parametrize(
    ("seconds", "splits"),
    [
        # 200 impressions, one a minute.
        (60, ("2024-05-01T02:40:00", "2024-05-01T03:00:00")),
        # One in two hours, 16 days and a half: whole days.
        (7200, ("2024-05-14", "2024-05-16")),
        # One in half an hour, four days.
        (1800, ("2024-05-04T08:00:00", "2024-05-04T18:00:00")),
    ],
)
def test_splits_begin_with_a_day_an_hour_or_a_second(tmp_path, seconds, splits):
    columns = ("user", "item", "time", "label")
    rows = [(i % 5, i % 12, MAY + i * seconds, i % 3 % 2) for i in range(200)]
    spec, _ = drafted(write(tmp_path / "raw", log__csv=lines(columns, rows)))
    assert tuple(bare(spec["splits"]).values()) == splits


def test_positions_in_the_place_of_times(tmp_path):
    rows = [(i % 5, i % 12, i, i % 3 % 2) for i in range(200)]
    raw_dir = write(tmp_path / "raw", log__csv=lines(("user", "item", "time", "label"), rows))
    spec, _ = drafted(raw_dir)
    assert spec["splits"]["train_until"] == "1970-01-01T00:02:40"
    assert "does not look like times" in spec["impressions"]["comment"]
    assert "gap" not in spec["tables"]


def test_a_few_wrong_times_do_not_stretch_the_splits(tmp_path):
    columns = ("user", "item", "time", "label")
    rows = [(i % 5, i % 12, MAY + i * 60, i % 3 % 2) for i in range(1000)]
    rows[3:6] = [(0, 0, wrong, 1) for wrong in (700_000_000, 4_000_000_000, 9 * 10**18)]
    spec, _ = drafted(write(tmp_path / "raw", log__csv=lines(columns, rows)))
    assert spec["splits"]["train_until"] == "2024-05-01T13:00:00"


# Which files are a table


def files_of(raw_dir):
    return drafted(raw_dir)[0]["impressions"]["files"]


def parts(number):
    rows = list(impressions(*COLUMNS))
    return [lines(COLUMNS, rows[i::number]) for i in range(number)]


def test_numbered_parts_are_one_table(tmp_path):
    first, second, third = parts(3)
    raw_dir = write(
        tmp_path / "raw",
        log_2024_05_01__csv=first,
        log_2024_05_02__csv=second,
        log_2024_05_03__csv=third,
        log_old__csv="a,b\n1,2\n3,4\n",
    )
    assert files_of(raw_dir) == "log_[0-9]*.csv"
    # No empty part if there is a pattern without it.
    (raw_dir / "log_old.csv").write_text("")
    assert files_of(raw_dir) == "log_[0-9]*.csv"
    (raw_dir / "log_old.csv").unlink()
    assert files_of(raw_dir) == "log_*.csv"


def test_parts_that_spark_has_written(tmp_path):
    long, short, _ = parts(3)
    long, ending = long * 2, "0a1b-4c5d-8e9f-0123456789ab-c000"
    names = [f"part-00000-{first}-{ending}" for first in ("1a2b3c4d", "a1b2c3d4")]
    raw_dir = write(tmp_path / "raw", **{f"{names[0]}__csv": short, f"{names[1]}__csv": long})
    assert files_of(raw_dir) == "part-*-*-c*.csv"
    write(raw_dir, **{"part-x-y-c__csv": "a,b\n1,2\n"})
    assert files_of(raw_dir) == "part-[0-9]*-*-c[0-9]*.csv"
    # No pattern finds these and nothing else.
    write(raw_dir, **{f"part-00000-z-{ending}__csv": "a,b\n1,2\n"})
    assert files_of(raw_dir) == f"{names[1]}.csv"


def test_parts_in_a_folder_or_in_folders_of_days(tmp_path):
    first, second = parts(2)
    raw_dir = write(tmp_path / "raw", **{"log/mon__csv": first, "log/tue__csv": second})
    write(
        raw_dir, **{"log/_SUCCESS": "", "log/.mon__csv": "x,y\n1,2\n", "other__csv": "a,b\n1,2\n"}
    )
    assert files_of(raw_dir) == "log/*.csv"
    days = write(tmp_path / "days", **{"day=1/part__csv": first, "day=2/part__csv": second})
    assert files_of(days) == "day=*/part.csv"


def test_parts_that_differ_in_a_column(tmp_path):
    first, second = parts(2)
    second = second.replace("label", "label,extra", 1).replace("\n", ",5\n").replace(",5", "", 1)
    spec, summary = drafted(write(tmp_path / "raw", log_1__csv=first, log_2__csv=second))
    assert spec["impressions"]["files"] == "log_*.csv"
    assert "  log_*.csv: extra is in some of the files only" in summary


def test_a_log_that_was_split_is_one_again(tmp_path):
    first, second, third = parts(3)
    first += third.partition("\n")[2]
    raw_dir = write(tmp_path / "raw", train__csv=first, test__csv=second, brands__csv="a,b\n1,2\n")
    spec, _ = drafted(raw_dir)
    assert spec["impressions"]["files"] == spec["behaviors"]["files"] == "t*.csv"
    # No pattern finds these two alone.
    _, summary = drafted(write(raw_dir, tags__csv="a,b\n1,2\n"))
    assert "  test.csv is a table of impressions as well: the spec has one" in summary
    # Impressions without labels are no behaviors.
    unlabeled = "\n".join(line.rpartition(",")[0] for line in second.splitlines())
    spec, summary = drafted(write(raw_dir, test__csv=unlabeled))
    assert spec["impressions"]["files"] == spec["behaviors"]["files"] == "train.csv"
    assert "  test.csv looks like impressions without a label" in summary


def test_parts_may_have_several_endings(tmp_path):
    first, second = parts(2)
    raw_dir = write(tmp_path / "raw", log_1__csv=first)
    with gzip.open(raw_dir / "log_2.csv.gz", "wt") as file:
        file.write(second)
    spec, _ = drafted(raw_dir)
    assert spec["impressions"]["files"] == "log_*"


def test_an_empty_part_is_named(tmp_path):
    first, second = parts(2)
    spec, _ = drafted(write(tmp_path / "raw", log_1__csv=first, log_2__csv=second, log_3__csv=""))
    assert spec["impressions"]["files"] == "log_*.csv"
    assert "move log_3.csv away" in spec["impressions"]["comment"]


# How files are written


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters(tmp_path, delimiter):
    columns = ("user", "item", "ts", "label", "text")
    texts = turns(f'"one{delimiter}way or so"', f'"another{delimiter}way or so"')
    text = lines(columns, impressions(*columns, text=texts), delimiter)
    spec, _ = drafted(write(tmp_path / "raw", **{"log__csv__bz2": bz2.compress(text.encode())}))
    events = {"files": "log.csv.bz2", "user": "user", "time": "ts", "time_unit": "s"}
    events |= {} if delimiter == "," else {"delimiter": delimiter}
    assert bare(spec["impressions"]) == {**events, "label": "label"}
    assert bare(spec["behaviors"]) == {**events, "keep": {"label": ["1"]}}


def test_a_delimiter_is_where_it_should_be_in_every_line(tmp_path):
    name = "one, two, three, four, five, six"
    columns = (*COLUMNS, name)
    text = lines(columns, impressions(*columns, **{name: turns(1, 2)}), ";")
    assert drafted(write(tmp_path / "raw", log__csv=text))[0]["impressions"]["delimiter"] == ";"


def test_quotes_that_are_none(tmp_path):
    titles = itertools.cycle(('"Ant', "Bee", '"Cat" or dog', "Emu"))
    text = lines(COLUMNS, impressions(*COLUMNS, item=lambda row: next(titles)), "\t")
    spec, _ = drafted(write(tmp_path / "raw", log__tsv=text))
    assert spec["impressions"]["quote"] == "" and "comment" not in spec["impressions"]


def test_broken_lines_are_told(tmp_path):
    text = one_file() + "9,9\n" * 20
    spec, _ = drafted(write(tmp_path / "raw", log__csv=text))
    assert "9% of the lines cannot be read: too few columns." in spec["impressions"]["comment"]
    spec, _ = drafted(write(tmp_path / "raw", log__csv=one_file().replace("\n", "\n\n")))
    assert "comment" not in spec["impressions"]


def test_files_and_columns_that_cannot_be_used(tmp_path):
    text = one_file(a=lambda row: 7, b=lambda row: row["item"] % 5)
    header, _, rest = text.partition("\n")
    rows = [f"{i},{row},{i % 3},{i % 4}" for i, row in enumerate(rest.splitlines())]
    raw_dir = write(
        tmp_path / "raw",
        log__csv="\n".join([f",{header},b,ITEM", *rows, '1,2,3,"4', "5,\ufffd"]).encode("utf-8"),
        empty__csv="",
        only_a_header__csv="a,b\n",
        notes__txt="Please read this.\nThen that.\n",
        no_header__csv="1,2,3\n4,5,6\n",
        utf_16__csv="a,b\n1,2\n".encode("utf-16"),
        latin__csv="gr\xf6\xdfe,b\n1,2\n".encode("latin-1"),
        damaged__csv__gz=b"no gzip",
        damaged__parquet=b"no Parquet",
        picture__png=b"\x89PNG",
    )
    with (raw_dir / "log.csv").open("ab") as file:
        file.write(b"\n\xff,\xfe,1,2,3,4,5,6,7,8\n")
    spec, summary = drafted(raw_dir)
    assert [f for f in spec["features"] if "history" not in f] == ["user", "item"]
    assert {line.strip() for line in summary if ": " in line and line.startswith("  log.csv")} == {
        "log.csv: (no name) has no name",
        "log.csv: b is there more than once",
        "log.csv: ITEM differs from 'item' in case only",
        "log.csv: a is constant",
    }
    begin, end = (
        summary.index(line) for line in ("Files not read:", f"To check in {tmp_path}/draft.json:")
    )
    unread = summary[begin + 1 : end]
    assert [line.split()[0] for line in unread] == [
        "damaged.csv.gz", "damaged.parquet", "empty.csv", "latin.csv", "no_header.csv",
        "notes.txt", "utf_16.csv", "only_a_header.csv",
    ]  # fmt: skip
    told = "\n".join(unread)
    for reason in (
        "empty.csv is empty",
        "no_header.csv has no header line; its first line is 1, 2, 3",
        "notes.txt has one column only",
        "utf_16.csv is no text in UTF-8",
        "latin.csv must be a CSV file in UTF-8",
        "damaged.csv.gz Not a gzipped file",
        "damaged.parquet must be a Parquet file",
        "only_a_header.csv has no rows",
    ):
        assert reason in told


# What columns are


def feature(tmp_path, name="x", **values):
    """The table and the feature of a column `x` of the impressions, or why it is none."""
    spec, _ = drafted(write(tmp_path / "raw", log__csv=one_file(**values)))
    if name not in spec["features"]:
        _, _, reason = spec["comment"].partition(f"log.csv: {name} ")
        return reason.partition(";")[0].removesuffix(".")
    entry = spec["features"][name]
    return spec["tables"][entry["table"]], entry


def turns(*values):
    """A column of these values in turn, which neither the user nor the item tells."""
    return lambda row: values[(row["ts"] // 3600 + row["user"]) % len(values)]


@pytest.mark.parametrize(
    ("values", "table", "entry"),
    [
        (("a", "b", "c"), TEXT, {}),
        ((3, 4, 5), VOCABULARY, {}),
        (("3.0", "", "5.0"), VOCABULARY, {}),
        # Among integers, -1 would be missing.
        ((3, -1, 5), TEXT, {}),
        ((2**63, 2**63 + 1), TEXT, {}),
        ((0.5, 0.25, "NULL"), {"kind": "number"}, {}),
        (("[1;5)", "[5;9)", "(3;4]"), TEXT, {}),
        (("12,500", "3,100", "4,000,000"), TEXT, {}),
        # A few texts among integers make them texts, but not among decimals.
        ((*range(60), "x"), TEXT, {}),
        ((*(i / 8 for i in range(60)), "x"), {"kind": "number"}, {}),
        (("a|b|c", "a", "", "c|a"), TEXT, {"values": 3}),
        (("7;8", "7", "9;7"), VOCABULARY, {"values": 2, "separator": ";"}),
        (("['a', 'b']", "[]", "['b']"), TEXT, {"values": 2, "separator": ","}),
        (("[1, 2]", "[3]"), VOCABULARY, {"values": 2, "separator": ","}),
        (("0.5|1|2", "1|1|0.25"), {"kind": "vector", "width": 3}, {}),
        (("[0.5 1. 2.]", "[1. 1. 3.]"), {"kind": "vector", "width": 3}, {"separator": " "}),
    ],
)  # fmt: skip
def test_kinds_of_columns(tmp_path, values, table, entry):
    quoted = (f'"{value}"' for value in values)
    found, told = feature(tmp_path, x=turns(*quoted))
    assert bare(found) == table
    assert bare(told) == {"group": "context", "column": "x", "table": "x", **entry}


@pytest.mark.parametrize(
    ("name", "column", "reason"),
    [
        ("x", turns(""), "is empty"),
        ("x", turns(5), "is constant"),
        ("x", lambda row: f"r{row['ts']}", "differs in nearly every row"),
        ("x", turns(*(f"it was the {i} of all times" for i in range(150))), "is free text"),
        ("x", turns("0.5|1", "1|1|0.25"), "has lists of different numbers of decimals"),
        ("nonclk", lambda row: 1 - row["label"], "tells label"),
        ("dwell_time", turns(3, 8, 1), "may be known only after the impression"),
        ("created", turns("2024-01-01", "2024-01-02"), "is a time"),
    ],
)
def test_columns_that_are_left_out(tmp_path, name, column, reason):
    assert feature(tmp_path, name, **{name: column}) == reason


def test_long_lists_are_cut_and_large_vocabularies_asked_about(tmp_path, monkeypatch):
    _, entry = feature(tmp_path, x=turns('"1,5"', '"3,25"'))
    assert entry["comment"] == "check: x is taken for lists; decimals must have a point."
    _, entry = feature(tmp_path, x=turns("|".join(map(str, range(30))), "1"))
    assert entry["values"] == 20
    assert entry["comment"] == "check: lists have up to 30 values; the first 20 are used."
    monkeypatch.setattr(raw_samples, "ROWS", 150)
    table, _ = feature(tmp_path, x=lambda row: row["ts"] - row["user"] % 2)
    assert table["min_count"] == 2 and "x has many values" in table["comment"]
    reason = feature(tmp_path, x=lambda row: int(row["ts"] > MAY + 18 * DAY))
    assert reason == "is constant in the first 150 rows"


def test_groups_of_columns(tmp_path):
    raw_dir = write(
        tmp_path / "raw",
        log__csv=one_file(
            of_the_user=lambda row: "abc"[row["user"] % 3],
            of_the_item=lambda row: "abcde"[row["item"] % 5],
            **{"Preis €": lambda row: 1.5 * row["item"] + 1},
            Zustand=turns("a", "b", "c"),
        ),
    )
    features = drafted(raw_dir)[0]["features"]
    assert '"column": "Preis €"' in (tmp_path / "draft.json").read_text(encoding="utf-8")
    groups = {name: feature["group"] for name, feature in features.items()}
    assert groups == {
        "user": "user",
        "of_the_user": "user",
        "Zustand": "context",
        "item": "candidate",
        "of_the_item": "candidate",
        "Preis": "candidate",
        "history_item": "history",
        "history_of_the_item": "history",
        "history_Preis": "history",
        "history_gap": "behavior",
        "history_age": "behavior",
    }


def test_few_rows_of_each_user_or_item_tell_nothing(tmp_path):
    rows = [(i % 54, i, MAY + i * DAY, i % 3 % 2, "abcdefg"[i % 7]) for i in range(60)]
    text = lines((*COLUMNS, "where"), rows)
    spec, _ = drafted(write(tmp_path / "raw", log__csv=text))
    assert spec["features"]["where"]["group"] == "context"


def test_requests_weights_and_quantities(tmp_path):
    raw_dir = write(
        tmp_path / "raw",
        log__csv=one_file(
            requestId=lambda row: f"{row['user']}-{(row['ts'] - MAY) // DAY}",
            weight=turns(1, 0.5),
            impression_id=lambda row: row["ts"] * 10 + row["user"],
            tab=lambda row: (row["ts"] - MAY) // DAY % 3,
            slot=turns(1, 2),
            num_views=turns(*range(3, 40)),
        ),
    )
    spec, _ = drafted(raw_dir)
    assert spec["impressions"]["request"] == "requestId"
    assert spec["impressions"]["weight"] == "weight"
    alone = one_file(request_id=lambda row: row["ts"] * 10 + row["user"])
    other, _ = drafted(write(tmp_path / "other", log__csv=alone))
    assert "request" not in other["impressions"]
    features = {name: feature["group"] for name, feature in spec["features"].items()}
    # A slot differs within a request, so that it is one of the candidates.
    assert (features["tab"], features["slot"]) == ("context", "candidate")
    assert spec["tables"]["num_views"]["kind"] == "number"
    assert "num_views is taken for a quantity" in spec["tables"]["num_views"]["comment"]


@pytest.mark.parametrize(
    ("names", "values", "label", "positive", "asked"),
    [
        (("is_click", "label"), turns(0, 1), "is_click", None, "is is_click the label, or label?"),
        (("purchased",), turns("true", "false"), "purchased", None, ""),
        (("clicked",), turns("yes", "no"), "clicked", ["yes"], "which values of clicked"),
        (("target",), turns(-1, 1), "target", ["1"], "which values of target"),
        (("rating",), turns(1, 2, 3, 4, 5), "rating", ["4", "5"], "which values of rating"),
    ],
)
def test_labels(tmp_path, names, values, label, positive, asked):
    columns = ("user", "item", "ts", *names)
    text = lines(columns, impressions(*columns, **dict.fromkeys(names, values)))
    spec, _ = drafted(write(tmp_path / "raw", log__csv=text))
    events = spec["impressions"]
    assert (events["label"], events.get("positive")) == (label, positive)
    assert events.get("labels", {}) == {name: {"column": name} for name in names[1:]}
    assert asked in events.get("comment", "")
    assert spec["behaviors"]["keep"] == {label: positive or ["true" if asked == "" else "1"]}


def test_a_label_of_one_value_is_told(tmp_path):
    spec, _ = drafted(write(tmp_path / "raw", log__csv=one_file(label=lambda row: 0)))
    assert "all values of label that were looked at" in spec["impressions"]["comment"]
    assert spec["behaviors"]["keep"] == {"label": ["1"]}


def test_lists_and_types_of_parquet(tmp_path, read_requests):
    rows = list(log())
    frame = pd.DataFrame(rows)
    turn = [(row["ts"] // 3600 + row["user"]) % 3 for row in rows]
    frame["tags"] = [[["a", "b"], ["b"], []][i] for i in turn]
    frame["vector"] = [[0.5, i] for i in turn]
    frame["flag"] = [i == 0 for i in turn]
    frame["nullable"] = [None if i == 0 else i for i in turn]
    frame["label"] = frame["label"].astype(bool)
    frame["ts"] = pd.to_datetime(frame["ts"], unit="s")
    frame["struct"] = [{"a": 1}] * len(rows)
    raw_dir = write(tmp_path / "raw", log__parquet=frame)
    path = tmp_path / "draft.json"
    spec_draft.draft(path, raw_dir)
    spec = json.loads(path.read_text())
    assert spec["behaviors"]["keep"] == {"label": ["true"]}
    assert spec["features"]["tags"]["values"] == 2 and "separator" not in spec["features"]["tags"]
    assert spec["tables"]["vector"] == {"kind": "vector", "width": 2}
    assert (spec["tables"]["flag"], spec["tables"]["nullable"]) == (TEXT, VOCABULARY)
    assert "log.parquet: struct has the type STRUCT" in spec["comment"]
    directory = prepare("logs", raw_dir=raw_dir, data_dir=tmp_path / "data", spec=str(path))
    assert {r["flag"] for r in read_requests(directory, "test")} == {"true", "false"}


def test_behaviors_without_the_item(tmp_path):
    # As in the log of display advertising at Alibaba.
    columns = ("user", "time_stamp", "adgroup_id", "clk")
    values = {
        "time_stamp": lambda row: row["ts"],
        "adgroup_id": lambda row: row["item"],
        "clk": lambda row: row["label"],
        "btag": turns("pv", "cart"),
        "cate": lambda row: row["item"] % 5,
        "price": turns(1.5, 2.5),
    }
    raw_dir = write(
        tmp_path / "raw",
        raw_sample__csv=lines(columns, impressions(*columns, **values)),
        ad_feature__csv=lines(
            ("adgroup_id", "price", "cate_id"), ((i, i + 0.5, i % 5) for i in range(12))
        ),
        user_profile__csv=lines(("userid", "age_level"), ((i, i % 3) for i in range(5))),
        behavior_log__csv=lines(
            ("user", "time_stamp", "btag", "price", "cate"),
            impressions("user", "time_stamp", "btag", "price", "cate", **values),
        ),
    )
    spec, summary = drafted(raw_dir)
    features = spec["features"]
    assert [name for name, f in features.items() if f["group"] == "candidate"] == [
        "adgroup",
        "price",
        "cate",
    ]
    history = [name for name, f in features.items() if f["group"] == "history"]
    assert history == ["history_cate", "history_price"]
    assert features["history_cate"] == {"group": "history", "column": "cate", "table": "cate"}
    assert "without adgroup_id, histories have attributes only" in spec["behaviors"]["comment"]
    told = "  user_profile.csv has no column user; if its userid is that, call it so"
    assert told in summary


def test_of_two_times_that_of_the_event(tmp_path):
    # Dates have no gaps of minutes.
    text = one_file(
        updated_at=lambda row: row["ts"] + row["user"] * row["item"],
        ts=lambda row: str(pd.Timestamp(row["ts"], unit="s").date()),
    )
    spec, _ = drafted(write(tmp_path / "raw", log__csv=text))
    assert spec["impressions"]["time"] == "ts"
    assert spec["impressions"]["comment"] == ("check: ts is the time; there is updated_at as well.")
    assert not spec["tables"].keys() & {"gap", "age"}


def test_which_table_is_what(tmp_path):
    columns = ("visitor_id", "item", "ts")
    values = {
        "visitor_id": lambda row: row["user"],
        "visitor": turns(7, 8, 9),
        "barcode": lambda row: row["item"] + 100,
        "shop": turns(1, 2),
        "page": turns("x" * 50, "y" * 50),
    }

    def table(*names, columns=None):
        return lines(columns or names, impressions(*names, **values))

    raw_dir = write(
        tmp_path / "raw",
        impressions__csv=table(*columns, "label", "shop", "barcode"),
        # Larger, but without items.
        pages__csv=table("visitor_id", "ts", "page", "shop"),
        # With other users beside those of the impressions, and a label as well.
        likes__csv=table(
            "user", "visitor", *columns, "label", columns=("user", "visitor", *columns, "like")
        ),
        # A time and a user, but one row for each item.
        items__csv=lines(
            ("item", "barcode", "buyer", "created_at", "brand"),
            ((i, 100 + i, i % 3, MAY + i, f"b{i % 4}") for i in range(-1, 60)),
        ),
        # Several rows for each item.
        reviews__csv=lines(("item", "stars"), ((i % 12, i % 5) for i in range(60))),
        # Of no use.
        titles__csv=lines(("item", "title"), ((i, f"a b c d {i}") for i in range(12))),
    )
    spec, summary = drafted(raw_dir)
    assert spec["impressions"]["files"] == "impressions.csv"
    assert spec["impressions"]["join"] == [{"files": "items.csv", "on": "item"}]
    behaviors = spec["behaviors"]
    assert (behaviors["files"], behaviors["user"]) == ("likes.csv", "visitor_id")
    assert behaviors["comment"].startswith("check: pages.csv could be the behaviors as well")
    assert "history_brand" in spec["features"]
    # Among integers, the -1 of items.csv would be missing.
    assert spec["tables"]["item"]["dtype"] == "string"
    assert "  reviews.csv has no key in common" in "\n".join(summary)


# The command


def draft(path, raw_dir, dataset="logs"):
    return run("prepare", f"--dataset={dataset}", f"--draft_spec={path}", f"--raw_dir={raw_dir}")


def test_the_command(tmp_path):
    raw_dir = shop(tmp_path / "raw")
    code, stdout, _ = draft(tmp_path / "shop.json", raw_dir)
    assert code == 0
    assert f"Found in {raw_dir}:\n  impressions impressions.csv (200 rows)\n" in stdout
    assert "joined with users.csv by user_id" in stdout
    assert stdout.splitlines()[-1] == (
        "Then: python -m tfrec_diffusion.prepare --dataset=logs "
        f"--raw_dir={raw_dir} --set=spec={tmp_path / 'shop.json'}"
    )
    assert "label: label (33.0% positive)" in stdout
    # What is there is never replaced.
    before = (tmp_path / "shop.json").read_bytes()
    code, stdout, stderr = draft(tmp_path / "shop.json", raw_dir)
    assert (code, stdout) == (2, "")
    assert stderr == (
        f"error: {tmp_path}/shop.json exists already: move it away, or name another file\n"
    )
    assert (tmp_path / "shop.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "shop.json"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "must hold CSV files with a header line or Parquet files. It holds none"),
        ({"a__json": "{}"}, "must hold CSV files with a header line or Parquet files"),
        ({"a__csv": ""}, "It holds none that can be read: a.csv is empty"),
        (
            {"a__csv": "user,item,ts\n1,2,1714521600\n1,3,1714521700\n"},
            "no table of impressions was found. It needs a user",
        ),
        (
            {"a__csv": "user,item,ts\n" + "1,2,1714521600\n2,3,1714521700\n" * 2},
            "Found: a.csv (user: user, time: ts, label: none; its columns: user, item, ts)",
        ),
        (
            {"a__csv": "user,price,ts,click\n" + "1,2.5,1714521600,1\n2,3,1714521700,0\n" * 2},
            "a.csv has no column of items (such as item_id, product_id, video_id or another id)",
        ),
        (
            {"a__csv": "user,item,ts,click\n" + "1,2,1714521600,1\n2,3,1714521600,0\n" * 2},
            "ts has too few times to separate training, validation and test: 1",
        ),
        (
            {"a__csv": "user,item,ts,click\n" + "1,2,1714521600.5,1\n" * 3},
            "time: none, label: click; its columns: user, item, ts with decimals, click",
        ),
        (
            {"a__csv": "user,item,ts,click\n" + "1,2,20240501123000,1\n" * 3},
            "a.csv (user: none, time: none, label: click; its columns: user, item, ts, click)",
        ),
    ],
)
def test_what_cannot_be_drafted_is_one_line(tmp_path, files, message):
    raw_dir = write(tmp_path / "raw", **files)
    code, stdout, stderr = draft(tmp_path / "spec.json", raw_dir)
    assert (code, stdout) == (2, "")
    error = stderr[stderr.rindex("error: ") :]
    assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_wrong_flags(tmp_path):
    assert "needs a path, --dataset=logs and --raw_dir" in draft("x.json", tmp_path, "taobao")[2]
    _, _, stderr = run("prepare", "--dataset=logs", "--draft_spec=x.json")
    assert "needs a path, --dataset=logs and --raw_dir" in stderr
    missing = draft(tmp_path / "x.json", tmp_path / "not" / "there")[2]
    assert missing.startswith("error: `raw_dir` must be a directory. Received: ")
    _, _, stderr = draft(tmp_path / "not" / "there.json", tmp_path)
    assert stderr == f"error: {tmp_path}/not must be a directory to write there.json to\n"


def test_nothing_is_left_if_it_is_interrupted(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    raw_dir = shop(tmp_path / "raw")
    monkeypatch.setattr(spec_draft, "_splits", interrupted)
    assert draft(tmp_path / "spec.json", raw_dir)[0] == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    def written(*args, split=spec_draft._splits):
        (tmp_path / "spec.json").write_text("mine")
        return split(*args)

    monkeypatch.setattr(spec_draft, "_splits", written)
    code, _, stderr = draft(tmp_path / "spec.json", shop(tmp_path / "raw"))
    assert code == 2 and "spec.json exists already" in stderr
    assert (tmp_path / "spec.json").read_text() == "mine"


@pytest.mark.slow
def test_real_sample(samples, tmp_path):
    path = tmp_path / "kuairand.json"
    spec_draft.draft(path, samples / "kuairand")
    draft, by_hand = Spec.load(path), Spec.load("experiments/kuairand.json")
    for events, written in (
        (draft.impressions, by_hand.impressions),
        (draft.behaviors, by_hand.behaviors),
    ):
        for name in ("files", "user", "time", "time_unit", "label", "join"):
            assert getattr(events, name) == getattr(written, name)

    def columns(spec):
        return {(feature.group, feature.column) for feature in spec.features.values()}

    assert columns(by_hand) < columns(draft)
    assert columns(draft) - columns(by_hand) == {
        ("user", "onehot_feat0"),
        ("user", "onehot_feat4"),
        ("user", "onehot_feat8"),
        ("history", "music_id"),
        ("history", "video_type"),
        ("history", "video_duration"),
    }
    assert "event is watch, long_watch, click" in draft.behaviors.comment
