"""SIM: Search-based Interest Model, with hard and with soft search (Pi et al., CIKM 2020)."""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_not_negative, check_positive_integers, choose
from tfrec_diffusion.layers.cross_features import BehaviorFeatureEmbedding
from tfrec_diffusion.layers.mlp import MLP
from tfrec_diffusion.layers.search import InnerProductSearch, SameCategory, TopScores
from tfrec_diffusion.layers.target_attention import AttentionPooling, TargetQuery
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.models.base import RankingModel, as_schema, behavior_rows
from tfrec_diffusion.models.short_term import ShortTerm


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SIMHard(RankingModel):
    """MLP([user and context, candidate, long-term, short-term interest]); figure 2 of the paper.

    General search: the newest behaviors of the candidate's category. Exact search: multi-head
    target attention over them (eq. 3-5), with their time intervals where the schema has them.

    Args:
        schema: `Schema`. Its behavior features are what is known of behaviors: time intervals.
        category_feature: Name of the history feature that must equal the candidate's. May be left
            out where there are two, item and category: it is the second then.
        retrieved_length: Behaviors that the search retrieves at most.
        short_length: Newest behaviors of the short-term part.
        interval_features: Names of behavior features; `None`: all of the schema's.
        num_heads: Heads of both attentions.
        embedding_stddev: Standard deviation of the initial embeddings.
        **kwargs: See `RankingModel`.

    Call arguments and Returns: see `RankingModel`.

    Example:

    >>> model = models.create("sim_hard", schema=schema, category_feature="history_category")

    Reference:
        https://arxiv.org/abs/2006.05639
    """

    def __init__(
        self,
        schema,
        category_feature=None,
        retrieved_length=100,
        short_length=50,
        interval_features=None,
        num_heads=4,
        embedding_stddev=0.01,
        **kwargs,
    ):
        # === Layers ===
        check_positive_integers(retrieved_length=retrieved_length)
        schema = as_schema(schema)
        dtype = kwargs.get("dtype")
        categories = schema.candidate_features_of_history()
        if category_feature is None and len(categories) <= 2:
            category_feature = [*categories][-1]
        category = choose("category_feature", category_feature, categories)
        same_category = SameCategory(name="sim.same_category")
        search = TopScores(retrieved_length, name="sim.general_search")
        exact_search = _ExactSearch(schema, interval_features, num_heads, embedding_stddev, dtype)
        short_term = ShortTerm(short_length, num_heads, dtype, "sim")

        # === Functional model ===
        def tower_inputs(request):
            features = request.features
            scores = same_category(features[category_feature], features[category])
            long_term = exact_search(request, *search(scores, request.history_mask))
            return request.tower_inputs(long_term, short_term(request))

        super().__init__(schema, tower_inputs, embedding_stddev=embedding_stddev, **kwargs)

        # === Config ===
        self.category_feature = category_feature
        self.retrieved_length = retrieved_length
        self.short_length = short_length
        self.interval_features = interval_features and exact_search.behavior_features
        self.behavior_features = exact_search.behavior_features
        self.num_heads = num_heads


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SIMSoft(RankingModel):
    """As `SIMHard`, with a general search by inner products that a loss of its own trains (eq. 2).

    That loss is the log loss of a click predicted from the candidate and U, the sum of all
    behaviors weighted by those products; the exact search gives the products no gradient.

    Args:
        schema: `Schema`.
        retrieved_length, short_length, interval_features, num_heads, embedding_stddev: See
            `SIMHard`.
        search_units: Widths of the MLP that predicts the click from U.
        search_weight: Of its loss, alpha.
        activation: "dice", "prelu" or "relu", also in the tower.
        **kwargs: See `RankingModel`.

    Call arguments and Returns: see `RankingModel`.

    Example:

    >>> model = models.create("sim_soft", schema=schema, retrieved_length=100)

    Reference:
        https://arxiv.org/abs/2006.05639
    """

    def __init__(
        self,
        schema,
        retrieved_length=100,
        short_length=50,
        interval_features=None,
        num_heads=4,
        search_units=(80, 40),
        search_weight=1.0,
        activation="dice",
        embedding_stddev=0.01,
        **kwargs,
    ):
        # === Layers ===
        check_positive_integers(retrieved_length=retrieved_length)
        check_not_negative(search_weight=search_weight)
        schema = as_schema(schema)
        dtype = kwargs.get("dtype")
        relevance = InnerProductSearch(dtype=dtype, name="sim.relevance")
        search_tower = MLP(search_units, activation, dtype=dtype, name="sim.search_tower")
        search_click = keras.layers.Dense(1, "sigmoid", dtype=dtype, name="sim.search_click")
        search = TopScores(retrieved_length, name="sim.general_search")
        exact_search = _ExactSearch(schema, interval_features, num_heads, embedding_stddev, dtype)
        short_term = ShortTerm(short_length, num_heads, dtype, "sim")
        searched = []

        # === Functional model ===
        def tower_inputs(request):
            mask = request.history_mask
            scores, weighted_sum = relevance(request.history, request.target, mask)
            inputs = [weighted_sum, request.target]
            click = search_click(search_tower(inputs, candidate_mask=request.candidate_mask))
            searched.append(keras.layers.Reshape((-1,), dtype="float32")(click))
            long_term = exact_search(request, *search(scores, mask))
            return request.tower_inputs(long_term, short_term(request))

        super().__init__(
            schema, tower_inputs, activation=activation, embedding_stddev=embedding_stddev, **kwargs
        )
        self.general_search = keras.Model(self.input, searched[0], name="sim.general_search_click")
        self.search_loss_tracker = keras.metrics.Mean(name="search_loss")

        # === Config ===
        self.retrieved_length = retrieved_length
        self.short_length = short_length
        self.interval_features = interval_features and exact_search.behavior_features
        self.behavior_features = exact_search.behavior_features
        self.num_heads = num_heads
        self.search_units = search_tower.units
        self.search_weight = search_weight

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The model's loss and, in training, `search_weight` times that of the general search."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if training:
            search_loss = LogLoss()(y, self.general_search(x, training=True), sample_weight)
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            self.search_loss_tracker.update_state(search_loss * replicas)
            loss += self.search_weight * search_loss
        return loss


class _ExactSearch:
    """Multi-head target attention over [behavior, time intervals] of the retrieved (eq. 3-5)."""

    def __init__(self, schema, interval_features, num_heads, embedding_stddev, dtype):
        rows = behavior_rows(schema, "interval_features", interval_features)
        self.behavior_features = tuple(rows)
        self._intervals = BehaviorFeatureEmbedding(
            rows, stddev=embedding_stddev, dtype=dtype, name="sim.intervals"
        )
        self._num_heads = num_heads
        self._dtype = dtype
        self._attention = AttentionPooling(dtype=dtype, name="sim.attention")

    def __call__(self, request, positions, real):
        found = request.at(positions, real)
        behaviors = found.history
        if self.behavior_features:
            known = self._intervals({name: found.features[name] for name in self.behavior_features})
            behaviors = ops.concatenate([behaviors, known], axis=-1)
        query = TargetQuery(
            self._num_heads, behaviors.shape[-1], dtype=self._dtype, name="sim.query"
        )
        return self._attention(query(request.target), behaviors, real)
