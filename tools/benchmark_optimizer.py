"""Summing the gradients of equal ids: LazyAdam's scatter against `tf.unique`, in one run.

    python tools/benchmark_optimizer.py

Random ids and gradients of dim 8; median milliseconds of a call, taken in turns.
"""

import statistics
import time

import tensorflow as tf
from absl import app, flags

from tfrec_diffusion import optimizers

TABLE_ROWS = flags.DEFINE_list("table_rows", ["50000", "5000000", "50000000"], "rows of the table")
IDS = flags.DEFINE_list("ids", ["50000", "250000"], "ids of a batch")
REPEATS = flags.DEFINE_integer("repeats", 20, "calls")


def with_unique(indices, values, table_rows):
    """The plain form."""
    del table_rows
    rows, position = tf.unique(indices)
    return rows, tf.math.unsorted_segment_sum(values, position, tf.size(rows))


def main(_):
    print(f"{'table rows':>12}{'ids':>10}{'scatter ms':>12}{'unique ms':>12}{'ratio':>8}")
    functions = [tf.function(optimizers._sum_duplicates), tf.function(with_unique)]
    for rows in map(int, TABLE_ROWS.value):
        for count in map(int, IDS.value):
            ids = tf.random.uniform([count], 0, rows, tf.int32)
            values = tf.random.normal([count, 8])
            times = ([], [])
            for repeat in range(REPEATS.value + 2):
                for function, taken in zip(functions, times, strict=True):
                    start = time.perf_counter()
                    function(ids, values, rows)[1].numpy()
                    if repeat >= 2:
                        taken.append(time.perf_counter() - start)
            scatter, unique = (statistics.median(taken) * 1000 for taken in times)
            print(f"{rows:12,}{count:10,}{scatter:12.1f}{unique:12.1f}{unique / scatter:8.1f}")


if __name__ == "__main__":
    app.run(main)
