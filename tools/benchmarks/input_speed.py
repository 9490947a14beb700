"""Samples per second of the input pipeline alone, from TFRecord files to batches of tensors.

    python tools/benchmarks/input_speed.py

For each history length it writes a random data set to a temporary directory and prints the median
over `--repeats` passes. The files are read from the page cache, as in training after the first
epoch.
"""

import statistics
import tempfile
import time

from absl import flags
from random_data import RandomData

from tfrec_diffusion import command
from tfrec_diffusion.input_pipeline import RequestData


def define_flags(values):
    flags.DEFINE_list("lengths", ["50", "1000"], "history lengths", flag_values=values)
    flags.DEFINE_integer("count", 40_000, "samples of a data set", 1, flag_values=values)
    flags.DEFINE_integer("batch_size", 256, "samples of a batch", 1, flag_values=values)
    flags.DEFINE_integer("repeats", 5, "passes over a data set", 1, flag_values=values)


def samples_per_second(data, batch_size, epoch):
    """Samples per second of one shuffled pass over the data."""
    start = time.perf_counter()
    samples = 0
    for _, label, _ in data.batches("train", batch_size, shuffle_seed=0, epoch=epoch):
        samples += len(label)
    return samples / (time.perf_counter() - start)


def main(values):
    for length in map(int, values.lengths):
        with tempfile.TemporaryDirectory() as directory:
            builder = RandomData(data_dir=directory, count=values.count, history_length=length)
            builder.write()
            data = RequestData(builder.data_dir)
            rates = [
                samples_per_second(data, values.batch_size, epoch)
                for epoch in range(values.repeats)
            ]
        print(
            f"length {length:5d}: {statistics.median(rates):10,.0f} samples/s "
            f"(from {min(rates):,.0f} to {max(rates):,.0f})",
            flush=True,
        )


if __name__ == "__main__":
    command.run(main, define_flags)
