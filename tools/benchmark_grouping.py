"""One record per impression against one per request: disk, input, training, and the same metrics.

    python -m tfrec_diffusion.prepare --dataset=synthetic --data_dir=/tmp/impressions \
        --set=users=600 --set=history_length=1000 --set=impressions=10
    python -m tfrec_diffusion.prepare --dataset=synthetic --data_dir=/tmp/requests \
        --set=users=600 --set=history_length=1000 --set=impressions=10 \
        --group_by=request
    python tools/benchmark_grouping.py --impressions=/tmp/impressions/synthetic/1.2.0 \
        --requests=/tmp/requests/synthetic/1.2.0

The two directories hold one data set, prepared with and without `--group_by=request`. Batches of
the second have as many impressions as those of the first on average, so that a step means the same.
Speeds are medians over steps taken in turns; a model trained on the first is evaluated on the test
split of both.
"""

import pathlib
import statistics
import time

import keras
import numpy as np
from absl import app, flags

from tfrec_diffusion import models
from tfrec_diffusion.evaluate import evaluate
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam

IMPRESSIONS = flags.DEFINE_string("impressions", None, "prepared data set", required=True)
REQUESTS = flags.DEFINE_string("requests", None, "prepared by request", required=True)
MODEL = flags.DEFINE_string("model", "din", "registered model")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "impressions of a batch")
STEPS = flags.DEFINE_integer("steps", 50, "of a turn")
TURNS = flags.DEFINE_integer("turns", 3, "turns")


class Side:
    """One of the two data sets with a model that trains on it."""

    def __init__(self, directory):
        self.data = RequestData(directory)
        self.bytes = sum(p.stat().st_size for p in pathlib.Path(directory).glob("*.tfrecord*"))
        self.records = sum(map(self.data.num_requests, self.data.splits))
        labels = [weight for _, _, weight in self.data.batches("test")]
        self.candidates = sum(w.numpy().sum() for w in labels) / self.data.num_requests("test")
        self.batch_size = max(1, round(BATCH_SIZE.value / self.candidates))
        keras.utils.set_random_seed(0)
        self.model = models.create(MODEL.value, schema=self.data.schema)
        self.model.compile(LazyAdam(), LogLoss(), jit_compile=True)
        self.model.make_train_function()
        self.rates = {"input": [], "training": []}

    def turn(self, epoch):
        """Reads, then trains on what was read; counts real impressions a second of each."""
        start = time.perf_counter()
        data = self.data.batches("train", self.batch_size, shuffle_seed=0, epoch=epoch)
        batches = list(data.take(STEPS.value))
        impressions = [float(weight.numpy().sum()) for _, _, weight in batches]
        self.rates["input"].append(sum(impressions) / (time.perf_counter() - start))
        for batch, real in zip(batches, impressions, strict=True):
            start = time.perf_counter()
            keras.tree.map_structure(np.asarray, self.model.train_function(iter([batch])))
            self.rates["training"].append(real / (time.perf_counter() - start))


def main(_):
    sides = {"impression": Side(IMPRESSIONS.value), "request": Side(REQUESTS.value)}
    for epoch in range(TURNS.value):
        for side in sides.values():
            side.turn(epoch)
    model = sides["impression"].model
    results = {
        name: evaluate(model, side.data, "test", side.batch_size) for name, side in sides.items()
    }
    columns = ("records", "candidates", "bytes", "input/s", "training/s", "AUC", "log loss")
    print(f"\n| one record per | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, side in sides.items():
        rates = {kind: statistics.median(values) for kind, values in side.rates.items()}
        print(
            f"| {name} | {side.records:,} | {side.candidates:.2f} | {side.bytes:,} "
            f"| {rates['input']:,.0f} | {rates['training']:,.0f} | {results[name]['auc']:.6f} "
            f"| {results[name]['log_loss']:.6f} |"
        )


if __name__ == "__main__":
    app.run(main)
