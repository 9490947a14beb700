"""SDIM: Sampling Is All You Need on Modeling Long-Term User Behaviors (Cao et al., CIKM 2022)."""

import keras

from tfrec_diffusion.layers.hashing import HashBucketPooling
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.short_term import ShortTerm


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SDIM(RankingModel):
    """MLP([user and context, candidate, long-term, short-term interest]).

    The long-term interest is the mean over hashes of what shares the candidate's bucket; nothing is
    ranked. The short-term one is target attention over the newest behaviors.

    Args:
        schema: `Schema`.
        num_hashes: Independent hashes.
        hash_bits: Bits of each, tau: the more, the sharper the attention that they sample.
        short_length: Newest behaviors of the short-term part.
        num_heads: Heads of its attention.
        **kwargs: See `RankingModel`.

    Call arguments and Returns: see `RankingModel`.

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
