import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers import attention
from tfrec_diffusion.layers.attention import LocalActivationUnit


def concatenated_form(layer, history, target, history_mask):
    """DIN's unit as its paper draws it: an MLP on [history, target, history * target]."""
    batch, length, dim = history.shape
    candidates = target.shape[1]
    shape = (batch, candidates, length, dim)
    h = np.broadcast_to(history[:, None], shape)
    t = np.broadcast_to(target[:, :, None], shape)
    x = np.concatenate([h, t, h * t], axis=-1)
    for kernel, bias in zip(layer.kernels[:-1], layer.biases[:-1], strict=True):
        x = np.maximum(x @ kernel.numpy() + bias.numpy(), 0)
    scores = (x @ layer.kernels[-1].numpy() + layer.biases[-1].numpy())[..., 0]
    return np.einsum("bnl,bld->bnd", scores * history_mask[:, None], history)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    history, target = rng.normal(size=(5, 7, 6)), rng.normal(size=(5, 3, 6))
    history_mask = np.arange(7) < np.array([7, 0, 3, 1, 5])[:, None]
    return history.astype("f"), target.astype("f"), history_mask, np.ones((5, 3), bool)


@pytest.fixture
def layer(inputs):
    layer = LocalActivationUnit((8, 4), "relu")
    layer.build(inputs[0].shape, inputs[1].shape)
    for bias in layer.biases:
        bias.assign(np.random.default_rng(1).normal(size=bias.shape))
    return layer


@pytest.mark.parametrize("training", [True, False])
def test_equals_the_concatenated_form(layer, inputs, training):
    expected = concatenated_form(layer, *inputs[:3])
    np.testing.assert_allclose(layer(*inputs, training=training), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", [1, 50, 10**6])
def test_the_size_of_a_block_changes_nothing(layer, inputs, positions, monkeypatch):
    monkeypatch.setattr(attention, "_POSITIONS_PER_BLOCK", positions)
    expected = concatenated_form(layer, *inputs[:3])
    np.testing.assert_allclose(layer(*inputs, training=False), expected, rtol=1e-4, atol=1e-5)


def test_softmax_makes_a_mean_of_the_real_behaviors(layer, inputs):
    history, target, history_mask, candidate_mask = inputs
    averaging = LocalActivationUnit((8, 4), "relu", softmax=True)
    averaging.build(history.shape, target.shape)
    averaging.set_weights(layer.get_weights())
    for training in (True, False):
        outputs = averaging(*inputs, training=training).numpy()
        assert (outputs[1] == 0).all()  # no behavior
        np.testing.assert_allclose(outputs[3], history[3, :1].repeat(3, axis=0), rtol=1e-5)  # one
        low, high = history[0].min(axis=0), history[0].max(axis=0)
        assert ((outputs[0] >= low - 1e-5) & (outputs[0] <= high + 1e-5)).all()
        assert np.abs(outputs[0] - history[0].mean(axis=0)).max() > 1e-2
    constant = averaging(np.full_like(history, 2.0), target, history_mask, candidate_mask)
    np.testing.assert_allclose(constant[0], 2.0, rtol=1e-5)


def test_no_behavior_gives_zeros(layer, inputs):
    assert (layer(*inputs).numpy()[1] == 0).all()
    history, target, _, candidate_mask = inputs
    outputs = layer(history[:, :0], target, np.zeros((5, 0), bool), candidate_mask)
    np.testing.assert_array_equal(outputs, np.zeros((5, 3, 6)))


def test_padding_changes_nothing(layer, inputs):
    history, target, history_mask, candidate_mask = inputs
    other = np.where(history_mask[..., None], history, 7.0).astype("f")
    np.testing.assert_array_equal(
        layer(*inputs), layer(other, target, history_mask, candidate_mask)
    )


def test_candidates_do_not_see_each_other(layer, inputs):
    history, target, history_mask, candidate_mask = inputs
    alone = [
        layer(history, target[:, i : i + 1], history_mask, candidate_mask[:, :1]) for i in range(3)
    ]
    np.testing.assert_allclose(layer(*inputs), np.concatenate(alone, axis=1), rtol=1e-5, atol=1e-6)


def test_wrong_units():
    with pytest.raises(ValueError, match="`units` must be positive widths. Received"):
        LocalActivationUnit(units=())


@pytest.mark.parametrize(("jit_compile", "sizes"), [(False, (5, 4, 1)), (True, (5, 1))])
def test_open_shapes_change_nothing(layer, inputs, sizes, jit_compile, monkeypatch):
    monkeypatch.setattr(attention, "_POSITIONS_PER_BLOCK", 50)
    signature = [
        tf.TensorSpec([None, None, 6]),
        tf.TensorSpec([None, None, 6]),
        tf.TensorSpec([None, None], tf.bool),
        tf.TensorSpec([None, None], tf.bool),
    ]
    traced = tf.function(layer, input_signature=signature, jit_compile=jit_compile)
    expected = concatenated_form(layer, *inputs[:3])
    for requests in sizes:
        outputs = traced(*(tensor[:requests] for tensor in inputs))
        np.testing.assert_allclose(outputs, expected[:requests], rtol=1e-4, atol=1e-5)
