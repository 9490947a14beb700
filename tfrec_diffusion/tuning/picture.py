"""The picture of a search: how it went on, and the metric against each parameter."""

import itertools
import math

import numpy as np

from tfrec_diffusion.tuning.parameters import Choice

_COLUMNS = 3
_BEYOND = 0.05  # of a range is shown on both sides
_LETTERS = 30  # of all values of a parameter, more of which do not fit beside each other
_FAR = 4  # from this multiple of the median distance from the best on
_MARKERS = {
    "trained": {"marker": "o", "color": "C0"},
    "pruned": {"marker": "x", "color": "0.5"},
    "failed": {"marker": "^", "color": "0.5"},
    "best": {"marker": "*", "color": "C3", "s": 150, "zorder": 3},
}


def draw(trials, best, search):
    """Draws the picture of a search.

    Args:
        trials: list of `Trial`.
        best: `Trial` or `None`.
        search: `Search`.

    Returns:
        `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    rows = 1 + math.ceil(len(search.parameters) / _COLUMNS)
    figure = Figure((4 * _COLUMNS, 3 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, _COLUMNS)
    course = figure.add_subplot(grid[0, :])
    _draw_course(course, trials, best, search)
    for place, parameter in enumerate(search.parameters, _COLUMNS):
        axes = figure.add_subplot(grid[divmod(place, _COLUMNS)], sharey=course)
        _draw_parameter(axes, trials, best, parameter)
        if place % _COLUMNS == 0:
            axes.set_ylabel(f"validation {search.metric}")
        else:
            axes.tick_params(labelleft=False)
    _focus(figure, course, trials, search)
    figure.legend(
        *course.get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False,
        fontsize="small",
    )  # fmt: skip
    return figure


def _draw_course(axes, trials, best, search):
    _scatter(axes, trials, best, lambda trial: trial.number)
    trained = [trial for trial in trials if trial.state == "trained"]
    if trained:
        found = itertools.accumulate(
            (trial.value for trial in trained),
            lambda so_far, value: value if search.is_better(value, so_far) else so_far,
        )
        numbers = [*(trial.number for trial in trained), trials[-1].number]
        axes.step(numbers, [*found, best.value], where="post", color="C3", label="best so far")
    for trial in trained:
        if trial.is_own:
            axes.axhline(
                trial.value, color="0.5", linestyle="--", linewidth=1, label="as the flags stand"
            )
    axes.set_xlim(-0.5, max((trial.number for trial in trials), default=0) + 0.5)
    axes.set_xlabel("trial")
    axes.set_ylabel(f"validation {search.metric}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _draw_parameter(axes, trials, best, parameter):
    name = parameter.name
    if isinstance(parameter, Choice):
        names = [str(value) for value in parameter.values]
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
        if sum(map(len, names)) > _LETTERS:
            axes.tick_params(axis="x", rotation=30)
        _scatter(axes, trials, best, lambda trial: parameter.values.index(trial.params[name]))
    else:
        low, high = parameter.low, parameter.high
        if parameter.log:
            axes.set_xscale("log")
            beyond = (high / low) ** _BEYOND
            axes.set_xlim(low / beyond, high * beyond)
        else:
            beyond = (high - low) * _BEYOND
            axes.set_xlim(low - beyond, high + beyond)
        _scatter(axes, trials, best, lambda trial: trial.params[name])
    axes.set_xlabel(name)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _scatter(axes, trials, best, position):
    for state in ("trained", "pruned"):
        shown = [trial for trial in trials if trial.state == state]
        if shown:
            axes.scatter(
                [position(trial) for trial in shown], [trial.value for trial in shown],
                label=state, **_MARKERS[state],
            )  # fmt: skip
    failed = [position(trial) for trial in trials if trial.state == "failed"]
    if failed:
        # They have no value: at the bottom.
        axes.scatter(
            failed, [0.03] * len(failed), label="failed", transform=axes.get_xaxis_transform(),
            **_MARKERS["failed"],
        )  # fmt: skip
    if best:
        axes.scatter([position(best)], [best.value], label="best", **_MARKERS["best"])


def _focus(figure, axes, trials, search):
    """Leaves out what is so far from the best that all others would lie on each other."""
    values = np.array([trial.value for trial in trials if trial.value is not None])
    if not len(values):
        return
    best = max(values) if search.is_better(1, 0) else min(values)
    distances = np.abs(values - best)
    far = distances > _FAR * np.median(distances)
    if not far.any() or far.all():
        return
    margin = 0.08 * distances[~far].max()
    axes.set_ylim(values[~far].min() - margin, values[~far].max() + margin)
    figure.supxlabel(
        f"{np.count_nonzero(far)} of {len(values)} trials are too far off to be shown.",
        fontsize="small",
    )
