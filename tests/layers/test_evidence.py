import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.evidence import ChannelEvidence


@pytest.fixture
def inputs():
    """Two channels; the second request is empty, and so is a selection of the first one."""
    rng = np.random.default_rng(0)
    history, channels = rng.normal(size=(3, 6, 4)), rng.normal(size=(3, 2, 2, 4))
    target = rng.normal(size=(3, 2, 4))
    real = (np.arange(6) < np.array([6, 0, 4])[:, None])[:, None, None]
    scores = np.where(real, np.einsum("bld,bncd->bncl", history, channels), -np.inf)
    weights = (rng.random((3, 2, 2, 6)) < 0.5) * real
    weights[0, 0, 1] = 0
    interests, known = rng.normal(size=(3, 2, 2, 4)), rng.normal(size=(3, 6, 3))
    arrays = (history, channels, target, scores, weights, interests, known)
    return [array.astype("float32") for array in arrays]


def by_hand(layer, history, channels, target, scores, weights, interests, known):
    """One channel at a time, over its real behaviors."""
    outputs = np.zeros((*scores.shape[:-1], 9))
    for b, i, j in np.ndindex(*scores.shape[:-1]):
        real = np.isfinite(scores[b, i, j])
        unit_history = history[b, real] / np.linalg.norm(history[b, real], axis=-1, keepdims=True)
        unit_target = target[b, i] / np.linalg.norm(target[b, i])
        channel = channels[b, i, j] / np.linalg.norm(channels[b, i, j])
        interest = interests[b, i, j] / np.linalg.norm(interests[b, i, j])
        n, score, weight = real.sum(), unit_history @ channel, weights[b, i, j, real]
        chosen = score[weight > 0]
        own = channel @ unit_target
        support = np.exp(-((score - own) ** 2) / (2 * np.exp(layer.log_width.numpy()[j, 0]) ** 2))
        outputs[b, i, j, :6] = [
            weight.sum() / max(n, 1),
            chosen.mean() if len(chosen) else 0,
            chosen.max() if len(chosen) else 0,
            interest @ unit_target,
            support.sum() / max(n, 1),
            np.log1p(support.sum()),
        ]
        if n:
            outputs[b, i, j, 6:] = support @ known[b, real] / support.sum()
    return outputs


@pytest.fixture
def layer(inputs):
    layer = ChannelEvidence()
    layer.build(inputs[0].shape, inputs[1].shape)
    layer.log_width.assign(np.log([[0.7], [1.3]]))
    return layer


def test_evidence_by_hand(layer, inputs):
    np.testing.assert_allclose(layer(*inputs), by_hand(layer, *inputs), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer(*inputs[:-1]), layer(*inputs)[..., :6])


def test_a_behavior_that_is_the_target_counts_as_one():
    """On every channel, whatever its length; the opposite of the target does not count."""
    target = np.array([[[0.3, -0.2, 0.1]]], "float32")
    channels = np.eye(3, dtype="float32")[None, None]
    history = np.array([[[0.6, -0.4, 0.2], [-3, 2, -1]]], "float32")  # a multiple, the opposite
    scores = np.einsum("bld,bncd->bncl", history, channels)
    layer = ChannelEvidence()
    layer.build(history.shape, channels.shape)
    layer.log_width.assign(np.log([[0.05]] * 3))
    evidence = layer(history, channels, target, scores, np.ones_like(scores), channels)
    np.testing.assert_allclose(evidence[0, 0, :, 4], [0.5] * 3, rtol=1e-5)
    np.testing.assert_allclose(evidence[0, 0, :, 5], [np.log(2)] * 3, rtol=1e-5)


def test_scores_and_widths_have_finite_gradients(layer, inputs):
    tensors = [tf.constant(array) for array in inputs]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = tf.reduce_sum(tf.square(layer(*tensors)))
    for gradient in tape.gradient(loss, [*tensors, layer.log_width.value]):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
