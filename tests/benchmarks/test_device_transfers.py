"""Which edges the static check of transfers finds, and that no model has one it need not have."""

import pathlib

import device_transfers
import pytest
import tensorflow as tf

from tfrec_diffusion import models
from tfrec_diffusion.layers.mlp import MLP

PACKAGE = pathlib.Path(models.__file__).parents[1]


def found(function, *shapes, dtype=tf.float32):
    """Of a function of tensors with those shapes."""
    specs = [tf.TensorSpec(shape, dtype) for shape in shapes]
    traced = tf.function(function, input_signature=specs).get_concrete_function()
    transfers, unknown = device_transfers.transfers(traced)
    assert not unknown
    return transfers


def edges(transfers):
    return [(x.source, x.target, x.dtype, x.kind, x.in_loop) for x in transfers]


def test_int32_is_added_on_the_host():
    there_and_back = found(lambda x: tf.gather(x, tf.cast(x[0], tf.int32) + 1), [None])
    assert edges(there_and_back) == [("Cast", "AddV2", "int32", "values", False)]
    assert not found(lambda x: tf.gather(x, tf.cast(x[0] + 1, tf.int32)), [None])


def test_what_comes_from_the_host_may_stay_there():
    assert not found(lambda rows: tf.cast(rows + 1 > 2, tf.float32) * 2, [None], dtype=tf.int32)


def test_an_op_without_a_kernel_for_a_gpu_runs_on_the_host():
    strings = found(lambda x: tf.strings.as_string(tf.exp(x)), [None])
    assert edges(strings) == [("Exp", "AsString", "float32", "values", False)]
    assert not found(lambda x: tf.sin(tf.identity_n([tf.exp(x)])[0]), [None]), "one for any device"


def test_an_op_that_is_placed_on_the_host_runs_there():
    def function(x):
        with tf.device("CPU:0"):
            y = tf.exp(x)
        return tf.sin(y)

    assert not found(function, [None])
    placed = found(lambda x: function(tf.cos(x)), [None])
    assert edges(placed) == [("Cos", "Exp", "float32", "values", False)]


def test_the_kinds():
    product = found(lambda x: tf.tensordot(x, tf.ones((4, 5)), 1), [None, None, 4])
    assert {x.kind for x in product} == {"sizes"}
    identity = found(lambda x: tf.eye(tf.shape(x)[0]), [None])
    assert edges(identity) == [("Const", "MatrixDiagV3", "float32", "constant", False)]


def test_what_depends_on_constants_alone_is_computed_once():
    assert not found(lambda x: x[:4] + tf.range(4.0), [None])
    four = tf.constant(4.0)
    assert not found(lambda rows: rows + tf.cast(four, tf.int32), [None], dtype=tf.int32)


def test_a_loop_is_looked_into():
    def loop(body, **kwargs):
        return lambda x: tf.while_loop(lambda i, _: i < 3, body, (0, x), **kwargs)[1]

    body = found(loop(lambda i, x: (i + 1, tf.gather(x, tf.cast(x, tf.int32) * 2))), [None])
    assert edges(body) == [("Cast", "Mul", "int32", "values", True)]
    assert not found(loop(lambda i, x: (i + 1, x * 2)), [None])
    # TensorFlow then asks for both conditions, on the GPU.
    counted = found(loop(lambda i, x: (i + 1, x * 2), maximum_iterations=5), [None])
    assert edges(counted) == [("LogicalAnd", "LoopCond", "bool", "sizes", True)]


def test_the_line_is_the_packages_own():
    layer = MLP((8,))
    (line,) = {x.line for x in found(lambda x: layer([x]), [None, None, 4])}
    file, number = line.split(":")
    source = (PACKAGE / file).read_text().splitlines()
    assert file == "layers/mlp.py" and "matmul" in source[int(number) - 1]


@pytest.mark.parametrize(
    "name",
    [
        # It takes seconds to build a model and to fold the constants of its graph.
        name if name == "din" else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(models.MODELS)
    ],
)
def test_models_keep_what_depends_on_a_request_where_it_is(name):
    """Sizes are let through: most are of Keras's product of three axes with two."""
    model = models.create(name, schema=device_transfers.schema())
    transfers, unknown = device_transfers.transfers(device_transfers.inference(model))
    assert not [x for x in transfers if x.kind == "values"]
    assert not unknown
