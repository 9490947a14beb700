"""`python -m tfrec_diffusion.tune`, as a user runs it; all but one test with fake trainings."""

import csv
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import commands
import pytest

from tfrec_diffusion import command, flags
from tfrec_diffusion.datasets.preparation import prepare
from tfrec_diffusion.files import lock

pytest.importorskip("optuna")
pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from tfrec_diffusion.tuning import picture, scheduler, start, training

FAKE = (sys.executable, "-I", "-S", str(pathlib.Path(__file__).with_name("fake_train.py")))
DRAW = picture.draw
COMMON = ["--dataset=synthetic", "--model=din", "--epochs=2"]
RATE = {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}

run = functools.partial(commands.run, "tune")


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setattr(training, "_TRAIN", FAKE)
    monkeypatch.setattr(start, "find_or_make", lambda dataset, data_dir: None)
    monkeypatch.setattr(scheduler, "_POLL_SECONDS", 0.005)
    # What it shows has tests of its own, and takes longer than these trainings.
    monkeypatch.setattr(picture, "draw", lambda *_: Figure((1, 1)))


@pytest.fixture
def tune(tmp_path):
    """Runs a search of these parameters in `tmp_path / "tuned"`."""

    def tune(search, *arguments, status=0, **others):
        path = tmp_path / "search.json"
        path.write_text(json.dumps({"flags": COMMON, "search": search, **others}))
        code, out, err = run(f"--search={path}", f"--tune_dir={tmp_path / 'tuned'}", *arguments)
        assert code == status, out + err
        return out + err

    return tune


@pytest.fixture
def place(tmp_path):
    return tmp_path / "tuned"


def table(place):
    with open(place / "trials.csv", newline="") as file:
        return [*csv.DictReader(file)]


def column(place, name):
    return [row[name] for row in table(place)]


def starts(place, number=0):
    """How often a trial's training was started."""
    return (place / "trials" / f"{number:03d}" / "starts").read_text().count("\n")


def interrupt(place, number=signal.SIGINT, as_terminal=False):
    """Sends a signal to this process once the first trial has finished an epoch, and waits then.

    A terminal sends it to the trial's process as well.
    """

    def send():
        while not (place / "trials" / "000" / "validation.json").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), number)
        if as_terminal:
            os.kill(int((place / "trials" / "000" / "starts").read_text()), number)

    (place / "trials").mkdir(parents=True)
    (place / "trials" / "hold").touch()
    thread = threading.Thread(target=send)
    thread.start()
    return thread


class TestSearch:
    def test_ends_with_the_best(self, tune, place, monkeypatch):
        monkeypatch.setattr(picture, "draw", DRAW)
        search = {**RATE, "set.dropout": {"low": 0.0, "high": 0.4, "step": 0.1}}
        out = tune(search, "--trials=12")
        rows = table(place)
        assert len(rows) == 12 and {row["state"] for row in rows} <= {"trained", "pruned"}
        assert "\n12 of 12 trials; 0:00:00 to go, as fast as so far\n" in out
        # First the settings as they stand.
        assert (rows[0]["learning_rate"], rows[0]["set.dropout"]) == ("0.001", "0.0")
        trained = [row for row in rows if row["state"] == "trained"]
        best = max(trained, key=lambda row: float(row["validation_auc"]))
        assert float(best["validation_auc"]) > float(rows[0]["validation_auc"])

        # The flags of the best: a command of their own.
        flag_file = place / "best.flags"
        values = command.parsed(flags.train, [f"--flagfile={flag_file}"])
        assert (values.dataset, values.model, values.epochs) == ("synthetic", "din", 2)
        assert values.learning_rate == float(best["learning_rate"])
        assert values.set == [f"dropout={best['set.dropout']}"]
        assert values.model_dir == str(place / "best")
        comment = flag_file.read_text().splitlines()[0]
        value = f"{float(best['validation_auc']):.4f}"
        assert comment == (
            f"# The best of 12 trials of {place.parent / 'search.json'}: trial {best['trial']}, "
            f"validation auc {value}."
        )
        assert f"train --flagfile={flag_file}\n" in out

        # The table of the best five.
        found = out[out.index("\nauc on the validation split; trials: ") :].splitlines()
        heading, *lines = found[2:8]
        assert heading.split() == [
            *("trial", "auc", "epochs", "seconds", "learning_rate", "set.dropout")
        ]
        lines = lines[:5]
        assert [line.split()[1] for line in lines] == sorted(
            (f"{float(row['validation_auc']):.4f}" for row in trained), reverse=True
        )[:5]
        number, auc, epochs, _, rate, dropout = lines[0].split()
        assert (number, auc, epochs) == (best["trial"], value, "2")
        assert (rate, dropout) == (best["learning_rate"], best["set.dropout"])
        stands = f"as the flags stand: auc {float(rows[0]['validation_auc']):.4f}, trial 0\n"
        assert stands in out
        assert (place / "tune.png").read_bytes().startswith(b"\x89PNG")

        # A trial is a run directory; but for the best, without what it takes to go on.
        left = [path.parent.name for path in place.glob("trials/*/checkpoints")]
        assert left == [f"{int(best['trial']):03d}"]

    def test_knows_nothing_of_the_test_split(self, tune, place):
        out = tune(RATE, "--trials=3")
        for file in ("trials.csv", "best.flags", "study.log"):
            assert "0.1234" not in (place / file).read_text()
        assert "0.1234" not in out

    def test_depends_on_its_seed(self, tune, place):
        tune(RATE, "--trials=4")
        rates = column(place, "learning_rate")
        for more, same in (("--seed=0", True), ("--seed=1", False)):
            (place / "study.log").unlink()
            for path in place.glob("trials/*/*.json"):
                path.unlink()
            tune(RATE, "--trials=4", more)
            assert (column(place, "learning_rate") == rates) == same

    def test_takes_a_grid_whole(self, tune, place):
        search = {"learning_rate": [0.1, 0.01], "set.dropout": [0.2, 0]}
        tune(search, sampler="grid", pruner="none")
        assert [
            *zip(column(place, "learning_rate"), column(place, "set.dropout"), strict=True)
        ] == [*(("0.1", "0.2"), ("0.1", "0"), ("0.01", "0.2"), ("0.01", "0"))]
        assert "--learning_rate=0.01\n--set=dropout=0\n" in (place / "best.flags").read_text()

    def test_of_the_least_log_loss(self, tune, place):
        search = {"learning_rate": [0.1, 0.01, 1e-4]}
        out = tune(search, "--", "--best_by=log_loss", sampler="grid")
        assert [line.split()[0] for line in out.split("\ntrial ")[-1].splitlines()[1:4]] == [
            *("1", "0", "2")
        ]
        assert "trial 1, validation log_loss 0.2050." in (place / "best.flags").read_text()
        assert column(place, "validation_log_loss")[1] == "0.20499999999999996"

    def test_says_which_of_the_flags_own_settings_it_does_not_hold(self, tune):
        out = tune({"learning_rate": [0.01, 0.02], "set.dropout": [0.0, 0.1]}, "--trials=1")
        assert "own settings are not among those searched: learning_rate=0.001\n" in out
        assert "as the flags stand" not in out

    def test_more_flags_count_before_those_of_the_file(self, tune, place):
        tune({"learning_rate": [0.1, 0.01]}, "--", "--epochs=3")
        assert column(place, "epochs") == ["3", "3"]


class TestSeveralAtATime:
    def test_as_many_as_jobs(self, tune, place):
        """Each waits until as many have begun; a third one never does."""
        (place / "trials").mkdir(parents=True)
        (place / "trials" / "hold").touch()
        seen = []

        def watch():
            deadline = time.monotonic() + 20
            while len(seen) < 2 and time.monotonic() < deadline:
                seen[:] = place.glob("trials/*/validation.json")
            time.sleep(0.2)
            seen[:] = place.glob("trials/*/validation.json")
            (place / "trials" / "hold").unlink()

        thread = threading.Thread(target=watch)
        thread.start()
        tune(RATE, "--trials=5", "--jobs=2")
        thread.join()
        assert len(seen) == 2 and column(place, "state") == ["trained"] * 5


class TestPruning:
    def test_stops_what_is_behind(self, tune, place):
        """From the sixth trial on."""
        search = {"set.dropout": [0.0, 0.01, 0.02, 0.03, 0.04, 0.9, 0.05, 0.8]}
        out = tune(search, sampler="grid")
        rows = table(place)
        assert [row["state"] for row in rows[:5]] == ["trained"] * 5
        for number in (5, 7):
            assert (rows[number]["state"], rows[number]["epochs"]) == ("pruned", "1")
            assert (place / "trials" / f"{number:03d}" / "stopped").exists()
        assert re.search(
            r"\ntrial 5: pruned after epoch 1 with auc 0\.6500, \d+ s; best 0\.7450", out
        )
        assert not list(place.glob("trials/00[0-4]/stopped"))

    def test_leaves_the_flags_own_settings_alone(self, tune, place):
        """Which come late if they failed first."""
        (place / "trials" / "000" / "broken").mkdir(parents=True)
        own = ("--", "--learning_rate=0.0001")
        tune(RATE, "--trials=12", *own)
        out = tune(RATE, "--trials=12", "--retry_failed", *own)
        assert "as the flags stand: auc 0.6950, trial 12\n" in out
        assert "trials: 12 trained\n" in out and "failed" not in out.split("trials: ")[1]
        assert (place / "best.flags").read_text().startswith("# The best of 12 trials of ")

    def test_leaves_the_last_epoch_alone(self, tune, place):
        search = {"set.dropout": [0.0, 0.01, 0.02, 0.03, 0.04, 0.9]}
        tune(search, "--", "--epochs=1", sampler="grid")
        assert column(place, "state") == ["trained"] * 6


class TestFailures:
    def test_one_does_not_end_the_search(self, tune, place):
        out = tune({"learning_rate": [0.9, 0.01, 0.6, 0.02]}, sampler="grid")
        rows = table(place)
        assert [row["state"] for row in rows] == ["failed", "trained", "failed", "trained"]
        reason = "the loss is inf at step 3: training has diverged"
        assert [row["failure"] for row in rows] == [reason, "", reason, ""]
        assert [row["validation_auc"] for row in rows][::2] == ["", ""]
        assert f"trial 2 FAILED: {reason}\n" in out
        assert "trials: 2 trained, 2 failed\n" in out
        assert starts(place, 2) == 1

    def test_of_the_first_three_do(self, tune, place):
        """And are tried again by the same command, as they were not to blame."""
        search = {"learning_rate": [0.9, 0.8, 0.7, 0.01]}
        out = tune(search, status=2, sampler="grid")
        assert "\nerror: no trial has ended well" in out and out.count("\nerror: ") == 1
        assert "Trial 2: the loss is inf at step 3: training has diverged\n" in out
        assert not (place / "trials" / "003").exists()
        tune(search, status=2, sampler="grid")
        assert [starts(place, number) for number in range(3)] == [2, 2, 2]

    def test_of_all_of_two_do(self, tune):
        out = tune({"learning_rate": [0.9, 0.8]}, status=2, sampler="grid")
        assert "error: no trial has ended well" in out

    def test_may_be_tried_again(self, tune, place):
        search = {"set.dropout": [0.0, 0.1, 0.2]}
        (place / "trials" / "000" / "broken").mkdir(parents=True)
        tune(search, "--trials=2")
        tune(search, "--trials=2")
        assert column(place, "state") == ["failed", "trained"]
        out = tune(search, "--trials=2", "--retry_failed")
        assert "trial 2: --set=dropout=0.0 (as the flags stand) ..." in out
        assert "\n2 of 2 trials; " in out
        assert column(place, "state") == ["failed", "trained", "trained"]

        # It takes the place of the first: there is one more to try, and no more to try again.
        tune(search, "--retry_failed")
        assert column(place, "state") == ["failed", "trained", "trained", "trained"]
        assert sorted(column(place, "set.dropout")) == ["0.0", "0.0", "0.1", "0.2"]

    def test_of_a_metric_that_is_none(self, tune, place):
        """As the AUC of a split of one class."""
        tune({"set.softmax": [False, True]}, sampler="grid")
        assert column(place, "state") == ["trained", "failed"]
        reason = "the validation split has no auc: try another --best_by"
        assert column(place, "failure")[1] == reason

    def test_of_a_process_that_was_killed(self, tune, place):
        """As by a system without memory."""
        tune({"learning_rate": [0.02, 0.5]}, sampler="grid")
        assert column(place, "failure") == ["", "ended by SIGKILL"]


class TestGoingOn:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_after_a_signal(self, tune, place, number):
        thread = interrupt(place, number)
        out = tune(RATE, "--trials=4", status=130)
        thread.join()
        assert out.endswith("stopped; the same command goes on from here\n")
        assert "no trial has been trained to its end yet; trials: 1 unfinished\n" in out
        assert (place / "trials" / "000" / "stopped").exists()
        assert column(place, "state") == ["running"]
        (place / "trials" / "hold").unlink()
        tune(RATE, "--trials=4")
        assert starts(place) == 2 and column(place, "epochs")[0] == "2"
        interrupted = column(place, "learning_rate")

        # What is proposed is the same as if nothing had happened.
        (place / "study.log").unlink()
        for path in place.glob("trials/*/*.json"):
            path.unlink()
        tune(RATE, "--trials=4")
        assert column(place, "learning_rate") == interrupted

    def test_after_control_c(self, tune, place, monkeypatch):
        # Long enough for a training to end before the command looks again.
        monkeypatch.setattr(scheduler, "_POLL_SECONDS", 0.3)
        thread = interrupt(place, as_terminal=True)
        out = tune(RATE, "--trials=2", status=130)
        thread.join()
        assert "FAILED" not in out and column(place, "state") == ["running"]
        (place / "trials" / "hold").unlink()
        tune(RATE, "--trials=2")
        assert column(place, "state") == ["trained", "trained"]

    def test_after_the_time_was_up(self, tune, place):
        (place / "trials").mkdir(parents=True)
        (place / "trials" / "hold").touch()
        out = tune(RATE, "--trials=3", "--timeout=1")
        assert out.endswith("the time is up after 0 of 3 trials; the same command goes on\n")
        (place / "trials" / "hold").unlink()
        out = tune(RATE, "--trials=3", "--timeout=100")
        assert column(place, "state") == ["trained"] * 3 and "time is up" not in out
        assert float(column(place, "seconds")[0]) > 0.3

    def test_with_more_trials(self, tune, place):
        tune(RATE, "--trials=2")
        before = (place / "trials" / "001" / "metrics.json").stat().st_mtime_ns
        tune(RATE, "--trials=2")
        tune(RATE, "--trials=3")
        assert len(table(place)) == 3 and starts(place, 1) == 1
        assert (place / "trials" / "001" / "metrics.json").stat().st_mtime_ns == before

    def test_beside_what_other_flags_left(self, tune, place):
        directory = place / "trials" / "000"
        directory.mkdir(parents=True)
        splits = {"validation": {"auc": 0.99}}
        metrics = {"splits": splits, "command": ["train.py", "--model=twin"]}
        (directory / "metrics.json").write_text(json.dumps(metrics))
        tune(RATE, "--trials=1")
        assert column(place, "validation_auc") == ["0.745"] and starts(place) == 1

    @pytest.mark.parametrize("finishes", [True, False])
    def test_beside_a_training_that_a_killed_command_left(self, tune, place, finishes):
        thread = interrupt(place)
        tune(RATE, "--trials=2", status=130)
        thread.join()
        directory = place / "trials" / "000"
        flags = [*COMMON, "--learning_rate=0.001", f"--model_dir={directory}"]
        orphan = subprocess.Popen([*FAKE, *flags])
        while starts(place) < 2:
            time.sleep(0.005)

        def end():
            time.sleep(0.3)
            if not finishes:
                orphan.kill()
            (place / "trials" / "hold").unlink()

        thread = threading.Thread(target=end)
        thread.start()
        tune(RATE, "--trials=2")
        thread.join()
        orphan.wait()
        assert column(place, "state") == ["trained", "trained"]
        assert starts(place) == (2 if finishes else 3)

    def test_beside_one_that_had_not_claimed_its_directory_yet(self, tune, place, monkeypatch):
        """The training that comes second is refused, and that is no failure."""
        directory = place / "trials" / "000"
        flags = [*COMMON, "--learning_rate=0.001", f"--model_dir={directory}"]
        real = scheduler.processes.start
        orphans = []

        def start(*arguments):
            if not orphans:
                directory.mkdir(parents=True)
                (place / "trials" / "hold").touch()
                orphans.append(subprocess.Popen([*FAKE, *flags]))
                while not (directory / "starts").exists():
                    time.sleep(0.005)
                threading.Timer(0.3, (place / "trials" / "hold").unlink).start()
            return real(*arguments)

        monkeypatch.setattr(scheduler.processes, "start", start)
        tune(RATE, "--trials=1")
        assert orphans[0].wait() == 0
        assert column(place, "state") == ["trained"] and starts(place) == 1


class TestWrongInput:
    """Each ends in one line, before anything is trained."""

    def test_of_the_file(self, tune, place):
        out = tune({"learning_rat": [1, 2]}, status=2)
        assert out.startswith("error: ") and "learning_rat is no flag" in out
        assert not place.exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--trials=0",), "flag --trials=0"),
            (("--timeout=0",), "flag --timeout=0"),
            (("extra",), "Received: extra"),
            (("--", "--epoch=2"), "command line flag 'epoch'"),
            (("--", "--set=dropot=2"), "Received: --set=dropot=2"),
            (("--search=no.json",), "no.json"),
        ],
    )
    def test_of_the_command_line(self, tune, place, arguments, message):
        out = tune(RATE, *arguments, status=2)
        assert out.startswith("error: ") and out.count("\n") == 1 and message in out
        assert not place.exists()

    def test_another_search_there(self, tune):
        tune(RATE, "--trials=1")
        for more, message in (
            (["--", "--epochs=3"], "--epochs=3 (was 2)"),
            (["--seed=3"], "seed=3 (was 0)"),
        ):
            out = tune(RATE, "--trials=1", *more, status=2)
            assert "holds another search" in out and out.endswith(f"Received: {message}\n")
        out = tune({"learning_rate": [0.1, 0.01]}, status=2)
        assert "search.learning_rate=" in out

    @pytest.mark.parametrize("package", ["optuna", "matplotlib"])
    def test_a_missing_package(self, tune, monkeypatch, package):
        monkeypatch.setitem(sys.modules, package, None)
        needs = f"error: this command needs {package}: pip install 'tfrec_diffusion[tools]'\n"
        assert tune(RATE, status=2) == needs

    def test_another_process_tunes_there(self, tune, place):
        place.mkdir()
        with lock(place, "waiting in"):
            out = tune(RATE, status=2)
        assert out == f"error: another process is tuning in {place}\n"

    def test_missing_data(self, tune, monkeypatch):
        def find(dataset, data_dir):
            raise FileNotFoundError(f"no prepared data set in {data_dir}/{dataset}")

        monkeypatch.setattr(start, "find_or_make", find)
        assert "no prepared data set in data/synthetic" in tune(RATE, status=2)


@pytest.mark.slow
def test_real_trainings_killed_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_TRAIN", (sys.executable, "-m", "tfrec_diffusion.train"))
    data_dir, place = tmp_path / "data", tmp_path / "tuned"
    prepare("synthetic", data_dir=data_dir, users=60, items=60, categories=6, history_length=30)
    search = {
        "flags": [
            *("--dataset=synthetic", f"--data_dir={data_dir}", "--batch_size=8", "--epochs=2"),
            *("--model=avg_pooling", "--nojit_compile", "--checkpoint_every=5"),
        ],
        "search": {"learning_rate": [0.0, 0.03], "set.tower_units": ["4", "8,4"]},
        "sampler": "grid",
    }
    (tmp_path / "search.json").write_text(json.dumps(search))
    arguments = [f"--search={tmp_path / 'search.json'}", f"--tune_dir={place}", "--trials=3"]

    # Killed in its first training, which goes on by itself.
    command = [sys.executable, "-m", "tfrec_diffusion.tune", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    first = place / "trials" / "000"
    while not (first / "checkpoints" / "checkpoint").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()

    code, out, err = run(*arguments)
    assert code == 0, out + err
    rows = table(place)
    assert [row["state"] for row in rows] == ["trained"] * 3
    assert [row["learning_rate"] for row in rows] == ["0.0", "0.0", "0.03"]
    for row in rows:
        metrics = json.loads(
            (place / "trials" / f"{int(row['trial']):03d}/metrics.json").read_text()
        )
        assert float(row["validation_auc"]) == metrics["splits"]["validation"]["auc"]

    # Without learning, each epoch ends as the first: the best is the trial that has learned.
    assert float(rows[2]["validation_auc"]) > float(rows[0]["validation_auc"])
    code, out, err = commands.run("train", f"--flagfile={place / 'best.flags'}")
    assert code == 0, out + err
    again = json.loads((place / "best" / "metrics.json").read_text())
    assert again["splits"]["validation"]["auc"] == float(rows[2]["validation_auc"])
