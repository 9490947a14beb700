"""The picture of a prepared data set."""

import numpy as np

from tfrec_diffusion.inspection.curves import (
    LENGTHS,
    POPULARITY,
    RATE_BY_DAY,
    RATE_BY_LENGTH,
    RATE_BY_POPULARITY,
)

_LEAST_CANDIDATES = 50  # behind a label rate that is drawn


def draw(curves, schema):
    """Draws the panels, with a color for each split; that of days only where there are any.

    Args:
        curves: `pandas.DataFrame`. What `curves.curves` returned.
        schema: `Schema`.

    Returns:
        `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    rows = [[LENGTHS, POPULARITY], [RATE_BY_LENGTH, RATE_BY_POPULARITY]]
    if RATE_BY_DAY in set(curves["panel"]):
        rows.append([RATE_BY_DAY] * 2)
    figure = Figure(figsize=(12, 4.25 * len(rows)), layout="constrained")
    panels = figure.subplot_mosaic(rows)
    colors = {split: f"C{i}" for i, split in enumerate(curves["split"].unique())}
    for (panel, split, feature), curve in curves.groupby(["panel", "split", "feature"], sort=False):
        axes, color = panels[panel], colors[split]
        if panel == LENGTHS:
            _draw_lengths(axes, curve, schema.history_length, split, color)
        elif panel == POPULARITY:
            line = "--" if feature == schema.history_key else "-"
            axes.plot(curve["x"], curve["y"], line, color=color, linewidth=1.4)
        else:
            # A split may have one day, of which a band would be nothing.
            _draw_rates(axes, curve, color, bars=panel == RATE_BY_DAY)
    _label(panels, curves, schema)
    handles = panels[LENGTHS].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        f"{schema.name}; shaded: 95% intervals; label rates of under {_LEAST_CANDIDATES} "
        "candidates not drawn"
    )
    return figure


def _draw_lengths(axes, curve, longest, split, color):
    x, y = curve["x"].to_numpy(), curve["y"].to_numpy()
    label = f"{split}: {y[0]:.1%} of the histories empty, {y[-1]:.1%} full"
    axes.stairs(100 * y, np.append(x, longest + 1), label=label, color=color, linewidth=1.4)


def _draw_rates(axes, curve, color, bars):
    curve = curve[curve["n"] >= _LEAST_CANDIDATES]
    x, y, n = (curve[name].to_numpy() for name in ("x", "y", "n"))
    low, high = interval(y, n)
    axes.plot(x, y, marker="o", markersize=3, color=color, linewidth=1.4)
    if bars:
        axes.vlines(x, low, high, color=color, alpha=0.4, linewidth=4)
    else:
        axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)


def _label(panels, curves, schema):
    key = schema.candidate_key
    panels[LENGTHS].set(
        xlabel="behaviors in the history",
        ylabel="% of the requests, per length",
        ylim=(0, _top(curves)),
    )
    panels[POPULARITY].set(
        xlabel=f"rank in its split; solid: {key}, dashed: {schema.history_key}",
        ylabel="share of the candidates, of the behaviors",
        xscale="log", yscale="log",
    )  # fmt: skip
    panels[RATE_BY_LENGTH].set(xlabel="behaviors in the history", ylabel="label rate")
    panels[RATE_BY_POPULARITY].set(
        xlabel=f"rank of {key} among the candidates of its split", ylabel="label rate", xscale="log"
    )
    if RATE_BY_DAY in panels:
        _label_days(panels[RATE_BY_DAY], curves.loc[curves["panel"] == RATE_BY_DAY, "x"])
    for panel, axes in panels.items():
        axes.set_title(panel[0].upper() + panel[1:], fontsize="medium")
        axes.grid(alpha=0.3)


def _top(curves):
    """Top of the panel of lengths, in percent.

    Of many data sets most histories are full: that bin, with its share in the legend, may go beyond
    the top.
    """
    lengths = curves[curves["panel"] == LENGTHS]
    inner = [curve["y"].to_numpy()[1:-1] for _, curve in lengths.groupby("split")]
    return max(0.01, 110 * max(y.max(initial=0) for y in inner))


def _label_days(axes, days):
    from matplotlib.dates import DateFormatter
    from matplotlib.ticker import MaxNLocator

    # Of a single day, matplotlib would show years.
    axes.set(ylabel="label rate", xlim=(days.min() - 0.5, days.max() + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(DateFormatter("%a\n%Y-%m-%d"))


def interval(rate, n):
    """Wilson's 95% interval of a rate.

    Args:
        rate: float or array of float.
        n: int or array of int. Number of trials.

    Returns:
        Two arrays: its lower and upper end.
    """
    z = 1.96
    middle = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return middle - half, middle + half
