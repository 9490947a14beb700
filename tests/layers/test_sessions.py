import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.normalization import unit_scale
from tfrec_diffusion.layers.sessions import (
    ShortTermEncoder,
    equal_sessions,
    gap_sessions,
    popularity_tier,
)

LENGTH, HISTORY, DIM = 6, 9, 4
NONE, WITHIN, BEGINS = 0, 2, 3  # rows of the table of gaps; 1 is not used


@pytest.fixture
def inputs():
    """Five users with 9, 4, 1, 0 and 6 behaviors: histories, masks, items and gaps."""
    rng = np.random.default_rng(0)
    mask = np.arange(HISTORY) < np.array([9, 4, 1, 0, 6])[:, None]
    history = rng.normal(size=(5, HISTORY, DIM)).astype("f")
    items = rng.integers(1, 20, (5, HISTORY))
    gaps = np.array(
        [
            [NONE, 3, 2, 3, 3, 2, 2, 3, 2],  # the newest 6: sessions of 1, 3 and 2
            [NONE, 2, 3, 2, 0, 0, 0, 0, 0],  # of 2 and 2
            [NONE, 0, 0, 0, 0, 0, 0, 0, 0],
            [NONE, 0, 0, 0, 0, 0, 0, 0, 0],
            [BEGINS, 3, 2, 3, 3, 3, 0, 0, 0],  # of 1, 2, 1, 1 and 1
        ]
    )
    return history, mask, items, gaps


@pytest.fixture
def make(inputs):
    def make(max_sessions=10, tiers=(), **arguments):
        layer = ShortTermEncoder(LENGTH, max_sessions, tiers, **arguments)
        layer.build((None, None, DIM))
        rng = np.random.default_rng(1)
        for weight in layer.trainable_weights:
            weight.assign(rng.normal(size=weight.shape, scale=0.5))
        return layer

    return make


def split(count, gaps, layer):
    """Sessions of the newest behaviors as lists of places, newest session first."""
    newest = range(max(count - LENGTH, 0), count)
    sessions, current = [], []
    for place in reversed(newest):
        current.insert(0, place)
        full = gaps is None and len(current) == -(-LENGTH // layer.max_sessions)
        if full or (gaps is not None and gaps[place] == BEGINS):
            sessions.append(current)
            current = []
    return [*sessions, current] if current else sessions


def reference(layer, history, mask, items, gaps=None):
    """Eq. 3 for each tier, by loops over users, sessions and behaviors."""
    groups = len(layer.tiers) + 1
    interests = np.zeros((len(history), groups, DIM))
    counts, dispersions = np.zeros((2, len(history), groups))
    for row, count in enumerate(mask.sum(axis=1)):
        sessions = split(count, None if gaps is None else gaps[row], layer)
        numbers = {place: k for k, session in enumerate(sessions) for place in session}
        kept = [numbers[place] for place in sorted(numbers)]
        if not kept:
            continue
        # Every session is encoded apart from the others.
        encoded, _ = layer.encoder(
            history[row : row + 1, :count], mask[row : row + 1, :count], np.array([kept])
        )
        encoded = dict(zip(sorted(numbers), encoded[0].numpy(), strict=True))
        for tier in range(groups):
            h, behaviors = [], []
            for session in sessions[: layer.max_sessions]:
                of_tier = [encoded[p] for p in session if tier_of(items[row, p], layer) == tier]
                if of_tier:
                    h.append(np.mean(of_tier, axis=0))
                behaviors += of_tier
            if h:
                interests[row, tier] = np.mean(h, axis=0)
                counts[row, tier] = len(behaviors)
                dispersions[row, tier] = np.var(behaviors, axis=0).mean()
    return unit_scale(interests), counts, dispersions


def tier_of(item, layer):
    if item == 1:
        return len(layer.tiers)
    return sum(item >= start for start in layer.tiers)


# === Sessions ===


def test_gap_sessions_by_hand():
    """A session begins with the behavior whose gap is long; the newest is number 0."""
    gaps = np.array(
        [
            [NONE, WITHIN, BEGINS, WITHIN, BEGINS, BEGINS],
            [NONE, NONE, NONE, WITHIN, WITHIN, WITHIN],
            [BEGINS, WITHIN, WITHIN, WITHIN, WITHIN, WITHIN],
        ]
    )
    expected = [[3, 3, 2, 2, 1, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(gap_sessions(gaps), expected)
    assert gap_sessions(gaps[:, :0]).shape == (3, 0)


def test_equal_sessions_by_hand():
    real = np.ones((2, 5), bool)
    np.testing.assert_array_equal(equal_sessions(real, 2), [[2, 1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(equal_sessions(real, 5), [[0] * 5] * 2)
    assert equal_sessions(real[:, :0], 2).shape == (2, 0)


def test_popularity_tier_by_hand():
    items = np.array([[2, 4, 5, 8, 9, 1]])  # 1 is out of vocabulary
    np.testing.assert_array_equal(popularity_tier(items, (5,)), [[0, 0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(popularity_tier(items, (5, 9)), [[0, 0, 1, 1, 2, 2]])
    np.testing.assert_array_equal(popularity_tier(items, (5, 5)), [[0, 0, 2, 2, 2, 2]])
    np.testing.assert_array_equal(popularity_tier(items, ()), np.zeros((1, 6)))


# === Interests ===


@pytest.mark.parametrize("tiers", [(), (5, 12)], ids=str)
@pytest.mark.parametrize("max_sessions", [1, 2, 10])
@pytest.mark.parametrize("with_gaps", [True, False])
def test_equals_loops_over_sessions_and_tiers(make, inputs, tiers, max_sessions, with_gaps):
    layer = make(max_sessions, tiers)
    inputs = inputs if with_gaps else inputs[:3]
    interests, counts, dispersions = reference(layer, *inputs)
    actual = layer(*inputs)
    np.testing.assert_array_equal(actual[1], counts)
    np.testing.assert_allclose(actual[0], interests, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(actual[2], dispersions, rtol=1e-4, atol=1e-5)


def test_counts_by_hand(make, inputs):
    """Sessions of each user, newest first: 2 3 1; 2 2; 1; none; 1 1 1 2 1."""
    history, mask, items, gaps = inputs
    for max_sessions, expected in (
        (1, [2, 2, 1, 0, 1]),
        (2, [5, 4, 1, 0, 2]),
        (4, [6, 4, 1, 0, 5]),
    ):
        _, counts, _ = make(max_sessions)(history, mask, items, gaps)
        np.testing.assert_array_equal(counts[:, 0], expected)
    # Equal cuts of 6 behaviors into 4 sessions: 2 each.
    _, counts, _ = make(4)(history, mask, items)
    np.testing.assert_array_equal(counts[:, 0], [6, 4, 1, 0, 6])


def test_a_session_counts_once_however_long(make, inputs):
    """Not the mean of all behaviors: eq. 3 averages sessions."""
    history, mask, items, gaps = (x[:1] for x in inputs)
    layer = make()
    encoded, _ = layer.encoder(history, mask, np.array([[2, 1, 1, 1, 0, 0]]))
    encoded = encoded.numpy()[0]
    expected = (encoded[0] + encoded[1:4].mean(axis=0) + encoded[4:].mean(axis=0)) / 3
    interests, _, _ = layer(history, mask, items, gaps)
    np.testing.assert_allclose(interests[0, 0], unit_scale(expected), rtol=1e-4, atol=1e-5)


def test_padding_and_what_is_older_change_nothing(make, inputs):
    history, mask, items, gaps = inputs
    layer = make(2, (9,))
    expected = layer(*inputs)
    read = np.zeros_like(mask)
    for row, count in enumerate(mask.sum(axis=1)):
        for session in split(count, gaps[row], layer)[:2]:
            read[row, session] = True
    other = np.where(read[..., None], history, np.float32(1e4))
    items = np.where(read, items, 3)
    gaps = np.where(mask, gaps, BEGINS)  # older ones are left out by these
    for actual, same in zip(layer(other, mask, items, gaps), expected, strict=True):
        np.testing.assert_allclose(actual, same, rtol=1e-5)


@pytest.mark.parametrize(
    ("jit_compile", "lengths"), [(False, (HISTORY, 2, 0)), (True, (HISTORY, 0))]
)
def test_open_shapes(make, inputs, lengths, jit_compile):
    layer = make(2, (9,))
    specs = [([None, None, DIM], "float32"), ([None, None], "bool"), *[([None, None], "int64")] * 2]

    @tf.function(input_signature=[tf.TensorSpec(*s) for s in specs], jit_compile=jit_compile)
    def run(history, *rest):
        with tf.GradientTape() as tape:
            tape.watch(history)
            outputs = layer(history, *rest)
            loss = tf.add_n([tf.reduce_sum(x**3) for x in outputs])
        return outputs, tape.gradient(loss, [history, *layer.trainable_variables])

    for length in lengths:
        part = [x[:, :length] for x in inputs]
        outputs, gradients = run(*part)
        for actual, expected in zip(outputs, reference(layer, *part), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


# === Arguments ===


@pytest.mark.parametrize("max_sessions", [0, 2.0, None])
def test_wrong_max_sessions(max_sessions):
    message = f"`max_sessions` must be a positive integer. Received: max_sessions={max_sessions}"
    with pytest.raises(ValueError, match=message):
        ShortTermEncoder(max_sessions=max_sessions)
