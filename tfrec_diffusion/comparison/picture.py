"""The picture of a table."""

import itertools

import numpy as np

from tfrec_diffusion.comparison.differences import differences
from tfrec_diffusion.comparison.statistics import SURE

_INCHES_A_LETTER = 0.08
_LOGARITHMIC = 20  # from this ratio of the largest number to the smallest on


def draw(table):
    """Draws the picture of a table.

    Args:
        table: `Table`. It has a figure.

    Returns:
        `matplotlib.figure.Figure`.
    """
    figure = KINDS[table.figure.kind](table.sections(), table.figure)
    _legend(figure)
    return figure


def _bars(sections, _):
    # In the order of the section that has most.
    by_size = sorted(sections, key=lambda section: -len(section.entries))
    rows = list(dict.fromkeys(entry.row for section in by_size for entry in section.entries))
    names = max(1.5, _INCHES_A_LETTER * max(map(len, rows)))
    size = (max(6, names + 2.6 * len(sections)), 1.8 + 0.28 * len(rows))
    figure, panels = _panels(len(sections), size)
    for axes, section in zip(panels, sections, strict=True):
        _mark_base(axes.axvline, section)
        for entry, auc, error, found in _measured(section):
            axes.errorbar(
                auc, rows.index(entry.row), xerr=np.transpose([error]),
                fmt="o", capsize=3, color="C0" if not entry.missing() else "0.6",
                markerfacecolor=None if found and found.p < SURE else "white",
            )  # fmt: skip
        axes.set_title(_title(section), fontsize="medium")
        axes.set_xlabel("AUC")
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x", alpha=0.3)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(
        f"Dashed: {sections[0].base.row}; error bars: 95% interval of the difference from it;\n"
        f"filled: differs from it with p < {SURE} (Holm); gray: not all seeds yet.",
        fontsize="small",
    )
    return figure


def _line(sections, of_table):
    figure, panels = _panels(len(sections), (1 + 3.5 * len(sections), 4), sharey=False)
    for axes, section in zip(panels, sections, strict=True):
        _mark_base(axes.axhline, section)
        lines = {}
        for entry, auc, error, _ in _measured(section):
            point = of_table.points[entry.row]
            number, name = point if isinstance(point, list) else (point, None)
            lines.setdefault(name, []).append((number, auc, error))
        _draw_lines(axes, lines, of_table.label)
        axes.set_title(_title(section), fontsize="medium")
    panels[0].set_ylabel("AUC")
    figure.supxlabel(
        f"Dashed: {sections[0].base.row}; error bars: 95% interval of the difference from it.",
        fontsize="small",
    )
    return figure


def _data_sets(sections, of_table):
    figure, (axes,) = _panels(1, (6, 4))
    lines = {}
    for section in sections:
        number = of_table.points[section.base.data_set.name]
        for entry, _, error, found in _measured(section):
            if found:
                lines.setdefault(entry.row, []).append((number, found.mean, error))
    axes.axhline(0, color="0.5", linestyle="--", linewidth=1)
    _draw_lines(axes, lines, of_table.label)
    axes.set_ylabel(f"AUC less that of {sections[0].base.row}")
    figure.supxlabel("Error bars: 95% interval.", fontsize="small")
    return figure


def _splits(sections, of_table):
    by_data_set = itertools.groupby(sections, lambda section: section.base.data_set.name)
    by_data_set = {name: list(found) for name, found in by_data_set}
    figure, panels = _panels(len(by_data_set), (1 + 4 * len(by_data_set), 4))
    for axes, (name, found) in zip(panels, by_data_set.items(), strict=True):
        lines = {}
        for section in found:
            number = int(section.split.rpartition("_")[2])
            for entry in section.entries:
                known = entry.oracles(section.split).get(f"oracle: {of_table.oracle}")
                aucs = _aucs(entry, section.split)
                if known and len(aucs):
                    spread = aucs.std(ddof=1) if len(aucs) > 1 else 0
                    point = (number, aucs.mean() - known["auc"], (spread, spread))
                    lines.setdefault(entry.row, []).append(point)
        _draw_lines(axes, lines, of_table.label)
        axes.set_title(name, fontsize="medium")
    panels[0].set_ylabel(f"AUC less that of the oracle: {of_table.oracle}")
    figure.supxlabel("Error bars: standard deviation over the seeds.", fontsize="small")
    return figure


KINDS = {"bars": _bars, "line": _line, "data_sets": _data_sets, "splits": _splits}


def _panels(number, size, sharey=True):
    from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained")
    return figure, figure.subplots(1, number, sharey=sharey, squeeze=False)[0]


def _title(section):
    return f"{section.base.data_set.name}, {section.split}"


def _mark_base(line, section):
    aucs = _aucs(section.base, section.split)
    if len(aucs):
        line(aucs.mean(), color="0.5", linestyle="--", linewidth=1)


def _draw_lines(axes, lines, label):
    """Draws lines of (number, value, error below and above), by their names."""
    numbers = sorted({point[0] for points in lines.values() for point in points})
    for name, points in lines.items():
        x, y, errors = zip(*sorted(points), strict=True)
        axes.errorbar(x, y, np.transpose(errors), marker="o", capsize=3, label=name)
    if numbers and 0 < _LOGARITHMIC * numbers[0] <= numbers[-1]:
        axes.set_xscale("log")
    axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)


def _legend(figure):
    names = {}
    for axes in figure.axes:
        names.update(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    if names:
        figure.legend(
            names.values(), names, loc="outside upper center", ncols=2, frameon=False,
            fontsize="small",
        )  # fmt: skip


def _measured(section):
    """Of each entry with results: it, its AUC, what its interval adds below and above, and its
    difference from the base."""
    found = differences(section.entries, section.base, section.split)
    for entry, one in zip(section.entries, found, strict=True):
        aucs = _aucs(entry, section.split)
        if len(aucs):
            error = (one.mean - one.low, one.high - one.mean) if one else (0, 0)
            yield entry, aucs.mean(), error, one


def _aucs(entry, split):
    return np.array([found["auc"] for found in entry.results_on(split)], float)
