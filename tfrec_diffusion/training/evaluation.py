"""Exact metrics of a model on one split of its data."""

import time

from tfrec_diffusion import metrics
from tfrec_diffusion.training import strategies


def evaluate(model, data, split, batch_size, machines=None, keep=None, correction=None):
    """Predicts a split and compares with its labels; shows a progress bar.

    Args:
        model: `RankingModel`.
        data: `RequestData`.
        split: str. One of `data.splits`.
        batch_size: int. Requests in a batch.
        machines: `Machines` that the model lies on, or `None`. If `None`, this machine. Defaults
            to `None`.
        keep: callable or `None`. Called with the split and its probabilities, labels, groups and
            weights, such as `RunDirectory.write_predictions`. Defaults to `None`.
        correction: `Calibration` or `None`. What is made of the model's probabilities first. If
            `None`, nothing. Defaults to `None`.

    Returns:
        dict of `auc`, `gauc` (by user, weighted by impressions), `log_loss`,
        `predicted_over_observed`, `calibration_error`, `impressions`, `click_rate`, `seconds`,
        `samples_per_second`. Where impressions have weights, the metrics have them, too; the click
        rate has not.

    Raises:
        OSError: If a file of the split is damaged.
    """
    start = time.perf_counter()
    machines = machines or strategies.create("one")
    with data.naming_damage(split):
        probabilities, labels, groups, weights = machines.predict(model, data, split, batch_size)
    seconds = time.perf_counter() - start
    if correction:
        probabilities = correction(probabilities)
    weights = weights if data.schema.weighted else None
    if keep:
        keep(split, probabilities, labels, groups, weights)
    return {
        **metrics.summary(labels, probabilities, groups, weights),
        **metrics.calibration(labels, probabilities, weights),
        "impressions": len(labels),
        "click_rate": float(labels.mean()),
        "seconds": seconds,
        "samples_per_second": len(labels) / seconds,
    }


def describe(split, result, reachable=None, oracles=None):
    """One line on an `evaluate` result, beside the best that the data allow where that is known.

    A second line has the AUC of each oracle where there are any.

    Args:
        split: str. Its name.
        result: dict. What `evaluate` returned, now or when it did not measure calibration.
        reachable: dict or `None`. `RequestData.best_reachable` of the split. Defaults to `None`.
        oracles: dict or `None`. `RequestData.oracles` of the split. Defaults to `None`.

    Returns:
        str.
    """
    names = ("auc", "gauc", "log_loss", "predicted_over_observed", "calibration_error")
    line = "  ".join(
        f"{name.replace('_over_', '/')} {result[name]:.4f}" for name in names if name in result
    )
    line = f"{split}: {line}  ({result['impressions']} impressions)"
    if reachable:
        line += f"  best reachable: auc {reachable['auc']:.4f}  gauc {reachable['gauc']:.4f}"
    if oracles:
        aucs = "  ".join(f"{name} {oracle['auc']:.4f}" for name, oracle in oracles.items())
        line += f"\n  auc of oracles: {aucs}"
    return line
