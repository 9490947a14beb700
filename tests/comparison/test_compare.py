"""`python -m tfrec_diffusion.compare`, as a user runs it."""

import functools
import json
import math
import signal
import subprocess
import sys
import time

import commands
import pytest
from finished_runs import leave_metrics

from tfrec_diffusion.comparison import start
from tfrec_diffusion.datasets.preparation import prepare
from tfrec_diffusion.files import lock

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")


run = functools.partial(commands.run, "compare")


def tables(text):
    """Of each section, the cells of each row by its first."""
    found = {}
    for section in text.split("\n## ")[1:]:
        lines = [line.strip("|").split("|") for line in section.splitlines() if line[:1] == "|"]
        cells = [[cell.strip() for cell in line] for line in lines[2:]]
        found[section.splitlines()[0]] = {name: rest for name, *rest in cells}
    return found


def finish(directory, *train_flags, validation=0.5, test=0.5):
    """Leaves what a training with these flags leaves."""
    train_flags = [*train_flags, f"--model_dir={directory}"]
    leave_metrics(directory, train_flags, {"validation": validation, "test": test})


def finish_seeds(runs, model, aucs, *train_flags):
    """The same of one run for each seed."""
    for seed, auc in enumerate(aucs):
        own = (f"--model={model}", f"--seed={seed}")
        finish(runs / f"{model}_{seed}", *train_flags, *own, validation=auc, test=auc)


def test_a_row_that_failed_is_told_by_the_exit_status(tmp_path, monkeypatch):
    def work(entries, jobs, report):
        entries[0].failed = True
        report()

    monkeypatch.setattr(start.scheduler, "work", work)
    monkeypatch.setattr(start, "_check", lambda *_: None)
    code, stdout, _ = run(f"--model_dir={tmp_path}", "--run=din", "--", "--dataset=logs")
    assert code == 1 and "failed" in stdout


class TestFinishedRuns:
    """What is made of runs that have finished: nothing is trained here, the data may be gone."""

    def test_of_a_comparison_file(self, tmp_path):
        aucs = {
            ("din", 0): (0.70, 0.72),  # validation, test
            ("din", 1): (0.60, 0.74),
            ("avg_pooling", 0): (0.71, 0.76),
            ("avg_pooling", 1): (0.99, 0.77),  # of seed 1: not asked
        }
        runs = tmp_path / "runs"
        # The other learning rate is worse in validation, by a little, and far better in the test.
        for model, name in (("din", "din_max_length=7"), ("avg_pooling", "avg_pooling")):
            settings = ["--set=max_length=7"] if model == "din" else []
            for rate, seed in (("0.01", 0), ("0.01", 1), ("0.1", 0)):
                validation, test = aucs[model, seed] if rate == "0.01" else (0.699, 0.95)
                finish(
                    runs / "My_logs" / f"{name}_learning_rate={rate}_{seed}",
                    *("--dataset=logs", "--nojit_compile", f"--model={model}", *settings),
                    *(f"--learning_rate={rate}", f"--seed={seed}"),
                    validation=validation,
                    test=test,
                )
        comparison = {
            "rows": {"Short": {"run": "din max_length={short}"}, "Mean": {"run": "avg_pooling"}},
            "data_sets": {"My logs": {"flags": "--dataset=logs", "short": 7}},
            "learning_rates": [0.1, 0.01],
        }
        (tmp_path / "comparison.json").write_text(json.dumps(comparison))
        arguments = [
            *(f"--comparison={tmp_path / 'comparison.json'}", f"--model_dir={runs}", "--seeds=2"),
            *(f"--output={tmp_path / 'table.md'}", "--", "--nojit_compile"),
        ]
        code, out, err = run(*arguments)
        assert code == 0, err
        assert tables((tmp_path / "table.md").read_text()) == {
            "My logs, test split": {
                "Short": [
                    *("--learning_rate=0.01 (of 2)", "0.7300 ± 0.0141", "0.6300 ± 0.0141"),
                    *("0.2700 ± 0.0141", "", "", "", ""),
                ],
                "Mean": [
                    *("--learning_rate=0.01 (of 2)", "0.7650 ± 0.0071", "0.6650 ± 0.0071"),
                    *("0.2350 ± 0.0071", "+15.22%", "+0.0350", "", ""),
                ],
            }
        }
        assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "table.md").read_text() in out
        assert out.endswith(f"\n{tmp_path / 'table.md'}: 6 runs\n")
        code, out, err = run("--learning_rates=0.01", *arguments)
        assert code == 0 and out.endswith(": 4 runs\n"), err

    def test_of_a_command_line(self, tmp_path):
        finish_seeds(tmp_path, "din", (0.72, 0.74), "--dataset=logs/my")
        for seed, auc in enumerate((0.76, 0.77)):
            finish(
                tmp_path / f"din_dropout=0.2_learning_rate=5e-4_{seed}",
                *("--dataset=logs/my", "--model=din", "--set=dropout=0.2"),
                *("--learning_rate=5e-4", f"--seed={seed}"),
                validation=auc,
                test=auc,
            )
        other = "din dropout=0.2 --learning_rate=5e-4"
        code, out, err = run(
            *(f"--model_dir={tmp_path}", "--seeds=2", "--splits=all"),
            *("--run=din", f"--run={other}", "--", "--dataset=logs/my"),
        )
        assert code == 0, err
        found = tables(out)
        assert list(found) == ["logs/my, validation split", "logs/my, test split"]
        assert found["logs/my, test split"] == {
            "din": ["0.7300 ± 0.0141", "0.6300 ± 0.0141", "0.2700 ± 0.0141", "", "", "", ""],
            other: [
                *("0.7650 ± 0.0071", "0.6650 ± 0.0071", "0.2350 ± 0.0071"),
                *("+15.22%", "+0.0350", "", ""),
            ],
        }
        assert tables((tmp_path / "compare.md").read_text()) == found
        assert (tmp_path / "compare.png").exists()

    def test_a_split_that_none_was_evaluated_on(self, tmp_path):
        finish_seeds(tmp_path, "din", (0.72, 0.74), "--dataset=logs")
        code, _, err = run(
            *(f"--model_dir={tmp_path}", "--seeds=2", "--run=din", "--splits=tset,test"),
            *("--", "--dataset=logs"),
        )
        assert code == 2 and "must be among ['all', 'test', 'validation']" in err
        assert "Received: ['tset']" in err and err.count("\n") == 1

    def test_of_several_tables_and_claims(self, tmp_path):
        runs = tmp_path / "runs"
        for model, aucs in (("din", (0.72, 0.74)), ("twin", (0.76, 0.77))):
            finish_seeds(runs / "My_logs", model, aucs, "--dataset=logs")
        comparison = {
            "rows": {"DIN": {"run": "din"}, "TWIN": {"run": "twin"}, "SIM": {"run": "sim_soft"}},
            "data_sets": {"My logs": {"flags": "--dataset=logs"}},
            "tables": {
                "Table 1": {
                    "rows": ["DIN", "TWIN"],
                    "data_sets": ["My logs"],
                    "base": "TWIN",
                    "figure": {"kind": "bars"},
                },
                "Table 2": {"rows": ["DIN"], "data_sets": ["My logs"], "splits": ["validation"]},
            },
            "claims": [
                {
                    "claim": "It finds more",
                    "row": "TWIN",
                    "against": "DIN",
                    "data_sets": ["My logs"],
                }
            ],
        }
        (tmp_path / "comparison.json").write_text(json.dumps(comparison))
        code, out, err = run(
            *(f"--comparison={tmp_path / 'comparison.json'}", f"--model_dir={runs}", "--seeds=2"),
            f"--output={tmp_path / 'RESULTS.md'}",
        )
        assert code == 0, err
        assert out.endswith("RESULTS.md: 4 runs\n")  # none of SIM, which is in no table
        text = (tmp_path / "RESULTS.md").read_text()
        headings = [line for line in text.splitlines() if line.startswith("#")]
        assert headings == [
            *("## What the papers claim", "## Tables", "## Table 1", "### My logs, test split"),
            *("## Table 2", "### My logs, validation split"),
        ]
        assert (
            "| It finds more |  | TWIN - DIN on My logs | > 0 |  |  |  | not measured |  |" in text
        )
        assert "](RESULTS/Table_1.png)" in text
        assert [path.name for path in (tmp_path / "RESULTS").iterdir()] == ["Table_1.png"]


class TestPreparing:
    """Data that are missing are made with their options, where there is something to train."""

    def compare(self, tmp_path, monkeypatch, options):
        """What was to be made, and the message of what went wrong then."""
        made = []

        def prepare(dataset, **options):
            made.append((dataset, options))
            raise OSError("the disk is full")

        monkeypatch.setattr(start, "prepare", prepare)
        flags = f"--dataset=planted --data_dir={tmp_path}"
        comparison = {
            "rows": {"DIN": {"run": "din"}},
            "data_sets": {"Planted": {"flags": flags, "prepare": options}},
        }
        (tmp_path / "comparison.json").write_text(json.dumps(comparison))
        code, _, err = run(
            f"--comparison={tmp_path / 'comparison.json'}", f"--model_dir={tmp_path / 'runs'}"
        )
        assert code == 2
        return made, err

    def test_options(self, tmp_path, monkeypatch):
        made, err = self.compare(tmp_path, monkeypatch, "aspects=8 spurious_items=niche")
        options = {"aspects": 8, "spurious_items": "niche"}
        assert made == [("planted", {"data_dir": str(tmp_path), **options})]
        assert err == "error: the disk is full\n"

    def test_defaults(self, tmp_path, monkeypatch):
        made, _ = self.compare(tmp_path, monkeypatch, "")
        assert made == [("planted", {"data_dir": str(tmp_path)})]

    def test_unknown_options(self, tmp_path, monkeypatch):
        made, err = self.compare(tmp_path, monkeypatch, "aspect=8")
        assert made == [] and "Received: --set=aspect=8" in err


class TestWrongInput:
    """Each ends in one line, before anything is trained."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "Exactly one of (comparison, run) must have a value"),
            (("--run=din", "--comparison=a.json"), "Exactly one of (comparison, run)"),
            (("--run=din", "--rows=Mean"), "--rows and --datasets choose from a --comparison"),
            (("--run=din", "--seeds=1"), "flag --seeds=1"),
            (("--run=din", "extra", "--", "--dataset=logs"), "Received: extra"),
            (("--run=din", "--", "--dataset=logs", "extra"), "Received: extra"),
            (("--run=din", "--", "--dataset=logs", "--epoch=2"), "command line flag 'epoch'"),
            (("--run=din", "--run=din --rate=1", "--", "--dataset=logs"), "line flag 'rate'"),
            (("--run=din", "--learning_rates=1,x", "--", "--dataset=logs"), "--learning_rate=x"),
            (("--run=din",), "--dataset"),
            (("--run=dinn", "--", "--dataset=logs"), "--model=dinn"),
            (("--run=din", "--", "--dataset=taobao", "--data_dir=no"), "data set in no/taobao"),
            (("--comparison=no.json",), "no.json"),
        ],
    )
    def test_is_one_line(self, tmp_path, arguments, message):
        code, out, err = run(f"--model_dir={tmp_path / 'runs'}", *arguments)
        assert code == 2 and out == ""
        assert err.startswith("error: ") and err.count("\n") == 1 and message in err
        assert not list(tmp_path.rglob("*.md"))

    @pytest.mark.parametrize("package", ["scipy", "matplotlib"])
    def test_a_missing_package(self, tmp_path, monkeypatch, package):
        monkeypatch.setitem(sys.modules, package, None)
        code, out, err = run(f"--model_dir={tmp_path}", "--run=din", "--", "--dataset=logs")
        assert (code, out) == (2, "")
        needs = f"error: this command needs {package}: pip install 'tfrec_diffusion[tools]'\n"
        assert err == needs

    def test_another_process_compares_there(self, tmp_path):
        with lock(tmp_path, "waiting in"):
            code, _, err = run(f"--model_dir={tmp_path}", "--run=din", "--", "--dataset=logs")
        assert code == 2
        assert err == f"error: another process is comparing models in {tmp_path}\n"


@pytest.mark.slow
def test_real_trainings_interrupted_and_resumed(tmp_path):
    data_dir = tmp_path / "data"
    prepare("synthetic", data_dir=data_dir, users=40, items=60, categories=6, history_length=30)
    train_flags = ["--dataset=synthetic", f"--data_dir={data_dir}", "--batch_size=8"]
    comparison = {
        "rows": {
            "Mean": {"run": "avg_pooling tower_units=4"},
            "DIN": {"run": "din tower_units=4", "clustered_by": "Mean"},
        },
        "data_sets": {"Small": {"flags": " ".join(train_flags)}},
        "learning_rates": [0.001, 0.1],
    }
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    runs = tmp_path / "runs"
    arguments = [
        *(f"--comparison={tmp_path / 'comparison.json'}", f"--model_dir={runs}", "--seeds=2"),
        *("--jobs=2", "--", "--nojit_compile", "--checkpoint_every=5"),
    ]

    # One learning rate has finished everywhere, to no good: the other will be taken. Of that, seed
    # 1 has finished.
    of_mean = runs / "Small" / "avg_pooling_tower_units=4_learning_rate=0.1_0"
    clustered = of_mean.with_name(f"clustered_by_{of_mean.name}")
    of_din = clustered / "din_tower_units=4_learning_rate=0.1_0"
    to_cluster = ["--dataset=clustered/synthetic", f"--data_dir={clustered}"]
    for parent, model, more in (
        (of_mean.parent, "avg_pooling", []),
        (clustered, "din", to_cluster),
    ):
        for rate, seed in (("0.001", 0), ("0.1", 1)):
            finish(
                parent / f"{model}_tower_units=4_learning_rate={rate}_{seed}",
                *(*train_flags, "--nojit_compile", "--checkpoint_every=5", *more),
                *(f"--model={model}", "--set=tower_units=4"),
                *(f"--learning_rate={rate}", f"--seed={seed}"),
                validation=0.0,
            )
    finished = {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.json")}

    code, _, err = run("--splits=train", *arguments)
    assert code == 2 and "must be among ['all', 'test', 'validation']" in err

    # Interrupted in its first training.
    process = subprocess.Popen(
        [sys.executable, "-m", "tfrec_diffusion.compare", *arguments],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (of_mean / "checkpoints" / "checkpoint").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 130 and "the same command goes on" in out
    with lock(of_mean, "training in"):  # nobody is there any more
        assert not (of_mean / "metrics.json").exists()
    (table,) = tables((runs / "compare.md").read_text()).values()
    assert list(table) == ["Mean (**1 of 2 settings**)", "DIN (**0 of 2 settings**)"]

    # The same command goes on, and to the end.
    code, out, err = run(*arguments)
    assert code == 0, out + err
    assert out.count(" ...\n") == 3  # the training at hand, the clustering, one of its clusters
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(list(runs.rglob("metrics.json"))) == len(finished) + 2

    # As `python -m tfrec_diffusion.train` has measured them.
    (table,) = tables((runs / "compare.md").read_text()).values()
    assert list(table) == ["Mean", "DIN", "best reachable"]
    for row, trained, dataset in (
        ("Mean", of_mean, "synthetic"),
        ("DIN", of_din, "clustered/synthetic"),
    ):
        metrics = json.loads((trained / "metrics.json").read_text())
        assert metrics["flags"]["dataset"] == dataset
        assert table[row][0] == "--learning_rate=0.1 (of 2)"
        of_seed_1 = {"auc": 0.5, "gauc": 0.4, "log_loss": 0.5}
        for cell, (metric, other) in zip(table[row][1:4], of_seed_1.items(), strict=True):
            one = metrics["splits"]["test"][metric]
            assert cell == f"{(one + other) / 2:.4f} ± {abs(one - other) / math.sqrt(2):.4f}"
