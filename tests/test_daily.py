"""`experiments/daily.sh`: two days of a model's life, also with kills in between."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from days import write_day

SCRIPT = pathlib.Path(__file__).parents[1] / "experiments" / "daily.sh"
FLAGS = """\
--model=avg_pooling
--set=tower_units=8,4
--set=embedding_dim=4
--batch_size=32
--checkpoint_every=2
--nojit_compile
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """`start(day, state, raw)`: a process of the script, in a session of its own."""
    raw = tmp_path_factory.mktemp("raw") / "shop"
    write_day(raw, 0)
    (raw / "train.flags").write_text(FLAGS)

    def started(day, state, raw_dir=raw):
        environment = {
            **os.environ,
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(SCRIPT.parents[1]),
            "DAILY": str(state),
            "RAW": str(raw_dir),
            "SPEC": str(raw / "shop.json"),
            "FLAGS": str(raw / "train.flags"),
        }
        return subprocess.Popen(
            [SCRIPT, day],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return started


@pytest.fixture(scope="module")
def first_day(start, tmp_path_factory):
    """State after the first day of all."""
    state = tmp_path_factory.mktemp("first") / "daily"
    process = start("2024-05-02", state)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return state


def served(state):
    """The variables of each version, which files do not have in one order."""
    versions = {}
    for version in sorted((state / "serving").iterdir()):
        reader = tf.train.load_checkpoint(str(version / "variables" / "variables"))
        names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
        values = (np.ravel(reader.get_tensor(name)) for name in sorted(names))
        versions[version.name] = np.sort(np.concatenate(list(values)))
    return versions


@pytest.mark.slow
def test_a_day_ends_in_the_same_export_whatever_kills_it(start, first_day, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for state in (whole, killed):
        # A run names the data that it was trained on by their place.
        shutil.copytree(first_day, state)
    process = start("2024-05-03", whole)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "20240503 is served" in output
    assert (whole / "current").read_text() == "2024-05-03\n"
    assert [path.name for path in sorted((whole / "serving").iterdir())] == ["20240502", "20240503"]
    assert "train: auc" in (whole / "reports" / "2024-05-03").read_text()

    rng = random.Random(0)
    for _ in range(5):
        process = start("2024-05-03", killed)
        try:
            process.communicate(timeout=rng.uniform(1, 12))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    process = start("2024-05-03", killed)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    found, expected = served(killed), served(whole)
    assert found.keys() == expected.keys()
    for version, variables in found.items():
        np.testing.assert_array_equal(variables, expected[version])
    described = json.loads((killed / "serving" / "20240503" / "describe.json").read_text())
    assert described["model"] == "AvgPooling"


@pytest.mark.slow
def test_what_fails_is_named(start, first_day, tmp_path):
    state = tmp_path / "daily"
    shutil.copytree(first_day, state)
    process = start("2024-05-03", state, tmp_path / "nothing")
    output, _ = process.communicate()
    assert process.returncode != 0
    assert "must hold a file 'impressions.csv'" in output
    assert "daily.sh: 2024-05-03 failed at: prepare" in output
    assert (state / "current").read_text() == "2024-05-02\n"
