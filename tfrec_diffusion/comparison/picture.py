"""The picture of a comparison."""

import numpy as np

from tfrec_diffusion.comparison.differences import differences

_INCHES_A_LETTER = 0.08
_SURE = 0.05  # p below which a marker is filled


def draw(sections):
    """Draws a panel for each section: AUC, and its standard deviation over the seeds, by row.

    Args:
        sections: list of pairs of a list of `Entry`, those of a data set, and a split.

    Returns:
        `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    rows = [entry.row for entry in sections[0][0]]
    names = max(1.5, _INCHES_A_LETTER * max(map(len, rows)))
    size = (max(6, names + 2.6 * len(sections)), 1.8 + 0.28 * len(rows))
    figure = Figure(size, layout="constrained")
    panels = figure.subplots(1, len(sections), sharey=True, squeeze=False)[0]
    for axes, (entries, split) in zip(panels, sections, strict=True):
        _draw_panel(axes, entries, split)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(
        f"Mean ± standard deviation; dashed: {rows[0]};\n"
        f"filled: differs from it with p < {_SURE} (Holm); gray: not all seeds yet.",
        fontsize="small",
    )
    return figure


def _draw_panel(axes, entries, split):
    base = _aucs(entries[0], split)
    if len(base):
        axes.axvline(base.mean(), color="0.5", linestyle="--", linewidth=1)
    for place, (entry, found) in enumerate(zip(entries, differences(entries, split), strict=True)):
        aucs = _aucs(entry, split)
        if not len(aucs):
            continue
        axes.errorbar(
            aucs.mean(), place, xerr=aucs.std(ddof=1) if len(aucs) > 1 else None,
            fmt="o", capsize=3, color="C0" if not entry.missing() else "0.6",
            markerfacecolor=None if found and found.p < _SURE else "white",
        )  # fmt: skip
    axes.set_title(f"{entries[0].data_set.name}, {split}", fontsize="medium")
    axes.set_xlabel("AUC")
    axes.locator_params(axis="x", nbins=4)
    axes.grid(axis="x", alpha=0.3)


def _aucs(entry, split):
    return np.array([found[split]["auc"] for found in entry.results() if split in found], float)
