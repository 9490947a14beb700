"""Summing the gradients of equal ids: LazyAdam's scatter against `tf.unique`.

    python tools/benchmarks/optimizer_speed.py

Ids and gradients of dim 8 are random. Printed is the median of the milliseconds of a call; the two
are called in turns.
"""

import statistics
import time

import tensorflow as tf
from absl import flags

from tfrec_diffusion import command, optimizers


def define_flags(values):
    flags.DEFINE_list(
        "table_rows", ["50000", "5000000", "50000000"], "rows of the table", flag_values=values
    )
    flags.DEFINE_list("ids", ["50000", "250000"], "ids of a batch", flag_values=values)
    flags.DEFINE_integer("repeats", 20, "calls", 1, flag_values=values)


def with_unique(indices, gradients, table_rows):
    """The sums as they are usually computed."""
    del table_rows
    rows, position = tf.unique(indices)
    return rows, tf.math.unsorted_segment_sum(gradients, position, tf.size(rows))


def main(values):
    print(f"{'table rows':>12}{'ids':>10}{'scatter ms':>12}{'unique ms':>12}{'ratio':>8}")
    functions = [tf.function(optimizers._sum_duplicates), tf.function(with_unique)]
    for rows in map(int, values.table_rows):
        for count in map(int, values.ids):
            ids = tf.random.uniform([count], 0, rows, tf.int32)
            gradients = tf.random.normal([count, 8])
            times = ([], [])
            for repeat in range(values.repeats + 2):
                for function, taken in zip(functions, times, strict=True):
                    start = time.perf_counter()
                    function(ids, gradients, rows)[1].numpy()
                    if repeat >= 2:
                        taken.append(time.perf_counter() - start)
            scatter, unique = (statistics.median(taken) * 1000 for taken in times)
            print(f"{rows:12,}{count:10,}{scatter:12.1f}{unique:12.1f}{unique / scatter:8.1f}")


if __name__ == "__main__":
    command.run(main, define_flags)
