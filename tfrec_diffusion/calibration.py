"""Temperature and Platt scaling: a scale and a shift of log-odds that make probabilities fit.

Platt, Probabilistic Outputs for Support Vector Machines, 1999; Guo et al., On Calibration of Modern
Neural Networks, ICML 2017, section 4.
"""

import dataclasses
import math

import numpy as np

from tfrec_diffusion.metrics import checked_predictions
from tfrec_diffusion.names import CALIBRATIONS

# The log-odds of 0 and 1 are infinite. 0 stands for what is below the smallest normal number of
# float32, 1 for what float32 rounds to 1.
LOWEST = float(np.finfo(np.float32).tiny)
HIGHEST = 1 - 2.0**-25

_STEPS = 100
_CONVERGED = 1e-20  # of the squared Newton decrement, in nats
_ROUNDING = 1e-12  # of a mean log loss
_LEAST_DAMPING = 1e-3


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Turns a model's probability p into sigmoid(slope * logit(p) + intercept).

    As the slope is positive, no two scores change places.

    Args:
        method: str. `"temperature"` (no intercept; the slope is 1 / temperature), `"platt"`, or
            `"positive_weight"` (slope 1).
        slope: float. Above 0.
        intercept: float. Defaults to `0.0`.
    """

    method: str
    slope: float
    intercept: float = 0.0

    def __post_init__(self):
        methods = [*CALIBRATIONS, "positive_weight"]
        if self.method not in methods:
            raise ValueError(f"`method` must be one of {methods}. Received: {self.method!r}")
        if not 0 < self.slope < np.inf:
            raise ValueError(f"`slope` must be above 0 and finite. Received: slope={self.slope}")
        if not np.isfinite(self.intercept):
            raise ValueError(f"`intercept` must be finite. Received: intercept={self.intercept}")

    def __call__(self, probabilities):
        """Calibrated probabilities.

        Args:
            probabilities: float array in [0, 1], of any shape.

        Returns:
            float64 array of that shape, in the same order.
        """
        return _sigmoid(self.slope * _log_odds(probabilities) + self.intercept)

    def after(self, first):
        """What another calibration and then this one make of a probability.

        Args:
            first: `Calibration` or `None`. If `None`, there is no other.

        Returns:
            `Calibration`.
        """
        if first is None:
            return self
        intercept = self.slope * first.intercept + self.intercept
        return Calibration(self.method, self.slope * first.slope, intercept)

    def __str__(self):
        shift = f" {'-' if self.intercept < 0 else '+'} {abs(self.intercept):.4f}"
        shift = "" if self.method == "temperature" else shift
        return f"{self.method}: sigmoid({self.slope:.4f} * logit(p){shift})"


def undo_positive_weight(weight):
    """What undoes a weight of the positives in the loss, which multiplies the odds by it.

    Args:
        weight: float. As in `losses.LogLoss`.

    Returns:
        `Calibration`, or `None` if the weight is 1.
    """
    return None if weight == 1 else Calibration("positive_weight", 1.0, -math.log(weight))


def fit(method, labels, probabilities, weights=None):
    """The `Calibration` that gives the labels the highest likelihood.

    The log loss is convex in slope and intercept. Newton's method finds its minimum to rounding;
    steps are damped where the loss would not fall (Marquardt, An Algorithm for Least-Squares
    Estimation of Nonlinear Parameters, 1963).

    Args:
        method: str. `"temperature"` fits the slope, `"platt"` slope and intercept.
        labels: array of shape (rows,). As in `metrics.log_loss`.
        probabilities: array of shape (rows,). As in `metrics.log_loss`.
        weights: array of shape (rows,) or `None`. As in `metrics.log_loss`. Defaults to `None`.

    Returns:
        `Calibration`.

    Raises:
        ValueError: As in `metrics.log_loss`; if the loss has no single minimum, as with labels of
            one class and with probabilities that are all alike or that separate the classes; and if
            the minimum would turn the ranking round.
    """
    if method not in CALIBRATIONS:
        raise ValueError(f"`method` must be one of {list(CALIBRATIONS)}. Received: {method!r}")
    labels, probabilities, weights = checked_predictions(labels, probabilities, weights)
    weights = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    counted = weights > 0
    clicked, log_odds = labels[counted] == 1, _log_odds(probabilities[counted])
    weights = weights[counted] / weights.sum()
    _check_minimum(method, clicked, log_odds)
    if method == "temperature":
        (slope,) = _minimum(log_odds[:, None], clicked, weights)
        intercept = 0.0
    else:
        # Centered, so that slope and intercept hardly depend on each other.
        center = weights @ log_odds
        columns = np.stack([log_odds - center, np.ones(len(log_odds))], axis=1)
        slope, shift = _minimum(columns, clicked, weights)
        intercept = shift - slope * center
    if not slope > 0:
        raise ValueError(
            f"{method} scaling would turn the ranking round: the higher a probability is, the "
            f"fewer clicks there are. Received: slope={slope:.4g}"
        )
    return Calibration(method, float(slope), float(intercept))


def _check_minimum(method, clicked, log_odds):
    """Checks that the loss has one minimum, at finite numbers (Silvapulle, 1981)."""
    if not clicked.any() or clicked.all():
        raise ValueError(
            f"{method} scaling needs labels of both classes. Received: {int(clicked.sum())} clicks "
            f"of {len(clicked)} impressions that count"
        )
    if method == "temperature":
        agreeing = np.where(clicked, log_odds, -log_odds)
        alike, expected = not agreeing.any(), "other than 1/2"
        separated = agreeing.min() >= 0 or agreeing.max() <= 0
    else:
        of_clicks, of_others = log_odds[clicked], log_odds[~clicked]
        alike, expected = log_odds.min() == log_odds.max(), "that differ"
        separated = of_clicks.min() >= of_others.max() or of_clicks.max() <= of_others.min()
    if alike:
        raise ValueError(
            f"{method} scaling needs probabilities {expected}. Received: "
            f"{_sigmoid(log_odds[0]):.6g}, {len(clicked)} times"
        )
    if separated:
        raise ValueError(
            f"{method} scaling has no finite solution where a threshold separates clicks from "
            f"the rest. Received: {len(clicked)} impressions that one separates"
        )


def _minimum(columns, clicked, weights):
    """The coefficients (columns,) of the logistic regression of `clicked` on `columns`."""
    signs = np.where(clicked, 1.0, -1.0)

    def loss(coefficients):
        return weights @ np.logaddexp(0, -signs * (columns @ coefficients))

    coefficients = np.zeros(columns.shape[1])  # where no probability is near 0 or 1
    damping, current = 0.0, loss(coefficients)
    for _ in range(_STEPS):
        probability = _sigmoid(columns @ coefficients)
        gradient = (weights * (probability - clicked)) @ columns
        curvature = (columns.T * (weights * probability * (1 - probability))) @ columns
        curvature[np.diag_indices_from(curvature)] *= 1 + damping
        try:
            step = np.linalg.solve(curvature, gradient)
        except np.linalg.LinAlgError:
            break
        decrement, after = gradient @ step, loss(coefficients - step)
        if not (decrement >= 0 and after <= current + _ROUNDING):
            damping = max(10 * damping, _LEAST_DAMPING)
            continue
        coefficients, current = coefficients - step, after
        if decrement < _CONVERGED and not damping:
            return coefficients
        damping = damping / 10 if damping > _LEAST_DAMPING else 0.0
    raise ValueError(
        "no calibration found: a threshold nearly separates clicks from the rest. Received: "
        f"{len(clicked)} impressions"
    )


def _log_odds(probabilities):
    p = np.clip(np.asarray(probabilities, np.float64), LOWEST, HIGHEST)
    return np.log(p) - np.log1p(-p)


def _sigmoid(x):
    # Either branch has one that would overflow.
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)
