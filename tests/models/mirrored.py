"""Trains every model on one device and, mirrored, on two virtual CPUs; prints what came of it.

Devices can be set up only before TensorFlow runs anything, hence a process of its own, started by
`test_mirrored.py`. Dice would take its statistics from each replica's part of the batch.
"""

import contextlib
import json
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

from tfrec_diffusion import models
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam
from tfrec_diffusion.schema import Schema

sys.path.append(str(pathlib.Path(__file__).parents[1]))
import test_conformance
from small_models import SMALL

# Each replica has noise of its own: DIEN is compared without the loss that draws negatives.
WITHOUT_NOISE = {"dien": {"next_behavior_weight": 0}}
NOISY = test_conformance.NOISY - WITHOUT_NOISE.keys()


def fit(name, schema, features, label, strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        arguments = SMALL.get(name, {}) | WITHOUT_NOISE.get(name, {}) | {"activation": "relu"}
        model = models.create(name, schema=schema, **arguments)
        # On one device no graph is needed: to trace it would take longer than the two steps.
        model.compile(LazyAdam(0.02), LogLoss(), run_eagerly=not strategy, jit_compile=False)
    batches = tf.data.Dataset.from_tensor_slices((features, label)).batch(32)
    history = model.fit(batches, verbose=0).history["loss"]
    return history[0], model.get_weights()


def main(request_path):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    # Two steps take less time than graphs to be optimized.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    saved = dict(np.load(request_path))
    schema = Schema.from_config(json.loads(str(saved.pop("schema"))))
    label = (saved["item"] % 2).astype("f")
    found = {}
    for name in models.MODELS:
        loss, weights = fit(name, schema, saved, label, strategy)
        found[name] = {"loss": loss}
        if name not in NOISY:
            one, of_one = fit(name, schema, saved, label, None)
            differences = [abs(a - b).max() for a, b in zip(weights, of_one, strict=True) if a.size]
            found[name] |= {"one": one, "difference": float(max(differences))}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
