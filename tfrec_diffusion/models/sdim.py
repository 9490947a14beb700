"""SDIM: Sampling Is All You Need on Modeling Long-Term User Behaviors (Cao et al., CIKM 2022)."""

import keras

from tfrec_diffusion.layers.hashing import HashBucketPooling
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.parts import ShortTerm


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SDIM(RankingModel):
    """MLP([user and context, candidate, long-term, short-term interest]).

    For the long-term interest, each hash pools the behaviors that share the candidate's bucket, and
    the mean over all hashes is taken. No behaviors are ranked. The short-term interest is target
    attention over the newest behaviors.

    Args:
        schema: `Schema`. The features of a request.
        num_hashes: int. Number of independent hashes. Defaults to `48`.
        hash_bits: int. Number of bits of each hash, tau. The more there are, the sharper is the
            attention that the hashes sample. Defaults to `3`.
        short_length: int. Number of newest behaviors of the short-term part. Defaults to `50`.
        num_heads: int. Number of heads of the short-term attention. Defaults to `4`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

    Example:

    >>> model = models.create("sdim", schema=schema, num_hashes=48, hash_bits=3)

    Reference:
        https://arxiv.org/abs/2205.10249
    """

    has_user_state = True

    def __init__(self, schema, num_hashes=48, hash_bits=3, short_length=50, num_heads=4, **kwargs):
        # === Layers ===
        dtype = kwargs.get("dtype")
        pooling = HashBucketPooling(num_hashes, hash_bits, dtype=dtype, name="sdim.buckets")
        short_term = ShortTerm(short_length, num_heads, dtype, "sdim")

        # === Functional model ===
        def tower_inputs(request):
            long_term = pooling(request.history, request.target, request.history_mask)
            return request.tower_inputs(long_term, short_term(request))

        super().__init__(schema, tower_inputs, **kwargs)

        # === Config ===
        self.num_hashes = num_hashes
        self.hash_bits = hash_bits
        self.short_length = short_length
        self.num_heads = num_heads
