"""SimHash: ETA's search by Hamming distance, SDIM's pooling of hash buckets.

A bit of a vector's hash is the sign of its product with a random direction: two vectors at an angle
theta differ in a bit with probability theta / pi (Charikar, 2002).
"""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.normalization import unit_length

_SEED = 2022
_BITS_PER_WORD = 16  # so many are packed exactly by a float32 product


class _SimHash(keras.layers.Layer):
    """Random directions; fixed, of one seed, and saved with the model."""

    def _add_directions(self, dim, count):
        self.directions = self.add_weight(
            name="directions",
            shape=(dim, count),
            initializer=keras.initializers.RandomNormal(seed=_SEED),
            trainable=False,
            autocast=False,
        )

    def bits(self, x):
        """(..., d) to float32 0 or 1, (..., count)."""
        product = ops.matmul(ops.cast(ops.stop_gradient(x), "float32"), self.directions)
        return ops.cast(product > 0, "float32")


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class HammingSearch(_SimHash):
    """ETA's first stage: the Hamming distance of SimHash fingerprints.

    Args:
        num_bits: Bits of a fingerprint, m.

    Call arguments:
        history: (batch, length, d).
        target: (batch, candidates, d).

    Returns:
        Scores for `TopScores`, float32 (batch, candidates, length): distances times -1, without
        gradient.

    Reference:
        Chen et al., 2021, section 4.3: https://arxiv.org/abs/2108.04468
    """

    def __init__(self, num_bits=32, **kwargs):
        super().__init__(autocast=False, **kwargs)
        check_positive_integers(num_bits=num_bits)
        self.num_bits = num_bits

    def build(self, history_shape, target_shape=None):
        self._add_directions(history_shape[-1], self.num_bits)

    def call(self, history, target):
        behaviors, candidates = self.fingerprints(history), self.fingerprints(target)
        distance = 0
        for behavior, candidate in zip(behaviors, candidates, strict=True):
            differ = tf.bitwise.bitwise_xor(behavior[:, None], candidate[:, :, None])
            distance += tf.cast(tf.raw_ops.PopulationCount(x=differ), tf.float32)
        return -distance

    def fingerprints(self, x):
        """(..., d) to packed bits: a list of uint16 (...)."""
        bits = self.bits(x)
        words = []
        for start in range(0, self.num_bits, _BITS_PER_WORD):
            word = bits[..., start : start + _BITS_PER_WORD]
            powers = 2.0 ** ops.arange(word.shape[-1], dtype="float32")
            words.append(ops.cast(ops.matmul(word, powers), "uint16"))
        return words

    def compute_output_spec(self, history, target):
        return keras.KerasTensor((*target.shape[:2], history.shape[1]), "float32")

    def get_config(self):
        return {**super().get_config(), "num_bits": self.num_bits}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class HashBucketPooling(_SimHash):
    """SDIM: the behaviors in the candidate's bucket, summed, averaged over independent hashes.

    (1 / G) sum_g l2(sum_j [hash_g(e_j) = hash_g(e_a)] e_j): a behavior at an angle theta is in the
    candidate's bucket with probability (1 - theta / pi)^tau, and nothing is ranked.

    The history falls into its buckets once a request, and candidates look theirs up; fewer
    candidates than buckets have only theirs filled.

    Args:
        num_hashes: Hashes, G.
        hash_bits: Bits of each, tau; it has 2^tau buckets.

    Call arguments:
        history: (batch, length, d).
        target: (batch, candidates, d).
        history_mask: bool (batch, length), True = real.

    Returns:
        (batch, candidates, d); a hash whose bucket is empty counts with zeros.

    Reference:
        Cao et al., CIKM 2022, eq. 6-11: https://arxiv.org/abs/2205.10249
    """

    def __init__(self, num_hashes=48, hash_bits=3, **kwargs):
        super().__init__(autocast=False, **kwargs)
        check_positive_integers(num_hashes=num_hashes, hash_bits=hash_bits)
        self.num_hashes = num_hashes
        self.hash_bits = hash_bits

    def build(self, history_shape, *_):
        self._add_directions(history_shape[-1], self.num_hashes * self.hash_bits)

    def call(self, history, target, history_mask):
        wanted = self.codes(target)
        # Of fewer candidates than buckets their own are filled, else all. No `tf.cond`: XLA takes
        # the shapes of its results for open ones.
        candidates, buckets = tf.shape(target)[1], 2**self.hash_bits
        few, count = candidates < buckets, tf.minimum(candidates, buckets)
        filled = self._fill(
            history, history_mask, tf.where(few, wanted[:, :count], self._every_bucket()[:count])
        )
        order = tf.cast(tf.range(candidates), "float32")[:, None]
        return self._look_up(filled, tf.where(few, order + tf.zeros_like(wanted), wanted))

    def split(self):
        """Two layers that do the same: the first fills all buckets, (batch, 2^tau, G, d)."""
        return _Buckets(self), _BucketLookup(self)

    def _every_bucket(self):
        return tf.range(2.0**self.hash_bits)[:, None]

    def _fill(self, history, history_mask, wanted):
        """Normalized sums of the wanted buckets (batch, m, G): (batch, m, G, d)."""
        falls = ops.equal(self.codes(history)[:, :, None], wanted[:, None])
        shape = ops.shape(falls)  # (batch, length, m, G)
        falls = ops.cast(ops.reshape(falls, (*shape[:2], shape[2] * shape[3])), "float32")
        real = ops.cast(history_mask, "float32")[..., None]
        sums = tf.matmul(falls, ops.cast(history, "float32") * real, transpose_a=True)
        return unit_length(ops.reshape(sums, (shape[0], *shape[2:], history.shape[-1])))

    def _look_up(self, filled, places):
        """Means over the hashes of what stands at the places (batch, candidates, G)."""
        batch, count, hashes, dim = ops.shape(filled)
        places = places * self.num_hashes + ops.arange(self.num_hashes, dtype="float32")
        places = tf.cast(places, "int32")
        # As one list, because oneDNN takes longer to transpose than all the rest does.
        filled = ops.reshape(filled, (batch, count * hashes, dim))
        found = tf.gather(filled, places, batch_dims=1)  # (batch, candidates, G, d)
        return ops.cast(ops.mean(found, axis=2), self.compute_dtype)

    def codes(self, x):
        """(..., d) to the bucket in each hash, float32 integers (..., G)."""
        bits = self.bits(x)
        count = self.num_hashes
        return sum(2.0**i * bits[..., i * count : (i + 1) * count] for i in range(self.hash_bits))

    def compute_output_spec(self, history, target, history_mask):
        return keras.KerasTensor(target.shape, self.compute_dtype)

    def get_config(self):
        config = {"num_hashes": self.num_hashes, "hash_bits": self.hash_bits}
        return {**super().get_config(), **config}


class _Buckets(keras.layers.Layer):
    """All buckets of a `HashBucketPooling`."""

    def __init__(self, pooling):
        super().__init__(autocast=False)
        self.pooling = pooling

    def call(self, history, history_mask):
        wanted = self.pooling._every_bucket() + tf.zeros((self.pooling.num_hashes,))
        return self.pooling._fill(history, history_mask, wanted[None])

    def compute_output_spec(self, history, history_mask):
        shape = (history.shape[0], 2**self.pooling.hash_bits, self.pooling.num_hashes)
        return keras.KerasTensor((*shape, history.shape[-1]), "float32")


class _BucketLookup(keras.layers.Layer):
    """The interests of candidates in what `_Buckets` gave."""

    def __init__(self, pooling):
        super().__init__(autocast=False)
        self.pooling = pooling

    def call(self, buckets, target):
        return self.pooling._look_up(buckets, self.pooling.codes(target))

    def compute_output_spec(self, buckets, target):
        return keras.KerasTensor(target.shape, self.pooling.compute_dtype)
