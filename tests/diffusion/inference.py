"""What holds for every diffusion layer at inference: noise is fixed and shared by all rows."""

import numpy as np
import tensorflow as tf


def assert_inference_is_fixed(layer, *inputs):
    """Nothing is drawn and nothing is added to the losses."""
    state = layer.seed_generator.state.numpy()
    outputs = layer(*inputs)
    np.testing.assert_array_equal(layer(*inputs, training=False), outputs)
    np.testing.assert_array_equal(layer.seed_generator.state, state)
    assert layer.losses == []


def assert_rows_are_independent(layer, *inputs):
    """A row has the same output at any place among other rows, and alone."""
    outputs = layer(*inputs).numpy()
    reversed_outputs = layer(*(x[::-1] for x in inputs)).numpy()
    np.testing.assert_allclose(reversed_outputs[::-1], outputs, rtol=1e-4, atol=1e-4)
    for row in range(len(outputs)):
        alone = layer(*(x[row : row + 1] for x in inputs))
        np.testing.assert_allclose(alone[0], outputs[row], rtol=1e-4, atol=1e-4)


def assert_xla_equals_eager(layer, *inputs, open_axes):
    """Outputs and gradients, compiled for any size of the first `open_axes` axes."""

    def run(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs[0])
            outputs = layer(*inputs)
            loss = tf.reduce_sum(outputs**2)
        sources = [inputs[0], *layer.trainable_variables]
        return outputs, *tape.gradient(loss, sources, unconnected_gradients="zero")

    inputs = [tf.convert_to_tensor(x) for x in inputs]
    signature = [tf.TensorSpec([None] * open_axes + x.shape[open_axes:], x.dtype) for x in inputs]
    compiled = tf.function(run, input_signature=signature, jit_compile=True)
    for tensor, expected in zip(compiled(*inputs), run(*inputs), strict=True):
        np.testing.assert_allclose(tensor, expected, rtol=1e-3, atol=1e-3)
