"""TWIN-V2: TWIN over clusters of a user's behaviors (Si et al., CIKM 2024)."""

import keras

from tfrec_diffusion.layers.cross_features import LogSize
from tfrec_diffusion.models.base import RankingModel, as_schema
from tfrec_diffusion.models.short_term import ShortTerm
from tfrec_diffusion.models.twin import ConsistentAttention, CrossFeatures


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class TWINV2(RankingModel):
    """TWIN whose behaviors are clusters of similar ones, each weighted by its size as well.

    A cluster of n behaviors counts as n equal ones: ln n is added to what search and attention give
    it. The data set `clustered` makes the clusters of another data set's histories, by the
    embeddings of a model trained on it.

    Args:
        schema: `Schema` of a data set of clusters.
        size_feature: Name of the behavior feature that holds the sizes.
        cross_features: Names of other behavior features; `None`: all others of the schema's.
        retrieved_length, short_length, num_heads, embedding_stddev: See `TWIN`.
        **kwargs: See `RankingModel`.

    Call arguments and Returns: see `RankingModel`.

    Raises:
        ValueError: If the schema has no such behavior feature.

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
