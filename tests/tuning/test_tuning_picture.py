"""What the picture of a search shows."""

import pytest

pytest.importorskip("optuna")
pytest.importorskip("matplotlib")

from tfrec_diffusion.tuning.parameters import Choice, Range
from tfrec_diffusion.tuning.picture import draw
from tfrec_diffusion.tuning.search_file import Search
from tfrec_diffusion.tuning.study import Trial

SEARCH = Search(
    "a.json",
    (
        Range("learning_rate", 1e-4, 1e-2, True),
        Choice("set.max_length", (None, 1, 2)),
        Range("set.dropout", 0.0, 0.4),
        Choice("set.tower_units", ("400,160", "200,80", "100,40,20,10,5,3,2")),
    ),
)


def trial(number, value, state="trained", length=None, is_own=False):
    params = {
        "learning_rate": 10 ** -(2 + number / 4),
        "set.max_length": length,
        "set.dropout": number / 20,
        "set.tower_units": "200,80",
    }
    return Trial(number, params, state, value, 1, 1.0, "", is_own)


TRIALS = [
    trial(0, 0.70, is_own=True),
    trial(1, 0.69, length=1),
    trial(2, 0.66, "pruned", length=2),
    trial(3, 0.72, length=2),
    trial(4, None, "failed"),
    trial(5, 0.71),
    trial(6, None, "running"),
]


def points(axes, label):
    """What is drawn under a name, as (x, y)."""
    (found,) = [marks for marks in axes.collections if marks.get_label() == label]
    return [tuple(point) for point in found.get_offsets().tolist()]


def test_the_course():
    course = draw(TRIALS, TRIALS[3], SEARCH).axes[0]
    assert points(course, "trained") == [(0, 0.7), (1, 0.69), (3, 0.72), (5, 0.71)]
    assert points(course, "pruned") == [(2, 0.66)] and points(course, "best") == [(3, 0.72)]
    assert [x for x, _ in points(course, "failed")] == [4]
    lines = {line.get_label(): line for line in course.lines}
    so_far = lines["best so far"]
    assert [*so_far.get_xdata()] == [0, 1, 3, 5, 6]
    assert [*so_far.get_ydata()] == [0.7, 0.7, 0.72, 0.72, 0.72]
    assert lines["as the flags stand"].get_ydata()[0] == 0.7


def test_each_parameter():
    _, rate, length, dropout, units = draw(TRIALS, TRIALS[3], SEARCH).axes
    assert [axes.get_xlabel() for axes in (rate, length, dropout, units)] == [
        parameter.name for parameter in SEARCH.parameters
    ]
    assert rate.get_xscale() == "log" and dropout.get_xscale() == "linear"
    low, high = rate.get_xlim()
    assert 0.5e-4 < low < 1e-4 and 1e-2 < high < 2e-2  # all that is searched
    assert points(dropout, "best") == [(3 / 20, 0.72)]
    assert points(length, "trained") == [(0, 0.7), (1, 0.69), (2, 0.72), (0, 0.71)]
    assert [label.get_text() for label in length.get_xticklabels()] == ["None", "1", "2"]


def test_the_best_so_far_is_the_least_log_loss():
    trials = [trial(0, 0.5), trial(1, 0.4), trial(2, 0.45)]
    course = draw(trials, trials[1], SEARCH._replace(metric="log_loss")).axes[0]
    assert [*course.lines[0].get_ydata()] == [0.5, 0.4, 0.4, 0.4]
    assert course.get_ylabel() == "validation log_loss"


@pytest.mark.parametrize("metric", ["auc", "log_loss"])
def test_what_is_far_off_is_counted(metric):
    values = [0.70, 0.71, 0.72, 0.73, 0.2]
    if metric == "log_loss":
        values = [1 - value for value in values]
    trials = [trial(number, value) for number, value in enumerate(values)]
    figure = draw(trials, trials[3], SEARCH._replace(metric=metric))
    assert figure.get_supxlabel() == "1 of 5 trials are too far off to be shown."
    low, high = figure.axes[0].get_ylim()
    assert [low < value < high for value in values] == [True] * 4 + [False]


def test_before_any_trial_has_ended():
    figure = draw([trial(0, None, "running")], None, SEARCH)
    assert len(figure.axes) == 5
