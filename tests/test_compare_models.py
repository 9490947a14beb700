"""tools/compare_models.py, as a user runs it."""

import json
import math
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tfrec_diffusion.locking import lock
from tfrec_diffusion.prepare import prepare

REPOSITORY = pathlib.Path(__file__).parent.parent
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")


def command(directory, comparison, *arguments):
    """A command that compares in a directory, without trainings' XLA."""
    path = directory / "comparison.json"
    path.write_text(json.dumps(comparison))
    return [
        *(sys.executable, "tools/compare_models.py", f"--comparison={path}"),
        *(f"--model_dir={directory / 'runs'}", f"--output={directory / 'table.md'}"),
        *(*arguments, "--", "--nojit_compile"),
    ]


def run(*arguments):
    return subprocess.run(command(*arguments), cwd=REPOSITORY, capture_output=True, text=True)


def tables(directory):
    """Of each data set in table.md, the cells of each row by its first."""
    found = {}
    for section in (directory / "table.md").read_text().split("\n## ")[1:]:
        lines = [line.strip("|").split("|") for line in section.splitlines() if line[:1] == "|"]
        cells = [[cell.strip() for cell in line] for line in lines[2:]]
        found[section.splitlines()[0]] = {name: rest for name, *rest in cells}
    return found


def finish(directory, name, flags, validation_auc, **test):
    """Leaves what a finished run leaves."""
    directory = directory / "runs" / name
    directory.mkdir(parents=True)
    model_dir = f"--model_dir={directory}"
    metrics = {
        "splits": {"validation": {"auc": validation_auc}, "test": test},
        "command": ["train.py", *flags, model_dir],
    }
    (directory / "metrics.json").write_text(json.dumps(metrics))


def student_p(t, df):
    """Two-sided p: one less the area of Student's density between -t and t."""
    x = np.linspace(-t, t, 100_001)
    density = (1 + x**2 / df) ** (-(df + 1) / 2)
    constant = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    return 1 - constant * np.trapezoid(density, x)


ROWS = {"Short": {"run": "din max_length={short}"}, "Mean": {"run": "avg_pooling"}}


@pytest.mark.slow
class TestFinishedRuns:
    """What is made of runs that have finished: nothing is trained here."""

    def test_the_learning_rate_is_that_of_the_best_validation_auc(self, tmp_path):
        aucs = {
            ("din", 0): (0.70, 0.72),  # validation, test
            ("din", 1): (0.60, 0.74),
            ("avg_pooling", 0): (0.71, 0.76),
            ("avg_pooling", 1): (0.99, 0.77),  # of seed 1: not asked
        }
        # The other learning rate is worse in validation, by a little, and far better in the test.
        for model, name in (("din", "din_max_length=7"), ("avg_pooling", "avg_pooling")):
            settings = ["--set=max_length=7"] if model == "din" else []
            for rate, seed in (("0.01", 0), ("0.01", 1), ("0.1", 0)):
                validation, test = aucs[model, seed] if rate == "0.01" else (0.699, 0.95)
                flags = ["--dataset=logs", "--nojit_compile", f"--model={model}", *settings]
                flags += [f"--learning_rate={rate}", f"--seed={seed}"]
                finish(
                    *(tmp_path, f"My_logs/{name}_learning_rate={rate}_{seed}", flags, validation),
                    **{"auc": test, "gauc": test - 0.1, "log_loss": 1 - test},
                )
        comparison = {
            "rows": ROWS,
            "data_sets": {"My logs": {"flags": "--dataset=logs", "short": 7}},
        }
        done = run(tmp_path, comparison, "--learning_rates=0.1,0.01", "--seeds=2")
        assert done.returncode == 0, done.stderr

        # The standard deviation of two numbers is their difference by the root of 2. Welch's t is
        # (0.765 - 0.73) / sqrt(0.0002 / 2 + 0.00005 / 2) = 3.1305 with 25 / 17 degrees of freedom.
        assert f"{student_p(3.1305, 25 / 17):.3f}" == "0.129"
        assert tables(tmp_path)["My logs"] == {
            "Short": ["0.01", "0.7300 ± 0.0141", "0.6300 ± 0.0141", "0.2700 ± 0.0141", "", ""],
            "Mean": [
                *("0.01", "0.7650 ± 0.0071", "0.6650 ± 0.0071", "0.2350 ± 0.0071"),
                *("+15.22%", "0.129"),
            ],
        }
        assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")

    def test_an_unknown_row_is_refused(self, tmp_path):
        comparison = {"rows": ROWS, "data_sets": {"My logs": {"flags": "", "short": 7}}}
        done = run(tmp_path, comparison, "--rows=Mean,Max")
        assert "`rows` must be among ['Short', 'Mean']. Received: ['Max']" in done.stderr

    def test_a_row_needs_what_the_data_set_does_not_give(self, tmp_path):
        comparison = {"rows": ROWS, "data_sets": {"My logs": {"flags": ""}}}
        done = run(tmp_path, comparison)
        assert f"{tmp_path}/comparison.json: Short on My logs needs 'short'" in done.stderr


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    prepare("synthetic", data_dir=directory, users=40, items=60, categories=6, history_length=30)
    return directory


@pytest.mark.slow
def test_trains_what_is_missing(data_dir, tmp_path):
    small = "tower_units=4"
    rows = {
        "Mean": {"run": f"avg_pooling {small}"},
        "Broken": {"run": "avg_pooling dropout=7"},
        "DIN": {"run": f"din {small}", "clustered_by": "Mean"},
    }
    flags = f"--dataset=synthetic --data_dir={data_dir} --batch_size=8 --checkpoint_every=5"
    comparison = {"rows": rows, "data_sets": {"Small": {"flags": flags}}}
    arguments = (tmp_path, comparison, "--learning_rates=0.001,0.1", "--seeds=2")
    runs = tmp_path / "runs" / "Small"

    of_mean = "clustered_by_avg_pooling_tower_units=4_learning_rate=0.1_0"
    clustered = ["--dataset=clustered/synthetic", f"--data_dir={runs / of_mean}"]

    # One learning rate has finished everywhere, to no good: the other will be taken.
    for name, model, setting, more in (
        ("avg_pooling", "avg_pooling", small, ()),
        ("avg_pooling", "avg_pooling", "dropout=7", ()),
        (f"{of_mean}/din", "din", small, clustered),
    ):
        given = [*flags.split(), "--nojit_compile", *more, f"--model={model}", f"--set={setting}"]
        given += ["--learning_rate=0.001", "--seed=0"]
        finish(tmp_path, f"Small/{name}_{setting}_learning_rate=0.001_0", given, 0)

    # Interrupted in its first training.
    missing = runs / "avg_pooling_tower_units=4_learning_rate=0.1_0"
    process = subprocess.Popen(
        command(*arguments), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    while not (missing / "checkpoints" / "checkpoint").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate()
    assert process.returncode == 130 and "the same command goes on" in stdout
    with lock(missing, "training in"):  # nobody is there any more
        assert not (missing / "metrics.json").exists()
    assert list(tables(tmp_path)["Small"]) == [
        "Mean (**1 of 2 learning rates**)",
        *("Broken (**1 of 2 learning rates**)", "DIN (**0 of 2 learning rates**)"),
    ]
    finished = {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.json")}
    assert len(finished) == 3

    # The same command goes on, and to the end but for the row that fails.
    done = run(*arguments[:2], "--jobs=2", *arguments[2:])
    assert done.returncode == 1
    failed = re.search(r"FAILED\n  (.*)((?:\n  .*)*)", done.stdout)
    assert "--set=dropout=7" in failed[1] and "dropout" in failed[2] and "7" in failed[2]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    cells = tables(tmp_path)["Small"]
    assert list(cells) == ["Mean", "Broken (**failed**)", "DIN"]
    assert cells["Broken (**failed**)"] == [""] * 6

    # As `python -m tfrec_diffusion.train` has measured them.
    for row, run_name, dataset in (
        ("Mean", "avg_pooling", "synthetic"),
        ("DIN", f"{of_mean}/din", "clustered/synthetic"),
    ):
        assert cells[row][0] == "0.1"
        tests = []
        for seed in (0, 1):
            path = runs / f"{run_name}_{small}_learning_rate=0.1_{seed}" / "metrics.json"
            metrics = json.loads(path.read_text())
            assert metrics["flags"]["dataset"] == dataset
            tests.append(metrics["splits"]["test"])
        for cell, metric in zip(cells[row][1:4], ("auc", "gauc", "log_loss"), strict=True):
            one, other = (test[metric] for test in tests)
            assert cell == f"{(one + other) / 2:.4f} ± {abs(one - other) / math.sqrt(2):.4f}"
    # Nothing else was trained: the three that were there, and two seeds of two rows.
    assert len(list(runs.rglob("metrics.json"))) == 3 + 4
