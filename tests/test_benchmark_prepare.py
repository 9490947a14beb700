"""tools/benchmark_prepare.py, as a user runs it, and the raw files that it makes."""

import ast
import gzip
import itertools
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from absl import flags
from absl.testing import flagsaver

from tfrec_diffusion.prepare import prepare

sys.path.append(str(pathlib.Path(__file__).parent.parent / "tools"))
import raw_files
from benchmark_prepare import FORMATS, Cost, projected, run

REPOSITORY = pathlib.Path(__file__).parent.parent
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


class TestRawFiles:
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
    def test_have_the_rows_asked_for(self, write, name, pattern, header):
        directory, written = write(name)
        assert written == sum(len(lines(path)) - header for path in directory.glob(pattern))
        assert 0.9 * ROWS < written <= ROWS

    @pytest.mark.parametrize("name", FORMATS)
    def test_depend_on_the_seed_only(self, write, name):
        first, again, other = (
            {path.name: path.read_bytes() for path in write(name, seed=seed)[0].iterdir()}
            for seed in (3, 3, 4)
        )
        assert first == again
        assert first.keys() == other.keys() and first != other

    def test_alibaba(self, write):
        directory, _ = write("alibaba", 60_000)
        tables = {path.stem: pd.read_csv(path, na_values=[]) for path in directory.iterdir()}
        sample, log, profile = (
            tables[name] for name in ("raw_sample", "behavior_log", "user_profile")
        )
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

    def test_amazon_books(self, write):
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

    def test_taobao(self, write):
        directory, _ = write("taobao")
        rows = [line.split(",") for line in lines(directory / "UserBehavior.csv")]
        keys = [(user, int(time)) for user, _, _, _, time in rows]
        assert keys == sorted(keys)  # users as text: 1, 10, 11, .., 2, ..
        assert keys[-1][0].startswith("9") and len({user for user, _ in keys}) == 39
        assert {kind for _, _, _, kind, _ in rows} == {"pv", "cart", "fav", "buy"}

    def test_logs_impressions_know_their_video(self, write):
        directory, _ = write("logs")
        tables = {path.name[:-7]: pd.read_csv(path) for path in directory.iterdir()}
        impressions, videos = tables["impressions"], tables["videos"].set_index("video_id")
        for name in videos:
            expected = videos[name].loc[impressions["video_id"]]
            np.testing.assert_array_equal(impressions[name], expected)
        moments = pd.to_datetime(impressions["time_ms"], unit="ms") + pd.Timedelta(hours=8)
        assert (impressions["hour"] == moments.dt.hour).all()
        assert (impressions["date"] == moments.dt.strftime("%Y%m%d").astype(int)).all()

    def test_items_grow_more_slowly_than_users(self, write):
        counts = [
            [len(lines(directory / f"{name}.csv.gz")) - 1 for name in ("users", "videos")]
            for directory, _ in (write("logs", rows) for rows in (10_000, 160_000))
        ]
        users, videos = np.divide(counts[1], counts[0])
        assert users == pytest.approx(16, rel=0.01)
        assert videos == pytest.approx(16**0.6, rel=0.01)

    def test_items_are_drawn_by_zipfs_law(self):
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
    def test_are_what_the_converters_expect(self, write, tmp_path, name, dropped):
        options = dict(flag.removeprefix("--set=").split("=") for flag in FORMATS[name].flags)
        raw_dir, written = write(name)
        directory = prepare(name, raw_dir=raw_dir, data_dir=tmp_path, **options)
        sources = json.loads((directory / "report.json").read_text())["sources"]
        assert {reason for source in sources.values() for reason in source["dropped"]} <= dropped
        assert sum(source["read"] for source in sources.values()) >= written


class TestRun:
    MEGABYTES = 10**6

    def test_measures_memory_of_a_process_alone(self):
        # Freed long before the end, and none of what this process holds.
        code = "x = bytearray(200 * 10**6); del x; import time; time.sleep(0.3)"
        seconds, memory = run([sys.executable, "-c", code])
        assert 200 < memory / self.MEGABYTES < 240
        assert 0.3 < seconds < 30

    def test_adds_that_of_the_processes_it_starts(self):
        code = (
            "import subprocess, sys; x = bytearray(100 * 10**6);"
            "inner = 'import time; x = bytearray(150 * 10**6); time.sleep(0.5)';"
            "all = [subprocess.Popen([sys.executable, '-c', inner]) for _ in range(2)];"
            "[each.wait() for each in all]"
        )
        _, memory = run([sys.executable, "-c", code])
        assert 400 < memory / self.MEGABYTES < 520

    def test_tells_why_a_command_failed(self):
        code = "import sys; print('before', flush=True); sys.exit('no disk')"
        with pytest.raises(RuntimeError, match=r"failed:\nbefore\nno disk"):
            run([sys.executable, "-c", code])


class TestProjected:
    def test_goes_on_as_between_two_sizes(self):
        small = Cost(100, 1000, 50, 800, 10.0, 7e8)
        large = Cost(400, 3100, 200, 2000, 25.0, 7e8)
        # 600 rows more: 2 times the 300 between them.
        assert projected(small, large, 1000) == (1000, 7300, 500, 4400, 55.0, 7e8)

    def test_what_shrinks_stays(self):
        small, large = Cost(100, 1, 1, 1, 12.0, 8e8), Cost(200, 2, 2, 2, 11.0, 7e8)
        whole = projected(small, large, 500)
        assert (whole.seconds, whole.memory) == (11.0, 7e8)


def benchmark(work_dir, *arguments):
    return subprocess.run(
        [sys.executable, "tools/benchmark_prepare.py", f"--work_dir={work_dir}", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
class TestCommand:
    def test_prints_costs_and_their_projection(self, write, tmp_path):
        done = benchmark(
            tmp_path,
            *("--formats=taobao", f"--rows={ROWS}", "--sizes=4,1", "--", "--set=history_length=7"),
        )
        assert done.returncode == 0, done.stderr
        assert not any(tmp_path.iterdir())
        costs, projection = (
            [dict(zip(columns, cells, strict=True)) for cells in rows]
            for columns, _, *rows in tables(done.stdout)
        )
        for cost, size in zip(costs, (1, 4), strict=True):
            raw_dir, _ = write("taobao", size * ROWS)
            directory = prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path, history_length=7,
                                overwrite=True)  # fmt: skip
            report = json.loads((directory / "report.json").read_text())
            expected = sum(split["requests"] for split in report["splits"].values())
            assert (cost["format"], cost["size"]) == ("taobao", f"{size}x")
            assert (number(cost["raw rows"]), number(cost["records"])) == (size * ROWS, expected)
            raw_size = (raw_dir / "UserBehavior.csv").stat().st_size
            assert number(cost["raw MB"]) == pytest.approx(raw_size / 1e6, abs=0.051)
            prepared_size = sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())
            assert number(cost["prepared MB"]) == pytest.approx(prepared_size / 1e6, abs=0.1)
            rate = size * ROWS / number(cost["seconds"])
            assert number(cost["rows/s"]) == pytest.approx(rate, rel=0.02)
            assert number(cost["peak MB"]) > 300

        (whole,) = projection
        assert number(whole["raw rows"]) == 100_150_807
        small, large = (number(cost["records"]) for cost in costs)
        grown = large + (large - small) * (100_150_807 - 4 * ROWS) / (3 * ROWS)
        assert number(whole["records"]) == pytest.approx(grown, abs=1)

    def test_a_prepare_that_fails_ends_it(self, tmp_path):
        done = benchmark(tmp_path, "--formats=logs", "--rows=400", "--", "--set=length=7")
        assert done.returncode != 0 and "--set takes name=value" in done.stderr
        assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("formats", ["taobao", "movielens"], "must be some of ele_me,alibaba,"),
        ("sizes", ["1", "0"], "must be integers of at least 1"),
        ("sizes", ["1.5"], "must be integers of at least 1"),
    ],
)
def test_wrong_flags_are_refused(flag, value, message):
    with flagsaver.flagsaver(), pytest.raises(flags.IllegalFlagValueError, match=message):
        setattr(flags.FLAGS, flag, value)


def tables(markdown):
    """Rows of cells of each table."""
    rows = [line.strip("| ").split(" | ") for line in markdown.splitlines()]
    return [list(table) for real, table in itertools.groupby(rows, lambda r: r != [""]) if real]


def number(cell):
    return float(re.sub(",", "", cell))
