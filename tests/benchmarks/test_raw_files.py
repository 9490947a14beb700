"""The raw files that the benchmark of `prepare` generates look like the published ones."""

import ast
import gzip
import json

import numpy as np
import pandas as pd
import pytest
import raw_files
from preparation_cost import FORMATS

from tfrec_diffusion.datasets.preparation import prepare

ROWS = 4000


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes files of a format and returns their directory."""

    def write(name, rows=ROWS, seed=0):
        directory = tmp_path_factory.mktemp(name)
        written = FORMATS[name].write(directory, rows, seed)
        return directory, written

    return write


def lines(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


@pytest.mark.parametrize(
    ("name", "pattern", "header"),
    [
        ("ele_me", "D?_*.csv", 0),
        ("alibaba", "[rb]*.csv", 1),  # raw_sample, behavior_log
        ("amazon_books", "reviews_Books_5.json", 0),
        ("taobao", "UserBehavior.csv", 0),
        ("logs", "[ib]*.csv.gz", 1),  # impressions, behaviors
    ],
)
def test_have_the_rows_asked_for(write, name, pattern, header):
    directory, written = write(name)
    assert written == sum(len(lines(path)) - header for path in directory.glob(pattern))
    assert 0.9 * ROWS < written <= ROWS


@pytest.mark.parametrize("name", FORMATS)
def test_depend_on_the_seed_only(write, name):
    first, again, other = (
        {path.name: path.read_bytes() for path in write(name, seed=seed)[0].iterdir()}
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first.keys() == other.keys() and first != other


def test_alibaba(write):
    directory, _ = write("alibaba", 60_000)
    tables = {path.stem: pd.read_csv(path, na_values=[]) for path in directory.iterdir()}
    sample, log, profile = (tables[name] for name in ("raw_sample", "behavior_log", "user_profile"))
    assert list(sample) == ["user", "time_stamp", "adgroup_id", "pid", "nonclk", "clk"]
    assert list(log) == ["user", "time_stamp", "btag", "cate", "brand"]
    assert profile.columns[0] == "userid"
    assert profile.columns[-1] == "new_user_class_level "
    assert len(log) / len(sample) == pytest.approx(723 / 26.558, rel=1e-3)
    assert len(sample) / sample["user"].nunique() == pytest.approx(24, rel=0.1)
    assert (sample["nonclk"] + sample["clk"] == 1).all()
    assert sample["clk"].mean() == pytest.approx(0.0514, abs=0.02)
    assert sample["user"].isin(profile["userid"]).mean() == pytest.approx(0.95, abs=0.05)
    assert log.duplicated().mean() == pytest.approx(51 / 723, abs=0.01)
    brands = [line.split(",")[4] for line in lines(directory / "ad_feature.csv")[1:]]
    assert brands.count("NULL") / len(brands) == pytest.approx(0.29, abs=0.02)
    assert profile["pvalue_level"].isna().mean() == pytest.approx(0.54, abs=0.2)


def test_amazon_books(write):
    directory, _ = write("amazon_books")
    reviews = [json.loads(line) for line in lines(directory / "reviews_Books_5.json")]
    metadata = [ast.literal_eval(line) for line in lines(directory / "meta_Books.json")]
    reviewed = {review["asin"] for review in reviews}
    described = {book["asin"] for book in metadata}
    assert len(described) == len(metadata) > 6 * len(reviewed) and reviewed < described
    assert all(review["unixReviewTime"] % (24 * 60 * 60) == 0 for review in reviews)
    assert reviews[0]["overall"] in {1.0, 2.0, 3.0, 4.0, 5.0}
    asins = [review["asin"] for review in reviews]
    assert asins == sorted(asins)
    counts = pd.Series([review["reviewerID"] for review in reviews]).value_counts()
    assert counts.min() >= 5 and counts.mean() == pytest.approx(14.7, rel=0.02)
    bytes_ = (directory / "reviews_Books_5.json").stat().st_size
    assert bytes_ / ROWS == pytest.approx(9.5e9 / 8_898_041, rel=0.1)
    assert metadata[0]["categories"][0][0] == "Books"


def test_taobao(write):
    directory, _ = write("taobao")
    rows = [line.split(",") for line in lines(directory / "UserBehavior.csv")]
    keys = [(user, int(time)) for user, _, _, _, time in rows]
    assert keys == sorted(keys)  # users as text: 1, 10, 11, .., 2, ..
    assert keys[-1][0].startswith("9") and len({user for user, _ in keys}) == 39
    assert {kind for _, _, _, kind, _ in rows} == {"pv", "cart", "fav", "buy"}


def test_logs_impressions_know_their_video(write):
    directory, _ = write("logs")
    tables = {path.name[:-7]: pd.read_csv(path) for path in directory.iterdir()}
    impressions, videos = tables["impressions"], tables["videos"].set_index("video_id")
    for name in videos:
        expected = videos[name].loc[impressions["video_id"]]
        np.testing.assert_array_equal(impressions[name], expected)
    moments = pd.to_datetime(impressions["time_ms"], unit="ms") + pd.Timedelta(hours=8)
    assert (impressions["hour"] == moments.dt.hour).all()
    assert (impressions["date"] == moments.dt.strftime("%Y%m%d").astype(int)).all()


def test_items_grow_more_slowly_than_users(write):
    counts = [
        [len(lines(directory / f"{name}.csv.gz")) - 1 for name in ("users", "videos")]
        for directory, _ in (write("logs", rows) for rows in (10_000, 160_000))
    ]
    users, videos = np.divide(counts[1], counts[0])
    assert users == pytest.approx(16, rel=0.01)
    assert videos == pytest.approx(16**0.6, rel=0.01)


def test_items_are_drawn_by_zipfs_law():
    drawn = raw_files._zipf(np.random.default_rng(0), 100, 1_000_000)
    counts = np.bincount(drawn, minlength=100)
    expected = 1 / np.sqrt(np.arange(100) + 1.5)  # the middle of a bin
    assert len(counts) == 100
    np.testing.assert_allclose(counts / 1e6, expected / expected.sum(), rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("ele_me", set()),
        ("alibaba", {"repeated"}),
        ("amazon_books", {"book without a review"}),
        ("taobao", {"user with fewer than 4 behaviors"}),
        ("logs", {"event not kept"}),
    ],
)
def test_are_what_the_converters_expect(write, tmp_path, name, dropped):
    options = dict(flag.removeprefix("--set=").split("=") for flag in FORMATS[name].flags)
    raw_dir, written = write(name)
    directory = prepare(name, raw_dir=raw_dir, data_dir=tmp_path, **options)
    sources = json.loads((directory / "report.json").read_text())["sources"]
    assert {reason for source in sources.values() for reason in source["dropped"]} <= dropped
    assert sum(source["read"] for source in sources.values()) >= written
