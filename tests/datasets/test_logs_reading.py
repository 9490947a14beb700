"""Raw files of `logs` as people have them: what is kept, and what is told of the rest."""

import collections
import csv
import functools
import io
import json
import pathlib
import re

import commands
import numpy as np
import pandas as pd
import pytest
import small_specs
from small_specs import SPEC

from tfrec_diffusion.datasets import sql_values
from tfrec_diffusion.datasets.logs_spec import Spec
from tfrec_diffusion.datasets.preparation import Preparation, describe, prepare
from tfrec_diffusion.prepared_directory import PreparedDirectory

DAY = 86400
MAY_1 = 1714521600
# One impression a day from 1 to 6 May, at noon; ann's behaviors are at 6 o'clock of 1 and 3 May.
NOONS = [MAY_1 + DAY // 2 + day * DAY for day in range(6)]
MORNINGS = [MAY_1 + DAY // 4, MAY_1 + DAY // 4 + 2 * DAY]
IMPRESSIONS = "user,ts,item,shop,click\n" + "".join(
    f"ann,{ts},{10 + day % 2},s,{day % 2}\n" for day, ts in enumerate(NOONS)
)
BEHAVIORS = "user,ts,item,shop\n" + "".join(
    f"ann,{ts},{10 + i},s\n" for i, ts in enumerate(MORNINGS)
)


changed = functools.partial(small_specs.changed, SPEC)


@pytest.fixture
def raw(tmp_path):
    """`raw(spec, files)`: arguments of `prepare` for hand-written tables."""

    def write(spec=SPEC, files=()):
        contents = {"impressions.csv": IMPRESSIONS, "behaviors.csv": BEHAVIORS, **dict(files)}
        raw_dir = tmp_path / f"raw{len(list(tmp_path.iterdir()))}"
        raw_dir.mkdir()
        for name, content in contents.items():
            if content is not None:
                content = content if isinstance(content, bytes) else content.encode()
                (raw_dir / name).write_bytes(content)
        (raw_dir / "shop.json").write_text(json.dumps(spec))
        return {
            "raw_dir": raw_dir, "data_dir": raw_dir / "data", "spec": str(raw_dir / "shop.json")
        }  # fmt: skip

    return write


@pytest.fixture
def prepared(raw):
    """`prepared(spec, files, max_bad_rows)`: directory of the requests of hand-written tables."""

    def of(spec=SPEC, files=(), max_bad_rows=0.5):
        preparation = Preparation(max_bad_rows=max_bad_rows)
        return prepare("logs", **raw(spec, files), preparation=preparation)

    return of


@pytest.fixture
def case(tmp_path):
    """`case(name)`: arguments of `prepare` for one of the cases in `shared`."""

    def of(name):
        path = pathlib.Path(__file__).parents[3] / "shared" / "cases" / name
        if not path.is_dir():
            pytest.skip(f"no cases in {path.parent}")
        return {"raw_dir": path / "raw", "data_dir": tmp_path, "spec": str(path / "shop.json")}

    return of


def flags(arguments):
    arguments = {**arguments, "set": f"spec={arguments['spec']}"}
    return [f"--{name}={value}" for name, value in arguments.items() if name != "spec"]


def report_of(directory):
    return PreparedDirectory(directory).report


def dropped(directory, source="impressions"):
    return {
        reason: (drop["rows"], [place.split(" ")[0] for place in drop["places"]])
        for reason, drop in report_of(directory)["sources"][source]["dropped"].items()
    }


# The cases


def test_a_stray_quote_costs_its_line(case):
    directory = prepare("logs", **case("stray_quote"))
    # Line 201 is `u34,1715078746,"i31,s1,90.93,0`.
    assert report_of(directory)["sources"]["impressions"] == {
        "read": 1000,
        "kept": 999,
        "dropped": {"broken quotes": {"rows": 1, "places": ["impressions.csv:201"]}},
    }
    splits = report_of(directory)["splits"]
    assert sum(split["requests"] for split in splits.values()) == 999


def test_an_unnamed_column_is_ignored(case, digests):
    arguments = case("default_index")
    report = report_of(prepare("logs", **arguments))
    assert report["sources"]["impressions"] == {"read": 60, "kept": 60, "dropped": {}}
    assert report["histories"] == {"impressions": 60, "with_history": 15, "behaviors": 60}


def test_a_column_named_rowid(case, read_requests):
    arguments = case("column_named_rowid")
    with (arguments["raw_dir"] / "impressions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["click"] in "01"]
    directory = prepare("logs", **arguments)
    found = [
        request["item"][0]
        for split in ("train", "validation", "test")
        for request in read_requests(directory, split)
        if request["item"] != ["?"]
    ]
    assert len(rows) == 599
    expected = collections.Counter(int(row["rowid"]) for row in rows)
    assert collections.Counter(found) == expected
    # The fourth row has the label 7.
    assert dropped(directory) == {"click neither 0 nor 1": (1, ["impressions.csv:5"])}


def test_times_in_another_unit_are_refused(case):
    status, _, stderr = commands.run("prepare", "--dataset=logs", *flags(case("wrong_unit")))
    assert status == 2
    assert (
        "behaviors: 60 of 60 rows are bad, more than `max_bad_rows`=0.01 of them. The last found: "
        "ts is in ms from 1970-01-20 to 1970-01-20, but in s from 2024-05-01 to 2024-05-10: "
        "\"time_unit\" must be 's' (behaviors.csv:2 "
    ) in stderr


# Times


@pytest.mark.parametrize("declared", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("actual", ["s", "ms", "us", "ns"])
def test_units_of_times(prepared, declared, actual):
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[actual]
    files = {"behaviors.csv": BEHAVIORS}
    for ts in MORNINGS:
        files["behaviors.csv"] = files["behaviors.csv"].replace(str(ts), str(ts * scale))
    spec = changed(behaviors__time_unit=declared)
    if declared == actual:
        assert report_of(prepared(spec, files))["times"]["behaviors"] == {
            "first": "2024-05-01 06:00:00+00:00",
            "last": "2024-05-03 06:00:00+00:00",
        }
        return
    message = f"but in {actual} from 2024-05-01 to 2024-05-03: \"time_unit\" must be '{actual}'"
    with pytest.raises(ValueError, match=message):
        prepared(spec, files)


def test_a_few_times_in_another_unit_are_bad_rows(prepared, read_requests):
    behaviors = BEHAVIORS + f"ann,{MORNINGS[0] * 1000},12,s\n"
    directory = prepared(files={"behaviors.csv": behaviors})
    (reason,) = dropped(directory, "behaviors")
    assert reason.startswith("ts is in s from 56301-")
    (validation, _) = read_requests(directory, "validation")
    assert validation["history_item"] == [10, 11]


@pytest.mark.parametrize("times", [(0, 1), (5, 20_000), (1_000_000, 31_536_000)])
def test_times_may_be_positions(prepared, times):
    # Behaviors that have an order only, beside impressions in 2024.
    behaviors = BEHAVIORS
    for ts, time in zip(MORNINGS, times, strict=True):
        behaviors = behaviors.replace(str(ts), str(time))
    report = report_of(prepared(files={"behaviors.csv": behaviors}, max_bad_rows=0))
    assert report["histories"]["with_history"] == 6
    (warning,) = report["warnings"]
    assert re.match(
        "most behaviors are 5[34] years before train_until=2024-05-03: their times are", warning
    )


def test_times_in_iso_8601(prepared, digests):
    def iso(content, hours, separator, offset):
        return re.sub(
            r"\b17\d{8}\b",
            lambda ts: (
                str(np.datetime64(round(int(ts[0]) + hours * 3600), "s")).replace("T", separator)
                + offset
            ),
            content,
        )

    of_numbers = digests(prepared(changed(time_zone_hours=5.5)))
    for hours, separator, offset in (
        (5.5, " ", ""),
        (5.5, "T", ""),
        (0, "T", "Z"),
        (-3, " ", "-03"),
    ):
        files = {
            "impressions.csv": iso(IMPRESSIONS, hours, separator, offset),
            "behaviors.csv": iso(BEHAVIORS, hours, separator, offset),
        }
        if hours == 5.5:
            assert ("2024-05-01" + separator + "17:30:00,10,s,0") in files["impressions.csv"]
        spec = changed(time_zone_hours=5.5)
        assert digests(prepared(spec, files)) == of_numbers
        in_parquet = io.BytesIO()
        pd.read_csv(io.StringIO(files["behaviors.csv"])).to_parquet(in_parquet)
        texts = {**files, "behaviors.csv": None, "behaviors.parquet": in_parquet.getvalue()}
        assert digests(prepared(spec, texts)) == of_numbers
    files["behaviors.csv"] += "ann,1714521600,12,s\n"
    directory = prepared(changed(time_zone_hours=5.5), files)
    assert dropped(directory, "behaviors") == {
        "ts is not a time in ISO 8601": (1, ["behaviors.csv:4"])
    }


# Keys that never meet


def test_integers_beside_floats_meet_as_integers(prepared, digests):
    behaviors = re.sub(r",(1\d),s", r",\1.0,s", BEHAVIORS)
    assert ",10.0,s" in behaviors
    assert digests(prepared(files={"behaviors.csv": behaviors})) == digests(prepared())


def test_keys_that_never_meet(raw, prepared):
    behaviors = re.sub(r",(1\d),s", r",\1.0,s", BEHAVIORS).replace("ann", "Ann")
    spec = changed(tables__item__dtype="string")
    arguments = raw(spec, {"behaviors.csv": behaviors})
    status, stdout, stderr = commands.run("prepare", "--dataset=logs", *flags(arguments))
    assert status == 0
    assert "0 of 6 impressions (0.0%) have a history; there are 2 behaviors" in stdout
    assert "impressions.user                               6           0    0.0%" in stdout
    assert "impressions.item                               6           0    0.0%" in stdout
    assert "impressions.shop                               6           6  100.0%" in stdout
    assert "impressions           2024-05-01 12:00:00+00:00 2024-05-06 12:00:00+00:00" in re.sub(
        " {12,}", " " * 11, stdout
    )
    warnings = [line for line in stderr.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: impressions.user and behaviors.user hardly meet: 0 of 6 impressions have a value "
        "that occurs among behaviors. Impressions have 'ann', behaviors 'Ann'",
        "warning: impressions.item and behaviors.item hardly meet: 0 of 6 impressions have a value "
        "that occurs among behaviors. Impressions have '10' and '11', behaviors '10.0' and '11.0'",
    ]
    report = report_of(prepared(spec, {"behaviors.csv": behaviors}))
    assert [f"warning: {text}" for text in report["warnings"]] == warnings


def test_what_meets(prepared):
    # Of six impressions three have item 11, which no behavior has; the first is before all of them.
    behaviors = f"user,ts,item,shop\nann,{NOONS[0]},10,s\nbob,{NOONS[0]},10,\n"
    report = report_of(prepared(files={"behaviors.csv": behaviors}))
    assert report["histories"] == {"impressions": 6, "with_history": 5, "behaviors": 2}
    assert report["meeting"] == {
        "impressions.user": {"impressions": 6, "among_behaviors": 6},
        "impressions.item": {"impressions": 6, "among_behaviors": 3},
        "impressions.shop": {"impressions": 6, "among_behaviors": 6},
    }
    assert "warnings" not in report
    assert any("5 of 6 impressions (83.3%) have a history" in line for line in describe(report))


@pytest.mark.parametrize(
    "behaviors", ["user,ts,item,shop\n", f"user,ts,item,shop\nann,{NOONS[5]},10,s\n"]
)
def test_no_behavior_is_early_enough(prepared, behaviors):
    report = report_of(prepared(files={"behaviors.csv": behaviors}))
    (warning,) = report["warnings"]
    assert warning.startswith("0 of 6 impressions have a history: behaviors are missing or not")


# Values


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("12.7", "item is not an integer"),
        ("1e3", "item is not an integer"),
        ("1.234567890123456e+18", "item is not an integer"),
        (
            "9223372036854775808",
            'item is an integer beyond 64 bits, which must be read as text (dtype "string")',
        ),
        ("twelve", "item is not a number"),
        (
            "-1",
            'item is -1, which means missing among integers: read it as text (dtype "string")',
        ),
        ("NULL", "no item"),
        ("", "no item"),
    ],
)
def test_items_that_are_no_integers(prepared, item, reason):
    files = {"impressions.csv": IMPRESSIONS + f"ann,{NOONS[0]},{item},s,1\n"}
    assert dropped(prepared(files=files)) == {reason: (1, ["impressions.csv:8"])}
    of_text = prepared(changed(tables__item__dtype="string"), files)
    assert dropped(of_text) == ({reason: (1, ["impressions.csv:8"])} if reason == "no item" else {})


def test_users_that_are_minus_one(prepared):
    numbers = {
        "impressions.csv": IMPRESSIONS.replace("ann", "-1", 1).replace("ann", "7"),
        "behaviors.csv": BEHAVIORS.replace("ann", "7"),
    }
    directory = prepared(changed(tables__user__dtype="int64"), numbers)
    reason = 'user is -1, which means missing among integers: read it as text (dtype "string")'
    assert dropped(directory) == {reason: (1, ["impressions.csv:2"])}
    assert dropped(prepared(files=numbers)) == {}


def test_features_that_are_no_integers_are_counted(prepared, read_requests):
    spec = changed(tables__shop__dtype="int64")
    values = ("1.5", "-1", "true", "8.0", "nan", "9")
    files = {"behaviors.csv": BEHAVIORS.replace(",s\n", ",8\n")}
    files["impressions.csv"] = IMPRESSIONS
    for value in values:
        files["impressions.csv"] = files["impressions.csv"].replace(",s,", f",{value},", 1)
    directory = prepared(spec, files, max_bad_rows=0)
    report = report_of(directory)
    assert report["impressions: shop not an integer, taken for missing"] == 1
    assert report["impressions: shop is -1, taken for missing"] == 1
    found = [r["shop"] for split in SPLIT_NAMES for r in read_requests(directory, split)]
    # Training ends after two days, and its behaviors have the shop 8.
    assert sorted(found, key=str) == [["?"], ["?"], [8], [None], [None], [None]]


SPLIT_NAMES = ("train", "validation", "test")


@pytest.mark.parametrize("null", [None, ["-"], []])
def test_null_markers(prepared, read_requests, null):
    markers = [*sql_values.NULLS, "-", "na"]
    rows = [f"ann,{NOONS[0]},10,{marker},0\n" for marker in markers]
    spec = {**SPEC, "null": null} if null is not None else SPEC
    train = read_requests(prepared(spec, {"impressions.csv": IMPRESSIONS + "".join(rows)}), "train")
    shops = {r["shop"][0] for r in train} - {"s", None}
    assert shops == set(markers) - set(sql_values.NULLS if null is None else null)


def test_what_is_to_be_kept_is_no_null_marker(prepared):
    spec = changed(behaviors__keep={"shop": ["NA", "s"]})
    behaviors = f"{BEHAVIORS}ann,{MORNINGS[0]},10,NA\nann,{MORNINGS[0]},10,NULL\n"
    directory = prepared(spec, {"behaviors.csv": behaviors})
    assert dropped(directory, "behaviors") == {"shop not kept": (1, ["behaviors.csv:5"])}


def test_texts_of_parquet_have_null_markers(prepared, tmp_path):
    frame = pd.read_csv(io.StringIO(IMPRESSIONS))
    frame["user"] = ["nan", "None", *frame["user"][2:]]
    frame["click"] = frame["click"].astype(float)
    frame.to_parquet(tmp_path / "t.parquet")
    files = {"impressions.csv": None, "impressions.parquet": (tmp_path / "t.parquet").read_bytes()}
    files["impressions_more.csv"] = IMPRESSIONS
    directory = prepared(files=files)
    rows = ["impressions.parquet:1", "impressions.parquet:2"]
    assert dropped(directory) == {"no user": (2, rows)}
    assert report_of(directory)["sources"]["impressions"]["read"] == 12


def test_labels_that_are_booleans(prepared, digests):
    expected = digests(prepared())
    for true, false in (("true", "false"), ("True", "False"), ("1.0", "0.0")):
        written = re.sub(
            r"(\d)$",
            lambda label, texts=(false, true): texts[int(label[0])],
            IMPRESSIONS,
            flags=re.MULTILINE,
        )
        assert f",{true}\n" in written
        assert digests(prepared(files={"impressions.csv": written})) == expected


# Spec


def test_delimiter_and_quote_of_the_spec(prepared, digests):
    spec = changed(impressions__delimiter=";", impressions__quote="'", behaviors__delimiter="\t")
    spec["behaviors"]["join"] = [{"files": "shops.csv", "on": "item", "delimiter": "|"}]
    files = {
        "impressions.csv": IMPRESSIONS.replace(",", ";").replace(";s;", ";'s';"),
        "behaviors.csv": BEHAVIORS.replace(",shop", "").replace(",s\n", "\n").replace(",", "\t"),
        "shops.csv": "item|shop\n10|s\n11|s\n",
    }
    one, other = digests(prepared(spec, files)), digests(prepared())
    assert one.pop("report.json") != other.pop("report.json")
    assert one == other


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (changed(impressions__delimiter=""), "'impressions.delimiter' must be one ASCII character"),
        (changed(impressions__delimiter="||"), "'impressions.delimiter' must be one ASCII char"),
        (changed(behaviors__quote="é"), "'behaviors.quote' must be one ASCII character"),
        (changed(behaviors__quote=","), "'behaviors.quote' must be another character than the del"),
        ({**SPEC, "null": "NA"}, "'null' must be a list. It is: 'NA'"),
        (
            changed(impressions__user="User"),
            r"It has: user, ts, item, shop, click. There is 'user'",
        ),
        (changed(features__shop__column="Shop"), r"'Shop' in one of .*\. There is 'shop'"),
        (
            changed(impressions__files="s3://bucket/x.csv"),
            "files must be on a disk of this machine",
        ),
    ],
)
def test_wrong_specs(prepared, spec, message):
    with pytest.raises(ValueError, match=message):
        prepared(spec)


@pytest.mark.parametrize("name", ["raw_dir", "data_dir"])
def test_addresses_of_stores(raw, name):
    with pytest.raises(ValueError, match=f"`{name}` must be on a disk of this machine: copy it"):
        prepare("logs", **{**raw(), name: "gs://bucket/x"})


def test_absolute_paths(raw, digests, tmp_path):
    expected = digests(prepare("logs", **raw()))
    arguments = raw()
    spec = changed(behaviors__files=str(arguments["raw_dir"] / "beh*.csv"))
    pathlib.Path(arguments["spec"]).write_text(json.dumps(spec))
    found = digests(prepare("logs", **{**arguments, "data_dir": tmp_path / "other"}))
    assert found.pop("report.json") != expected.pop("report.json")
    assert found == expected


def test_a_spec_with_the_defaults_of_new_keys_has_the_digest_of_before(tmp_path):
    def digest(spec):
        (tmp_path / "shop.json").write_text(json.dumps(spec))
        return Spec.load(tmp_path / "shop.json").digest

    spec = changed(impressions__delimiter=",", behaviors__quote='"')
    spec["null"] = list(sql_values.NULLS)
    assert digest(spec) == digest(SPEC)
    for other in (
        {**SPEC, "null": []},
        changed(impressions__delimiter=";"),
        changed(behaviors__quote="'"),
    ):
        assert digest(other) != digest(SPEC)
