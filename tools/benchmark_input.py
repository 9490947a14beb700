"""Samples/s of the input pipeline alone, from TFRecord files to batches of tensors.

    python tools/benchmark_input.py

Writes random data sets of each length to a temporary directory (read from the page cache, as a
trained-on file is after its first pass), then prints the median over `--repeats` passes.
"""

import statistics
import tempfile
import time

import random_requests
from absl import app, flags

from tfrec_diffusion.input_pipeline import RequestData

LENGTHS = flags.DEFINE_list("lengths", ["50", "1000"], "history lengths")
COUNT = flags.DEFINE_integer("count", 40_000, "samples of a data set")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "samples a batch")
REPEATS = flags.DEFINE_integer("repeats", 5, "passes")


def samples_per_second(data, batch_size, epoch):
    """Of one shuffled pass over the data."""
    start = time.perf_counter()
    samples = 0
    for _, label, _ in data.batches("train", batch_size, shuffle_seed=0, epoch=epoch):
        samples += len(label)
    return samples / (time.perf_counter() - start)


def main(_):
    for length in map(int, LENGTHS.value):
        with tempfile.TemporaryDirectory() as directory:
            builder = random_requests.RandomRequests(
                data_dir=directory, count=COUNT.value, history_length=length
            )
            builder.write()
            data = RequestData(builder.data_dir)
            rates = [
                samples_per_second(data, BATCH_SIZE.value, epoch) for epoch in range(REPEATS.value)
            ]
        print(
            f"length {length:5d}: {statistics.median(rates):10,.0f} samples/s "
            f"(from {min(rates):,.0f} to {max(rates):,.0f})",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
