"""One record per impression against one per request: disk, input, training, and the same metrics.

    python -m tfrec_diffusion.prepare --dataset=synthetic --data_dir=/tmp/impressions \
        --set=users=600 --set=history_length=1000 --set=impressions=10
    python -m tfrec_diffusion.prepare --dataset=synthetic --data_dir=/tmp/requests \
        --set=users=600 --set=history_length=1000 --set=impressions=10 --group_by=request
    python tools/benchmarks/grouping_gain.py --impressions=/tmp/impressions/synthetic/1.2.0 \
        --requests=/tmp/requests/synthetic/1.2.0

The two directories hold the same data set, prepared without and with `--group_by=request`. Batches
of the second have on average as many impressions as those of the first, so that a step means the
same. Speeds are medians over steps that are taken in turns. A model that was trained on the first
is evaluated on the test split of both.
"""

import pathlib
import statistics
import time

import keras
import numpy as np
from absl import flags
from timing import print_table

from tfrec_diffusion import command, models
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam
from tfrec_diffusion.training.evaluation import evaluate


def define_flags(values):
    flags.DEFINE_string(
        "impressions", None, "data set with a record per impression", required=True,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "requests", None, "the same with a record per request", required=True, flag_values=values
    )
    flags.DEFINE_string("model", "din", "model", flag_values=values)
    flags.DEFINE_integer("batch_size", 256, "impressions of a batch", 1, flag_values=values)
    flags.DEFINE_integer("steps", 50, "steps of a turn", 1, flag_values=values)
    flags.DEFINE_integer("turns", 3, "turns", 1, flag_values=values)


class Side:
    """One of the two data sets, with a model that trains on it.

    Args:
        directory: str. Directory of the prepared data set.
        values: `absl.flags.FlagValues`.
    """

    def __init__(self, directory, values):
        self.data = RequestData(directory)
        self.bytes = sum(p.stat().st_size for p in pathlib.Path(directory).glob("*.tfrecord*"))
        self.records = sum(map(self.data.num_requests, self.data.splits))
        labels = [weight for _, _, weight in self.data.batches("test")]
        self.candidates = sum(w.numpy().sum() for w in labels) / self.data.num_requests("test")
        self.batch_size = max(1, round(values.batch_size / self.candidates))
        keras.utils.set_random_seed(0)
        self.model = models.create(values.model, schema=self.data.schema)
        self.model.compile(LazyAdam(), LogLoss(), jit_compile=True)
        self.model.make_train_function()
        self.rates = {"input": [], "training": []}
        self._steps = values.steps

    def turn(self, epoch):
        """Reads, then trains on what was read; adds the impressions per second of both."""
        start = time.perf_counter()
        data = self.data.batches("train", self.batch_size, shuffle_seed=0, epoch=epoch)
        batches = list(data.take(self._steps))
        impressions = [float(weight.numpy().sum()) for _, _, weight in batches]
        self.rates["input"].append(sum(impressions) / (time.perf_counter() - start))
        for batch, real in zip(batches, impressions, strict=True):
            start = time.perf_counter()
            keras.tree.map_structure(np.asarray, self.model.train_function(iter([batch])))
            self.rates["training"].append(real / (time.perf_counter() - start))


def main(values):
    sides = {
        "impression": Side(values.impressions, values),
        "request": Side(values.requests, values),
    }
    for epoch in range(values.turns):
        for side in sides.values():
            side.turn(epoch)
    model = sides["impression"].model
    rows = {}
    for name, side in sides.items():
        result = evaluate(model, side.data, "test", side.batch_size)
        rates = {kind: statistics.median(taken) for kind, taken in side.rates.items()}
        rows[name] = [
            f"{side.records:,}",
            f"{side.candidates:.2f}",
            f"{side.bytes:,}",
            f"{rates['input']:,.0f}",
            f"{rates['training']:,.0f}",
            f"{result['auc']:.6f}",
            f"{result['log_loss']:.6f}",
        ]
    columns = ["records", "candidates", "bytes", "input/s", "training/s", "AUC", "log loss"]
    print_table("One record per impression, and one per request", columns, rows)


if __name__ == "__main__":
    command.run(main, define_flags)
