"""TWIN: TWo-stage Interest Network for Lifelong User Behavior Modeling (Chang et al., KDD 2023)."""

import keras
from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.cross_features import BehaviorFeatureEmbedding, CrossBias
from tfrec_diffusion.layers.search import TopScores
from tfrec_diffusion.layers.target_attention import QueryScores, TargetAttention, TargetQuery
from tfrec_diffusion.models.base import RankingModel, as_schema, behavior_rows
from tfrec_diffusion.models.short_term import ShortTerm


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TWIN(RankingModel):
    """MLP([user and context, candidate, long-term, short-term interest]); figure 2 of the paper.

    Search and attention give a behavior the same weight: both take the queries of the same layer
    and the bias of the same cross features (eq. 5-7).

    Args:
        schema: `Schema`. Its history features are the inherent ones, its behavior features the
            cross ones.
        retrieved_length: Behaviors that the search retrieves, k.
        short_length: Newest behaviors of the short-term part.
        cross_features: Names of behavior features; `None`: all of the schema's.
        num_heads: Heads of both attentions.
        embedding_stddev: Standard deviation of the initial embeddings, those of the cross features
            too.
        **kwargs: See `RankingModel`.

    Call arguments and Returns: see `RankingModel`.

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


class CrossFeatures:
    """What is known of a request's behaviors: embedded, and as a bias of the attention.

    Args:
        schema: `Schema`.
        names: Of behavior features; `None`: all of the schema's.
        num_heads: Heads of the attention.
        embedding_stddev: Standard deviation of the initial embeddings.
        dtype: Dtype policy.
        model: Name of the model; the layers' names begin with it.
    """

    def __init__(self, schema, names, num_heads, embedding_stddev, dtype, model):
        rows = behavior_rows(schema, "cross_features", names)
        self.names = tuple(rows)
        self._embed = BehaviorFeatureEmbedding(
            rows, stddev=embedding_stddev, dtype=dtype, name=f"{model}.cross_features"
        )
        if rows:
            self._bias = CrossBias(len(rows), num_heads, dtype=dtype, name=f"{model}.cross_bias")

    def __call__(self, request):
        """(batch, .., k, width) and (batch, .., k, heads); `None` both if there are none."""
        if not self.names:
            return None, None
        embedded = self._embed({name: request.features[name] for name in self.names})
        return embedded, self._bias(embedded)


class ConsistentAttention:
    """Search and attention by the same queries and the same bias, of a `Request` (eq. 5-7).

    Cross features are part of the values, and of the keys as a bias only.

    Args:
        cross: `CrossFeatures`.
        retrieved_length: Behaviors that the search retrieves.
        num_heads: Heads.
        dtype: Dtype policy.
        model: Name of the model; the layers' names begin with it.
        log_size: Called with a `Request`; (batch, .., k, 1), added to the bias. `None`: nothing.
    """

    def __init__(self, cross, retrieved_length, num_heads, dtype, model, log_size=None):
        check_positive_integers(retrieved_length=retrieved_length)
        self.cross = cross
        self.log_size = log_size
        self.query = TargetQuery(num_heads, dtype=dtype, name=f"{model}.query")
        self.relevance = QueryScores(dtype=dtype, name=f"{model}.relevance")
        self.search = TopScores(retrieved_length, name=f"{model}.search")
        self.attention = TargetAttention(dtype=dtype, name=f"{model}.attention")

    def __call__(self, request):
        queries = self.query(request.target)
        _, bias = self._known(request)
        scores = self.relevance(queries, request.history, bias)
        found = request.at(*self.search(scores, request.history_mask))
        known, bias = self._known(found)
        values = found.history
        if known is not None:
            values = ops.concatenate([values, known], axis=-1)
        return self.attention(queries, found.history, found.history_mask, bias, values)

    def _known(self, request):
        embedded, bias = self.cross(request)
        if self.log_size is not None:
            size = self.log_size(request)
            bias = size if bias is None else size + bias
        return embedded, bias
