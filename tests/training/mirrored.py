"""Trains every model on one device and, mirrored, on two virtual CPUs; prints what came of it.

Devices can be set up only before TensorFlow runs anything, hence a process of its own, started by
`test_mirrored.py`. Dice takes its statistics from each replica's part of the batch.
"""

import contextlib
import json
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

from tfrec_diffusion import models
from tfrec_diffusion.layers import noise
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam
from tfrec_diffusion.schema import Schema
from tfrec_diffusion.training.machines import Machines

sys.path.append(str(pathlib.Path(__file__).parents[1]))  # this is a process of its own
from memory import let_go
from small_models import NOISY, SMALL

# DIEN is compared without the loss that draws negatives.
WITHOUT_NOISE = {"dien": {"next_behavior_weight": 0}}
NOT_COMPARED = NOISY - WITHOUT_NOISE.keys()


def fit(name, schema, features, label, strategy, activation="relu", **clipping):
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        arguments = SMALL.get(name, {}) | WITHOUT_NOISE.get(name, {}) | {"activation": activation}
        model = models.create(name, schema=schema, **arguments)
        optimizer = LazyAdam(0.02, **clipping)
        # On one device no graph is needed: to trace it would take longer than the two steps.
        model.compile(optimizer, LogLoss(), run_eagerly=not strategy, jit_compile=False)
    batches = tf.data.Dataset.from_tensor_slices((features, label)).batch(32)
    history = model.fit(batches, verbose=0).history["loss"]
    return history[0], model


def compare(name, schema, features, label, strategy, **clipping):
    """The loss of both, and the greatest difference of their weights."""
    (loss, model), (one, of_one) = (
        fit(name, schema, features, label, where, **clipping) for where in (strategy, None)
    )
    pairs = zip(model.get_weights(), of_one.get_weights(), strict=True)
    difference = max(float(abs(a - b).max()) for a, b in pairs if a.size)
    return {"loss": loss, "one": one, "difference": difference}


def moving_averages(strategy, schema, features, label):
    """Those of both replicas, before and after they synchronize."""
    _, model = fit("avg_pooling", schema, features, label, strategy, activation="dice")
    averages = [v.value for v in model.non_trainable_weights]
    found = []
    for synchronize in (lambda _: None, Machines(strategy).synchronize):
        synchronize(model)
        of_each = [[x.numpy().tolist() for x in average.values] for average in averages]
        found.append(of_each)
    return found


def main(request_path):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    # Two steps take less time than graphs to be optimized.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    saved = dict(np.load(request_path))
    schema = Schema.from_config(json.loads(str(saved.pop("schema"))))
    label = (saved["item"] % 2).astype("f")
    requests = (schema, saved, label)
    found = {"models": {}}
    for name in models.MODELS:
        if name in NOT_COMPARED:
            found["models"][name] = {"loss": fit(name, *requests, strategy)[0]}
        else:
            found["models"][name] = compare(name, *requests, strategy)
        let_go()
    # Far below what the gradients have.
    for clipping in ("clipnorm", "global_clipnorm"):
        found[clipping] = compare("avg_pooling", *requests, strategy, **{clipping: 0.01})
    found["moving averages"] = moving_averages(strategy, *requests)
    seeds = keras.random.SeedGenerator(0)
    draws = strategy.run(lambda: noise.normal((3,), seeds))
    found["noise"] = [draw.numpy().tolist() for draw in strategy.experimental_local_results(draws)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
