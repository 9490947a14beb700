"""Seconds of exact AUC and GAUC, beside a plain loop over the users.

    python tools/benchmarks/metrics_speed.py --rows=200000,1000000,10000000 --repeats=3

Rows have random float32 scores, about ten to a user, in random order, with 64-bit user ids. The
loop selects the rows of each user with a boolean mask and compares all their pairs; it runs at the
smallest number of rows only.
"""

import statistics
import time

import numpy as np
from absl import flags

from tfrec_diffusion import command, metrics


def define_flags(values):
    flags.DEFINE_list(
        "rows", ["200000", "1000000", "10000000"], "numbers of rows, each at least 10",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("repeats", 3, "calls, of which the median is taken", 1, flag_values=values)


def main(values):
    sizes = sorted(map(int, values.rows))
    if not sizes or sizes[0] < 10:
        raise ValueError(f"`rows` must be at least 10. Received: rows={values.rows}")
    print(f"{'rows':>12} {'auc':>10} {'gauc':>10}   seconds, median of {values.repeats}")
    for rows in sizes:
        labels, scores, users = make_impressions(rows)
        auc_seconds, _ = measure(values.repeats, metrics.auc, labels, scores)
        gauc_seconds, gauc = measure(values.repeats, metrics.gauc, labels, scores, users)
        print(f"{rows:>12,} {auc_seconds:>10.3f} {gauc_seconds:>10.3f}", flush=True)
        if rows == sizes[0]:
            loop_seconds, loop_gauc = measure(1, gauc_by_loop, labels, scores, users)
            print(
                f"{'loop':>12} {'':>10} {loop_seconds:>10.3f}   {loop_seconds / gauc_seconds:.0f} "
                f"times as long, GAUC differs by {abs(loop_gauc - gauc):.1e}",
                flush=True,
            )


def make_impressions(rows):
    """Labels int8, scores float32 and users int64, each of shape (rows,)."""
    random = np.random.default_rng(seed=0)
    scores = random.random(rows, dtype=np.float32)
    labels = (random.random(rows, dtype=np.float32) < scores).astype(np.int8)
    users = random.integers(0, 2**63 - 1, size=rows // 10)
    return labels, scores, users[random.integers(0, len(users), size=rows)]


def gauc_by_loop(labels, scores, groups):
    """GAUC as it is often written: one pass over all rows for each group."""
    weighted_sum, weight = 0.0, 0
    for group in np.unique(groups):
        mine = groups == group
        positives, negatives = scores[mine & (labels == 1)], scores[mine & (labels == 0)]
        if len(positives) and len(negatives):
            margins = positives[:, None] - negatives
            group_auc = np.mean((margins > 0) + 0.5 * (margins == 0))
            weighted_sum += group_auc * mine.sum()
            weight += mine.sum()
    return weighted_sum / weight


def measure(repeats, function, *args):
    """Median seconds of a call, and what it returned."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function(*args)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


if __name__ == "__main__":
    command.run(main, define_flags)
