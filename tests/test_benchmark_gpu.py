"""The benchmark of a GPU, run on the CPU as far as that goes."""

import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
def test_measures_every_variant():
    done = subprocess.run(
        [
            *(sys.executable, "tools/benchmark_gpu.py", "--device=cpu", "--models=din"),
            *("--length=8", "--candidates=1,3", "--requests=2", "--training_batch=4"),
            *("--seconds=0.02", "--turns=1"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [
        line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line[:5] == "| din"
    ]
    dtypes = ["din, float32", "din, mixed_bfloat16"]
    training, serving = lines[:2], lines[2:]
    assert [row[0] for row in training] == dtypes
    assert [row[0] for row in serving] == [
        name for dtype in dtypes for name in (dtype, f"{dtype}, exported on a CPU")
    ]
    assert {len(row) for row in training} == {3} and {len(row) for row in serving} == {5}
    for table in (training, serving):
        assert "(1.00)" in table[0][1], "float32 is the measure"
        assert all(float(row[1].split(" (")[0].replace(",", "")) > 0 for row in table)
