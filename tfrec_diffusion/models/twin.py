"""TWIN: TWo-stage Interest Network for Lifelong User Behavior Modeling (Chang et al., KDD 2023)."""

import keras

from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.parts import ConsistentAttention, CrossFeatures, ShortTerm
from tfrec_diffusion.models.request import as_schema


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TWIN(RankingModel):
    """MLP([user and context, candidate, long-term, short-term interest]); figure 2 of the paper.

    Search and attention agree on how much a behavior weighs, because they share their queries and
    the bias of the cross features (eq. 5-7).

    Args:
        schema: `Schema`. The features of a request. Its history features are the paper's inherent
            features, its behavior features the cross features.
        retrieved_length: int. Number of behaviors that the search retrieves, k. Defaults to `100`.
        short_length: int. Number of newest behaviors of the short-term part. Defaults to `50`.
        cross_features: Sequence of str or `None`. Names of the behavior features that are used. If
            `None`, all of the schema's. Defaults to `None`.
        num_heads: int. Number of heads of both attentions. Defaults to `4`.
        embedding_stddev: float. Standard deviation of the initial embeddings, also of those of the
            cross features. Defaults to `0.01`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

    Example:

    >>> model = models.create("twin", schema=schema, retrieved_length=100)

    Reference:
        https://arxiv.org/abs/2302.02352
    """

    def __init__(
        self,
        schema,
        retrieved_length=100,
        short_length=50,
        cross_features=None,
        num_heads=4,
        embedding_stddev=0.01,
        **kwargs,
    ):
        # === Layers ===
        schema = as_schema(schema)
        dtype = kwargs.get("dtype")
        cross = CrossFeatures(schema, cross_features, num_heads, embedding_stddev, dtype, "twin")
        long_term = ConsistentAttention(cross, retrieved_length, num_heads, dtype, "twin")
        short_term = ShortTerm(short_length, num_heads, dtype, "twin")

        # === Functional model ===
        def tower_inputs(request):
            return request.tower_inputs(long_term(request), short_term(request))

        super().__init__(schema, tower_inputs, embedding_stddev=embedding_stddev, **kwargs)

        # === Config ===
        self.retrieved_length = retrieved_length
        self.short_length = short_length
        self.cross_features = cross_features and cross.names
        self.behavior_features = cross.names
        self.num_heads = num_heads
