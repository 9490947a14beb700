"""Trains models eagerly and under XLA and prints what came of it.

A process of its own, started by `test_xla.py`: what XLA has compiled stays in a process's memory.
"""

import json
import pathlib
import sys
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from tfrec_diffusion import models
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.schema import Schema

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from memory import let_go
from small_models import SMALL

RATE, STEPS = 0.1, 3


# XLA draws other numbers from the same seed: these, in the place of random ones, are the same.
def numbers(shape, seed):
    count = tf.reduce_prod(shape)
    return tf.reshape((7919 * tf.range(count) + 104729 * seed[1]) % 1009, shape)


def uniform(shape, seed, low=0, high=None, dtype=tf.float32, alg=None):
    if dtype == tf.int32:
        return low + numbers(shape, seed) % (high - low)
    return tf.cast(numbers(shape, seed), tf.float32) / 1009


def normal(shape, seed, alg=None):
    return 3.5 * (uniform(shape, seed) - 0.5)


def open_shape(x):
    """As the input pipeline's."""
    return tf.raw_ops.PlaceholderWithDefault(input=x, shape=[None] * len(x.shape))


def fit(model, data):
    (loss,) = model.fit(data, shuffle=False, verbose=0).history["loss"]
    return loss


def compare(name, schema, features, label):
    data = tf.data.Dataset.from_tensors((features, label)).repeat(STEPS)
    data = data.map(lambda *parts: keras.tree.map_structure(open_shape, parts))
    trained = []
    for how in ({"run_eagerly": True}, {"jit_compile": True}):
        keras.utils.set_random_seed(0)
        model = models.create(name, schema=schema, embedding_stddev=0.5, **SMALL.get(name, {}))
        # XLA does not compile the optimizer: this one has the smallest graph.
        model.compile(keras.optimizers.SGD(RATE), LogLoss(), **how)
        with (
            mock.patch.object(tf.random, "stateless_uniform", uniform),
            mock.patch.object(tf.random, "stateless_normal", normal),
        ):
            trained.append((fit(model, data), model.get_weights()))
    (loss, weights), (loss_of_xla, weights_of_xla) = trained
    pairs = zip(weights, weights_of_xla, strict=True)
    scores, scores_of_xla = model(features).numpy(), model.inference_function(features).numpy()
    return {
        "loss": loss,
        "loss_of_xla": loss_of_xla,
        "later_loss": fit(model, data),
        "difference": float(max(np.abs(a - b).max() for a, b in pairs if a.size)),
        "spread_of_scores": float(scores.std()),
        "difference_of_scores": float(np.abs(scores_of_xla - scores).max()),
    }


def main(request_path, *names):
    saved = dict(np.load(request_path))
    schema = Schema.from_config(json.loads(str(saved.pop("schema"))))
    label = (saved["item"] % 2).astype("f")
    found = {}
    for name in names:
        found[name] = compare(name, schema, saved, label)
        let_go()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
