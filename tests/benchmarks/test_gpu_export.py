"""What `gpu_export.py` counts and changes; the exported steps themselves need a long time."""

from unittest import mock

import gpu_export
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion import optimizers


def test_product_flops_of_a_loop_and_of_its_gradient():
    x, kernel = tf.ones((2, 4)), tf.ones((4, 4))

    @tf.function(jit_compile=True)
    def gradient(x, kernel):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = x @ kernel
            loop = (lambda i, y: True, lambda i, y: (i + 1, y @ kernel), (0, y))
            _, z = tf.while_loop(*loop, maximum_iterations=3)
        return z, tape.gradient(z, [x, kernel])

    text = gradient.experimental_get_compiler_ir(x, kernel)(stage="hlo")
    assert gpu_export.product_flops(text) == 3 * (1 + 3) * (2 * 2 * 4 * 4)


def test_an_update_in_static_shapes_is_that_of_the_optimizer():
    rows = tf.constant([1, 4, 1, 1, 3])
    values = tf.reshape(tf.range(10.0), (5, 2)) - 3

    def updated(jit_compile):
        table = keras.Variable(np.linspace(-1, 1, 10, dtype="float32").reshape(5, 2))
        optimizer = optimizers.LazyAdam(0.1)
        optimizer.build([table])

        @tf.function(jit_compile=jit_compile)
        def step():
            optimizer.apply_gradients([(tf.IndexedSlices(values, rows, (5, 2)), table)])

        step()
        step()
        return [variable.numpy() for variable in (table, *optimizer.variables)]

    expected = updated(jit_compile=False)
    with mock.patch.object(optimizers, "_sum_duplicates", gpu_export._sum_duplicates):
        found = updated(jit_compile=True)
    assert len(found) == 5  # the table, the step, the step size and both moments
    for x, y in zip(found, expected, strict=True):
        assert x == pytest.approx(y, rel=1e-5)
