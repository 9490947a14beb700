import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.search import (
    BehaviorRows,
    InnerProductSearch,
    Newest,
    SameCategory,
    TopScores,
)

INF = float("inf")
LENGTHS = np.array([9, 0, 2, 5])


def numpy_top(scores, history_mask, k):
    """Lists of positions, newest first: the first k of a stable sort of the reversed history."""
    found = np.empty(scores.shape[:2], object)
    for b, n in np.ndindex(found.shape):
        positions = [j for j in range(scores.shape[2]) if history_mask[b, j]]
        positions = [j for j in reversed(positions) if scores[b, n, j] > -INF]
        order = np.argsort([-scores[b, n, j] for j in positions], kind="stable")
        found[b, n] = sorted((positions[i] for i in order[:k]), reverse=True)
    return found


def retrieved(positions, real):
    """What is real, as lists; it stands before what is not."""
    positions, real = np.array(positions), np.array(real)
    found = np.empty(real.shape[:2], object)
    for index in np.ndindex(found.shape):
        assert (np.diff(real[index].astype(int)) <= 0).all()
        found[index] = positions[index][real[index]].tolist()
    return found


@pytest.fixture
def history_mask():
    return np.arange(9) < LENGTHS[:, None]


@pytest.fixture
def scores():
    """With ties, what is never retrieved, and the highest scores on padding."""
    scores = np.random.default_rng(0).integers(-2, 3, (4, 3, 9)).astype("f")
    scores[0, 0, 2:] = -INF
    scores[2, 1] = -INF
    scores[2:, :, 6:] = 100
    return scores


@pytest.fixture
def vectors():
    """History and target; padding is not zero."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(4, 9, 6)).astype("f"), rng.normal(size=(4, 3, 6)).astype("f")


# === The newest ===


def test_newest_by_hand():
    history_mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    positions, real = Newest(3)(history_mask)
    assert (positions.dtype, real.dtype) == (tf.int32, tf.bool)
    np.testing.assert_array_equal(real, [[1, 1, 1], [0, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(np.where(real, positions, 0), [[1, 2, 3], [0, 0, 1], [0, 0, 0]])


# XLA compiles each shape anew, so fewer counts are tried with it.
EVERY_COUNT = [(count, mode) for count in (1, 4, 9, 20) for mode in (None, False)]


@pytest.mark.parametrize(("count", "jit_compile"), [*EVERY_COUNT, (4, True), (20, True)])
def test_newest_takes_the_last_real_behaviors(history_mask, count, jit_compile):
    newest = Newest(count)
    if jit_compile is not None:
        signature = [tf.TensorSpec([None, None], tf.bool)]
        newest = tf.function(newest, input_signature=signature, jit_compile=jit_compile)
    for length in (9, 3, 0):
        mask = history_mask[:, :length]
        positions, real = (np.array(output) for output in newest(mask))
        assert positions.shape == real.shape == (4, min(count, length))
        assert ((positions >= 0) & (positions <= length)).all()
        for b in range(4):
            expected = np.flatnonzero(mask[b])[-count:]
            assert (real[b] == (np.arange(len(real[b])) >= len(real[b]) - len(expected))).all()
            np.testing.assert_array_equal(positions[b][real[b]], expected)


# === The highest scores ===


def test_top_scores_by_hand():
    scores = np.array([[[1, 3, 3, 2, 9], [-INF, 0, -INF, 0, 9]]], "f")
    positions, real = TopScores(3)(scores, np.array([[1, 1, 1, 1, 0]], bool))
    assert (positions.dtype, real.dtype) == (tf.int32, tf.bool)
    np.testing.assert_array_equal(real, [[[1, 1, 1], [1, 1, 0]]])
    np.testing.assert_array_equal(np.where(real, positions, 0), [[[3, 2, 1], [3, 1, 0]]])


@pytest.mark.parametrize(("count", "jit_compile"), [*EVERY_COUNT, (4, True)])
def test_top_scores_are_a_stable_sort(scores, history_mask, count, jit_compile):
    search = TopScores(count)
    if jit_compile is not None:
        signature = [tf.TensorSpec([None, None, None]), tf.TensorSpec([None, None], tf.bool)]
        search = tf.function(search, input_signature=signature, jit_compile=jit_compile)
    for requests, candidates, length in ((4, 3, 9), (1, 1, 4), (2, 2, 0), (0, 1, 9)):
        part = scores[:requests, :candidates, :length]
        mask = history_mask[:requests, :length]
        positions, real = search(part, mask)
        assert positions.shape == real.shape == (requests, candidates, min(count, length))
        assert ((np.array(positions) >= 0) & (np.array(positions) < max(length, 1))).all()
        np.testing.assert_array_equal(
            retrieved(positions, real), numpy_top(part, mask, count), strict=True
        )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_newest_of_equals_in_a_long_history(jit_compile):
    rng, shape = np.random.default_rng(0), (2, 3, 1000)
    history_mask = np.arange(1000) < np.array([[1000], [700]])
    search = tf.function(TopScores(100), jit_compile=jit_compile)
    for scores in (
        rng.integers(0, 4, shape),
        -rng.integers(0, 33, shape),  # Hamming distances
        rng.normal(size=shape),
        np.zeros(shape),
    ):
        scores = scores.astype("f")
        found = retrieved(*search(scores, history_mask))
        np.testing.assert_array_equal(found, numpy_top(scores, history_mask, 100))


def test_more_padding_retrieves_the_same(scores, history_mask):
    wide = np.pad(scores, [(0, 0), (0, 0), (0, 20)], constant_values=200)
    wide_mask = np.pad(history_mask, [(0, 0), (0, 20)])
    search = TopScores(4)
    found, expected = search(wide, wide_mask), search(scores, history_mask)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(retrieved(*found), retrieved(*expected))


def test_no_gradient_flows_through_the_search(vectors, history_mask):
    history, target = (tf.constant(x) for x in vectors)
    with tf.GradientTape() as tape:
        tape.watch([history, target])
        scores = tf.matmul(target, history, transpose_b=True)
        positions, real = TopScores(3)(scores, history_mask)
        behaviors = tf.gather(tf.stop_gradient(history), positions, batch_dims=1)
        loss = tf.reduce_sum(behaviors * tf.cast(real, "float32")[..., None])
    assert tape.gradient(loss, [history, target]) == [None, None]


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float32"])
def test_scores_are_ranked_in_float32_under_any_policy(dtype):
    scores = 1e5 - np.arange(5000, dtype="f")[None, None]
    positions, _ = TopScores(3, dtype=dtype)(scores, np.ones((1, 5000), bool))
    np.testing.assert_array_equal(positions, [[[2, 1, 0]]])


# === SIM's hard search ===


def test_same_category_by_hand():
    history_categories = np.array([[5, 7, 5, 1, 0], [5, 5, 5, 5, 5]])
    categories = np.array([[5, 1, 9], [7, 5, 5]])
    scores = SameCategory()(history_categories, categories)
    assert scores.dtype == tf.float32
    none, every = [-INF] * 5, [0, 1, 2, 3, 4]
    expected = [[[0, -INF, 2, -INF, -INF], [-INF, -INF, -INF, 3, -INF], none], [none, every, every]]
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize(("jit_compile", "lengths"), [(False, (9, 3, 0)), (True, (9, 0))])
def test_hard_search_retrieves_the_newest_of_the_category(history_mask, lengths, jit_compile):
    rng = np.random.default_rng(0)
    history_categories = rng.integers(1, 4, (4, 9), dtype=np.int32) * history_mask
    categories = rng.integers(0, 4, (4, 3), dtype=np.int32)
    categories[0, 0] = categories[2, 0] = 0  # a padded candidate retrieves no padding

    def search(history_categories, categories, history_mask):
        scores = SameCategory(dtype="mixed_float16")(history_categories, categories)
        return TopScores(2, dtype="mixed_float16")(scores, history_mask)

    rows = tf.TensorSpec([None, None], tf.int32)
    signature = [rows, rows, tf.TensorSpec([None, None], tf.bool)]
    search = tf.function(search, input_signature=signature, jit_compile=jit_compile)
    for length in lengths:
        mask = history_mask[:, :length]
        found = retrieved(*search(history_categories[:, :length], categories, mask))
        for b, n in np.ndindex(4, 3):
            same = mask[b] & (history_categories[b, :length] == categories[b, n])
            assert found[b, n] == np.flatnonzero(same)[::-1][:2].tolist()


# === SIM's soft search ===


def build_soft_search(**kwargs):
    layer = InnerProductSearch(**kwargs)
    layer.build((None, None, 6))
    return layer


def numpy_soft_search(layer, history, target, history_mask):
    behavior_kernel, target_kernel = layer.behavior_kernel.numpy(), layer.target_kernel.numpy()
    scores = np.zeros((*target.shape[:2], history.shape[1]))
    sums = np.zeros(target.shape)
    for b, n, j in np.ndindex(scores.shape):
        if history_mask[b, j]:
            r = (history[b, j] @ behavior_kernel) @ (target[b, n] @ target_kernel)
            scores[b, n, j] = r
            sums[b, n] += r * history[b, j]
    return scores, sums


def check_soft_search(outputs, expected, history_mask, tolerance=1e-4):
    (scores, sums), (expected_scores, expected_sums) = outputs, expected
    assert scores.dtype == tf.float32
    scores = np.where(history_mask[:, None], scores, 0)
    np.testing.assert_allclose(scores, expected_scores, rtol=tolerance, atol=tolerance)
    sums = tf.cast(sums, "float32")
    np.testing.assert_allclose(sums, expected_sums, rtol=tolerance, atol=tolerance)


def test_soft_search_by_hand():
    layer = InnerProductSearch()
    layer.build((None, None, 2))
    layer.behavior_kernel.assign([[1, 2], [0, 1]])
    layer.target_kernel.assign([[0, 1], [1, 0]])
    history = np.array([[[1, 0], [0, 2], [5, 5]]], "f")
    target = np.array([[[3, 1], [0, 1]]], "f")
    # W_b e_j: (1, 2), (0, 2); W_a e_a: (1, 3), (1, 0)
    scores, sums = layer(history, target, np.array([[True, True, False]]))
    np.testing.assert_array_equal(scores[..., :2], [[[7, 6], [1, 0]]])
    np.testing.assert_array_equal(sums, [[[7, 12], [1, 0]]])


@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_soft_search_equals_a_loop(vectors, history_mask, jit_compile):
    layer = build_soft_search()
    search = layer
    if jit_compile is not None:
        vector = tf.TensorSpec([None, None, 6])
        signature = [vector, vector, tf.TensorSpec([None, None], tf.bool)]
        search = tf.function(layer, input_signature=signature, jit_compile=jit_compile)
    history, target = vectors
    for requests, candidates, length in ((4, 3, 9), (1, 1, 4), (2, 2, 0)):
        part = history[:requests, :length], target[:requests, :candidates]
        mask = history_mask[:requests, :length]
        check_soft_search(search(*part, mask), numpy_soft_search(layer, *part, mask), mask)


def test_soft_search_learns_from_its_sum_and_padding_gets_nothing(vectors, history_mask):
    layer = build_soft_search()
    tensors = [tf.constant(x) for x in vectors]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        sums = layer(*tensors, history_mask)[1]
        loss = tf.reduce_sum(sums**2)
    history, target, *weights = tape.gradient(loss, [*tensors, *layer.trainable_variables])
    assert (sums.numpy()[1] == 0).all() and len(weights) == 2
    assert (history.numpy()[~history_mask] == 0).all() and (target.numpy()[1] == 0).all()
    for gradient in (history.numpy()[history_mask], target.numpy()[LENGTHS > 0], *weights):
        assert np.isfinite(gradient).all() and (np.array(gradient) != 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.3), ("float16", 0.03)])
def test_soft_search_in_half_precision(vectors, history_mask, dtype, tolerance):
    layer = build_soft_search(dtype=f"mixed_{dtype}")
    outputs = layer(*vectors, history_mask)
    assert outputs[1].dtype == dtype
    expected = numpy_soft_search(layer, *vectors, history_mask)
    check_soft_search(outputs, expected, history_mask, tolerance)


# === Rows ===


def test_behavior_rows_by_hand():
    rows = {"item": np.array([[7, 8, 9], [4, 0, 0]]), "gap": np.array([[1, 2, 3], [2, 0, 0]])}
    shared = BehaviorRows()(rows, np.array([[2, 0], [0, 0]]), np.array([[1, 1], [0, 1]], bool))
    np.testing.assert_array_equal(shared["item"], [[9, 7], [0, 4]])
    np.testing.assert_array_equal(shared["gap"], [[3, 1], [0, 2]])
    positions = np.array([[[1, 0], [2, 1]], [[0, 1], [2, 1]]])
    real = np.array([[[1, 1], [1, 0]], [[1, 0], [0, 0]]], bool)
    own = BehaviorRows()(rows, positions, real)
    np.testing.assert_array_equal(own["item"], [[[8, 7], [9, 0]], [[4, 0], [0, 0]]])
    np.testing.assert_array_equal(own["gap"], [[[2, 1], [3, 0]], [[2, 0], [0, 0]]])


def test_behavior_rows_of_several_values_and_numbers():
    rows = {"tags": np.array([[[7, 8], [9, 0]]]), "price": np.array([[1.5, 2.5]], "f")}
    positions, real = np.array([[[1, 0], [0, 1]]]), np.array([[[1, 1], [0, 1]]], bool)
    found = BehaviorRows()(rows, positions, real)
    np.testing.assert_array_equal(found["tags"], [[[[9, 0], [7, 8]], [[0, 0], [9, 0]]]])
    np.testing.assert_array_equal(found["price"], [[[2.5, 1.5], [0, 2.5]]])


@pytest.mark.parametrize(("jit_compile", "lengths"), [(False, (9, 2, 0)), (True, (9, 0))])
def test_rows_of_what_was_found(scores, history_mask, lengths, jit_compile):
    row = (10 + np.arange(36, dtype=np.int32).reshape(4, 9)) * history_mask

    def find(row, scores, history_mask):
        return [
            BehaviorRows()({"item": row}, positions, real)["item"]
            for positions, real in (Newest(3)(history_mask), TopScores(3)(scores, history_mask))
        ]

    signature = [
        tf.TensorSpec([None, None], tf.int32),
        tf.TensorSpec([None, None, None]),
        tf.TensorSpec([None, None], tf.bool),
    ]
    find = tf.function(find, input_signature=signature, jit_compile=jit_compile)
    for length in lengths:
        part = row[:, :length], scores[..., :length], history_mask[:, :length]
        newest, top = (found.numpy() for found in find(*part))
        for found in (newest, top):
            assert found.dtype == np.int32 and found.shape[-1] == min(3, length)
        for b in range(4):
            behaviors = row[b, :length][part[2][b]][-3:]
            np.testing.assert_array_equal(newest[b][newest[b] > 0], behaviors)
            for n, best in enumerate(numpy_top(*part[1:], 3)[b]):
                behaviors = np.pad(row[b, best], (0, top.shape[-1] - len(best)))
                np.testing.assert_array_equal(top[b, n], behaviors)


# === Saving and arguments ===


def test_a_saved_search_retrieves_the_same(vectors, history_mask, tmp_path):
    history, target = keras.Input((None, 6)), keras.Input((None, 6))
    mask, item = keras.Input((None,), dtype="bool"), keras.Input((None,), dtype="int32")
    scores, sums = InnerProductSearch()(history, target, mask)
    positions, real = TopScores(3)(scores, mask)
    newest, recent = Newest(2)(mask)
    rows = BehaviorRows()({"item": item}, positions, real)["item"]
    assert (scores.shape, scores.dtype) == ((None, None, None), "float32")
    assert (sums.shape, sums.dtype) == ((None, None, 6), "float32")
    assert [x.shape for x in (positions, real, newest, recent, rows)] == [
        *[(None, None, None)] * 2,
        *[(None, None)] * 2,
        (None, None, None),
    ]
    assert [x.dtype for x in (positions, real, newest, recent, rows)] == [
        *["int32", "bool"] * 2,
        "int32",
    ]
    same = SameCategory()(item, keras.Input((None,), dtype="int32"))
    assert (same.shape, same.dtype) == ((None, None, None), "float32")

    model = keras.Model([history, target, mask, item], [rows, sums, newest, recent])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    inputs = [*vectors, history_mask, np.arange(36, dtype=np.int32).reshape(4, 9)]
    for a, b in zip(again(inputs), model(inputs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("layer_class", [Newest, TopScores])
@pytest.mark.parametrize("count", [0, -1, 1.5, "3", True])
def test_wrong_count(layer_class, count):
    with pytest.raises(ValueError, match="`count` must be a positive integer. Received: count="):
        layer_class(count)
