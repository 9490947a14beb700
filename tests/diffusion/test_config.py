"""Layers come back from their configuration with every argument."""

import inspect
import json

import keras
import pytest

from tfrec_diffusion import diffusion

# Each layer with an argument that differs from the default for every one that it has.
ARGUMENTS = {
    "ClassifierFreeGuidance": {"weight": 2.5},
    "DiffusionFusion": {
        "denoiser": diffusion.MLPDenoiser((3,)),
        "sampler": "ddpm",
        "num_steps": 7,
        "start_step": 90,
        "weight": 0.5,
        "reconstruction": False,
        "trajectory": False,
        "trajectory_state": "ddim",
        "curriculum_steps": 5,
        "condition_dropout": 0.3,
        "num_train_steps": 100,
    },
    "DiffusionGenerator": {
        "num_steps": 7,
        "spacing": "strided",
        "start_step": 90,
        "start": "uniform",
        "sampler": "ddim",
        "sigma": "posterior",
        "normalize_interests": "proportional",
        "inference_draws": 2,
        "weight": 0.5,
        "trajectory_weight": 0.7,
        "teacher_decay": 0.5,
        "num_blocks": 1,
        "num_heads": 4,
        "context_guidance": False,
        "channel_guidance": False,
        "num_train_steps": 100,
    },
    "GuidedDenoiser": {
        "num_blocks": 3,
        "num_heads": 4,
        "ffn_factor": 2,
        "context_guidance": False,
        "channel_guidance": False,
    },
    "MLPDenoiser": {"units": (5, 7)},
    "OracleGenerator": {
        "num_steps": 2,
        "guidance_weight": 1.0,
        "condition_dropout": 0.3,
        "weight": 0.5,
        "length": 9,
        "num_heads": 3,
        "num_blocks": 2,
        "num_train_steps": 20,
    },
    "SemanticGuidance": {"initial_weight": 1.5},
    "TargetReconstructor": {
        "num_steps": 2,
        "uncertainty": 0.01,
        "weight": 0.5,
        "length": 9,
        "num_heads": 3,
        "num_blocks": 2,
        "num_train_steps": 20,
    },
    "TransformerDenoiser": {"num_blocks": 3, "num_heads": 1},
}


def test_every_public_layer_is_in_the_table():
    public = {name: getattr(diffusion, name) for name in diffusion.__all__}
    layers = {
        name
        for name, value in public.items()
        if inspect.isclass(value) and issubclass(value, keras.layers.Layer)
    }
    assert layers - {"Denoiser"} == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_round_trip(name):
    cls, arguments = getattr(diffusion, name), ARGUMENTS[name]
    for argument, parameter in inspect.signature(cls).parameters.items():
        if cls.__init__ is not keras.layers.Layer.__init__ and argument != "kwargs":
            assert arguments[argument] != parameter.default, argument
    layer = cls(**arguments, name="layer", dtype="mixed_bfloat16", trainable=False)
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    copy = keras.saving.deserialize_keras_object(saved)
    assert type(copy) is cls
    assert (copy.name, copy.dtype_policy.name, copy.trainable) == ("layer", "mixed_bfloat16", False)
    for argument, value in arguments.items():
        if argument == "denoiser":
            assert copy.denoiser.units == value.units
        else:
            assert getattr(copy, argument) == value
