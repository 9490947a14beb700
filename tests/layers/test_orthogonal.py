import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.orthogonal import OrthogonalChannels, TargetChannel


def numpy_channels(layer, target):
    """LAPACK's QR, one target at a time, in float64, with the sign of the paper's decision."""
    kernel = layer.kernel.numpy().astype("float64")
    outputs = np.zeros((*target.shape[:-1], layer.num_channels, target.shape[-1]))
    for index in np.ndindex(*target.shape[:-1]):
        rows = (target[index] @ kernel).reshape(layer.num_channels, -1)
        q, r = np.linalg.qr(rows.T)
        outputs[index] = (q * np.sign(np.diag(r))).T
    return outputs


def assert_orthonormal(channels):
    channels = np.asarray(channels)
    gram = channels @ np.swapaxes(channels, -1, -2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(gram.shape[-1]), gram.shape), atol=5e-6)


def outputs_and_gradients(layer, target):
    target = tf.constant(target)
    with tf.GradientTape() as tape:
        tape.watch(target)
        outputs = layer(target)
        loss = tf.reduce_sum(outputs * np.random.default_rng(1).normal(size=outputs.shape))
    return outputs.numpy(), *(g.numpy() for g in tape.gradient(loss, (target, layer.kernel.value)))


def rank_deficient_layer(second_row):
    """3 channels of width 4 whose second row is `second_row` of the first and the third."""
    layer = OrthogonalChannels(3)
    layer.build((None, 4))
    first, _, third = np.split(np.random.default_rng(0).normal(size=(4, 12)), 3, axis=1)
    layer.kernel.assign(np.concatenate([first, second_row(first, third), third], axis=1))
    return layer


@pytest.fixture
def layer():
    layer = OrthogonalChannels(4)
    layer.build((None, None, 6))
    return layer


@pytest.fixture
def target():
    return np.random.default_rng(0).normal(size=(5, 3, 6)).astype("f")


def test_equals_the_qr_decomposition(layer, target):
    np.testing.assert_allclose(layer(target), numpy_channels(layer, target), atol=2e-5)


def test_channels_start_from_the_features_of_the_target_in_turn(target):
    layer = OrthogonalChannels(2, start=(1, 2, 3))
    rows = layer(target).numpy()  # the features do not overlap, so that nothing is projected out
    for row, columns in ((0, [0, 3, 4, 5]), (1, [1, 2])):
        part = np.zeros_like(target)
        part[..., columns] = target[..., columns]
        expected = part / np.linalg.norm(part, axis=-1, keepdims=True)
        np.testing.assert_allclose(rows[..., row, :], expected, atol=1e-5)


def test_only_the_start_from_the_target_has_it_as_the_first_channel(target):
    unit = target / np.linalg.norm(target, axis=-1, keepdims=True)
    np.testing.assert_allclose(OrthogonalChannels(3)(target)[..., 0, :], unit, atol=1e-5)
    assert np.abs(OrthogonalChannels(3, start="random")(target)[..., 0, :] - unit).max() > 0.1
    more_channels_than_features = OrthogonalChannels(3, start=(2, 4))(target)
    assert_orthonormal(more_channels_than_features)


def test_without_the_decomposition_they_are_the_rows_at_length_1(target):
    layer = OrthogonalChannels(3, "random", orthogonal=False)
    channels = layer(target).numpy()
    rows = (target @ layer.kernel.numpy()).reshape(channels.shape)
    expected = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    np.testing.assert_allclose(channels, expected, rtol=1e-5, atol=1e-6)


def test_as_many_channels_as_dimensions():
    layer = OrthogonalChannels(3)
    target = np.random.default_rng(0).normal(size=(50, 3)).astype("f")
    assert_orthonormal(layer(target))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e6])
def test_the_scale_of_the_target_changes_nothing(layer, target, scale):
    np.testing.assert_allclose(layer(target * scale), layer(target), atol=1e-5)


def test_gradient_equals_finite_differences(layer, target):
    target = target[:1, :1]
    probe = np.random.default_rng(1).normal(size=(1, 1, 4, 6))
    _, gradient, _ = outputs_and_gradients(layer, target)

    def loss(target):
        return (numpy_channels(layer, target) * probe).sum()

    for i in range(6):
        step = np.zeros((1, 1, 6))
        step[..., i] = 1e-5
        expected = (loss(target + step) - loss(target - step)) / 2e-5
        np.testing.assert_allclose(gradient[0, 0, i], expected, rtol=1e-3, atol=1e-4)


def test_an_empty_target_has_channels_and_disturbs_no_other(layer, target):
    expected, expected_gradient, _ = outputs_and_gradients(layer, target)
    target[1, 2] = 0
    outputs, gradient, kernel_gradient = outputs_and_gradients(layer, target)
    assert_orthonormal(outputs)
    assert (gradient[1, 2] == 0).all()
    assert np.isfinite(kernel_gradient).all()
    expected[1, 2], expected_gradient[1, 2] = outputs[1, 2], 0
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "second_row",
    [
        lambda first, third: first,
        lambda first, third: -3 * first,
        lambda first, third: first * 0,
        lambda first, third: first * 1e-9,
        lambda first, third: first + 1e-7 * third,
        lambda first, third: first + 1e-5 * third,
        lambda first, third: first + 1e-4 * third,
        lambda first, third: first + 1e-2 * third,
    ],
)
def test_dependent_rows_stay_orthonormal_with_bounded_gradients(second_row):
    layer = rank_deficient_layer(second_row)
    target = np.random.default_rng(2).normal(size=(200, 4)).astype("f")
    outputs, gradient, kernel_gradient = outputs_and_gradients(layer, target)
    assert_orthonormal(outputs)
    # A channel of relative length 1e-5, the shortest that is kept, has gradients of 1e5.
    assert np.abs(gradient).max() < 1e8
    assert np.isfinite(kernel_gradient).all()


def test_a_dependent_row_gives_way_to_the_least_covered_axis():
    layer = OrthogonalChannels(2)
    layer.build((None, 3))
    row = np.diag([2.0, 1.0, -0.5])
    layer.kernel.assign(np.concatenate([row, row], axis=1))
    outputs, gradient, _ = outputs_and_gradients(layer, np.ones((1, 3), "f"))
    first = np.array([2, 1, -0.5]) / np.sqrt(5.25)
    second = np.array([0, 0, 1]) - first * first[2]
    expected = [first, second / np.linalg.norm(second)]
    np.testing.assert_allclose(outputs[0], expected, atol=1e-6)
    assert np.abs(gradient).max() < 10


def test_targets_do_not_see_each_other(layer, target):
    alone = np.stack([[layer(row[None])[0] for row in rows] for rows in target])
    np.testing.assert_allclose(layer(target), alone, atol=1e-6)


def test_mixed_precision_computes_in_float32(layer, target):
    mixed = OrthogonalChannels(4, dtype="mixed_bfloat16")
    mixed.build((None, None, 6))
    mixed.kernel.assign(layer.kernel)
    outputs = mixed(target)
    assert outputs.dtype == "bfloat16"
    np.testing.assert_array_equal(outputs, tf.cast(layer(target), "bfloat16"))


@pytest.mark.parametrize("jit_compile", [True, False])
def test_open_shapes_change_nothing(layer, target, jit_compile):
    signature = [tf.TensorSpec([None, None, 6])]
    traced = tf.function(layer, input_signature=signature, jit_compile=jit_compile)
    for inputs in (target, target[:2, :1], target[:0], target[:, :0]):
        np.testing.assert_allclose(traced(inputs), numpy_channels(layer, inputs), rtol=0, atol=2e-5)


def test_target_channel_is_the_target(target):
    layer = TargetChannel()
    np.testing.assert_array_equal(layer(target), target[..., None, :])
    assert layer(keras.KerasTensor((None, None, 6))).shape == (None, None, 1, 6)


def test_symbolic_shape(layer):
    assert layer(keras.KerasTensor((None, None, 6))).shape == (None, None, 4, 6)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`num_channels` must be a positive integer. Received"):
        OrthogonalChannels(0)
    with pytest.raises(
        ValueError, match="at most the width of the target, 6. Received: num_channels=7"
    ):
        OrthogonalChannels(7).build((None, 6))
