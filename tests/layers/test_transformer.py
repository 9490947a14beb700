import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.transformer import TargetTransformer, newest

LENGTH, DIM, HEADS = 4, 6, 2


def normalize(layer, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * layer.gamma.numpy() + layer.beta.numpy()


def dense(layer, x):
    return x @ layer.kernel.numpy() + layer.bias.numpy()


def full_encoder_block(layer, tokens):
    """All rows of a standard encoder block over tokens (rows, d)."""
    query = dense(layer.query, tokens)
    key, value = tokens @ layer.key_kernel.numpy(), tokens @ layer.value_kernel.numpy()
    width = DIM // HEADS
    attended = np.zeros_like(tokens)
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        weights = np.exp(query[:, part] @ key[:, part].T / np.sqrt(width))
        attended[:, part] = weights / weights.sum(-1, keepdims=True) @ value[:, part]
    x = normalize(layer.attention_norm, tokens + dense(layer.attention_output, attended))
    hidden = np.maximum(dense(layer.feed_forward, x), 0)
    return normalize(layer.feed_forward_norm, x + dense(layer.feed_forward_output, hidden))


def reference(layer, history, target, history_mask):
    """Eq. 21 with one sequence [e_1 .. e_k, e_s] for each candidate."""
    outputs = np.zeros(target.shape)
    positions = layer.positions.numpy()
    for b, n in np.ndindex(target.shape[:2]):
        behaviors = history[b][history_mask[b]][-LENGTH:]
        sequence = np.concatenate([behaviors, target[b, n][None]])
        sequence = sequence + positions[len(positions) - len(sequence) :]
        outputs[b, n] = full_encoder_block(layer, sequence)[-1]
    return outputs


def traced(layer, jit_compile):
    """The layer and its gradients by everything, with open shapes."""
    signature = [
        tf.TensorSpec([None, None, DIM]),
        tf.TensorSpec([None, None, DIM]),
        tf.TensorSpec([None, None], tf.bool),
    ]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def run(history, target, history_mask):
        with tf.GradientTape() as tape:
            tape.watch([history, target])
            outputs = layer(history, target, history_mask)
            loss = tf.reduce_sum(tf.cast(outputs, "float32") ** 3)
        return outputs, tape.gradient(loss, [history, target, *layer.trainable_variables])

    return run


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    history, target = rng.normal(size=(5, 7, DIM)), rng.normal(size=(5, 3, DIM))
    history_mask = np.arange(7) < np.array([7, 0, 3, 1, 5])[:, None]
    return history.astype("f"), target.astype("f"), history_mask


@pytest.fixture
def layer(inputs):
    layer = TargetTransformer(LENGTH, HEADS)
    layer.build(inputs[0].shape, inputs[1].shape)
    rng = np.random.default_rng(1)
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(size=weight.shape, scale=0.5))
    return layer


def test_is_the_last_row_of_a_full_encoder_block(layer, inputs):
    np.testing.assert_allclose(layer(*inputs), reference(layer, *inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("jit_compile", "lengths"), [(False, (7, 2, 0)), (True, (7, 0))])
def test_open_shapes_change_nothing(layer, inputs, lengths, jit_compile):
    history, target, history_mask = inputs
    run = traced(layer, jit_compile)
    for length in lengths:
        part = history[:, :length], target, history_mask[:, :length]
        outputs, gradients = run(*part)
        np.testing.assert_allclose(outputs, reference(layer, *part), rtol=1e-4, atol=1e-5)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_older_behaviors_and_padding_change_nothing(layer, inputs):
    history, target, history_mask = inputs
    valid = history_mask.sum(axis=1, keepdims=True)
    read = history_mask & (np.arange(7) >= valid - LENGTH)
    other = np.where(read[..., None], history, np.float32(1e30))
    run = traced(layer, False)
    expected, actual = (run(h, target, history_mask) for h in (history, other))
    for a, b in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    gradient = actual[1][0].numpy()
    assert (gradient[~read] == 0).all() and (gradient[read] != 0).all()


def test_without_behaviors_a_target_attends_to_itself(layer, inputs):
    history, target, history_mask = inputs
    outputs = layer(history, target, np.zeros_like(history_mask))
    alone = target[..., None, :] + layer.positions.numpy()[-1]
    expected = [[full_encoder_block(layer, row)[0] for row in rows] for rows in alone]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_behaviors_matters(layer, inputs):
    history, target, history_mask = inputs
    swapped = history[:, [0, 1, 2, 3, 4, 6, 5]]
    difference = np.abs(layer(swapped, target, history_mask) - layer(*inputs)).max(axis=(1, 2))
    assert difference[0] > 1e-3 and (difference[1:4] == 0).all()


def test_candidates_do_not_see_each_other(layer, inputs):
    history, target, history_mask = inputs
    alone = [layer(history, target[:, n : n + 1], history_mask) for n in range(3)]
    np.testing.assert_allclose(layer(*inputs), np.concatenate(alone, axis=1), rtol=1e-5, atol=1e-6)


def test_embeddings_as_small_as_in_the_first_step_are_normalized(inputs):
    outputs = TargetTransformer(LENGTH, HEADS)(inputs[0] * 0.01, inputs[1] * 0.01, inputs[2])
    np.testing.assert_allclose(np.std(outputs, axis=-1), 1, atol=0.05)


def test_bfloat16_is_near_to_float32(layer, inputs):
    low = TargetTransformer(LENGTH, HEADS, dtype="mixed_bfloat16")
    low.build(inputs[0].shape, inputs[1].shape)
    low.set_weights(layer.get_weights())
    outputs, gradients = traced(low, False)(*inputs)
    assert outputs.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(outputs, "float32"), layer(*inputs), atol=0.15)
    assert all(np.isfinite(tf.cast(gradient, "float32")).all() for gradient in gradients)


def test_symbolic_shape():
    layer = TargetTransformer(LENGTH, HEADS)
    history, target = keras.Input((None, DIM)), keras.Input((None, DIM))
    assert layer(history, target, keras.Input((None,), dtype="bool")).shape == (None, None, DIM)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "`length` must be a positive integer. Received: length=0"),
        ({"length": 4, "num_heads": 1.5}, "`num_heads` must be a positive integer. Received: "),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TargetTransformer(**arguments)


def test_heads_that_do_not_divide_the_width():
    message = "`num_heads` must divide .* Received: num_heads=4, width 6"
    with pytest.raises(ValueError, match=message):
        TargetTransformer(LENGTH, num_heads=4).build((None, None, 6), (None, None, 6))


def test_newest_by_hand():
    history = np.array([[1, 2, 3, 4], [5, 6, 0, 0], [0, 0, 0, 0]], "f")[..., None]
    behaviors, mask = newest(history, history[..., 0] > 0, 3)
    np.testing.assert_array_equal(mask, [[1, 1, 1], [0, 1, 1], [0, 0, 0]])
    real = np.where(mask, behaviors[..., 0], 0)
    np.testing.assert_array_equal(real, [[2, 3, 4], [0, 5, 6], [0, 0, 0]])
    assert newest(history, history[..., 0] > 0, 9)[0].shape == (3, 4, 1)
    assert newest(history[:, :0], history[:, :0, 0] > 0, 9)[0].shape == (3, 0, 1)
