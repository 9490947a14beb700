"""tools/inspect_records.py, as a user runs it, against the records read one by one."""

import collections
import contextlib
import copy
import dataclasses
import io
import json
import pathlib
import re
import sys

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tfrec_diffusion import flags
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.prepare import prepare

pytest.importorskip("matplotlib")
sys.path.append(str(pathlib.Path(__file__).parent.parent / "tools"))
import inspect_records

LENGTH = 12
SPLITS = ("train", "validation", "test")
DAYS = {
    "train": {
        "2022-04-30": {"candidates": 1200, "clicks": 300},
        "2022-05-01": {"candidates": 40, "clicks": 7},
    },
    "validation": {"2022-05-02": {"candidates": 60, "clicks": 6}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set; it has days in its report, written here by hand, but for the test split."""
    directory = tmp_path_factory.mktemp("data")
    options = {"users": 60, "items": 60, "categories": 6, "history_length": LENGTH, "min_count": 3}
    prepared = prepare("synthetic", data_dir=directory, **options)
    path = prepared / "report.json"
    report = json.loads(path.read_text())
    for split, days in DAYS.items():
        report["splits"][split]["days"] = days
    report["splits"]["test"].pop("days", None)
    path.write_text(json.dumps(report))
    return RequestData(prepared)


def run(data, *arguments, dataset="synthetic"):
    """Exit status, stdout and stderr."""
    root = data.directory.parent.parent
    argv = ["inspect_records.py", f"--dataset={dataset}", f"--data_dir={root}", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as done,
    ):
        flags.run(inspect_records.main, inspect_records.define_flags, argv)
    return done.value.code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def report(data, tmp_path_factory):
    """What is printed of all splits, and what is drawn."""
    picture = tmp_path_factory.mktemp("picture") / "picture.png"
    status, out, _ = run(data, "--requests=2", f"--picture={picture}")
    assert not status
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 30_000
    return out, pd.read_csv(picture.with_suffix(".csv"))


@pytest.fixture(scope="module")
def records(data):
    """By split, dicts of what each record holds, without the package's own parsing."""

    def parse(record):
        found = {}
        for name, value in tf.train.Example.FromString(record).features.feature.items():
            if value.int64_list.value:
                found[name] = value.int64_list.value[0]
            else:
                dtype = "<f4" if name == "label" else "<i4"
                found[name] = np.frombuffer(value.bytes_list.value[0], dtype)
        return found

    return {
        split: [
            parse(record)
            for path in sorted(data.directory.glob(f"synthetic-{split}.tfrecord-*"))
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        ]
        for split in SPLITS
    }


def table(text, title):
    """Cells by the first cell of each row below a title."""
    below = text.split(f"\n{title}", 1)[1].split("\n\n")[1]
    rows = [re.split(r" {2,}", line) for line in below.splitlines()]
    return {name: cells for name, *cells in rows}


def raw(data, name, row):
    """What a row of a feature's vocabulary stands for."""
    if row < 2:
        return ("<missing>", "<unknown>")[row]
    feature = next(f for f in data.schema.features if f.name == name)
    path = data.directory / "vocabularies" / f"{feature.table}.txt"
    return path.read_text().splitlines()[row - 2]


class TestReport:
    def test_schema(self, data, report):
        features = table(report[0], "synthetic, ")
        groups = ("user", "context", "candidate", "history", "behavior")
        expected = [f.name for group in groups for f in data.schema.group(group)]
        assert list(features) == ["feature", *expected]
        brands = (data.directory / "vocabularies" / "brand_id.txt").read_text().splitlines()
        rows = str(2 + len(brands))
        assert features["brand_id"] == ["candidate", "brand_id", "vocabulary", "string", rows, "8"]
        assert features["history_gap"] == ["behavior", "gap", "boundaries", "float32", "4", "8"]

    def test_counts_of_splits(self, data, report, records):
        counts = table(report[0], "Splits")
        assert list(counts) == ["split", *SPLITS]
        for split in SPLITS:
            labels = np.concatenate([record["label"] for record in records[split]])
            users = {record["group_id"] for record in records[split]}
            files = data.directory.glob(f"synthetic-{split}.tfrecord-*")
            size = sum(path.stat().st_size for path in files)
            assert counts[split] == [
                *(str(len(records[split])), str(len(labels)), f"{labels.mean():.4f}"),
                *(str(len(users)), f"{size / 1e6:.1f}", f"{size / len(records[split]):,.0f}"),
            ]

    def test_history_lengths(self, report, records):
        shown = table(report[0], "History lengths")
        for split in SPLITS:
            lengths = np.array([len(record["item_id_list"]) for record in records[split]])
            percentiles = np.percentile(lengths, (5, 25, 50, 75, 95), method="inverted_cdf")
            shares = [100 * np.mean(lengths == length) for length in (0, LENGTH)]
            assert shown[split] == [
                f"{lengths.mean():.1f}",
                *(str(int(x)) for x in percentiles),
                *(f"{share:.2f}" for share in shares),
            ]
        assert float(shown["test"][-2]) > 0  # some are empty

    def test_days_in_their_order(self, report):
        lines = report[0].split("\nLabel rate by day\n\n")[1].split("\n\n")[0].splitlines()
        assert [line.split() for line in lines] == [
            ["split", "day", "candidates", "clicks", "label", "rate"],
            ["train", "2022-04-30", "1,200", "300", "0.2500"],
            ["train", "2022-05-01", "40", "7", "0.1750"],
            ["validation", "2022-05-02", "60", "6", "0.1000"],
        ]

    def test_what_there_is_not_is_not_printed(self, report):
        assert "Candidates of a request" not in report[0]  # each has one
        assert "negatives kept" not in report[0].splitlines()[1]  # all are

    def test_missing_and_unknown_values(self, data, report, records):
        shown = table(report[0], "Missing / out of vocabulary")
        assert {f.name for f in data.schema.features} == shown.keys() - {"feature"}
        unknown = 0
        for name in shown.keys() - {"feature"}:
            for split, cell in zip(SPLITS, shown[name], strict=True):
                rows = np.hstack([record[name] for record in records[split]])
                expected = [100 * np.mean(rows == row) for row in (0, 1)]
                np.testing.assert_allclose(
                    [float(x) for x in cell.split(" / ")], expected, atol=0.0051
                )
                unknown += expected[1]
        assert unknown > 0

    def test_label_rate_by_context(self, data, report, records):
        shown = table(report[0], "Label rate by hours")
        hours = [int(hour) for hour in shown if hour.isdigit()]
        assert hours == sorted(hours) and len(hours) > 5
        clicks, total = collections.Counter(), collections.Counter()
        for record in records["train"]:
            hour = raw(data, "hours", record["hours"])
            total[hour] += len(record["label"])
            clicks[hour] += record["label"].sum()
        for hour in total:
            share = total[hour] / sum(total.values())
            assert shown[hour][0] == f"{clicks[hour] / total[hour]:.4f} ({share:.1%})"


class TestFirstRequests:
    def test_raw_values_newest_behaviors_last(self, data, report, records):
        first, second = report[0].split("\ntrain, request ")[1:]
        for text, record in ((first, records["train"][0]), (second, records["train"][1])):
            assert f"group id {record['group_id']}\n" in text
            for name in ("gender", "visit_city", "hours"):
                assert f" {name}={raw(data, name, record[name])}" in text
            candidates, history = (
                [re.split(r" {2,}", line.strip()) for line in part.splitlines()]
                for part in re.split(r"\n  (?:candidates|history)", text.split("\n\n")[0])[1:]
            )
            row = dict(zip(candidates[1], candidates[2], strict=True))
            assert row["item_id"] == raw(data, "item_id", record["item_id"][0])
            assert float(row["label"]) == record["label"][0]
            row = dict(zip(history[1], history[-1], strict=True))
            assert row["#"] == str(len(record["item_id_list"]))
            for name in ("item_id_list", "hours_list"):
                assert row[name] == raw(data, name, record[name][-1])

    def test_boundaries_are_intervals(self, data):
        gap = data.schema.table("gap")
        assert gap.boundaries == (30.0,)
        assert inspect_records.decode(data.schema, {"gap": {0, 1, 2, 3}})["gap"] == {
            0: "<missing>",
            1: "<unknown>",
            2: "(-inf, 30)",
            3: "[30, inf)",
        }

    def test_long_histories_lose_their_middle(self):
        items = [f"item{i}" for i in range(1, 11)]
        lines = inspect_records.shortened({"item": items})
        assert [line.split() for line in lines] == [
            ["#", "item"],
            *(["1", "item1"], ["2", "item2"]),
            ["..", "(2", "more)"],
            *([str(i), f"item{i}"] for i in range(5, 11)),
        ]
        assert len(inspect_records.shortened({"item": items[:9]})) == 10  # one is not worth dots
        assert inspect_records.shortened({"item": []}) == []

    def test_a_vocabulary_that_is_too_short(self, data):
        last = data.schema.table("item_id").rows
        with pytest.raises(ValueError, match=rf"item_id.txt must have {last - 2} lines: no row"):
            inspect_records.decode(data.schema, {"item_id": {2, last}})


class TestPicture:
    def test_what_is_drawn(self, data, report, records):
        drawn = report[1]
        assert set(drawn["split"]) == set(SPLITS) and drawn["panel"].nunique() == 5
        train = drawn[drawn["split"] == "train"].groupby("panel")
        requests = records["train"]

        lengths = collections.Counter(len(record["item_id_list"]) for record in requests)
        panel = train.get_group("history lengths")  # of 12, each length has a bin of its own
        assert list(panel["x"]) == list(range(LENGTH + 1))
        expected = [lengths[x] / len(requests) for x in panel["x"]]
        np.testing.assert_allclose(panel["y"], expected)

        panel = train.get_group("label rate by history length")
        assert panel["n"].sum() == sum(len(record["label"]) for record in requests)
        (full,) = panel.loc[panel["x"] == LENGTH, "y"]
        labels = [r["label"] for r in requests if len(r["item_id_list"]) == LENGTH]
        np.testing.assert_allclose(full, np.concatenate(labels).mean())

        panel = train.get_group("popularity")
        for name in ("item_id", "item_id_list"):
            rows = np.concatenate([record[name] for record in requests])
            ranked = sorted(np.bincount(rows)[2:], reverse=True)
            curve = panel[panel["feature"] == name]
            expected = [ranked[x - 1] / len(rows) for x in curve["x"].astype(int)]
            np.testing.assert_allclose(curve["y"], expected)

        panel = train.get_group("label rate by popularity")
        items = np.concatenate([record["item_id"] for record in requests])
        shown = sorted(np.bincount(items)[2:], reverse=True)  # rank 1, 2 to 3, 4 to 7, ..
        expected = [sum(shown[2**i - 1 : 2 ** (i + 1) - 1]) for i in range(len(panel))]
        assert list(panel["n"]) == expected and sum(expected) == sum(shown)
        clicked = np.concatenate([record["label"] for record in requests])[items >= 2]
        np.testing.assert_allclose((panel["y"] * panel["n"]).sum(), clicked.sum())

    def test_days_are_drawn_on_one_axis(self, report):
        panel = report[1][report[1]["panel"] == "label rate by day"]
        since = pd.to_timedelta(panel["x"], unit="D")
        assert [str(day.date()) for day in pd.Timestamp(0) + since] == [
            *("2022-04-30", "2022-05-01", "2022-05-02")
        ]
        assert list(panel["split"]) == ["train", "train", "validation"]
        assert list(panel["y"]) == [0.25, 0.175, 0.1] and list(panel["n"]) == [1200, 40, 60]

    def test_without_days(self, data, tmp_path):
        # The report of the test split has none, as that of a data set that knows none.
        status, out, _ = run(data, "--split=test", f"--picture={tmp_path / 'a.png'}")
        assert not status and "Label rate by day" not in out
        assert pd.read_csv(tmp_path / "a.csv")["panel"].nunique() == 4

    def test_wilsons_interval(self):
        # Half of 4: (1 / (1 + 1.96² / 4)) (1/2 + 1.96²/8 ± 1.96 √(1/16 + 1.96²/64)).
        np.testing.assert_allclose(inspect_records.interval(0.5, 4), (0.15, 0.85), atol=5e-4)
        low, high = inspect_records.interval(np.array([0.0, 1.0]), np.array([50, 50]))
        np.testing.assert_allclose(low, [0, 0.9287], atol=1e-4)
        np.testing.assert_allclose(high, [0.0713, 1], atol=1e-4)


class TestSeveralCandidates:
    """Three requests by hand: (5, 5, 6), (5, 6) and padding, (7, unknown, unknown)."""

    @pytest.fixture
    def counts(self, schema, make_requests):
        features = make_requests(batch=3, candidates=3)
        features["item"] = np.array([[5, 5, 6], [5, 6, 0], [7, 1, 1]])
        features["price"] = np.array([[0, 2, 2], [2, 0, 0], [2, 3, 4]])  # two of eight missing
        features["hour"] = np.array([4, 4, 9])
        features["history_item"] = np.zeros((3, 12), int)
        features["history_item"][0, :2] = 8
        features["history_item"][2] = [1] * 3 + [9] * 6 + [8] * 3
        features["history_category"] = np.where(features["history_item"] == 9, 0, 1)
        label = np.array([[1.0, 0, 0], [1, 1, 1], [0, 0, 1]])  # also one of the padding
        counts = inspect_records.Counts(schema, size=300)
        counts.add(features, label, (features["item"] > 0).astype("float32"), np.array([7, 7, 8]))
        return counts

    def test_counts(self, counts):
        by_length = {0: (1, 2, 2), 2: (1, 3, 1), 12: (1, 3, 1)}
        for length in range(13):
            found = (counts.requests[length], counts.candidates[length], counts.clicks[length])
            assert found == by_length.get(length, (0, 0, 0))
        assert counts.users.count() == 2
        assert (counts.places["item"], counts.unknown["item"], counts.missing["item"]) == (8, 2, 0)
        assert (counts.places["price"], counts.missing["price"]) == (8, 2)
        name = "history_category"
        assert (counts.places[name], counts.missing[name], counts.unknown[name]) == (14, 6, 8)
        assert (counts.shown["hour"][[4, 9]] == [5, 3]).all()
        assert (counts.clicked["hour"][[4, 9]] == [3, 1]).all()
        assert counts.sizes.tolist() == [0, 0, 1, 2]

    def test_candidates_of_a_request(self, schema, counts, make_requests, capsys):
        one = make_requests(batch=5, candidates=1)
        label = np.zeros((5, 1))
        counts.add(one, label, label + 1, np.arange(5))  # sizes are now 1 five times, 2, 3, 3
        inspect_records.print_counts(schema, {"train": counts})
        shown = table(capsys.readouterr().out, "Candidates of a request")
        assert shown["train"] == ["1.62", "1", "1", "1", "2", "3", "3"]

    def test_ranks_are_of_known_items(self, schema, counts):
        panels = inspect_records.curves(schema, {"train": counts}, {}).groupby(["panel", "feature"])

        def points(*panel):
            return panels.get_group(panel)[["x", "y"]].to_numpy()

        expected = [(1, 3 / 8), (2, 2 / 8), (3, 1 / 8)]
        np.testing.assert_allclose(points("popularity", "item"), expected)
        expected = [(1, 6 / 14), (2, 5 / 14)]
        np.testing.assert_allclose(points("popularity", "history_item"), expected)
        # Item 5 alone, clicked 2 times of 3; 6 and 7 together, 1 of 3.
        expected = [(1, 2 / 3), (6**0.5, 1 / 3)]
        np.testing.assert_allclose(points("label rate by popularity", "item"), expected)

    def test_a_hash_has_buckets(self, schema):
        texts = inspect_records.decode(schema, {"user": {0, 2, 49}})["user"]
        assert (texts[0], texts[2], texts[49]) == ("<missing>", "<bucket 0>", "<bucket 47>")


class TestDistinct:
    def test_counts_across_merges(self, monkeypatch):
        monkeypatch.setattr(inspect_records, "_MERGE", 3)
        distinct, rng, seen = inspect_records.Distinct(), np.random.default_rng(0), set()
        for _ in range(20):
            values = rng.integers(0, 40, 5)
            distinct.add(values)
            seen.update(values.tolist())
        assert distinct.count() == len(seen)


def test_the_share_of_negatives_kept_is_told(data, capsys):
    data = copy.copy(data)
    data.schema = dataclasses.replace(data.schema, negative_rate=0.1)
    inspect_records.print_schema(data)
    assert capsys.readouterr().out.splitlines()[1].endswith(", 0.1 of the negatives kept")


def test_one_split(data, tmp_path):
    status, out, _ = run(data, "--split=test", f"--picture={tmp_path / 'a.png'}")
    assert not status
    assert list(table(out, "Splits")) == ["split", "test"]
    assert out.count("\ntest, request ") == 3 and "train" not in out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--split=tset", "must be one of ['test', 'train', 'validation']. Received: 'tset'"),
        ("--requests=-1", "flag --requests=-1"),
        ("--picture=nowhere/a.png", "no directory nowhere for --picture=nowhere/a.png"),
    ],
)
def test_wrong_arguments_end_in_one_line(data, argument, message):
    status, out, err = run(data, argument)
    assert status == 2 and out == ""
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_a_data_set_that_is_not_there(data):
    status, _, err = run(data, dataset="taobao")
    assert status == 2 and "no prepared data set in " in err and err.count("\n") == 1
