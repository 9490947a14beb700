import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.hashing import HammingSearch, HashBucketPooling
from tfrec_diffusion.layers.search import TopScores

DIM = 6
LENGTHS = np.array([9, 0, 2, 5])


def build(layer_class, dim=DIM, **kwargs):
    layer = layer_class(**kwargs)
    layer.build((None, None, dim))
    return layer


def trace(layer, jit_compile):
    """With open shapes."""
    vectors = tf.TensorSpec([None, None, DIM])
    signature = [vectors, vectors, tf.TensorSpec([None, None], tf.bool)]
    signature = signature[:2] if isinstance(layer, HammingSearch) else signature
    return tf.function(layer, input_signature=signature, jit_compile=jit_compile)


def numpy_hamming(layer, history, target):
    """Differing bits of every behavior and candidate, one pair at a time."""
    directions = layer.directions.numpy().astype("float64")
    distances = np.zeros((*target.shape[:2], history.shape[1]), int)
    for b, n, j in np.ndindex(distances.shape):
        differ = (history[b, j] @ directions > 0) != (target[b, n] @ directions > 0)
        distances[b, n, j] = differ.sum()
    return distances


def numpy_pooling(layer, history, target, history_mask):
    """Hash by hash, behavior by behavior."""
    tau, hashes = layer.hash_bits, layer.num_hashes
    kernel = layer.directions.numpy().astype("float64")
    # Bit i of hash g is column i * G + g.
    columns = [[i * hashes + g for i in range(tau)] for g in range(hashes)]
    outputs = np.zeros(target.shape)
    for b, n in np.ndindex(target.shape[:2]):
        for g in range(hashes):
            bucket = (target[b, n] @ kernel[:, columns[g]] > 0).tolist()
            total = np.zeros(target.shape[-1])
            for behavior in history[b][history_mask[b]].astype("float64"):
                if (behavior @ kernel[:, columns[g]] > 0).tolist() == bucket:
                    total += behavior
            if total.any():
                outputs[b, n] += total / np.linalg.norm(total) / hashes
    return outputs


def on_the_unit_sphere(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype("f")


def at_angles(angles, dim=8):
    """(angles, dim) at those angles to the first axis."""
    other = on_the_unit_sphere(np.random.default_rng(1), len(angles), dim - 1)
    return np.concatenate([np.cos(angles)[:, None], np.sin(angles)[:, None] * other], 1).astype("f")


def recall(scores, exact, k):
    """Share of the exact top k that the top k of other scores find."""
    found, wanted = (np.argsort(-np.array(x), axis=-1)[..., :k] for x in (scores, exact))
    return np.mean([np.isin(found[i], wanted[i]).mean() for i in np.ndindex(found.shape[:-1])])


@pytest.fixture
def inputs():
    """Padding is not zero."""
    rng = np.random.default_rng(0)
    history, target = rng.normal(size=(4, 9, DIM)), rng.normal(size=(4, 3, DIM))
    return history.astype("f"), target.astype("f"), np.arange(9) < LENGTHS[:, None]


# === ETA ===


def test_hamming_distance_by_hand():
    layer = build(HammingSearch, dim=2, num_bits=3)
    layer.directions.assign([[1, 0, 1], [0, 1, -1]])
    history = np.array([[[2, 1], [1, 2], [-1, 1], [-3, -1]]], "f")  # 111, 110, 010, 000
    target = np.array([[[5, 1], [-2, 3]]], "f")  # 111, 010
    np.testing.assert_array_equal(layer(history, target), [[[0, -1, -2, -3], [-2, -1, 0, -1]]])


@pytest.mark.parametrize("num_bits", [1, 15, 16, 17, 32, 40, 64])
def test_hamming_distance_counts_the_signs_that_differ(inputs, num_bits):
    layer = build(HammingSearch, num_bits=num_bits)
    scores = layer(*inputs[:2])
    assert scores.dtype == tf.float32
    np.testing.assert_array_equal(scores, -numpy_hamming(layer, *inputs[:2]))


def test_equal_vectors_are_at_0_and_opposite_ones_at_every_bit(inputs):
    history = inputs[0]
    layer = build(HammingSearch, num_bits=40)
    np.testing.assert_array_equal(np.diagonal(layer(history, history), axis1=1, axis2=2), 0)
    np.testing.assert_array_equal(np.diagonal(layer(history, -history), axis1=1, axis2=2), -40)
    np.testing.assert_array_equal(layer(history * 50, history), layer(history, history))


def test_a_bit_differs_with_probability_angle_over_pi():
    angles = np.linspace(0.1, 3.0, 8)
    target = at_angles(np.array([0.0]))
    layer = HammingSearch(num_bits=4096)
    share = -layer(at_angles(angles)[None], target[None])[0, 0] / 4096
    np.testing.assert_allclose(share, angles / np.pi, atol=4 * 0.5 / 4096**0.5)


def test_recall_grows_with_the_bits():
    """Of the 20 of the highest cosine among 200; chance finds a tenth."""
    rng = np.random.default_rng(0)
    history, target = on_the_unit_sphere(rng, 4, 200, 16), on_the_unit_sphere(rng, 4, 8, 16)
    cosine = target @ history.swapaxes(1, 2)
    recalls = [
        recall(HammingSearch(num_bits)(history, target), cosine, 20)
        for num_bits in (4, 16, 64, 256, 1024)
    ]
    assert (np.diff(recalls) > 0.05).all() and recalls[0] > 0.12
    assert recalls[2] > 0.4 and recalls[-1] > 0.8


def test_the_nearest_are_retrieved_and_the_newest_among_equals(inputs):
    history, target, history_mask = inputs
    layer = build(HammingSearch, num_bits=4)
    positions, real = TopScores(4)(layer(history, target), history_mask)
    distances = numpy_hamming(layer, history, target)
    for b, n in np.ndindex(4, 3):
        pairs = sorted((distances[b, n, j], -j) for j in range(LENGTHS[b]))
        nearest = [-newness for _, newness in pairs[:4]]
        assert positions[b, n][real[b, n]].numpy().tolist() == sorted(nearest, reverse=True)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_hamming_distance_of_open_shapes(inputs, jit_compile):
    layer = build(HammingSearch, num_bits=20)
    search = trace(layer, jit_compile)
    for requests, candidates, length in ((4, 3, 9), (1, 1, 4), (2, 2, 0), (0, 1, 9)):
        part = inputs[0][:requests, :length], inputs[1][:requests, :candidates]
        np.testing.assert_array_equal(search(*part), -numpy_hamming(layer, *part))


def test_hamming_distance_has_no_gradient(inputs):
    layer = build(HammingSearch)
    tensors = [tf.constant(x) for x in inputs[:2]]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = tf.reduce_sum(layer(*tensors))
    assert layer.trainable_variables == []
    assert tape.gradient(loss, tensors) == [None, None]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_fingerprints_of_half_precision_lose_nothing_more(inputs, dtype):
    layer = build(HammingSearch, num_bits=33, dtype=f"mixed_{dtype}")
    history, target = (tf.cast(x, dtype) for x in inputs[:2])
    scores = layer(history, target)
    assert scores.dtype == tf.float32
    rounded = [tf.cast(x, "float32").numpy() for x in (history, target)]
    np.testing.assert_array_equal(scores, -numpy_hamming(layer, *rounded))


# === SDIM ===


def test_hash_buckets_by_hand():
    layer = build(HashBucketPooling, dim=2, num_hashes=2, hash_bits=1)
    layer.directions.assign([[1, 0], [0, 1]])
    history = np.array([[[3, 6], [1, -9], [-8, 6], [9, 9]]], "f")
    target = np.array([[[1, 1], [-1, -1]]], "f")
    # Sums right of 0: (4, -3); left: (-8, 6). Above 0: (-5, 12); below: (1, -9) / sqrt(82).
    right, left, above = (np.array(x) for x in ([0.8, -0.6], [-0.8, 0.6], [-5 / 13, 12 / 13]))
    expected = [(right + above) / 2, (left + np.array([1, -9]) / 82**0.5) / 2]
    outputs = layer(history, target, np.array([[True, True, True, False]]))
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-6)


# 3 candidates: more than buckets, or fewer.
@pytest.mark.parametrize(
    ("hash_bits", "jit_compile"),
    [*((bits, mode) for bits in (1, 2, 4) for mode in (None, False)), (1, True), (4, True)],
)
def test_pooling_equals_a_loop_over_hashes(inputs, hash_bits, jit_compile):
    layer = build(HashBucketPooling, num_hashes=5, hash_bits=hash_bits)
    pool = layer if jit_compile is None else trace(layer, jit_compile)
    history, target, history_mask = inputs
    for requests, candidates, length in ((4, 3, 9), (1, 1, 4), (2, 2, 0), (0, 3, 9)):
        part = (
            history[:requests, :length],
            target[:requests, :candidates],
            history_mask[:requests, :length],
        )
        expected = numpy_pooling(layer, *part)
        np.testing.assert_allclose(pool(*part), expected, rtol=1e-4, atol=1e-6)


def test_a_candidate_s_interest_does_not_depend_on_how_many_there_are(inputs):
    history, _, history_mask = inputs
    target = np.random.default_rng(1).normal(size=(4, 20, DIM)).astype("f")
    layer = build(HashBucketPooling)
    many = layer(history, target, history_mask).numpy()
    for count in (1, 7, 8, 9):  # of 8 buckets
        some = layer(history, target[:, -count:], history_mask)
        np.testing.assert_allclose(some, many[:, -count:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("hash_bits", [1, 4])
def test_gradient_of_pooling(inputs, hash_bits, jit_compile):
    """Equals a difference of the loop's values; none for padding, target and directions."""
    layer = build(HashBucketPooling, num_hashes=5, hash_bits=hash_bits)
    assert layer.trainable_variables == []
    rng = np.random.default_rng(2)
    weights, step = rng.normal(size=inputs[1].shape), rng.normal(size=inputs[0].shape) * 1e-6

    def gradient(history, target, history_mask):
        with tf.GradientTape() as tape:
            tape.watch([history, target])
            loss = tf.reduce_sum(layer(history, target, history_mask) * weights)
        of_history, of_target = tape.gradient(loss, [history, target])
        assert of_target is None
        return of_history

    of_history = trace(gradient, jit_compile)(*inputs).numpy()
    assert (of_history[~inputs[2]] == 0).all()
    after, before = (
        np.sum(weights * numpy_pooling(layer, inputs[0].astype("float64") + s, *inputs[1:]))
        for s in (step, -step)
    )
    np.testing.assert_allclose(np.sum(of_history * step), (after - before) / 2, rtol=1e-3)


def test_a_fully_padded_history_of_zeros(inputs):
    target = tf.constant(inputs[1])
    for hash_bits in (1, 3):
        layer = build(HashBucketPooling, hash_bits=hash_bits)
        history = tf.zeros((4, 9, DIM))
        with tf.GradientTape() as tape:
            tape.watch(history)
            outputs = layer(history, target, np.zeros((4, 9), bool))
            loss = tf.reduce_sum((outputs - 1) ** 2)
        assert (outputs.numpy() == 0).all()
        assert (tape.gradient(loss, history).numpy() == 0).all()


def test_padding_and_the_order_of_the_behaviors_change_nothing(inputs):
    history, target, history_mask = inputs
    layer = build(HashBucketPooling)
    expected = layer(history, target, history_mask)
    wide = np.pad(history, [(0, 0), (0, 7), (0, 0)], constant_values=1e6)
    wide_mask = np.pad(history_mask, [(0, 0), (0, 7)])
    order = np.random.default_rng(1).permutation(16)
    outputs = layer(wide[:, order], target, wide_mask[:, order])
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def weights_of(layer, behaviors, target):
    """What each behavior counts, before l2: its interest where it is alone in the history."""
    repeated = np.repeat(target[None, None], len(behaviors), axis=0)
    alone = layer(behaviors[:, None], repeated, np.ones((len(behaviors), 1), bool))
    weights = np.linalg.norm(alone, axis=-1)[:, 0]
    expected = weights[:, None] * behaviors / np.linalg.norm(behaviors, axis=1, keepdims=True)
    np.testing.assert_allclose(alone[:, 0], expected, atol=1e-5)
    return weights


@pytest.mark.parametrize("hash_bits", [1, 3, 6])
def test_expected_weight_of_a_behavior_at_an_angle(hash_bits):
    angles = np.linspace(0, 3, 9)
    layer = HashBucketPooling(num_hashes=4000, hash_bits=hash_bits)
    weights = weights_of(layer, at_angles(angles), at_angles(np.array([0.0]))[0])
    np.testing.assert_allclose(weights[0], 1, rtol=1e-5)
    np.testing.assert_allclose(weights, (1 - angles / np.pi) ** hash_bits, atol=4 * 0.5 / 4000**0.5)


def test_sampled_attention_nears_the_exact_one():
    """Recall of the 20 of the highest cosine among 200 by weight; chance finds a tenth."""
    rng = np.random.default_rng(0)
    behaviors, targets = on_the_unit_sphere(rng, 200, 16), on_the_unit_sphere(rng, 6, 16)
    cosine = targets @ behaviors.T
    recalls, errors = [], []
    for num_hashes in (12, 48, 192, 768):
        layer = HashBucketPooling(num_hashes, hash_bits=3)
        weights = np.array([weights_of(layer, behaviors, target) for target in targets])
        recalls.append(recall(weights, cosine, 20))
        errors.append(np.abs(weights - (1 - np.arccos(cosine) / np.pi) ** 3).mean())
    assert (np.diff(recalls) > 0.05).all()
    assert recalls[1] > 0.35 and recalls[-1] > 0.75
    assert (np.diff(np.log2(errors)) < -0.7).all()  # half, of four times the hashes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sums_in_float32(dtype):
    rng = np.random.default_rng(0)
    history = tf.cast(100 + 10 * rng.normal(size=(2, 900, DIM)), dtype)  # sums beyond float16
    target = tf.cast(rng.normal(size=(2, 3, DIM)), dtype)
    history_mask = np.arange(900) < np.array([[900], [0]])
    rounded = [tf.cast(x, "float32").numpy() for x in (history, target)]
    for hash_bits in (1, 2):
        layer = build(HashBucketPooling, num_hashes=5, hash_bits=hash_bits, dtype=f"mixed_{dtype}")
        outputs = layer(history, target, history_mask)
        assert outputs.dtype == dtype
        expected = numpy_pooling(layer, *rounded, history_mask)
        np.testing.assert_allclose(tf.cast(outputs, "float32"), expected, rtol=0.01)


# === Directions ===


@pytest.mark.parametrize("layer_class", [HammingSearch, HashBucketPooling])
def test_directions_are_the_same_for_every_new_layer(layer_class):
    first = build(layer_class).directions.numpy()
    keras.utils.set_random_seed(1)
    np.testing.assert_array_equal(build(layer_class).directions, first)
    assert np.linalg.matrix_rank(first) == DIM and len(np.unique(first)) == first.size


def test_a_saved_model_keeps_its_directions(inputs, tmp_path):
    vectors = [keras.Input((None, DIM)), keras.Input((None, DIM))]
    history_mask = keras.Input((None,), dtype="bool")
    search, pooling = HammingSearch(20), HashBucketPooling(5, 2)
    distances, interests = search(*vectors), pooling(*vectors, history_mask)
    assert (distances.shape, distances.dtype) == ((None, None, None), "float32")
    assert (interests.shape, interests.dtype) == ((None, None, DIM), "float32")
    rng = np.random.default_rng(3)
    for layer in (search, pooling):
        layer.directions.assign(rng.normal(size=layer.directions.shape))
    model = keras.Model([*vectors, history_mask], [distances, interests])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(again(list(inputs)), model(list(inputs)), strict=True):
        np.testing.assert_array_equal(a, b)


# === Arguments ===


@pytest.mark.parametrize(
    ("layer_class", "name"),
    [
        (HammingSearch, "num_bits"),
        (HashBucketPooling, "num_hashes"),
        (HashBucketPooling, "hash_bits"),
    ],
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "3"])
def test_wrong_arguments(layer_class, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer. Received: {name}="):
        layer_class(**{name: value})
