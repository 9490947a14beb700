"""ETA: End-to-End User Behavior Retrieval in CTR Prediction (Chen et al., 2021)."""

import keras

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.hashing import HammingSearch
from tfrec_diffusion.layers.search import TopScores
from tfrec_diffusion.layers.target_attention import TargetAttention, TargetQuery
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.parts import ShortTerm


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class ETA(RankingModel):
    """MLP([user and context, candidate, long-term, short-term interest]); figure 2 of the paper.

    The search retrieves those behaviors whose SimHash fingerprints are nearest to the candidate's.
    Multi-head target attention over them gives the long-term interest, and over the newest
    behaviors the short-term interest.

    Args:
        schema: `Schema`. The features of a request.
        retrieved_length: int. Number of behaviors that the search retrieves, k. Defaults to `100`.
        short_length: int. Number of newest behaviors of the short-term part. Defaults to `50`.
        num_bits: int. Number of bits of a fingerprint, m. Defaults to `32`.
        num_heads: int. Number of heads of both attentions. Defaults to `4`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

    Example:

    >>> model = models.create("eta", schema=schema, retrieved_length=100)

    Reference:
        https://arxiv.org/abs/2108.04468
    """

    def __init__(
        self, schema, retrieved_length=100, short_length=50, num_bits=32, num_heads=4, **kwargs
    ):
        # === Layers ===
        check_positive_integers(retrieved_length=retrieved_length)
        dtype = kwargs.get("dtype")
        distance = HammingSearch(num_bits, dtype=dtype, name="eta.hamming_distance")
        search = TopScores(retrieved_length, name="eta.search")
        query = TargetQuery(num_heads, dtype=dtype, name="eta.query")
        attention = TargetAttention(dtype=dtype, name="eta.attention")
        short_term = ShortTerm(short_length, num_heads, dtype, "eta")

        # === Functional model ===
        def tower_inputs(request):
            scores = distance(request.history, request.target)
            found = request.at(*search(scores, request.history_mask))
            long_term = attention(query(request.target), found.history, found.history_mask)
            return request.tower_inputs(long_term, short_term(request))

        super().__init__(schema, tower_inputs, **kwargs)

        # === Config ===
        self.retrieved_length = retrieved_length
        self.short_length = short_length
        self.num_bits = num_bits
        self.num_heads = num_heads
