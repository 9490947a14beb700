"""SimHash: search by Hamming distance (ETA, section 4.3), pooling of hash buckets (SDIM, eq. 6-11).

Each bit of a vector's hash is the sign of its product with a random direction. Two vectors at an
angle theta differ in a bit with probability theta / pi (Charikar, 2002).
"""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.normalization import unit_length

_SEED = 2022
_BITS_PER_WORD = 16  # a float32 product packs these exactly


class _SimHash(keras.layers.Layer):
    """Random directions that are drawn from a fixed seed, never trained, and saved."""

    def _add_directions(self, dim, count):
        self.directions = self.add_weight(
            name="directions",
            shape=(dim, count),
            initializer=keras.initializers.RandomNormal(seed=_SEED),
            trainable=False,
            autocast=False,
        )

    def bits(self, x):
        """Bits of vectors.

        Args:
            x: float tensor of shape (..., d).

        Returns:
            float32 tensor of shape (..., number of directions), 0 or 1. No gradient.
        """
        product = ops.matmul(ops.cast(ops.stop_gradient(x), "float32"), self.directions)
        return ops.cast(product > 0, "float32")


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class HammingSearch(_SimHash):
    """Search by the Hamming distance of SimHash fingerprints: the first stage of ETA.

    Args:
        num_bits: int. Number of bits of a fingerprint. Defaults to `32`.

    Call arguments:
        history: float tensor of shape (batch, length, d).
        target: float tensor of shape (batch, candidates, d).

    Returns:
        Scores for `TopScores`, float32 tensor of shape (batch, candidates, length): the negative
        distances. No gradient.

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
        """Packs the bits of vectors into words of 16 bits.

        Args:
            x: float tensor of shape (..., d).

        Returns:
            list of uint16 tensors of shape (...).
        """
        bits = self.bits(x)
        words = []
        for start in range(0, self.num_bits, _BITS_PER_WORD):
            word = bits[..., start : start + _BITS_PER_WORD]
            powers = 2.0 ** ops.arange(word.shape[-1], dtype="float32")
            words.append(ops.cast(ops.matmul(word, powers), "uint16"))
        return words

    def compute_output_spec(self, history, target):
        return keras.KerasTensor((*target.shape[:2], history.shape[1]), "float32")


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class HashBucketPooling(_SimHash):
    """Sums the behaviors in the candidate's hash bucket: SDIM's attention without ranking.

    (1 / G) sum_g l2(sum_j [hash_g(e_j) = hash_g(e_a)] e_j): the sums of G independent hashes are
    brought to length 1 and averaged. A behavior at an angle theta to the candidate is in its bucket
    with probability (1 - theta / pi)^tau, where tau is the number of bits of a hash.

    The history of a request is divided into buckets once, and all candidates look theirs up. If
    there are fewer candidates than buckets, only the buckets of candidates are summed.

    Args:
        num_hashes: int. Number of hashes G. Defaults to `48`.
        hash_bits: int. Number of bits tau of a hash, which has 2^tau buckets. Defaults to `3`.

    Call arguments:
        history: float tensor of shape (batch, length, d).
        target: float tensor of shape (batch, candidates, d).
        history_mask: bool tensor of shape (batch, length), True = real.

    Returns:
        float tensor of shape (batch, candidates, d). A hash whose bucket is empty counts as zeros.

    Reference:
        Cao et al., CIKM 2022, eq. 6-11: https://arxiv.org/abs/2205.10249
    """

    def __init__(self, num_hashes=48, hash_bits=3, **kwargs):
        super().__init__(autocast=False, **kwargs)
        check_positive_integers(num_hashes=num_hashes, hash_bits=hash_bits)
        self.num_hashes = num_hashes
        self.hash_bits = hash_bits

    def build(self, history_shape):
        self._add_directions(history_shape[-1], self.num_hashes * self.hash_bits)

    def call(self, history, target, history_mask):
        wanted = self.codes(target)
        # Not with `tf.cond`, because its results would have unknown shapes under XLA.
        candidates, buckets = tf.shape(target)[1], 2**self.hash_bits
        few, count = candidates < buckets, tf.minimum(candidates, buckets)
        filled = self._fill(
            history, history_mask, tf.where(few, wanted[:, :count], self._every_bucket()[:count])
        )
        order = tf.cast(tf.range(candidates), "float32")[:, None]
        return self._look_up(filled, tf.where(few, order + tf.zeros_like(wanted), wanted))

    def split(self):
        """Splits the pooling into what depends on the user alone, and the rest.

        Returns:
            Two `keras.layers.Layer` that share the directions of this one. The first maps
            `history` and `history_mask` to the buckets, a float32 tensor of shape
            (batch, 2^tau, G, d), and the second maps buckets and `target` to the result.
        """
        return _Buckets(self), _BucketLookup(self)

    def _every_bucket(self):
        return tf.range(2.0**self.hash_bits)[:, None]

    def _fill(self, history, history_mask, wanted):
        """Normalized sums (batch, m, G, d) of the buckets (batch, m, G) that are wanted."""
        falls = ops.equal(self.codes(history)[:, :, None], wanted[:, None])
        shape = ops.shape(falls)  # (batch, length, m, G)
        falls = ops.cast(ops.reshape(falls, (*shape[:2], shape[2] * shape[3])), "float32")
        real = ops.cast(history_mask, "float32")[..., None]
        sums = tf.matmul(falls, ops.cast(history, "float32") * real, transpose_a=True)
        return unit_length(ops.reshape(sums, (shape[0], *shape[2:], history.shape[-1])))

    def _look_up(self, filled, places):
        """Mean over the hashes of the filled buckets at the places (batch, candidates, G)."""
        batch, count, hashes, dim = ops.shape(filled)
        places = places * self.num_hashes + ops.arange(self.num_hashes, dtype="float32")
        places = tf.cast(places, "int32")
        # Flattened, because a transposition by oneDNN would take longer than all the rest.
        filled = ops.reshape(filled, (batch, count * hashes, dim))
        found = tf.gather(filled, places, batch_dims=1)  # (batch, candidates, G, d)
        return ops.cast(ops.mean(found, axis=2), self.compute_dtype)

    def codes(self, x):
        """Buckets of vectors.

        Args:
            x: float tensor of shape (..., d).

        Returns:
            float32 tensor of shape (..., G). Number of the bucket in each hash, in [0, 2^tau).
        """
        bits = self.bits(x)
        count = self.num_hashes
        return sum(2.0**i * bits[..., i * count : (i + 1) * count] for i in range(self.hash_bits))

    def compute_output_spec(self, history, target, history_mask):
        return keras.KerasTensor(target.shape, self.compute_dtype)


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
    """The interests of candidates, from the output of `_Buckets`."""

    def __init__(self, pooling):
        super().__init__(autocast=False)
        self.pooling = pooling

    def call(self, buckets, target):
        return self.pooling._look_up(buckets, self.pooling.codes(target))

    def compute_output_spec(self, buckets, target):
        return keras.KerasTensor(target.shape, self.pooling.compute_dtype)
