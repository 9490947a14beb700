"""SIM: Search-based Interest Model, with hard and with soft search (Pi et al., CIKM 2020)."""

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import check_not_negative, check_positive_integers, choose
from tfrec_diffusion.layers.mlp import MLP
from tfrec_diffusion.layers.search import InnerProductSearch, SameCategory, TopScores
from tfrec_diffusion.layers.target_attention import AttentionPooling, TargetQuery
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.parts import BehaviorFeatures, ShortTerm
from tfrec_diffusion.models.request import as_schema


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class SIMHard(RankingModel):
    """MLP([user and context, candidate, long-term, short-term interest]); figure 2 of the paper.

    The general search retrieves the newest behaviors of the candidate's category. The exact search
    is multi-head target attention over them (eq. 3-5), together with their time intervals where
    the schema has them.

    Args:
        schema: `Schema`. The features of a request.
        category_feature: str or `None`. Name of the history feature whose value must equal the
            candidate's. If `None`, the second of the features that histories share with candidates,
            of which there must not be more than two: item and category. Defaults to `None`.
        retrieved_length: int. Number of behaviors that the search retrieves at most. Defaults to
            `100`.
        short_length: int. Number of newest behaviors of the short-term part. Defaults to `50`.
        interval_features: Sequence of str or `None`. Names of the behavior features that hold time
            intervals. If `None`, all behavior features of the schema. Defaults to `None`.
        num_heads: int. Number of heads of both attentions. Defaults to `4`.
        embedding_stddev: float. Standard deviation of the initial embeddings. Defaults to `0.01`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

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
    """`SIMHard` with a general search by inner products, trained by a loss of its own (eq. 2).

    An MLP predicts the click from the candidate and from U, the sum of all behaviors weighted by
    these inner products. Its log loss trains them, because the exact search gives them no gradient.

    Args:
        schema: `Schema`. The features of a request.
        retrieved_length: int. Number of behaviors that the search retrieves, k. Defaults to `100`.
        short_length: int. Number of newest behaviors of the short-term part. Defaults to `50`.
        interval_features: Sequence of str or `None`. Names of the behavior features that hold time
            intervals. If `None`, all behavior features of the schema. Defaults to `None`.
        num_heads: int. Number of heads of both attentions. Defaults to `4`.
        search_units: Sequence of int. Widths of the MLP that predicts the click from U. Defaults to
            `(80, 40)`.
        search_weight: float. Weight alpha of its loss. Defaults to `1.0`.
        activation: str. Activation of this MLP and the tower: `"dice"`, `"prelu"` or `"relu"`.
            Defaults to `"dice"`.
        embedding_stddev: float. Standard deviation of the initial embeddings. Defaults to `0.01`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

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
        self._intervals = BehaviorFeatures(
            schema, interval_features, embedding_stddev, dtype, "sim.intervals", "interval_features"
        )
        self.behavior_features = self._intervals.names
        self._num_heads = num_heads
        self._dtype = dtype
        self._attention = AttentionPooling(dtype=dtype, name="sim.attention")

    def __call__(self, request, positions, real):
        found = request.at(positions, real)
        behaviors = found.history
        if self.behavior_features:
            behaviors = ops.concatenate([behaviors, self._intervals(found)], axis=-1)
        query = TargetQuery(
            self._num_heads, behaviors.shape[-1], dtype=self._dtype, name="sim.query"
        )
        return self._attention(query(request.target), behaviors, real)
