"""Random numbers that are as fast to draw on a CPU with XLA as without.

`keras.random` leaves the choice of the algorithm to XLA, and its choice takes 28 times as long on a
CPU.
"""

import numpy as np
import tensorflow as tf

_ALGORITHM = "philox"
_INFERENCE_SEED = 2025


def normal(shape, seed_generator):
    """Draws standard normal numbers.

    Args:
        shape: tuple of int or scalar int tensors.
        seed_generator: `keras.random.SeedGenerator`. It is advanced.

    Returns:
        float32 tensor of shape `shape`.
    """
    return tf.random.stateless_normal(shape, _seed(seed_generator), alg=_ALGORITHM)


def randint(shape, low, high, seed_generator):
    """Draws integers that are uniform in [low, high).

    Args:
        shape: tuple of int or scalar int tensors.
        low: int or scalar int32 tensor. Lowest number.
        high: int or scalar int32 tensor. Highest number plus 1.
        seed_generator: `keras.random.SeedGenerator`. It is advanced.

    Returns:
        int32 tensor of shape `shape`.
    """
    return tf.random.stateless_uniform(
        shape, _seed(seed_generator), low, high, tf.int32, alg=_ALGORITHM
    )


def uniform(shape, seed_generator):
    """Draws numbers that are uniform in [0, 1).

    Args:
        shape: tuple of int or scalar int tensors.
        seed_generator: `keras.random.SeedGenerator`. It is advanced.

    Returns:
        float32 tensor of shape `shape`.
    """
    return tf.random.stateless_uniform(shape, _seed(seed_generator), alg=_ALGORITHM)


def fixed_normal(shape):
    """Standard normal numbers that are the same in every call: the noise at inference.

    Args:
        shape: tuple of int.

    Returns:
        float32 tensor of shape `shape`.
    """
    return tf.convert_to_tensor(fixed_generator().standard_normal(shape, "float32"))


def fixed_generator():
    """A new `numpy.random.Generator` of the numbers of inference, the same in every call."""
    return np.random.default_rng(_INFERENCE_SEED)


def _seed(seed_generator):
    seed = tf.cast(seed_generator.next(), tf.int32)
    replica = tf.distribute.get_replica_context()
    # Replicas have equal generators but different rows of the batch.
    return seed + tf.stack([replica.replica_id_in_sync_group, 0]) if replica else seed
