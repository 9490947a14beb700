"""One record per request gives the metrics of one per impression."""

import pathlib
import subprocess
import sys

import pytest

from tfrec_diffusion.datasets import requests
from tfrec_diffusion.prepare import prepare

REPOSITORY = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
def test_metrics_are_the_same(tmp_path):
    directories = [
        prepare(
            "synthetic",
            data_dir=tmp_path / group_by,
            preparation=requests.Preparation(group_by=group_by),
            users=60,
            items=40,
            categories=5,
            impressions=4,
            history_length=10,
        )
        for group_by in requests.GROUPINGS
    ]
    done = subprocess.run(
        [
            *(sys.executable, "tools/benchmark_grouping.py", "--model=avg_pooling"),
            *(f"--impressions={directories[0]}", f"--requests={directories[1]}"),
            *("--batch_size=16", "--steps=5", "--turns=1"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| \n").split(" | ") for line in done.stdout.splitlines()]
    impressions, grouped = rows[-2:]
    assert (impressions[0], grouped[0]) == ("impression", "request")
    assert (impressions[2], grouped[2]) == ("1.00", "4.00")
    records = [int(row[1].replace(",", "")) for row in (impressions, grouped)]
    assert records[0] == 4 * records[1]
    assert impressions[-2:] == grouped[-2:], "AUC and log loss"
