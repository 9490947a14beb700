"""`python -m tfrec_diffusion.inspect`, against the records read one by one."""

import collections
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from commands import run
from printed import table

from tfrec_diffusion.inspection.description import describe

pytest.importorskip("matplotlib")

SPLITS = ("train", "validation", "test")


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
            shares = [100 * np.mean(lengths == length) for length in (0, 12)]
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


def test_one_split(inspect, tmp_path):
    # Without an ending, the picture is a PNG.
    status, out, _ = inspect("--split=test", f"--picture={tmp_path / 'a'}")
    assert status == 0 and out.endswith(f"\n\n{tmp_path / 'a'}\n")
    assert (tmp_path / "a").read_bytes().startswith(b"\x89PNG")
    assert list(table(out, "Splits")) == ["split", "test"]
    assert out.count("\ntest, request ") == 3 and "train" not in out
    # The report of the test split has no days, as that of a data set that knows none.
    assert "Label rate by day" not in out
    assert pd.read_csv(tmp_path / "a.csv")["panel"].nunique() == 4


def test_the_schema_is_shown_before_anything_is_counted(data, tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("counted")

    monkeypatch.setattr("tfrec_diffusion.inspection.description.count", fail)
    parts = describe(data.directory, picture=tmp_path / "a.png", requests=1)
    assert next(parts).startswith("synthetic, ") and next(parts).startswith("train, request 1, ")
    with pytest.raises(AssertionError, match="counted"):
        next(parts)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--split=tset", "must be one of ['test', 'train', 'validation']. Received: 'tset'"),
        ("--requests=-1", "flag --requests=-1"),
        ("--picture=nowhere/a.png", "no directory nowhere for --picture=nowhere/a.png"),
    ],
)
def test_wrong_arguments_end_in_one_line(inspect, argument, message):
    status, out, err = inspect(argument)
    assert status == 2 and out == ""
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_a_data_set_that_is_not_there(inspect):
    status, _, err = inspect(dataset="taobao")
    assert status == 2 and "no prepared data set in " in err and err.count("\n") == 1


def test_without_matplotlib(inspect, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = inspect()
    assert (status, out) == (2, "")
    assert err == "error: this command needs matplotlib: pip install 'tfrec_diffusion[tools]'\n"


@pytest.mark.parametrize("arguments", [(), ("--requests=1",)])
def test_a_damaged_file_is_named(data, tmp_path, arguments):
    shutil.copytree(data.directory, tmp_path / "synthetic" / data.directory.name)
    (shard,) = tmp_path.glob("synthetic/*/*test.tfrecord*")
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content)
    status, _, err = run("inspect", "--dataset=synthetic", f"--data_dir={tmp_path}", *arguments)
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: {shard} is damaged (corrupted record at ")
