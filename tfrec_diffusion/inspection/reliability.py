"""The reliability diagram of a model: what it predicts, and what happened."""

import pandas as pd

from tfrec_diffusion import metrics
from tfrec_diffusion.inspection import picture_file
from tfrec_diffusion.inspection.picture import interval

# Axes are logarithmic if half of the points lie below this part of the highest probability, and all
# have a place there.
_LOGARITHMIC = 1 / 6


def write_picture(path, title, labels, probabilities, weights=None):
    """Draws the reliability diagram of predictions; its points lie beside it as CSV.

    Args:
        path: str or `pathlib.Path`. As in `picture_file.write`.
        title: str. Whose predictions of what they are.
        labels: array of shape (rows,). As in `metrics.log_loss`.
        probabilities: array of shape (rows,). As in `metrics.log_loss`.
        weights: array of shape (rows,) or `None`. As in `metrics.log_loss`. Defaults to `None`.
    """
    found = metrics.calibration(labels, probabilities, weights)
    title = (
        f"{title}\npredicted/observed {found['predicted_over_observed']:.4f}, "
        f"calibration error {found['calibration_error']:.4f}"
    )
    drawn = points(labels, probabilities, weights)
    picture_file.write(path, draw(drawn, title), drawn)


def points(labels, probabilities, weights=None):
    """What is drawn.

    Args:
        labels: array of shape (rows,). As in `metrics.log_loss`.
        probabilities: array of shape (rows,). As in `metrics.log_loss`.
        weights: array of shape (rows,) or `None`. As in `metrics.log_loss`. Defaults to `None`.

    Returns:
        `pandas.DataFrame` with a row for each bin of `metrics.reliability`: the mean probability
        `predicted`, the share of clicks `observed` with the ends `low` and `high` of its 95%
        interval, the `share` of all weight, and the number of `impressions`.
    """
    bins = metrics.reliability(labels, probabilities, weights)
    low, high = interval(bins.observed, bins.effective)
    return pd.DataFrame(
        {
            "predicted": bins.predicted,
            "observed": bins.observed,
            "low": low,
            "high": high,
            "share": bins.share,
            "impressions": bins.impressions,
        }
    )


def draw(points, title):
    """Draws the observed click rate over the predicted one, and their difference below.

    Args:
        points: `pandas.DataFrame`. What `points` returned.
        title: str.

    Returns:
        `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 7.5), layout="constrained")
    rates, differences = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    _draw_points(rates, points, minus=0)
    _draw_points(differences, points, minus=points["predicted"])
    differences.axhline(0, color="0.5", linestyle="--", linewidth=1)
    rates.set(ylabel="observed click rate")
    differences.set(xlabel="predicted click probability", ylabel="observed - predicted")
    predicted = points["predicted"]
    positive = (points[["predicted", "observed"]] > 0).all(axis=None)
    if positive and predicted.median() < _LOGARITHMIC * predicted.max():
        _make_logarithmic(rates)
    ends = rates.get_xlim()
    rates.plot(ends, ends, color="0.5", linestyle="--", linewidth=1, label="calibrated", zorder=0)
    rates.set(xlim=ends)  # as the points had them
    rates.legend(frameon=False)
    for axes in (rates, differences):
        axes.grid(alpha=0.3)
    rates.set_title(title, fontsize="medium")
    figure.supxlabel(
        f"{len(points)} bins of equally many impressions; bars: 95% intervals.", fontsize="small"
    )
    return figure


def _make_logarithmic(axes):
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def _draw_points(axes, points, minus):
    axes.vlines(
        points["predicted"], points["low"] - minus, points["high"] - minus, color="C0", alpha=0.4,
        linewidth=3,
    )  # fmt: skip
    axes.plot(points["predicted"], points["observed"] - minus, "o-", color="C0", markersize=4)
