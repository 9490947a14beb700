import json

import measure_days
import pytest
from commands import ended

WAYS = ("retrained", "trained on", "as it is")


def row(*aucs):
    return {
        way: {"auc": auc, "gauc": 0.6, "log_loss": 0.5, "seconds": 30 * (i + 1)}
        for i, (way, auc) in enumerate(zip(WAYS, aucs, strict=True))
    }


def test_what_is_there_is_not_computed_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure_days, "_run", lambda *command: pytest.fail(f"{command}"))
    days = {"2022-05-02": row(0.74, 0.73, 0.71), "2022-05-03": row(0.75, 0.75, 0.72)}
    (tmp_path / "din").mkdir()
    (tmp_path / "din" / "days.json").write_text(json.dumps(days))
    arguments = ["", "--raw_dir=raw", f"--work_dir={tmp_path}", "--days=2"]
    code, out, _ = ended(measure_days.main, measure_days.define_flags, arguments)
    assert code == 0
    assert out.splitlines()[2:] == [
        "| 2022-05-02 | 0.7400 | 0.7300 | 0.7100 | 30 | 60 |",
        "| 2022-05-03 | 0.7500 | 0.7500 | 0.7200 | 30 | 60 |",
        "| mean | 0.7450 | 0.7400 | 0.7150 | | |",
    ]


def test_a_day_takes_the_commands_of_a_user(tmp_path, monkeypatch):
    """Trained anew on the days until then and measured on the next one; or `daily.sh`."""
    commands = []

    def run(*command):
        commands.append(command[2:])
        run_directory = tmp_path / "din" / "runs" / "until 2022-05-01"
        run_directory.mkdir(parents=True, exist_ok=True)
        metrics = {"splits": {"test": {"auc": 0.7, "gauc": 0.6, "log_loss": 0.5}}}
        (run_directory / "metrics.json").write_text(json.dumps(metrics))
        return 7.0

    monkeypatch.setattr(measure_days, "_run", run)
    monkeypatch.setattr(measure_days, "_evaluated", lambda *days: {"auc": 0.5})
    arguments = ["", "--raw_dir=raw", f"--work_dir={tmp_path}", "--days=1"]
    code, *_ = ended(measure_days.main, measure_days.define_flags, arguments)
    assert code == 0
    prepare, train, first, second = commands
    assert {"--set=train_until=2022-05-02", "--set=test_until=2022-05-03"} < set(prepare)
    assert train[0] == "tfrec_diffusion.train" and "--dataset=logs/kuairand" in train
    assert (first[-1], second[-1]) == ("2022-05-01", "2022-05-02")
    assert first[-2].endswith("experiments/daily.sh")
    found = json.loads((tmp_path / "din" / "days.json").read_text())["2022-05-02"]
    assert found["retrained"]["seconds"] == 14 and found["trained on"]["seconds"] == 7
