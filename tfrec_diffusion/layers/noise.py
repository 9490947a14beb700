"""Random numbers that XLA draws as fast on a CPU as TensorFlow does.

`keras.random` leaves the algorithm to XLA, whose choice takes 28 times as long there.
"""

import numpy as np
import tensorflow as tf

_ALGORITHM = "philox"
_INFERENCE_SEED = 2025


def normal(shape, seed_generator):
    """Standard normal float32 numbers; advances the `keras.random.SeedGenerator`."""
    return tf.random.stateless_normal(shape, _seed(seed_generator), alg=_ALGORITHM)


def randint(shape, low, high, seed_generator):
    """int32 numbers, uniform in [low, high); advances the `keras.random.SeedGenerator`."""
    return tf.random.stateless_uniform(
        shape, _seed(seed_generator), low, high, tf.int32, alg=_ALGORITHM
    )


def uniform(shape, seed_generator):
    """float32 numbers, uniform in [0, 1); advances the `keras.random.SeedGenerator`."""
    return tf.random.stateless_uniform(shape, _seed(seed_generator), alg=_ALGORITHM)


def fixed_normal(shape):
    """The standard normal float32 numbers of a shape, the same in every call: inference's noise."""
    rng = np.random.default_rng(_INFERENCE_SEED)
    return tf.convert_to_tensor(rng.standard_normal(shape, "float32"))


def _seed(seed_generator):
    seed = tf.cast(seed_generator.next(), tf.int32)
    replica = tf.distribute.get_replica_context()
    # Replicas have equal generators, and rows of their own.
    return seed + tf.stack([replica.replica_id_in_sync_group, 0]) if replica else seed
