"""The raw files that the package makes itself, and what is known about them."""

import hashlib
import pathlib

import numpy as np
import pandas as pd
import pytest

from tfrec_diffusion.datasets import ele_me, synthetic
from tfrec_diffusion.prepared_directory import PreparedDirectory

_SMALL = {
    "users": 60,
    "items": 200,
    "categories": 10,
    "interests": 3,
    "impressions": 2,
    "history_length": 20,
    "seed": 3,
}
_LISTS = [name for name in ele_me.COLUMNS if name.endswith("_list")]


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "raw"
    synthetic.write_raw(path, **_SMALL)
    return path


def _rows(raw_dir):
    files = sorted(raw_dir.glob("D*_*.csv"))
    read = {"header": None, "names": ele_me.COLUMNS, "dtype": str, "keep_default_na": False}
    return pd.concat([pd.read_csv(file, **read).assign(file=file.stem) for file in files])


def _digests(directory):
    paths = sorted(path for path in pathlib.Path(directory).rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_rows_have_the_raw_format(raw_dir):
    assert {path.name for path in raw_dir.glob("D*.csv")} == {f"D{d}_0.csv" for d in range(1, 9)}
    rows = _rows(raw_dir)
    assert not rows.isna().any(axis=None), "every row has 39 columns"
    assert set(rows["label"]) == {"0", "1"}
    assert set(rows["gender"]) == {"1", "2", "-99"}
    assert {"-1"} < set(rows["rank_7"])
    assert "" in set(rows["avg_price"])
    assert set(rows["time_type"]) <= {"breakfast", "lunch", "tea", "dinner", "night"}


def test_lists_of_a_row_are_equally_long_and_before_the_impression(raw_dir):
    rows = _rows(raw_dir)
    filled = rows[rows["item_id_list"] != ""]
    lengths = pd.DataFrame({name: filled[name].str.count(";") + 1 for name in _LISTS})
    assert (lengths.nunique(axis=1) == 1).all()
    assert lengths["item_id_list"].max() == _SMALL["history_length"]
    assert (rows.loc[rows["item_id_list"] == "", _LISTS] == "").all(axis=None)
    for ages in filled["timediff_list"].str.split(";"):
        ages = np.array(ages, np.int64)
        assert ages.min() > 0
        assert (np.diff(ages) <= 0).all(), "newest last"


def test_clocks_agree(raw_dir):
    rows = _rows(raw_dir)
    local = pd.to_datetime(rows["times"].astype(np.int64) + 8 * 3600, unit="s")
    day = rows["file"].str.extract(r"D(\d)", expand=False).astype(int)
    assert (local.dt.strftime("%Y-%m-%d") == "2022-04-0" + day.astype(str)).all()
    assert (local.dt.hour == rows["hours"].astype(int)).all()
    assert (local.dt.day_of_week == rows["weekdays"].astype(int)).all()
    row = rows[rows["item_id_list"] != ""].iloc[0]
    behaved = int(row["times"]) - np.array(row["timediff_list"].split(";"), np.int64)
    behaved = pd.to_datetime(behaved + 8 * 3600, unit="s")
    np.testing.assert_array_equal(behaved.hour, np.array(row["hours_list"].split(";"), int))
    np.testing.assert_array_equal(
        behaved.day_of_week, np.array(row["weekdays_list"].split(";"), int)
    )


def test_some_users_come_on_the_test_day_only(raw_dir):
    rows = _rows(raw_dir)
    day = rows["file"].str.extract(r"D(\d)", expand=False)
    earlier, last = set(rows["user_id"][day != "8"]), set(rows["user_id"][day == "8"])
    assert len(last) == _SMALL["users"]
    assert earlier < last
    per_day = rows.groupby(["user_id", day]).size()
    assert (per_day == _SMALL["impressions"]).all()


def test_same_options_same_bytes(raw_dir, tmp_path):
    synthetic.write_raw(tmp_path / "again", **_SMALL)
    assert _digests(raw_dir) == _digests(tmp_path / "again")
    synthetic.write_raw(tmp_path / "other", **{**_SMALL, "seed": 4})
    assert _digests(raw_dir)["D1_0.csv"] != _digests(tmp_path / "other")["D1_0.csv"]


def test_more_users_only_add_files(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "_USERS_PER_FILE", 20)
    synthetic.write_raw(tmp_path / "few", **{**_SMALL, "users": 20})
    synthetic.write_raw(tmp_path / "many", **{**_SMALL, "users": 50})
    few, many = _digests(tmp_path / "few"), _digests(tmp_path / "many")
    assert few["D5_0.csv"] == many["D5_0.csv"]
    assert "D5_2.csv" in many


def test_probabilities_are_those_of_the_labels(tmp_path):
    synthetic.write_raw(tmp_path / "raw", **{**_SMALL, "users": 400})
    rows = _rows(tmp_path / "raw")
    files = sorted((tmp_path / "raw").glob("*.probability.npy"))
    labels = rows["label"].to_numpy(int)
    probabilities = np.concatenate([np.load(file) for file in files])
    assert labels.shape == probabilities.shape
    assert ((probabilities > 0) & (probabilities < 1)).all()
    # Also in each tenth of the rows by probability, within four standard errors.
    for tenth in np.array_split(np.argsort(probabilities), 10):
        p = probabilities[tenth]
        error = np.sqrt((p * (1 - p)).sum()) / len(p)
        assert abs(labels[tenth].mean() - p.mean()) < 4 * error


def test_the_interests_show_in_the_history(tmp_path):
    synthetic.write_raw(tmp_path / "raw", **{**_SMALL, "users": 400})
    rows = _rows(tmp_path / "raw")
    lists = rows["category_1_id_list"].str.split(";")
    count = [c.count(own) for c, own in zip(lists, rows["category_1_id"], strict=True)]
    clicks = rows["label"].astype(int).groupby(np.minimum(count, 6)).mean()
    assert clicks[6] > 2.5 * clicks[0]


def test_whole_raw_files_are_used_again_and_others_replaced(tmp_path):
    path = tmp_path / "raw"
    synthetic.write_raw(path, **_SMALL)
    marked = path / "D1_0.csv"
    marked.write_text("kept\n")
    synthetic.write_raw(path, **_SMALL)
    assert marked.read_text() == "kept\n"
    synthetic.write_raw(path, **{**_SMALL, "seed": 4})
    assert marked.read_text() != "kept\n"


def test_what_a_killed_run_left_is_not_taken_for_whole(raw_dir, tmp_path, monkeypatch):
    path = tmp_path / "raw"

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "save", die)
        synthetic.write_raw(path, **_SMALL)
    assert not path.exists()
    synthetic.write_raw(path, **_SMALL)
    assert _digests(path) == _digests(raw_dir)
    assert list(tmp_path.iterdir()) == [path]


def test_files_of_another_origin_are_not_touched(tmp_path):
    (tmp_path / "D1_0.csv").write_text("precious\n")
    with pytest.raises(ValueError, match=r"`raw_dir` must be empty, absent or written by"):
        synthetic.write_raw(tmp_path, **_SMALL)
    assert (tmp_path / "D1_0.csv").read_text() == "precious\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": 0}, r"`users` must be an integer of at least 1. Received: users=0"),
        ({"items": 2.5}, r"`items` must be an integer of at least 1. Received: items=2.5"),
        ({"categories": 300}, r"`categories` must be at most items=200. Received: categories=300"),
        ({"interests": 1}, r"`interests` must be an integer of at least 2. Received: interests=1"),
        ({"interests": 11}, r"`interests` must be at most categories=10. Received: interests=11"),
        ({"users": True}, r"`users` must be an integer of at least 1. Received: users=True"),
        ({"seed": -1}, r"`seed` must be an integer of at least 0. Received: seed=-1"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        synthetic.write_raw(tmp_path / "raw", **{**_SMALL, **options})
    with pytest.raises(ValueError, match=message):
        synthetic.Synthetic(data_dir=tmp_path, **{**_SMALL, **options})
    assert not list(tmp_path.iterdir())


def test_best_reachable_is_that_of_the_true_probabilities(raw_dir):
    rows = _rows(raw_dir)
    test = rows["file"].str.startswith("D8").to_numpy()
    labels = rows["label"].to_numpy(int)[test]
    probabilities = np.load(raw_dir / "D8_0.probability.npy")
    best = synthetic.best_reachable(raw_dir, [8])
    ahead = probabilities[labels == 1][:, None] - probabilities[labels == 0]
    assert best["auc"] == pytest.approx(np.heaviside(ahead, 0.5).mean())
    likelihood = np.where(labels == 1, probabilities, 1 - probabilities)
    assert best["log_loss"] == pytest.approx(-np.log(likelihood).mean())
    # Two rows a user: the pair is ordered rightly or not.
    pairs = pd.DataFrame({"user": rows["user_id"][test], "label": labels, "p": probabilities})
    pairs = pairs.sort_values("label").groupby("user").agg(list)
    ahead = [p[1] - p[0] for y, p in zip(pairs["label"], pairs["p"], strict=True) if y == [0, 1]]
    assert best["gauc"] == pytest.approx(np.heaviside(ahead, 0.5).mean())


def _prepare(data_dir):
    builder = synthetic.Synthetic(data_dir=data_dir, min_count=1, **_SMALL)
    builder.write()
    return pathlib.Path(builder.data_dir)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return _prepare(tmp_path_factory.mktemp("prepared"))


def test_prepare(prepared, read_records):
    report = PreparedDirectory(prepared).report
    assert report["options"] == {**_SMALL, "min_count": 1, "group_by": "impression"}
    assert set(report["best_reachable"]) == {"train", "validation", "test"}
    for best in report["best_reachable"].values():
        assert 0.6 < best["auc"] < 0.95
    assert report["splits"]["test"]["requests"] == _SMALL["users"] * _SMALL["impressions"]
    assert not any(source["dropped"] for source in report["sources"].values())
    assert list(report["splits"]["train"]["days"]) == [f"2022-04-0{day}" for day in range(1, 7)]
    train = read_records(prepared, "train")
    assert max(len(r["item_id_list"]) for r in train) == _SMALL["history_length"]
    assert set.union(*(set(r["history_gap"].tolist()) for r in train)) == {0, 2, 3}
    assert (prepared.parent / "raw" / "D8_0.csv").exists()


def test_same_options_give_the_same_records(prepared, tmp_path):
    assert _digests(_prepare(tmp_path)) == _digests(prepared)
