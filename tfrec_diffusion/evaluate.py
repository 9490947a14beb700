"""`python -m tfrec_diffusion.evaluate`: exact metrics of a trained model on one split."""

import time

from tfrec_diffusion import distribution, flags, metrics
from tfrec_diffusion.runs import load_run


def evaluate(model, data, split, batch_size, machines=None):
    """Scores a split and compares with its labels; shows a progress bar.

    Args:
        model: `RankingModel`.
        data: `RequestData`.
        split: One of `data.splits`.
        batch_size: Requests in a batch.
        machines: Those that the model lies on (`distribution.create`); default: this one.

    Returns:
        dict of `auc`, `gauc` (by user, weighted by impressions), `log_loss`, `impressions`,
        `click_rate`, `seconds`, `samples_per_second`.
    """
    start = time.perf_counter()
    machines = machines or distribution.create("one")
    scores, labels, groups = machines.score(model, data, split, batch_size)
    seconds = time.perf_counter() - start
    return {
        "auc": metrics.auc(labels, scores),
        "gauc": metrics.gauc(labels, scores, groups),
        "log_loss": metrics.log_loss(labels, scores),
        "impressions": len(labels),
        "click_rate": float(labels.mean()),
        "seconds": seconds,
        "samples_per_second": len(labels) / seconds,
    }


def describe(split, result, reachable=None):
    """One line on an `evaluate` result, beside the best that the data allow where that is known."""
    line = "  ".join(f"{name} {result[name]:.4f}" for name in ("auc", "gauc", "log_loss"))
    line = f"{split}: {line}  ({result['impressions']} impressions)"
    if reachable:
        line += f"  best reachable: auc {reachable['auc']:.4f}  gauc {reachable['gauc']:.4f}"
    return line


def main(values):
    model, data = load_run(values.model_dir, values.data_dir)
    result = evaluate(model, data, values.split, values.batch_size)
    print(describe(values.split, result, data.best_reachable(values.split)))


if __name__ == "__main__":
    flags.run(main, flags.evaluate)
