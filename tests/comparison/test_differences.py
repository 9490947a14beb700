"""Of the predictions that finished runs leave."""

import numpy as np
import pytest
from finished_runs import finish, leave_predictions

from tfrec_diffusion import metrics
from tfrec_diffusion.comparison import plan, statistics
from tfrec_diffusion.comparison.differences import differences, lacking
from tfrec_diffusion.comparison.entry import DataSet
from tfrec_diffusion.training.run_directory import RunDirectory

pytest.importorskip("scipy")


@pytest.fixture
def entries(tmp_path):
    """Three rows with three finished seeds: a base, one as good, a better one."""
    entries = plan.from_runs(["din", "dien", "twin"], DataSet("a", [], tmp_path), 3).entries
    for entry, noise in zip(entries, (1, 1.02, 0.5), strict=True):
        for run in entry.of_seeds():
            finish(run)
            leave_predictions(run, noise)
    return entries


def predictions(entry, seed=0):
    return RunDirectory(entry.of_seeds()[seed].directory).predictions("test")


def auc(entry, seed):
    probabilities, labels, *_ = predictions(entry, seed)
    return metrics.auc(labels, probabilities)


def test_are_in_pairs_of_equal_seeds(entries):
    _, _, found = differences(entries, entries[0], "test")
    base, _, better = entries
    measured = np.array([auc(better, seed) - auc(base, seed) for seed in range(3)])
    resampled = [
        statistics.resampled_aucs(*predictions(better, seed))
        - statistics.resampled_aucs(*predictions(base, seed))
        for seed in range(3)
    ]
    expected = statistics.difference(measured, np.array(resampled), 200)
    assert found[:3] == pytest.approx(expected[:3])
    assert found.mean == pytest.approx(measured.mean()) and found.low > 0
    # By Holm, the smaller one of two counts twice.
    assert found.p == pytest.approx(2 * expected.p) and found.p < 0.01


def test_of_rows_that_are_alike(entries):
    first, alike, _ = differences(entries, entries[0], "test")
    assert first is None and alike.low < 0 < alike.high and alike.p > 0.05


def test_only_finished_seeds_that_both_have_count(entries):
    base, _, better = entries
    (better.of_seeds()[0].directory / "metrics.json").unlink()
    _, found = differences([base, better], base, "test")
    assert found.mean == pytest.approx(
        np.mean([auc(better, seed) - auc(base, seed) for seed in (1, 2)])
    )
    RunDirectory(base.of_seeds()[1].directory).predictions_file("test").unlink()
    assert differences([base, better], base, "test") == [None, None]
    assert differences(entries, entries[0], "test_99") == [None, None, None]


def test_what_is_lacking(entries):
    assert lacking(entries, "test") == [] == lacking(entries, "test_99")
    runs = entries[1].of_seeds()
    RunDirectory(runs[1].directory).predictions_file("test").unlink()
    assert lacking(entries, "test") == [runs[1]]
    (runs[1].directory / "metrics.json").unlink()
    assert lacking(entries, "test") == []
    assert len(lacking(entries, "validation")) == 8


def test_another_order_is_no_other_data(entries):
    expected = differences(entries, entries[0], "test")
    shuffled = np.random.default_rng(0).permutation(1000)
    columns = predictions(entries[2])
    RunDirectory(entries[2].of_seeds()[0].directory).write_predictions(
        "test", *(column[shuffled] for column in columns[:3])
    )
    assert differences(entries, entries[0], "test")[2] == pytest.approx(expected[2], abs=1e-6)


@pytest.mark.parametrize("column", ["labels", "groups"])
def test_other_data_are_refused(entries, column):
    assert differences(entries, entries[0], "test")[2]
    run = entries[2].of_seeds()[1]
    changed = predictions(entries[2], 1)
    before = getattr(changed, column)
    changed = changed._replace(**{column: np.append(1 - before[0], before[1:])})
    RunDirectory(run.directory).write_predictions("test", *changed)
    with pytest.raises(ValueError, match="cannot be compared: their test splits") as refused:
        differences(entries, entries[0], "test")
    for directory in (run.directory, entries[0].of_seeds()[1].directory):
        assert str(directory) in str(refused.value)


def test_one_class_only_has_none(entries):
    base, other, _ = entries
    for run in (*base.of_seeds(), *other.of_seeds()):
        RunDirectory(run.directory).write_predictions("test", np.ones(3), np.zeros(3), np.arange(3))
    assert differences([base, other], base, "test") == [None, None]
