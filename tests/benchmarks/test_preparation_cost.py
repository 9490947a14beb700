"""The benchmark of `prepare`: how it measures a command and projects, and a small run."""

import itertools
import json
import re
import sys

import preparation_cost
import pytest
import raw_files
import run_tool
from preparation_cost import Cost, projected, run

from tfrec_diffusion.datasets.preparation import prepare

ROWS = 4000


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
        with pytest.raises(ChildProcessError, match=r"failed:\nbefore\nno disk"):
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


@pytest.mark.slow
class TestCommand:
    def test_prints_costs_and_their_projection(self, tmp_path):
        printed = run_tool.run(
            preparation_cost, "--formats=taobao", f"--rows={ROWS}", "--sizes=4,1",
            "--prepare_flag=--set=history_length=7", f"--work_dir={tmp_path}",
        )  # fmt: skip
        assert not any(tmp_path.iterdir())
        costs, projection = (
            [dict(zip(columns, cells, strict=True)) for cells in rows]
            for columns, _, *rows in tables(printed)
        )
        for cost, size in zip(costs, (1, 4), strict=True):
            raw_dir = tmp_path / f"raw {size}"
            raw_dir.mkdir()
            raw_files.taobao(raw_dir, size * ROWS, seed=0)
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
        status, _, error = run_tool.ended(
            preparation_cost, "--formats=logs", "--rows=400", "--prepare_flag=--set=length=7",
            f"--work_dir={tmp_path}",
        )  # fmt: skip
        assert status == 2 and "--set takes name=value" in error
        assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--formats=taobao,movielens", "must be some of ele_me,alibaba,"),
        ("--sizes=1,0", "must be integers of at least 1"),
        ("--sizes=1.5", "must be integers of at least 1"),
    ],
)
def test_wrong_flags_are_refused(flag, message):
    status, _, error = run_tool.ended(preparation_cost, flag)
    assert status == 2 and message in error


def tables(markdown):
    """Rows of cells of each table."""
    rows = [line.strip("| ").split(" | ") for line in markdown.splitlines()]
    return [list(table) for real, table in itertools.groupby(rows, lambda r: r != [""]) if real]


def number(cell):
    return float(re.sub(",", "", cell))
