"""Samples/s of training and of inference, on random requests that share no history.

    python tools/benchmark_training.py
    python tools/benchmark_training.py --models=sim_soft,eta,sdim,twin --lengths=1000
    python tools/benchmark_training.py --models=din --lengths=50 --table_rows=50000,5000000

The first line is what BUILD_NOTES.md reports: item and category of dim 8, one candidate, batches
of 256, attention units 80-40 and tower 200-80 with Dice. The second compares steps with a small
and a large item table: the last column is the time of a step against that of the first table.
All settings of a length run in turns, so that what else the machine does meets all of them;
medians over all steps. Data lie in memory (tools/benchmark_input.py measures reading them).
"""

import statistics
import time

import keras
import numpy as np
import random_requests
import tensorflow as tf
from absl import app, flags

from tfrec_diffusion import models
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam

MODELS = flags.DEFINE_list("models", sorted(models.MODELS), "registered models")
LENGTHS = flags.DEFINE_list("lengths", ["50", "1000"], "history lengths")
TABLE_ROWS = flags.DEFINE_list("table_rows", ["50000"], "rows of the item table")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "samples a step")
CANDIDATES = flags.DEFINE_integer("candidates", 1, "candidates a sample")
JIT_COMPILE = flags.DEFINE_boolean("jit_compile", True, "as the train command's flag")
MIXED_PRECISION = flags.DEFINE_boolean("mixed_precision", False, "as the train command's flag")
OPTIMIZER = flags.DEFINE_enum("optimizer", "lazy_adam", ["lazy_adam", "adam"], "ours or Keras's")
SECONDS = flags.DEFINE_float("seconds", 8, "to measure each number for, in turns")
TURNS = flags.DEFINE_integer("turns", 5, "turns")
_BATCHES = 8


class Setting:
    """A compiled model and its batches; `times` collects seconds per step by kind."""

    def __init__(self, name, length, rows):
        self.name, self.length, self.rows = name, length, rows
        schema = random_requests.schema(length, items=rows, clusters=name == "twin_v2")
        dtype = "mixed_bfloat16" if MIXED_PRECISION.value else "float32"
        self.model = models.create(name, schema=schema, dtype=dtype)
        optimizer = {"lazy_adam": LazyAdam, "adam": keras.optimizers.Adam}[OPTIMIZER.value]()
        self.model.compile(
            optimizer,
            LogLoss(),
            weighted_metrics=[keras.metrics.AUC(name="auc")],
            jit_compile=JIT_COMPILE.value,
        )
        self.model.make_train_function()
        self.model.make_predict_function()
        features, labels = random_requests.requests(
            schema, BATCH_SIZE.value * _BATCHES, CANDIDATES.value
        )
        data = tf.data.Dataset.from_tensor_slices((features, labels, np.ones_like(labels)))
        self._batches = list(data.batch(BATCH_SIZE.value))
        self.times = {"train": [], "infer": []}

    def run(self, kind, seconds):
        """Takes steps for that long, after two that are not counted."""
        step = {"train": self._train, "infer": self._infer}[kind]
        end = None
        for i in range(10**9):
            if i == 2:
                end = time.perf_counter() + seconds
            start = time.perf_counter()
            step(self._batches[i % _BATCHES])
            if end:
                self.times[kind].append(time.perf_counter() - start)
                if time.perf_counter() > end:
                    return

    def _train(self, batch):
        keras.tree.map_structure(np.asarray, self.model.train_function(iter([batch])))

    def _infer(self, batch):
        self.model.predict_function([(batch[0],)]).numpy()

    def seconds(self, kind):
        """Of the median step."""
        return statistics.median(self.times[kind])


def main(_):
    print(f"{'model':12} {'length':>6} {'table rows':>10} {'train/s':>9} {'infer/s':>9} step ratio")
    for length in map(int, LENGTHS.value):
        settings = [
            Setting(name, length, int(rows)) for name in MODELS.value for rows in TABLE_ROWS.value
        ]
        for _ in range(TURNS.value):
            for kind in ("train", "infer"):
                for setting in settings:
                    setting.run(kind, SECONDS.value / TURNS.value)
        first = {}
        for setting in settings:
            base = first.setdefault(setting.name, setting.seconds("train"))
            rates = [BATCH_SIZE.value / setting.seconds(kind) for kind in ("train", "infer")]
            print(
                f"{setting.name:12} {length:6} {setting.rows:10,} {rates[0]:9,.0f} "
                f"{rates[1]:9,.0f} {setting.seconds('train') / base:10.2f}",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
