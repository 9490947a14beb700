import json

import pytest
from finished_runs import finish, leave_metrics

from tfrec_diffusion.comparison.clustering import Clustering
from tfrec_diffusion.comparison.entry import DataSet, Entry, by_data_set

RATES = [f"--learning_rate={rate}" for rate in ("0.001", "0.01", "0.1")]


@pytest.fixture
def data_set(tmp_path):
    return DataSet("My logs", ["--dataset=logs"], tmp_path / "runs")


@pytest.fixture
def tuned(data_set):
    return Entry("DIN", "din", data_set, num_seeds=3, tune=[RATES])


def tune(entry, *validation_aucs):
    for run, auc in zip(entry.tried(), validation_aucs, strict=True):
        finish(run, auc)


class TestOneGroup:
    def test_each_is_tried_with_seed_0(self, tuned):
        tried = tuned.tasks(0)
        assert [(run.run, run.seed) for run in tried] == [(f"din {rate}", 0) for rate in RATES]
        assert tuned.best() is None and tuned.of_seeds() == [] == tuned.tasks(1)

    def test_none_is_chosen_before_all_are_tried(self, tuned):
        for run in tuned.tried()[:2]:
            finish(run, 0.7)
        assert tuned.best() is None and tuned.tasks(1) == [] and tuned.chosen() == ""
        assert tuned.missing() == "2 of 3 settings"

    def test_the_best_on_validation_is_taken_for_all_seeds(self, tuned):
        # By a little, though it is far worse on the test split.
        for run, validation, test in zip(
            tuned.tried(), (0.699, 0.70, 0.698), (0.95, 0.72, 0.95), strict=True
        ):
            finish(run, validation, test=test)
        assert tuned.chosen() == "--learning_rate=0.01"
        assert [(run.run, run.seed) for run in tuned.of_seeds()] == [
            (f"din {RATES[1]}", seed) for seed in range(3)
        ]
        assert [run.seed for run in tuned.tasks(2)] == [2]

    def test_of_other_seeds_nothing_is_asked(self, tuned):
        tune(tuned, 0.6, 0.7, 0.65)
        finish(tuned.of_seeds()[1], 0.99)
        assert tuned.chosen() == "--learning_rate=0.01"
        finish(tuned.of_seeds()[2], 0.1)
        assert tuned.chosen() == "--learning_rate=0.01"

    def test_an_undefined_auc_is_the_worst(self, tuned):
        tune(tuned, None, 0.0, None)
        assert tuned.chosen() == "--learning_rate=0.01"

    def test_without_any_auc_the_log_loss_decides(self, tuned):
        """A validation split of one class."""
        for run, log_loss in zip(tuned.tried(), (0.5, 0.3, 0.4), strict=True):
            finish(run, {"auc": None, "gauc": None, "log_loss": log_loss})
        assert tuned.chosen() == "--learning_rate=0.01"

    def test_without_any_all_seeds_can_run_at_once(self, data_set):
        entry = Entry("DIN", "din", data_set, num_seeds=2)
        assert [run.run for run in entry.of_seeds()] == ["din", "din"]
        assert [entry.tasks(seed)[0].seed for seed in range(2)] == [0, 1]
        assert entry.num_runs == 2 and entry.missing() == "0 of 2 seeds" and entry.chosen() == ""


class TestSeveralGroups:
    """Each is tried with the best of those before."""

    @pytest.fixture
    def entry(self, data_set):
        groups = [RATES[:2], ["", "units=4", "units=8 --epochs=2"], ["dropout=0.1", ""]]
        return Entry("DIN", "din", data_set, num_seeds=2, tune=groups)

    def unfinished(self, entry):
        return [run.run for run in entry.tasks(0) if not run.is_finished]

    def test_to_the_end(self, entry):
        assert entry.num_tried == 5 and entry.num_runs == 6
        assert self.unfinished(entry) == [f"din {rate}" for rate in RATES[:2]]
        tune(entry, 0.6, 0.7)
        # An empty setting has been tried already.
        assert self.unfinished(entry) == [
            f"din {RATES[1]} units=4",
            f"din {RATES[1]} units=8 --epochs=2",
        ]
        assert entry.missing() == "2 of 5 settings" and entry.tasks(1) == []
        tune(entry, 0.6, 0.7, 0.69, 0.72)
        assert self.unfinished(entry) == [f"din {RATES[1]} units=8 --epochs=2 dropout=0.1"]
        tune(entry, 0.6, 0.7, 0.69, 0.72, 0.71)
        assert entry.chosen() == f"{RATES[1]} units=8 --epochs=2"
        assert [run.run for run in entry.tasks(1)] == [f"din {entry.chosen()}"]
        assert entry.missing() == "1 of 2 seeds" and len(entry.finished()) == 5
        finish(entry.of_seeds()[1])
        assert entry.missing() == "" and len(entry.finished()) == entry.num_runs

    def test_the_row_as_it_stands_may_be_the_best(self, entry):
        tune(entry, 0.7, 0.6)
        tune(entry, 0.7, 0.6, 0.69, 0.68)
        tune(entry, 0.7, 0.6, 0.69, 0.68, 0.65)
        assert entry.chosen() == RATES[0] and entry.num_tried == 5

    def test_a_single_alternative_is_no_run_of_its_own(self, data_set):
        groups = [["--epochs=2"], ["units=2", "units=4"], ["dropout=0.1"]]
        entry = Entry("DIN", "din", data_set, num_seeds=2, tune=groups)
        assert self.unfinished(entry) == ["din --epochs=2 units=2", "din --epochs=2 units=4"]
        tune(entry, 0.7, 0.8)
        assert self.unfinished(entry) == ["din --epochs=2 units=4 dropout=0.1"]
        assert entry.num_tried == 3 and entry.missing() == "0 of 2 seeds"

    def test_each_setting_can_be_checked_before_anything_is_run(self, entry):
        runs = [run.run for run in entry.unclustered()]
        assert "din units=8 --epochs=2" in runs and f"din {RATES[0]}" in runs
        assert [run.run for run in Entry("DIN", "din", entry.data_set, 2).unclustered()] == ["din"]


class TestTunedAs:
    """A row that takes the settings that were chosen for another one."""

    @pytest.fixture
    def entry(self, data_set, tuned):
        return Entry("Wide DIN", "din units=9", data_set, num_seeds=2, tuned_as=tuned)

    def test_waits_for_them(self, entry, tuned):
        assert entry.tasks(0) == entry.of_seeds() == entry.tasks(1) == []
        assert entry.best() is None and entry.chosen() == ""
        assert entry.missing() == "0 of 2 seeds" and entry.num_runs == 2
        assert [run.run for run in entry.unclustered()] == ["din units=9"]
        tune(tuned, 0.6, 0.7, 0.65)
        assert [run.run for run in entry.tasks(0)] == [f"din units=9 {RATES[1]}"]
        assert [run.seed for run in entry.of_seeds()] == [0, 1]
        assert entry.chosen() == RATES[1] and entry.num_tried == 1

    def test_may_try_more(self, entry, tuned):
        entry.tune = [["", "dropout=0.1"]]
        assert entry.tasks(0) == []
        tune(tuned, 0.6, 0.7, 0.65)
        tune(entry, 0.6, 0.7)
        assert entry.chosen() == f"{RATES[1]} dropout=0.1" and entry.num_tried == 2

    def test_where_the_other_one_is_not_tuned(self, data_set):
        base = Entry("DIN", "din", data_set, num_seeds=2)
        entry = Entry("Wide DIN", "din units=9", data_set, num_seeds=2, tuned_as=base)
        assert [run.run for run in entry.of_seeds()] == ["din units=9"] * 2


class TestOracles:
    def test_are_those_of_a_finished_run(self, data_set):
        entry = Entry("DIN", "din", data_set, num_seeds=2)
        assert entry.oracles("test") == {}
        _, run = entry.of_seeds()
        leave_metrics(
            *(run.directory, run.flags, {"test": 0.5, "validation": 0.5}),
            best_reachable={"test": {"auc": 0.9}, "validation": None},
            oracles={"test": {"own": {"auc": 0.8}}},
        )
        found = entry.oracles("test")
        assert found == {"best reachable": {"auc": 0.9}, "oracle: own": {"auc": 0.8}}
        assert entry.oracles("validation") == {}


class TestResults:
    def test_what_is_missing(self, tuned):
        assert tuned.missing() == "0 of 3 settings" and tuned.num_runs == 5
        tune(tuned, 0.6, 0.7, 0.65)
        assert tuned.missing() == "1 of 3 seeds" and len(tuned.finished()) == 3
        for seed, run in enumerate(tuned.of_seeds()):
            finish(run, 0.7, test=0.5 + 0.1 * seed)
        assert tuned.missing() == "" and len(tuned.finished()) == 5
        assert [result["test"]["auc"] for result in tuned.results()] == [0.5, 0.6, 0.7]

    def test_a_failed_row_says_so(self, tuned):
        tune(tuned, 0.6, 0.7, 0.65)
        tuned.failed = True
        assert tuned.missing() == "failed"


def test_entries_by_data_set(data_set):
    other = data_set._replace(name="Other")
    entries = [Entry(row, "din", where, 2) for where in (data_set, other) for row in "ab"]
    assert list(by_data_set(entries)) == [entries[:2], entries[2:]]


class TestClustered:
    """A row on a data set that is clustered by the model of another row."""

    @pytest.fixture
    def entry(self, data_set, tuned):
        return Entry(
            *("TWIN-V2", "twin_v2", data_set, 2, [RATES]), clustered_by=tuned,
            clustering=["--set=recent=5"],
        )  # fmt: skip

    @pytest.fixture
    def trained(self, tuned, schema, tmp_path):
        """Leaves what its model was trained on, once the other row has tried its rates."""
        tune(tuned, 0.6, 0.7, 0.65)
        directory = tuned.best().directory
        schema.save(directory)
        flags = {"data_dir": str(tmp_path / "data"), "dataset": "logs/my"}
        (directory / "flags.json").write_text(json.dumps(flags))
        source = tmp_path / "data" / "logs" / "my" / "1.2.0"
        source.mkdir(parents=True)
        schema.save(source)
        return directory

    def prepare(self, clustering, schema):
        """Leaves what shows that the clustered data set is prepared."""
        directory = clustering.directory / "clustered" / "small" / "1.0.0"
        directory.mkdir(parents=True)
        schema.save(directory)

    def test_the_other_row_goes_first(self, entry):
        assert entry.tasks(0) == [] == entry.tried()
        assert entry.missing() == "0 of 3 settings" and entry.num_runs == 4

    def test_then_the_clustering(self, entry, trained, schema, tmp_path):
        (clustering,) = entry.tasks(0)
        assert isinstance(clustering, Clustering) and not clustering.is_finished
        place = f"clustered_by_{trained.name}_--set=recent=5"
        assert clustering.directory == trained.with_name(place)
        assert entry.tried() == []
        assert clustering.command[1:] == [
            *("-m", "tfrec_diffusion.prepare", "--dataset=clustered"),
            f"--raw_dir={tmp_path / 'data' / 'logs' / 'my' / '1.2.0'}",
            f"--data_dir={clustering.directory}",
            *(f"--set=model_dir={trained}", "--set=recent=5"),
        ]
        self.prepare(clustering, schema)
        assert clustering.is_finished and clustering.result == "prepared"

    def test_then_its_own_runs(self, entry, trained, schema):
        (clustering,) = entry.tasks(0)
        self.prepare(clustering, schema)
        runs = entry.tasks(0)
        assert [run.run for run in runs] == [f"twin_v2 {rate}" for rate in RATES]
        assert runs[0].directory == clustering.directory / "twin_v2_learning_rate=0.001_0"
        assert runs[0].flags[:3] == [
            *("--dataset=logs", "--dataset=clustered/small", f"--data_dir={clustering.directory}")
        ]
        assert entry.unclustered()[0].flags[:2] == ["--dataset=logs", "--model=twin_v2"]

    def test_an_untuned_row_has_to_be_finished_too(self, data_set, schema):
        base = Entry("TWIN", "twin", data_set, 2)
        entry = Entry("TWIN-V2", "twin_v2", data_set, 2, clustered_by=base)
        assert entry.tasks(0) == [] and entry.missing() == "0 of 2 seeds"
        finish(base.of_seeds()[0])
        schema.save(base.of_seeds()[0].directory)
        (base.of_seeds()[0].directory / "flags.json").write_text("{}")
        assert [type(task) for task in entry.tasks(0)] == [Clustering]
