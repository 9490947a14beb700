"""Layers of the ranking models, each a Keras layer that works in any model."""

from tfrec_diffusion.layers.aggregation import (
    MeanAggregation,
    SelfAttentionAggregation,
    ShareAggregation,
    SimilarityAggregation,
    TargetAttentionAggregation,
)
from tfrec_diffusion.layers.attention import LocalActivationUnit
from tfrec_diffusion.layers.co_action import CoAction
from tfrec_diffusion.layers.contrast import ContrastiveCalibrator
from tfrec_diffusion.layers.cross_features import (
    AddBehaviorFeatures,
    BehaviorFeatureEmbedding,
    CrossBias,
    LogSize,
)
from tfrec_diffusion.layers.dice import Dice
from tfrec_diffusion.layers.embedding import MeanOfValues, NumberEmbedding, TableEmbedding
from tfrec_diffusion.layers.encoder import BehaviorEncoder, LongTermEncoder
from tfrec_diffusion.layers.evidence import ChannelEvidence
from tfrec_diffusion.layers.hashing import HammingSearch, HashBucketPooling
from tfrec_diffusion.layers.mlp import MLP
from tfrec_diffusion.layers.multi_interest import MultiInterestExtractor
from tfrec_diffusion.layers.normalization import Standardization
from tfrec_diffusion.layers.orthogonal import OrthogonalChannels, TargetChannel
from tfrec_diffusion.layers.pooling import MaskedMean
from tfrec_diffusion.layers.product import TargetProduct
from tfrec_diffusion.layers.recurrent import InterestEvolution, InterestExtractor, NextBehaviorLoss
from tfrec_diffusion.layers.routing import (
    SoftRouting,
    StraightThroughRouting,
    TopK,
    TopP,
    TopRouting,
)
from tfrec_diffusion.layers.search import (
    BehaviorRows,
    InnerProductSearch,
    Newest,
    SameCategory,
    TopScores,
)
from tfrec_diffusion.layers.sessions import ShortTermEncoder
from tfrec_diffusion.layers.target_attention import (
    AttentionPooling,
    QueryScores,
    TargetAttention,
    TargetQuery,
)
from tfrec_diffusion.layers.transformer import TargetTransformer
from tfrec_diffusion.layers.variational import VariationalGenerator

__all__ = [
    "MLP",
    "AddBehaviorFeatures",
    "AttentionPooling",
    "BehaviorEncoder",
    "BehaviorFeatureEmbedding",
    "BehaviorRows",
    "ChannelEvidence",
    "CoAction",
    "ContrastiveCalibrator",
    "CrossBias",
    "Dice",
    "HammingSearch",
    "HashBucketPooling",
    "InnerProductSearch",
    "InterestEvolution",
    "InterestExtractor",
    "LocalActivationUnit",
    "LogSize",
    "LongTermEncoder",
    "MaskedMean",
    "MeanAggregation",
    "MeanOfValues",
    "MultiInterestExtractor",
    "Newest",
    "NextBehaviorLoss",
    "NumberEmbedding",
    "OrthogonalChannels",
    "QueryScores",
    "SameCategory",
    "SelfAttentionAggregation",
    "ShareAggregation",
    "ShortTermEncoder",
    "SimilarityAggregation",
    "SoftRouting",
    "Standardization",
    "StraightThroughRouting",
    "TableEmbedding",
    "TargetAttention",
    "TargetAttentionAggregation",
    "TargetChannel",
    "TargetProduct",
    "TargetQuery",
    "TargetTransformer",
    "TopK",
    "TopP",
    "TopRouting",
    "TopScores",
    "VariationalGenerator",
]
