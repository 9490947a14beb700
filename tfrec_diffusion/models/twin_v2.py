"""TWIN-V2: TWIN over clusters of a user's behaviors (Si et al., CIKM 2024)."""

import keras

from tfrec_diffusion.layers.cross_features import LogSize
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.parts import ConsistentAttention, CrossFeatures, ShortTerm
from tfrec_diffusion.models.request import as_schema


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TWINV2(RankingModel):
    """TWIN over clusters of similar behaviors, which are also weighted by their sizes.

    A cluster of n behaviors counts as much as n equal behaviors: search and attention add ln n to
    its logit. The data set `clustered` clusters the histories of another data set, by the
    embeddings of a model that was trained on it.

    Args:
        schema: `Schema`. The features of a request, of a data set of clusters.
        retrieved_length: int. Number of clusters that the search retrieves, k. Defaults to `100`.
        short_length: int. Number of newest clusters of the short-term part. Defaults to `50`.
        size_feature: str. Name of the behavior feature that holds the sizes of the clusters.
            Defaults to `"history_size"`.
        cross_features: Sequence of str or `None`. Names of the other behavior features that are
            used. If `None`, all others of the schema's. Defaults to `None`.
        num_heads: int. Number of heads of both attentions. Defaults to `4`.
        embedding_stddev: float. Standard deviation of the initial embeddings, also of those of the
            cross features. Defaults to `0.01`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

    Raises:
        ValueError: If the schema has no behavior feature of the name `size_feature`.

    Example:

    >>> model = models.create("twin_v2", schema=schema_of_clusters, retrieved_length=100)

    Reference:
        https://arxiv.org/abs/2407.16357
    """

    def __init__(
        self,
        schema,
        retrieved_length=100,
        short_length=50,
        size_feature="history_size",
        cross_features=None,
        num_heads=4,
        embedding_stddev=0.01,
        **kwargs,
    ):
        # === Layers ===
        schema = as_schema(schema)
        dtype = kwargs.get("dtype")
        tables = {feature.name: feature.table for feature in schema.group("behavior")}
        if size_feature not in tables:
            raise ValueError(
                "`size_feature` must be a behavior feature with the sizes of clusters, as the data "
                f"set `clustered` has. Received: size_feature={size_feature!r}; the schema of "
                f"{schema.name!r} has {[*tables]}"
            )
        sizes = schema.table(tables[size_feature])
        others = [name for name in tables if name != size_feature]
        names = others if cross_features is None else cross_features
        log_size = LogSize(sizes.boundaries, name="twin_v2.log_size")
        long_term = ConsistentAttention(
            CrossFeatures(schema, names, num_heads, embedding_stddev, dtype, "twin_v2"),
            retrieved_length,
            num_heads,
            dtype,
            "twin_v2",
            log_size=lambda request: log_size(request.features[size_feature]),
        )
        short_term = ShortTerm(short_length, num_heads, dtype, "twin_v2")

        # === Functional model ===
        def tower_inputs(request):
            return request.tower_inputs(long_term(request), short_term(request))

        super().__init__(schema, tower_inputs, embedding_stddev=embedding_stddev, **kwargs)

        # === Config ===
        self.retrieved_length = retrieved_length
        self.short_length = short_length
        self.size_feature = size_feature
        self.cross_features = cross_features and tuple(names)
        self.behavior_features = tuple(dict.fromkeys((*names, size_feature)))
        self.num_heads = num_heads
