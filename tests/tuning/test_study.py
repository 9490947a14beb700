"""What a study proposes, and what it remembers. No trainings: the metrics are made up."""

import math
import time

import pytest

optuna = pytest.importorskip("optuna")

from tfrec_diffusion.tuning.parameters import Choice, Range  # noqa: E402
from tfrec_diffusion.tuning.search_file import Search  # noqa: E402
from tfrec_diffusion.tuning.study import Study  # noqa: E402

RATE = Range("learning_rate", 1e-4, 1.0, True)
SEARCH = Search("a.json", (RATE, Choice("set.softmax", (True, False, None))))
SMALL = Search("a.json", (Range("epochs", 1, 3), Choice("set.softmax", (True, False))))


def auc(params):
    far = abs(math.log10(params["learning_rate"] / 0.01))
    return 0.8 - 0.05 * far - 0.01 * (params["set.softmax"] is True)


def train(study, number, first=None):
    """Takes trials to their end, one after the other."""
    for _ in range(number):
        trial = study.propose(None if study.trials() else first, not study.trials() and bool(first))
        study.report(trial.number, [auc(trial.params)])
        study.complete(trial.number, auc(trial.params))
    return [trial.params for trial in study.trials()]


class TestProposals:
    def test_depend_on_the_seed_and_the_trials_before_only(self, tmp_path):
        places = [tmp_path / name for name in ("whole", "parts", "other")]
        for place in places:
            place.mkdir()
        whole = train(Study(places[0], SEARCH, 0, {}), 16)
        for _ in range(4):
            parts = train(Study(places[1], SEARCH, 0, {}), 4)
        assert parts == whole
        assert train(Study(places[2], SEARCH, 1, {}), 2) != whole[:2]

    def test_come_closer_to_the_best(self, tmp_path):
        first = last = 0
        for seed in range(3):
            place = tmp_path / str(seed)
            place.mkdir()
            tried = train(Study(place, SEARCH, seed, {}), 30)
            far = [abs(math.log10(params["learning_rate"] / 0.01)) for params in tried]
            first, last = first + sum(far[:10]), last + sum(far[-10:])
        assert last < 0.75 * first

    def test_keep_away_from_what_failed(self, tmp_path):
        study = Study(tmp_path, SEARCH, 0, {})
        failed = []
        for _ in range(40):
            trial = study.propose()
            failed.append(trial.params["learning_rate"] > 0.02)
            if failed[-1]:
                study.fail(trial.number, "diverged")
            else:
                study.complete(trial.number, auc(trial.params))
        # 4 in 10 by chance; if they were forgotten, 8 in 10.
        assert sum(failed[10:]) < 13

    def test_are_not_repeated_and_end(self, tmp_path):
        study = Study(tmp_path, SMALL, 0, {})
        for _ in range(6):
            study.complete(study.propose().number, 0.5)
        tried = [trial.params for trial in study.trials()]
        assert all(params in tried for params in SMALL.combinations()) and len(tried) == 6
        assert study.propose() is None

    def test_of_a_grid_come_in_order(self, tmp_path):
        grid = SMALL._replace(sampler="grid")
        study = Study(tmp_path, grid, 0, {})
        for _ in range(2):
            study.complete(study.propose().number, 0.5)
        study = Study(tmp_path, grid, 0, {})
        while study.propose():
            pass
        assert [trial.params for trial in study.trials()] == [*grid.combinations()]

    def test_several_at_a_time_differ(self, tmp_path):
        study = Study(tmp_path, SEARCH, 0, {})
        train(study, 12)
        rates = [study.propose().params["learning_rate"] for _ in range(4)]
        assert len(set(rates)) == 4

    def test_the_flags_own_settings_may_come_first(self, tmp_path):
        own = {"learning_rate": 0.003, "set.softmax": None}
        study = Study(tmp_path, SEARCH, 0, {})
        assert train(study, 2, own)[0] == own
        assert [trial.is_own for trial in study.trials()] == [True, False]


class TestMemory:
    def test_of_all_trials(self, tmp_path):
        study = Study(tmp_path, SEARCH, 0, {})
        for number, values in enumerate(([0.5, 0.7], [0.4], [], [0.6])):
            assert study.propose().number == number
            study.report(number, values[:1])
            study.report(number, values)
        study.add_seconds(0, 2.0)
        study.add_seconds(0, 3.5)
        study.complete(0, 0.71)
        study.prune(1)
        study.fail(2, "the disk is full")
        found = Study(tmp_path, SEARCH, 0, {}).trials()
        assert found == study.trials()
        assert [trial.state for trial in found] == ["trained", "pruned", "failed", "running"]
        assert [trial.value for trial in found] == [0.71, 0.4, None, None]
        assert [trial.epochs for trial in found] == [2, 1, 0, 1]
        assert [trial.seconds for trial in found] == [5.5, 0, 0, 0]
        assert [trial.failure for trial in found] == ["", "", "the disk is full", ""]

    def test_of_what_failed_and_was_not_tried_again(self, tmp_path):
        study = Study(tmp_path, SEARCH, 0, {})
        for number in range(4):
            study.propose()
            study.complete(number, 0.5) if number == 2 else study.fail(number, "no memory")
        again = study.to_repeat()
        assert [trial.number for trial in again] == [0, 1, 3]
        study.propose(again[1].params)
        assert [trial.number for trial in study.to_repeat()] == [0, 3]

    @pytest.mark.parametrize("whole", [0, 7])
    def test_after_a_machine_that_went_down(self, tmp_path, monkeypatch, whole):
        """In the middle of a line, with Optuna's lock in hand, for which it would wait."""
        study = Study(tmp_path, SEARCH, 0, {})
        train(study, 2)
        (tmp_path / "study.log.lock").symlink_to("study.log")
        with open(tmp_path / "study.log", "ab") as file:
            file.write(b'{"op_code": 4, "worker_id"'[:whole])
        monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits for the lock"))
        again = Study(tmp_path, SEARCH, 0, {})
        assert again.trials() == study.trials()
        train(again, 1)
        assert len(Study(tmp_path, SEARCH, 0, {}).trials()) == 3

    def test_refuses_another_search(self, tmp_path):
        Study(tmp_path, SEARCH, 0, {"metric": "auc", "--epochs": 2, "--old": 1})
        # A version of the package with other flags.
        Study(tmp_path, SEARCH, 0, {"metric": "auc", "--epochs": 2, "--new": 1})
        with pytest.raises(ValueError, match=r"--epochs=3 \(was 2\)$"):
            Study(tmp_path, SEARCH, 0, {"metric": "auc", "--epochs": 3})
        with pytest.raises(ValueError, match=r"search.x=\[1\] \(was None\)$"):
            Study(tmp_path, SEARCH, 0, {"metric": "auc", "--epochs": 2, "search.x": [1]})


class TestBest:
    @pytest.mark.parametrize(("metric", "best"), [("auc", 1), ("log_loss", 2)])
    def test_by_the_metric(self, tmp_path, metric, best):
        study = Study(tmp_path, SEARCH._replace(metric=metric), 0, {})
        assert study.best() is None
        for value in (0.5, 0.7, 0.3, 0.7, 0.3):
            study.complete(study.propose().number, value)
        assert study.best().number == best

    def test_is_none_that_was_pruned(self, tmp_path):
        study = Study(tmp_path, SEARCH, 0, {})
        for value in (0.5, 0.9):
            study.report(study.propose().number, [value])
        study.complete(0, 0.5)
        study.prune(1)
        assert study.best().number == 0


class TestPruning:
    @pytest.fixture
    def study(self, tmp_path):
        """After five trials that had 0.5 to 0.54 after the first epoch and gained by each."""

        def study(**how):
            study = Study(tmp_path, SEARCH._replace(**how), 0, {})
            for number in range(5):
                study.propose()
                first = 0.5 + number / 100
                if study._search.metric == "log_loss":
                    first = 1 - first
                assert not study.report(number, [first])
                study.complete(number, first)
            study.propose()
            return study

        return study

    def test_ends_what_is_below_the_median(self, study):
        study = study()
        assert not study.report(5, [0.521])
        study.propose()
        assert study.report(6, [0.519])

    def test_knows_that_less_may_be_better(self, study):
        study = study(metric="log_loss")
        assert not study.report(5, [0.479])
        study.propose()
        assert study.report(6, [0.481])

    def test_may_be_none(self, study):
        study = study(pruner="none")
        assert not study.report(5, [0.1])

    def test_leaves_the_best_quarter(self, study):
        study = study(pruner="successive_halving")
        assert study.report(5, [0.53])

    def test_tells_again_what_it_was_told(self, study):
        study = study()
        assert not study.report(5, [0.55])
        assert not study.report(5, [0.55, 0.5])
        assert study.trials()[5].epochs == 2
