"""Pieces that several models share: each makes its layers once and is called with a `Request`."""

from keras import ops

from tfrec_diffusion.layers.arguments import check_positive_integers, choose
from tfrec_diffusion.layers.cross_features import (
    AddBehaviorFeatures,
    BehaviorFeatureEmbedding,
    CrossBias,
)
from tfrec_diffusion.layers.normalization import unit_scale
from tfrec_diffusion.layers.pooling import MaskedMean
from tfrec_diffusion.layers.product import TargetProduct
from tfrec_diffusion.layers.search import Newest, TopScores
from tfrec_diffusion.layers.target_attention import QueryScores, TargetAttention, TargetQuery


class NewestBehaviors:
    """Cuts the history of a request to its newest behaviors.

    Args:
        max_length: int or `None`. Number of behaviors that are kept. If `None`, all of them.
        model: str. Name of the model, with which the layers' names begin.

    Call arguments:
        request: `Request`.

    Returns:
        `Request` with a history of shape (batch, min(max_length, length), d).
    """

    def __init__(self, max_length, model):
        if max_length is not None:
            check_positive_integers(max_length=max_length)
        self._newest = max_length and Newest(max_length, name=f"{model}.newest")

    def __call__(self, request):
        if self._newest is None:
            return request
        return request.at(*self._newest(request.history_mask))


class ShortTerm:
    """Multi-head target attention over the newest behaviors, beside a search in all of them.

    Args:
        short_length: int. Number of newest behaviors.
        num_heads: int. Number of attention heads.
        dtype: str, `keras.DTypePolicy` or `None`. Dtype policy of the layers.
        model: str. Name of the model, with which the layers' names begin.

    Call arguments:
        request: `Request`.

    Returns:
        float tensor of shape (batch, candidates, d).
    """

    def __init__(self, short_length, num_heads, dtype, model):
        check_positive_integers(short_length=short_length)
        self._newest = NewestBehaviors(short_length, model)
        self._query = TargetQuery(num_heads, dtype=dtype, name=f"{model}.short_term_query")
        self._attention = TargetAttention(dtype=dtype, name=f"{model}.short_term_attention")

    def __call__(self, request):
        newest = self._newest(request)
        return self._attention(self._query(request.target), newest.history, newest.history_mask)


class HistoryProfile:
    """The match of the candidate with the mean of the whole history, in float32.

    Args:
        units: Sequence of int or `None`. As of `TargetProduct`. If `None`, there is none.
        model: str. Name of the model, with which the layers' names begin.

    Call arguments:
        history: float tensor of shape (batch, length, d).
        history_mask: bool tensor of shape (batch, length), True = real.
        target: float tensor of shape (batch, candidates, d).

    Returns:
        List of the float tensor of shape (batch, candidates, d), or of nothing.

    Attributes:
        units: Tuple of int, or `None`.
    """

    def __init__(self, units, model):
        self.units = None
        if units is not None:
            self._pooling = MaskedMean(dtype="float32", name=f"{model}.history_mean")
            self._match = TargetProduct(units, dtype="float32", name=f"{model}.profile")
            self.units = self._match.units

    def __call__(self, history, history_mask, target):
        if self.units is None:
            return []
        return [self._match(self._pooling(history, history_mask), target)]


class BehaviorFeatures:
    """The embedded behavior features of a request, such as ages, side by side.

    Args:
        schema: `Schema`. The features of a request.
        names: Sequence of str or `None`. Names of behavior features. If `None`, all of the schema.
        embedding_stddev: float. Standard deviation of the initial embeddings.
        dtype: str, `keras.DTypePolicy` or `None`. Dtype policy of the layers.
        name: str. Name of the layer that embeds them.
        argument: str. Name of the constructor argument that gives `names`, for the error. Defaults
            to `"cross_features"`.

    Call arguments:
        request: `Request`.

    Returns:
        float tensor of shape (batch, k, dim), or (batch, candidates, k, dim) after a search for
        each candidate; `None` if there are no features.

    Attributes:
        names: Tuple of str. Names of the features.
    """

    def __init__(self, schema, names, embedding_stddev, dtype, name, argument="cross_features"):
        rows = behavior_rows(schema, argument, names)
        self.names = tuple(rows)
        self._embed = BehaviorFeatureEmbedding(
            rows, stddev=embedding_stddev, dtype=dtype, name=name
        )
        self._add = AddBehaviorFeatures(dtype=dtype, name=f"{name}.add")

    def __call__(self, request):
        if not self.names:
            return None
        return self._embed({name: request.features[name] for name in self.names})

    def add(self, history, embedded):
        """Adds a linear map of the features to each behavior.

        Args:
            history: float tensor of shape (batch, k, d).
            embedded: What the call returned.

        Returns:
            float tensor of shape (batch, k, d).
        """
        return history if embedded is None else self._add(history, embedded)


class CrossFeatures:
    """TWIN's cross features: what is known of behaviors, embedded, and as a bias of the attention.

    Args:
        schema: `Schema`. The features of a request.
        names: Sequence of str or `None`. Names of behavior features. If `None`, all of the schema.
        num_heads: int. Number of attention heads.
        embedding_stddev: float. Standard deviation of the initial embeddings.
        dtype: str, `keras.DTypePolicy` or `None`. Dtype policy of the layers.
        model: str. Name of the model, with which the layers' names begin.

    Call arguments:
        request: `Request`.

    Returns:
        Two float tensors: the embedded features, of shape (batch, k, dim), and the bias, of shape
        (batch, k, num_heads). After a search for each candidate, their shapes are
        (batch, candidates, k, dim) and (batch, candidates, k, num_heads). Both are `None` if
        there are no cross features.

    Attributes:
        names: Tuple of str. Names of the cross features.
    """

    def __init__(self, schema, names, num_heads, embedding_stddev, dtype, model):
        name = f"{model}.cross_features"
        self._features = BehaviorFeatures(schema, names, embedding_stddev, dtype, name)
        self.names = self._features.names
        if self.names:
            self._bias = CrossBias(
                len(self.names), num_heads, dtype=dtype, name=f"{model}.cross_bias"
            )

    def __call__(self, request):
        if not self.names:
            return None, None
        embedded = self._features(request)
        return embedded, self._bias(embedded)


class ConsistentAttention:
    """TWIN's search and attention, which score a behavior by the same queries and bias (eq. 5-7).

    Cross features are part of the values. To the keys they only add their bias.

    Args:
        cross_features: `CrossFeatures`.
        retrieved_length: int. Number of behaviors that the search retrieves.
        num_heads: int. Number of attention heads.
        dtype: str, `keras.DTypePolicy` or `None`. Dtype policy of the layers.
        model: str. Name of the model, with which the layers' names begin.
        log_size: Callable or `None`. Called with a `Request`; returns a float tensor of shape
            (batch, k, 1) or (batch, candidates, k, 1) that is added to the bias. If `None`,
            nothing is added. Defaults to `None`.

    Call arguments:
        request: `Request`.

    Returns:
        float tensor of shape (batch, candidates, d).
    """

    def __init__(self, cross_features, retrieved_length, num_heads, dtype, model, log_size=None):
        check_positive_integers(retrieved_length=retrieved_length)
        self._cross_features = cross_features
        self._log_size = log_size
        self._query = TargetQuery(num_heads, dtype=dtype, name=f"{model}.query")
        self._relevance = QueryScores(dtype=dtype, name=f"{model}.relevance")
        self._search = TopScores(retrieved_length, name=f"{model}.search")
        self._attention = TargetAttention(dtype=dtype, name=f"{model}.attention")

    def __call__(self, request):
        queries = self._query(request.target)
        _, bias = self._known(request)
        scores = self._relevance(queries, request.history, bias)
        found = request.at(*self._search(scores, request.history_mask))
        known, bias = self._known(found)
        values = found.history
        if known is not None:
            values = ops.concatenate([values, known], axis=-1)
        return self._attention(queries, found.history, found.history_mask, bias, values)

    def _known(self, request):
        """The embedded cross features, and the bias of them and of the sizes."""
        embedded, bias = self._cross_features(request)
        if self._log_size is not None:
            size = self._log_size(request)
            bias = size if bias is None else size + bias
        return embedded, bias


def with_generated_item(request, item):
    """What the tower sees where the model generates the item that a user wants next.

    Args:
        request: `Request`.
        item: float tensor of shape (batch, d). The generated item, at unit scale.

    Returns:
        List of tensors: those of `Request.tower_inputs`, with the item and with its elementwise
        product with the target at unit scale.
    """
    return request.tower_inputs(item, item[:, None] * unit_scale(request.target))


def behavior_rows(schema, argument, names):
    """What `BehaviorFeatureEmbedding` needs to know of some behavior features.

    Args:
        schema: `Schema`. The features of a request.
        argument: str. Name of the constructor argument that chooses them, for the error.
        names: Sequence of str or `None`. Names of the features. If `None`, all of the schema.

    Returns:
        dict by feature name, its argument `rows`.

    Raises:
        ValueError: If a name is not that of a behavior feature.
    """
    tables = {feature.name: schema.table(feature.table) for feature in schema.group("behavior")}
    chosen = {name: choose(argument, name, tables) for name in (tables if names is None else names)}
    return {
        name: {"mean": table.mean, "deviation": table.deviation} if table.is_numeric else table.rows
        for name, table in chosen.items()
    }
