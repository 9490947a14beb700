"""`python -m tfrec_diffusion.evaluate`: exact metrics of a trained model on one split."""

import time

import keras
import numpy as np

from tfrec_diffusion import flags, metrics
from tfrec_diffusion.runs import load_run


def evaluate(model, data, split, batch_size):
    """Scores a split and compares with its labels; shows a progress bar.

    Args:
        model: `RankingModel`.
        data: `RequestData`.
        split: One of `data.splits`.
        batch_size: Requests in a batch.

    Returns:
        dict of `auc`, `gauc` (by user, weighted by impressions), `log_loss`, `impressions`,
        `click_rate`, `seconds`, `samples_per_second`.
    """
    start = time.perf_counter()
    progress = keras.utils.Progbar(data.num_batches(split, batch_size))
    scores, labels, groups = [], [], []
    for features, label, weight, group_id in data.batches(split, batch_size, with_group_id=True):
        real = weight.numpy() > 0
        scores.append(model.predict_on_batch(features)[real])
        labels.append(label.numpy()[real])
        groups.append(np.repeat(group_id.numpy(), real.sum(axis=1)))
        progress.add(1)
    seconds = time.perf_counter() - start
    scores, labels, groups = (np.concatenate(parts) for parts in (scores, labels, groups))
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
