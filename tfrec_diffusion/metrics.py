"""Exact metrics of click probabilities: AUC, GAUC, log loss, calibration and RelaImpr."""

import math
from typing import NamedTuple

import numpy as np

# With a probability of exactly 0 or 1, a single wrong row would make the log loss infinite. This is
# the machine epsilon of float32, the precision in which models predict; a row costs at most 15.95.
_EPSILON = 2.0**-23
CALIBRATION_BINS = 20


def auc(labels, scores, weights=None):
    """Area under the ROC curve: the probability that a positive outscores a negative.

    This is the share of all pairs of a positive and a negative row in which the positive has the
    higher score; a tie counts one half. Pairs are counted exactly, in integers and without buckets.

    Args:
        labels: array of shape (rows,), of any numeric dtype. 0 or 1.
        scores: array of shape (rows,), of any numeric dtype. Only their order matters.
        weights: array of shape (rows,) or `None`. How much each row counts, at least 0: a pair
            counts the product of its rows' weights. If `None`, each row counts 1. Defaults to
            `None`.

    Returns:
        float in [0, 1], or NaN if there is no such pair: with one class only, or no rows.

    Raises:
        ValueError: If the arguments differ in length or are not 1-D, if a label is neither 0 nor 1,
            if a score is NaN, or if a weight is negative or NaN.
    """
    return gauc(labels, scores, np.zeros(np.shape(labels), np.int64), weights)


def comparable(auc):
    """An AUC to choose the best by: that of a split with one class is worse than any.

    Args:
        auc: float or `None`. NaN of a split with one class, or null as files have it.

    Returns:
        float.
    """
    return -1.0 if auc is None or math.isnan(auc) else auc


def best(results, by="auc"):
    """Number of the best of several results on the same split.

    That is the first with the highest AUC or GAUC or, by choice or if the split has one class only,
    so that none is defined, the first with the lowest log loss.

    Args:
        results: list of dict. Each has floats `auc`, `gauc` and `log_loss`, as `summary` returns
            them, or null as files have it for NaN.
        by: str. `"auc"`, `"gauc"` or `"log_loss"`. Defaults to `"auc"`.

    Returns:
        int.
    """
    if by != "log_loss":
        aucs = [comparable(result[by]) for result in results]
        if max(aucs) >= 0:
            return aucs.index(max(aucs))
    losses = [result["log_loss"] for result in results]
    return losses.index(min(losses))


def gauc(labels, scores, groups, weights=None):
    """Group AUC: the mean of the groups' AUCs, weighted by their numbers of rows.

    With weights of the rows, a group's is their sum.

    A group is usually a user. One that has only one class has no AUC, and is left out of the mean
    and of the weights.

    Args:
        labels: array of shape (rows,), of any numeric dtype. 0 or 1.
        scores: array of shape (rows,), of any numeric dtype. Only their order within a group
            matters.
        groups: int array of shape (rows,). Id of each row's group. Ids may be any integers, and
            rows may come in any order.
        weights: array of shape (rows,) or `None`. As in `auc`. Defaults to `None`.

    Returns:
        float in [0, 1], or NaN if no group has both classes.

    Raises:
        ValueError: As in `auc`, and if `groups` are not integers.
    """
    labels, scores, groups, weights = _columns(
        labels=labels, scores=scores, groups=groups, weights=weights
    )
    if not len(labels):
        return math.nan
    positives, negatives, twice_ordered = _count_pairs(labels == 1, scores, groups, weights)
    defined = (positives > 0) & (negatives > 0)
    if not defined.any():
        return math.nan
    impressions = (positives + negatives)[defined]
    aucs = twice_ordered[defined] / (2 * positives * negatives)[defined]
    return float(np.sum(aucs * (impressions / impressions.sum())))


def log_loss(labels, probabilities, weights=None):
    """Mean negative log-likelihood of the labels, with the natural logarithm, in float64.

    Probabilities are clipped to [2^-23, 1 - 2^-23], so that no row costs more than 15.95.

    Args:
        labels: array of shape (rows,), of any numeric dtype. 0 or 1.
        probabilities: array of shape (rows,), of any numeric dtype. Predicted probability of the
            label 1.
        weights: array of shape (rows,) or `None`. How much each row counts in the mean, at least 0.
            If `None`, each counts 1. Defaults to `None`.

    Returns:
        float, in nats per row, or NaN if there are no rows.

    Raises:
        ValueError: If the arguments differ in length or are not 1-D, if a label is neither 0 nor 1,
            if a probability is NaN or outside [0, 1], or if a weight is negative or NaN.
    """
    labels, probabilities, weights = checked_predictions(labels, probabilities, weights)
    if not len(labels):
        return math.nan
    p = np.clip(probabilities, _EPSILON, 1 - _EPSILON)
    losses = -np.log(np.where(labels == 1, p, 1 - p))
    return float(np.mean(losses) if weights is None else np.average(losses, weights=weights))


def summary(labels, probabilities, groups, weights=None):
    """AUC, GAUC and log loss of click probabilities.

    Args:
        labels: array of shape (rows,). As in `gauc`.
        probabilities: array of shape (rows,). As in `log_loss`.
        groups: int array of shape (rows,). As in `gauc`.
        weights: array of shape (rows,) or `None`. As in `auc`. Defaults to `None`.

    Returns:
        dict of floats `auc`, `gauc` and `log_loss`.

    Raises:
        ValueError: As in `gauc` and `log_loss`.
    """
    return {
        "auc": auc(labels, probabilities, weights),
        "gauc": gauc(labels, probabilities, groups, weights),
        "log_loss": log_loss(labels, probabilities, weights),
    }


def predicted_over_observed(labels, probabilities, weights=None):
    """The number of clicks that a model predicts over the number that there were.

    1 is right on average, and above 1 is too high. He et al. call it the calibration of a model.

    Args:
        labels: array of shape (rows,). As in `log_loss`.
        probabilities: array of shape (rows,). As in `log_loss`.
        weights: array of shape (rows,) or `None`. As in `log_loss`. Defaults to `None`.

    Returns:
        float, or NaN if there are no clicks.

    Raises:
        ValueError: As in `log_loss`.

    Reference: He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD 2014,
    section 2.
    """
    labels, probabilities, weights = checked_predictions(labels, probabilities, weights)
    weights = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    observed = np.sum(weights * labels)
    return float(np.sum(weights * probabilities) / observed) if observed else math.nan


class Reliability(NamedTuple):
    """What a model predicts and what happened, in bins of rising probability.

    Args:
        predicted: float64 array of shape (bins,). Mean probability.
        observed: float64 array of shape (bins,). Share of clicks.
        share: float64 array of shape (bins,). Of all weight; the sum is 1.
        impressions: int64 array of shape (bins,). Number of rows with a weight.
        effective: float64 array of shape (bins,). Number of equally weighted rows that would tell
            the share of clicks as exactly (Kish): (sum of weights)^2 / (sum of squared weights).
    """

    predicted: np.ndarray
    observed: np.ndarray
    share: np.ndarray
    impressions: np.ndarray
    effective: np.ndarray


def reliability(labels, probabilities, weights=None, bins=CALIBRATION_BINS):
    """The points of a reliability diagram, from bins of equal weight.

    Bins of equal width, which are usual where probabilities of classes are judged, would hold
    nearly all impressions in one or two, as most click probabilities are small; and those of equal
    weight have the smaller bias (Roelofs et al.). Rows of the same probability are never parted:
    there are fewer bins where there are fewer probabilities.

    Args:
        labels: array of shape (rows,). As in `log_loss`.
        probabilities: array of shape (rows,). As in `log_loss`.
        weights: array of shape (rows,) or `None`. As in `log_loss`. Defaults to `None`.
        bins: int. The most bins there may be. Defaults to `20`.

    Returns:
        `Reliability`, without bins if there are no rows.

    Raises:
        ValueError: As in `log_loss`, and if `bins` is below 1.

    Reference: Roelofs et al., Mitigating Bias in Calibration Error Estimation, AISTATS 2022.
    """
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1. Received: bins={bins}")
    labels, probabilities, weights = checked_predictions(labels, probabilities, weights)
    weights = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    order = np.argsort(probabilities)
    order = order[weights[order] > 0]
    if not len(order):
        return Reliability(*np.zeros((3, 0)), np.zeros(0, np.int64), np.zeros(0))
    labels, probabilities, weights = labels[order], probabilities[order], weights[order]

    # A tie belongs where its middle lies.
    ties = np.flatnonzero(np.append(True, probabilities[1:] != probabilities[:-1]))
    of_ties = np.add.reduceat(weights, ties)
    middles = np.cumsum(of_ties) - of_ties / 2
    bin_of_ties = np.floor(bins * middles / weights.sum())
    starts = ties[np.append(True, bin_of_ties[1:] != bin_of_ties[:-1])]

    total = np.add.reduceat(weights, starts)
    return Reliability(
        predicted=np.add.reduceat(weights * probabilities, starts) / total,
        observed=np.add.reduceat(weights * labels, starts) / total,
        share=total / total.sum(),
        impressions=np.diff(starts, append=len(order)),
        effective=total**2 / np.add.reduceat(weights**2, starts),
    )


def calibration_error(labels, probabilities, weights=None, bins=CALIBRATION_BINS):
    """Expected calibration error: how far predictions are from the share of clicks, on average.

    It is the mean of |predicted - observed| over the bins of `reliability`, weighted by their
    share. Chance alone makes it positive: of a calibrated model it is about
    sqrt(2 / pi * rate * (1 - rate) * bins / rows), so that only values on the same rows, or on
    many, can be compared.

    Args:
        labels: array of shape (rows,). As in `log_loss`.
        probabilities: array of shape (rows,). As in `log_loss`.
        weights: array of shape (rows,) or `None`. As in `log_loss`. Defaults to `None`.
        bins: int. As in `reliability`. Defaults to `20`.

    Returns:
        float in [0, 1], or NaN if there are no rows.

    Raises:
        ValueError: As in `reliability`.

    Reference: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI
    2015; with bins of equal weight as in Nixon et al., Measuring Calibration in Deep Learning,
    CVPR workshops 2019.
    """
    found = reliability(labels, probabilities, weights, bins)
    if not len(found.share):
        return math.nan
    return float(np.sum(found.share * np.abs(found.predicted - found.observed)))


def calibration(labels, probabilities, weights=None):
    """Both metrics of how far click probabilities can be taken at their word.

    Args:
        labels: array of shape (rows,). As in `log_loss`.
        probabilities: array of shape (rows,). As in `log_loss`.
        weights: array of shape (rows,) or `None`. As in `log_loss`. Defaults to `None`.

    Returns:
        dict of floats `predicted_over_observed` and `calibration_error`.

    Raises:
        ValueError: As in `log_loss`.
    """
    return {
        "predicted_over_observed": predicted_over_observed(labels, probabilities, weights),
        "calibration_error": calibration_error(labels, probabilities, weights),
    }


def rela_impr(auc, base_auc):
    """Relative improvement of an AUC over that of a base model (DiffuMIN, eq. 25).

    It is ((auc - 0.5) / (base_auc - 0.5) - 1) * 100, as an AUC of 0.5 is chance.

    Args:
        auc: float. AUC of the model, in [0, 1].
        base_auc: float. AUC of the base model, in [0, 1].

    Returns:
        float, in percent, or NaN if the AUC of the base model is exactly 0.5 or an AUC is NaN.

    Raises:
        ValueError: If an AUC is outside [0, 1].
    """
    for name, value in (("auc", auc), ("base_auc", base_auc)):
        if value < 0 or value > 1:
            raise ValueError(f"`{name}` must be in [0, 1]. Received: {name}={value}")
    if base_auc == 0.5:
        return math.nan
    return float(((auc - 0.5) / (base_auc - 0.5) - 1) * 100)


def checked_predictions(labels, probabilities, weights=None):
    """Turns columns into arrays, and checks them.

    Args:
        labels: array of shape (rows,). As in `log_loss`.
        probabilities: array of shape (rows,). As in `log_loss`.
        weights: array of shape (rows,) or `None`. As in `log_loss`. Defaults to `None`.

    Returns:
        Tuple of three arrays of shape (rows,): the labels, the probabilities in float64, and the
        weights, or `None`.

    Raises:
        ValueError: As in `log_loss`.
    """
    labels, probabilities, weights = _columns(
        labels=labels, probabilities=probabilities, weights=weights
    )
    outside = (probabilities < 0) | (probabilities > 1)
    _refuse(outside, "probabilities", probabilities, "in [0, 1]")
    return labels, probabilities.astype(np.float64), weights


def _count_pairs(positive, scores, groups, weights):
    """Counts the pairs of each group, by their weights if there are weights.

    Args:
        positive: bool array of shape (rows,), with at least one row.
        scores: array of shape (rows,), without NaN.
        groups: int array of shape (rows,).
        weights: array of shape (rows,), or `None`.

    Returns:
        Tuple of three arrays of shape (groups,), in increasing order of the groups' ids: the
        positives, the negatives, and twice the number of rightly ordered pairs, where a tie is half
        a pair. They are int64, or float64 with weights.
    """
    # Two sorts are faster than `np.lexsort`, because the first need not be stable.
    order = np.argsort(scores)
    order = order[np.argsort(groups[order], kind="stable")]
    positive, scores, groups = positive[order], scores[order], groups[order]
    weights = np.int64(1) if weights is None else weights[order].astype(np.float64)
    positive, negative = weights * positive, weights * ~positive
    new_group = np.append(True, groups[1:] != groups[:-1])
    new_score = np.append(True, scores[1:] != scores[:-1])

    # A tie is all rows of one group with one score, which is mostly a single row.
    tie_starts = np.flatnonzero(new_group | new_score)
    tie_positives = np.add.reduceat(positive, tie_starts)
    tie_negatives = np.add.reduceat(negative, tie_starts)

    group_starts = np.flatnonzero(new_group[tie_starts])
    positives = np.add.reduceat(tie_positives, group_starts)
    negatives = np.add.reduceat(tie_negatives, group_starts)

    # Negatives below a tie are counted from the first group on. Those of earlier groups are
    # subtracted at the end.
    below = np.cumsum(tie_negatives) - tie_negatives
    twice_ordered = np.add.reduceat(tie_positives * (2 * below + tie_negatives), group_starts)
    return positives, negatives, twice_ordered - 2 * positives * below[group_starts]


def _columns(**columns):
    """Turns columns into arrays, and checks them as the public docstrings promise.

    Those that are `None` stay so.
    """
    given = {name: np.asarray(values) for name, values in columns.items() if values is not None}
    for name, values in given.items():
        if values.ndim != 1:
            raise ValueError(f"`{name}` must be 1-D. Received: shape={values.shape}")
        kinds, expected = ("iu", "integers") if name == "groups" else ("biuf", "numbers")
        if values.dtype.kind not in kinds:
            raise ValueError(f"`{name}` must be {expected}. Received: dtype={values.dtype}")
    lengths = {name: len(values) for name, values in given.items()}
    if len(set(lengths.values())) > 1:
        names = ", ".join(f"`{name}`" for name in given)
        raise ValueError(f"{names} must have the same length. Received: {lengths}")
    for name, values in given.items():
        if name == "weights":
            _refuse(~(values >= 0), name, values, "at least 0")
        elif name == "labels":
            _refuse((values != 0) & (values != 1), name, values, "0 or 1")
        else:
            _refuse(np.isnan(values), name, values, "a number")
    return (columns | given).values()


def _refuse(bad, name, values, expected):
    if bad.any():
        row = np.argmax(bad)
        raise ValueError(f"`{name}` must be {expected}. Received: {name}[{row}]={values[row]}")
