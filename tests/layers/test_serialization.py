"""A layer is the same again after saving, for most by what Keras records of the constructor."""

import inspect
import json

import keras
import pytest

from tfrec_diffusion import layers

# Every argument of each exported layer, with a value that is not its default.
ARGUMENTS = {
    "AttentionPooling": {},
    "BehaviorEncoder": {"length": 7, "num_heads": 3, "num_blocks": 2},
    "BehaviorFeatureEmbedding": {"rows": {"like": 3, "gap": 4}, "dim": 5, "stddev": 0.2},
    "BehaviorRows": {},
    "ChannelEvidence": {},
    "CoAction": {"rows": 30, "units": (5, 2), "dim": 3, "orders": 2, "stddev": 0.1},
    "ContrastiveCalibrator": {"temperature": 0.1, "weight": 0.5},
    "CrossBias": {"num_features": 2, "num_heads": 3},
    "Dice": {"momentum": 0.8, "epsilon": 1e-3},
    "HammingSearch": {"num_bits": 7},
    "HashBucketPooling": {"num_hashes": 5, "hash_bits": 2},
    "InnerProductSearch": {},
    "InterestEvolution": {},
    "InterestExtractor": {},
    "LocalActivationUnit": {"units": (8, 4), "activation": "prelu", "softmax": True},
    "LogSize": {"boundaries": (2.0, 3.0)},
    "LongTermEncoder": {"length": 7, "num_heads": 3, "num_blocks": 2},
    "MLP": {"units": (8, 4), "activation": "relu", "dropout": 0.1},
    "MaskedMean": {},
    "MeanAggregation": {},
    "MeanOfValues": {},
    "MultiInterestExtractor": {
        "routing": layers.TopRouting(2),
        "filtering": layers.TopK(7),
        "aggregation": layers.SelfAttentionAggregation(8),
        "evidence": layers.ChannelEvidence(),
    },
    "Newest": {"count": 7},
    "NextBehaviorLoss": {"weight": 0.3},
    "NumberEmbedding": {
        "dim": 3,
        "width": 4,
        "mean": 1.5,
        "deviation": 2.5,
        "stddev": 0.2,
    },
    "OrthogonalChannels": {"num_channels": 3, "start": "random", "orthogonal": False},
    "QueryScores": {},
    "SameCategory": {},
    "SelfAttentionAggregation": {"max_behaviors": 8},
    "ShareAggregation": {},
    "ShortTermEncoder": {
        "length": 7,
        "max_sessions": 3,
        "tiers": (4, 9),
        "num_heads": 1,
        "num_blocks": 2,
    },
    "SimilarityAggregation": {},
    "SoftRouting": {},
    "Standardization": {"momentum": 0.8, "epsilon": 1e-3},
    "StraightThroughRouting": {},
    "TableEmbedding": {"rows": 9, "dim": 3, "stddev": 0.2},
    "TargetAttention": {},
    "TargetAttentionAggregation": {},
    "TargetChannel": {},
    "TargetProduct": {"units": (8, 4)},
    "TargetQuery": {"num_heads": 3, "behavior_dim": 10},
    "TargetTransformer": {"length": 7, "num_heads": 3},
    "TopK": {"k": 7},
    "TopP": {"p": 0.5},
    "TopRouting": {"channels_per_behavior": 2},
    "TopScores": {"count": 7},
    "VariationalGenerator": {"latent_dim": 3, "weight": 0.5},
    "AddBehaviorFeatures": {},
}


def as_text(layer):
    """All that a file holds of a layer; tuples are lists there."""
    return json.dumps(keras.saving.serialize_keras_object(layer))


def value(argument):
    """What can be compared: of a layer, its text."""
    return as_text(argument) if isinstance(argument, keras.Layer) else argument


def test_the_table_has_every_layer():
    assert ARGUMENTS.keys() == {*layers.__all__}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_table_has_every_argument(name):
    layer_class = getattr(layers, name)
    own = "__init__" in vars(layer_class)
    parameters = dict(inspect.signature(layer_class).parameters) if own else {}
    parameters.pop("kwargs", None)
    assert parameters.keys() == ARGUMENTS[name].keys()
    for argument, parameter in parameters.items():
        assert parameter.default != ARGUMENTS[name][argument]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_copy_is_the_same(name):
    layer_class, arguments = getattr(layers, name), ARGUMENTS[name]
    layer = layer_class(**arguments, name="saved", dtype="mixed_bfloat16", trainable=False)
    for copy in (
        layer_class.from_config(layer.get_config()),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer)),
        keras.saving.deserialize_keras_object(json.loads(as_text(layer))),
    ):
        assert type(copy) is layer_class
        assert as_text(copy) == as_text(layer)
        for argument, expected in arguments.items():
            assert value(getattr(copy, argument)) == value(expected)
        assert (copy.name, copy.dtype_policy.name) == ("saved", "mixed_bfloat16")
        assert (copy.trainable, copy.autocast) == (False, layer.autocast)
