"""A worker: trains models for an epoch; the chief saves their weights."""

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

from tfrec_diffusion import models
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam
from tfrec_diffusion.training import strategies

sys.path.append(str(pathlib.Path(__file__).parents[1]))  # this is a process of its own
from memory import let_go
from small_models import SMALL

OPTIMIZERS = {"row-wise": LazyAdam, "whole tables": keras.optimizers.Adam}
TRAINED = (
    ("din", "row-wise"),
    ("din", "whole tables"),
    ("diffumin", "row-wise"),
    ("hierdiffuse", "row-wise"),
)
BATCH_SIZE = 64
# Without what takes statistics from each replica's rows.
OF_ROWS = {
    "din": {},
    "diffumin": {"profile_units": ()},
    "hierdiffuse": {"profile_units": (), "interaction_units": ()},
}


def compiled(name, optimizer, schema):
    """The same model in every process."""
    keras.utils.set_random_seed(0)
    arguments = {"activation": "relu", **SMALL.get(name, {}), **OF_ROWS[name]}
    model = models.create(name, schema=schema, **arguments)
    # So small that rounding turns no step of the routing the other way.
    model.compile(OPTIMIZERS[optimizer](1e-4), LogLoss(), jit_compile=False)
    return model


def main(directory, out):
    data = RequestData(directory)
    machines = strategies.create("multi_worker")
    for name, optimizer in TRAINED:
        with machines.strategy.scope():
            model = compiled(name, optimizer, data.schema)
            model.optimizer.build(model.trainable_variables)
        machines.fit(model, data, BATCH_SIZE, seed=0, epoch=0, first_batch=0, callbacks=[])
        if machines.is_chief:
            np.savez(pathlib.Path(out, f"{name} {optimizer}.npz"), *model.get_weights())
        let_go()


if __name__ == "__main__":
    # Fifty steps take less time than graphs to be optimized.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    main(*sys.argv[1:])
