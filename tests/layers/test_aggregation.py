import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.aggregation import (
    MeanAggregation,
    SelfAttentionAggregation,
    ShareAggregation,
    SimilarityAggregation,
    TargetAttentionAggregation,
)

LAYERS = (
    MeanAggregation,
    SimilarityAggregation,
    TargetAttentionAggregation,
    SelfAttentionAggregation,
)


def softmax(logits, weights):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True)) * weights
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def mean(layer, behaviors, scores, weights, target):
    return weights @ behaviors / weights.sum()


def similarity(layer, behaviors, scores, weights, target):
    return (weights * scores) @ behaviors / weights.sum()


def target_attention(layer, behaviors, scores, weights, target):
    keys, query = behaviors @ layer.key_kernel.numpy(), target @ layer.query_kernel.numpy()
    return softmax(keys @ query / np.sqrt(len(target)), weights) @ behaviors


def self_attention(layer, behaviors, scores, weights, target):
    queries, keys, values = (
        behaviors @ kernel.numpy()
        for kernel in (layer.query_kernel, layer.key_kernel, layer.value_kernel)
    )
    outputs = softmax(queries @ keys.T / np.sqrt(len(target)), weights) @ values
    return weights @ outputs / weights.sum()


REFERENCES = dict(zip(LAYERS, (mean, similarity, target_attention, self_attention), strict=True))


def reference(layer, history, scores, weights, target):
    """One channel at a time, over the behaviors that it selected."""
    outputs = np.zeros((*scores.shape[:-1], history.shape[-1]))
    for b, i, j in np.ndindex(*scores.shape[:-1]):
        selected = weights[b, i, j] > 0
        if selected.any():
            outputs[b, i, j] = REFERENCES[type(layer)](
                layer,
                history[b, selected].astype("float64"),
                scores[b, i, j, selected].astype("float64"),
                weights[b, i, j, selected].astype("float64"),
                target[b, i].astype("float64"),
            )
    return outputs


@pytest.fixture(params=["hard", "soft"])
def inputs(request):
    """The second request is empty, and the first candidate's third channel of the first one."""
    rng = np.random.default_rng(0)
    history = rng.normal(size=(4, 9, 6)).astype("f")
    target = rng.normal(size=(4, 2, 6)).astype("f")
    real = (np.arange(9) < np.array([9, 0, 1, 5])[:, None])[:, None, None]
    scores = np.where(real, rng.normal(size=(4, 2, 3, 9)), -np.inf).astype("f")
    weights = (rng.random((4, 2, 3, 9)) < 0.5) * real
    weights[0, 0, 2] = 0
    if request.param == "soft":
        weights = weights * rng.uniform(0.01, 1, weights.shape)
    return history, scores, weights.astype("f"), target


def build(layer_class, **kwargs):
    layer = layer_class(**kwargs)
    layer.build((None, None, 6))
    return layer


@pytest.mark.parametrize("layer_class", LAYERS)
def test_equals_a_loop_over_channels(layer_class, inputs):
    layer = build(layer_class)
    expected = reference(layer, *inputs)
    np.testing.assert_allclose(layer(*inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_an_empty_channel_gives_zeros_and_finite_gradients(layer_class, inputs):
    layer = build(layer_class)
    tensors = [tf.constant(tensor) for tensor in inputs]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = layer(*tensors)
        loss = tf.reduce_sum(tf.square(outputs))
    assert (outputs.numpy()[1] == 0).all()
    assert (outputs.numpy()[0, 0, 2] == 0).all()
    for gradient in tape.gradient(loss, [*tensors, *layer.trainable_variables]):
        assert gradient is None or np.isfinite(gradient).all()


def test_which_inputs_get_a_gradient(inputs):
    expected = {
        MeanAggregation: {"history"},
        SimilarityAggregation: {"history", "scores"},
        TargetAttentionAggregation: {"history", "target"},
        SelfAttentionAggregation: {"history"},
    }
    tensors = dict(zip(("history", "scores", "weights", "target"), inputs, strict=True))
    tensors = {name: tf.constant(tensor) for name, tensor in tensors.items()}
    for layer_class in LAYERS:
        layer = build(layer_class)
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            loss = tf.reduce_sum(tf.square(layer(**tensors)))
        gradients = tape.gradient(loss, tensors)
        del gradients["weights"]
        assert {n for n, g in gradients.items() if g is not None} == expected[layer_class]


def test_large_logits_do_not_overflow(inputs):
    for layer_class in (TargetAttentionAggregation, SelfAttentionAggregation):
        layer = build(layer_class)
        layer.query_kernel.assign(layer.query_kernel * 1e4)
        expected = reference(layer, *inputs)
        np.testing.assert_allclose(layer(*inputs), expected, rtol=1e-3, atol=1e-3)


def test_self_attention_of_a_full_channel_takes_the_highest_scores(inputs):
    history, scores, weights, target = inputs
    fewer = np.zeros_like(weights)
    for index in np.ndindex(*weights.shape[:-1]):
        best = np.argsort(np.where(weights[index] > 0, -scores[index], np.inf))[:2]
        fewer[(*index, best)] = weights[(*index, best)]
    layer = build(SelfAttentionAggregation, max_behaviors=2)
    expected = reference(layer, history, scores, fewer, target)
    assert (fewer != weights).any()
    np.testing.assert_allclose(layer(*inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer_class", LAYERS)
@pytest.mark.parametrize(
    ("jit_compile", "shapes"),
    [(False, ((4, 2, 9), (1, 1, 4), (2, 2, 0))), (True, ((4, 2, 9), (2, 2, 0)))],
)
@pytest.mark.parametrize("inputs", ["soft"], indirect=True)
def test_open_shapes_change_nothing(layer_class, inputs, shapes, jit_compile):
    layer = build(layer_class)
    signature = [
        tf.TensorSpec([None, None, 6]),
        tf.TensorSpec([None, None, 3, None]),
        tf.TensorSpec([None, None, 3, None]),
        tf.TensorSpec([None, None, 6]),
    ]
    traced = tf.function(layer, input_signature=signature, jit_compile=jit_compile)
    for requests, candidates, length in shapes:
        history, scores, weights, target = inputs
        part = (
            history[:requests, :length],
            scores[:requests, :candidates, :, :length],
            weights[:requests, :candidates, :, :length],
            target[:requests, :candidates],
        )
        expected = reference(layer, *part)
        np.testing.assert_allclose(traced(*part), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer_class", LAYERS)
def test_symbolic_shape(layer_class):
    scores = keras.KerasTensor((None, None, 3, None))
    vectors = keras.KerasTensor((None, None, 6))
    assert layer_class()(vectors, scores, scores, vectors).shape == (None, None, 3, 6)


def test_wrong_max_behaviors():
    with pytest.raises(ValueError, match="`max_behaviors` must be a positive integer. Received"):
        SelfAttentionAggregation(max_behaviors=0)


def test_share_keeps_how_much_of_the_history_was_selected(inputs):
    _, scores, weights, _ = inputs
    lengths = np.isfinite(scores).sum(axis=-1, keepdims=True)
    share = weights.sum(axis=-1, keepdims=True) / np.maximum(lengths, 1)
    expected = MeanAggregation()(*inputs).numpy() * share
    np.testing.assert_allclose(ShareAggregation()(*inputs), expected, rtol=1e-5, atol=1e-6)
