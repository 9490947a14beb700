import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.routing import (
    SoftRouting,
    StraightThroughRouting,
    TopK,
    TopP,
    TopRouting,
    kth_largest,
)

INF = float("inf")


def numpy_largest(scores, count):
    """Column by column: what is at least as large as the count[request]-th largest."""
    kept = np.zeros(scores.shape, bool)
    for index in np.ndindex(*scores.shape[:-1]):
        column, k = scores[index], count[index[0]]
        if k > 0:
            kept[index] = column >= np.sort(column)[-k]
    return kept


def numpy_top_routing(scores, n):
    routed = np.zeros_like(scores)
    for b, i, position in np.ndindex(scores.shape[0], scores.shape[1], scores.shape[3]):
        behavior = scores[b, i, :, position]
        if np.isfinite(behavior).all():
            routed[b, i, np.argsort(-behavior, kind="stable")[:n], position] = 1
    return routed


@pytest.fixture
def history_mask():
    return np.arange(35) < np.array([35, 0, 1, 12])[:, None]


@pytest.fixture
def scores(history_mask):
    scores = np.random.default_rng(0).normal(size=(4, 2, 3, 35)).astype("f")
    return np.where(history_mask[:, None, None], scores, -INF).astype("f")


# === Routing ===


@pytest.mark.parametrize("n", [1, 2, 3])
def test_top_routing_takes_each_behavior_s_highest_channels(scores, n):
    np.testing.assert_array_equal(TopRouting(n)(scores), numpy_top_routing(scores, n))


@pytest.mark.parametrize("n", [1, 2])
def test_ties_go_to_the_lowest_channel(n):
    behaviors = np.array([[0, 0, 0], [1, 2, 2], [3, 3, 1], [1, 2, 1], [-1e38, -2e38, -1e38]], "f")
    scores = behaviors.T[None, None]
    expected = {
        1: [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]],
        2: [[1, 1, 0], [0, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 1]],
    }
    np.testing.assert_array_equal(TopRouting(n)(scores)[0, 0], np.array(expected[n]).T)


def test_soft_routing_is_the_softmax_over_channels(scores):
    outputs = SoftRouting()(scores).numpy()
    for b, i, position in np.ndindex(4, 2, 35):
        exponentials = np.exp(scores[b, i, :, position].astype("float64"))
        expected = exponentials / max(exponentials.sum(), 1e-300)
        np.testing.assert_allclose(outputs[b, i, :, position], expected, rtol=1e-5)


def test_gradient_flows_through_soft_routing_only(scores):
    scores = tf.constant(scores)
    for layer, flows in ((SoftRouting(), True), (TopRouting(), False)):
        with tf.GradientTape() as tape:
            tape.watch(scores)
            loss = tf.reduce_sum(tf.square(layer(scores)))
        gradient = tape.gradient(loss, scores)
        assert (gradient is not None) == flows
        assert not flows or (np.isfinite(gradient).all() and np.abs(gradient).max() > 0)


def test_straight_through_routing_has_the_values_of_top_1_and_the_gradient_of_soft(scores):
    scores = tf.constant(scores)
    factors = np.random.default_rng(1).normal(size=scores.shape)
    outputs, gradients = {}, {}
    for layer in (TopRouting(), SoftRouting(), StraightThroughRouting()):
        with tf.GradientTape() as tape:
            tape.watch(scores)
            outputs[type(layer)] = layer(scores)
            loss = tf.reduce_sum(outputs[type(layer)] * factors)
        gradients[type(layer)] = tape.gradient(loss, scores)
    np.testing.assert_allclose(outputs[StraightThroughRouting], outputs[TopRouting], atol=1e-6)
    np.testing.assert_allclose(gradients[StraightThroughRouting], gradients[SoftRouting], atol=1e-6)


# === Filtering ===


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 1.0])
def test_top_p_keeps_a_share_of_the_real_behaviors(scores, history_mask, p):
    lengths = [35, 0, 1, 12]
    expected = {0.01: [1, 0, 1, 1], 0.2: [7, 0, 1, 3], 0.5: [18, 0, 1, 6], 1.0: lengths}
    kept = TopP(p)(scores, history_mask)
    np.testing.assert_array_equal(kept, numpy_largest(scores, expected[p]))
    np.testing.assert_array_equal(
        np.sum(kept, axis=-1), np.broadcast_to(np.array(expected[p])[:, None, None], (4, 2, 3))
    )


@pytest.mark.parametrize("percent", [1, 7, 14, 20, 28, 55, 56, 68, 100])
def test_a_decimal_share_is_rounded_up_exactly(percent):
    """For 7, 14, 28, 55, 56 and 68, float64 puts some products above the integer."""
    lengths = np.arange(1, 101)
    history_mask = np.arange(100) < lengths[:, None]
    scores = np.where(history_mask, np.arange(100), -INF).astype("f")[:, None, None]
    kept = TopP(percent / 100)(scores, history_mask)
    np.testing.assert_array_equal(np.sum(kept, axis=(1, 2, 3)), -(-percent * lengths // 100))


def test_top_k_keeps_k_or_what_there_is(scores, history_mask):
    kept = TopK(5)(scores, history_mask)
    np.testing.assert_array_equal(kept, numpy_largest(scores, [5, 0, 1, 5]))


@pytest.mark.parametrize("layer", [TopP(0.2), TopK(1)])
def test_ties_are_kept_together_and_so_are_those_a_rounding_apart(layer):
    column = np.array([0.5, 3.0, np.nextafter(np.float32(3.0), np.float32(0)), 3.0, -4.0], "f")
    kept = layer(column[None, None, None], np.ones((1, 5), bool))
    np.testing.assert_array_equal(kept[0, 0, 0], [False, True, True, True, False])


def test_a_column_of_zeros_is_kept_whole():
    kept = TopP(0.2)(np.zeros((1, 1, 1, 5), "f"), np.ones((1, 5), bool))
    assert np.all(kept)


def test_filtering_follows_a_permutation_of_the_history(scores, history_mask):
    order = np.random.default_rng(1).permutation(35)
    kept = TopP(0.2)(scores, history_mask).numpy()
    permuted = TopP(0.2)(scores[..., order], history_mask[:, order])
    np.testing.assert_array_equal(permuted, kept[..., order])


def test_more_padding_changes_nothing(scores, history_mask):
    wide = np.pad(scores, [(0, 0)] * 3 + [(0, 9)], constant_values=-INF)
    wide_mask = np.pad(history_mask, [(0, 0), (0, 9)])
    for layer in (TopP(0.2), TopK(5)):
        kept = layer(wide, wide_mask).numpy()
        np.testing.assert_array_equal(kept[..., :35], layer(scores, history_mask))
        assert not kept[..., 35:].any()


@pytest.mark.parametrize(
    ("jit_compile", "shapes"),
    [
        (False, ((4, 2, 35), (1, 1, 5), (2, 2, 0), (0, 2, 35))),
        (True, ((4, 2, 35), (2, 2, 0), (0, 2, 35))),
    ],
)
def test_open_shapes_change_nothing(scores, history_mask, shapes, jit_compile):
    signature = [tf.TensorSpec([None, None, 3, None]), tf.TensorSpec([None, None], tf.bool)]

    def select(scores, history_mask):
        routed = TopRouting(1)(scores), TopRouting(2)(scores), SoftRouting()(scores)
        return *routed, TopP(0.2)(scores, history_mask), TopK(5)(scores, history_mask)

    traced = tf.function(select, input_signature=signature, jit_compile=jit_compile)
    for requests, candidates, length in shapes:
        part = scores[:requests, :candidates, :, :length]
        mask = history_mask[:requests, :length]
        top_1, top_2, soft, top_p, top_k = traced(part, mask)
        np.testing.assert_array_equal(top_1, numpy_top_routing(part, 1))
        np.testing.assert_array_equal(top_2, numpy_top_routing(part, 2))
        np.testing.assert_allclose(soft, SoftRouting()(part), rtol=1e-5)
        behaviors = mask.sum(axis=1)
        np.testing.assert_array_equal(top_p, numpy_largest(part, -(-behaviors // 5)))
        np.testing.assert_array_equal(top_k, numpy_largest(part, np.minimum(behaviors, 5)))


# === The k-th largest ===


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, shape: rng.normal(size=shape),
        lambda rng, shape: rng.standard_t(1, size=shape),  # magnitudes far apart
        lambda rng, shape: rng.integers(-3, 4, size=shape),  # ties
        lambda rng, shape: -rng.exponential(size=shape),
        lambda rng, shape: rng.normal(size=shape) * 1e-30,
        lambda rng, shape: rng.normal(size=shape) * 1e30,
        lambda rng, shape: np.zeros(shape),
    ],
)
def test_kth_largest_from_below_to_a_millionth(draw):
    rng = np.random.default_rng(0)
    scores = draw(rng, (50, 101)).astype("f")
    k = rng.integers(1, 102, 50)
    expected = np.sort(scores)[np.arange(50), -k]
    threshold, magnitude = kth_largest(tf.constant(scores), tf.constant(k, tf.int32))
    np.testing.assert_array_equal(magnitude, np.abs(scores).max(axis=-1))
    assert (threshold <= expected).numpy().all()
    assert (expected - threshold <= 1.1e-6 * magnitude).numpy().all()


# === Arguments ===


def test_symbolic_shapes():
    scores = keras.KerasTensor((None, None, 3, None))
    history_mask = keras.KerasTensor((None, None), "bool")
    for outputs in (TopRouting()(scores), SoftRouting()(scores)):
        assert (outputs.shape, outputs.dtype) == (scores.shape, "float32")
    for outputs in (TopP()(scores, history_mask), TopK()(scores, history_mask)):
        assert (outputs.shape, outputs.dtype) == (scores.shape, "bool")


@pytest.mark.parametrize("p", [0, -0.1, 1.4, float("nan"), "0.2"])
def test_wrong_p(p):
    with pytest.raises(ValueError, match=r"`p` must be in \(0, 1\]. Received: p="):
        TopP(p)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`k` must be a positive integer. Received: k=0"):
        TopK(0)
    with pytest.raises(ValueError, match="`channels_per_behavior` must be a positive integer"):
        TopRouting(1.5)
    with pytest.raises(ValueError, match="at most the number of channels, 3. Received"):
        TopRouting(4)(np.zeros((1, 1, 3, 2), "f"))
