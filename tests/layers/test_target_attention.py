import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.search import TopScores
from tfrec_diffusion.layers.target_attention import (
    AttentionPooling,
    QueryScores,
    TargetAttention,
    TargetQuery,
)

DIM, HEADS = 6, 4  # heads of 2, together wider than the behaviors
LENGTHS = np.array([[7, 0, 3], [0, 0, 0], [1, 2, 4], [5, 7, 0]])


def build(layer, *shapes):
    """With weights large enough for sharp attention."""
    layer.build(*shapes)
    rng = np.random.default_rng(1)
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(size=weight.shape))
    return layer


def build_query(num_heads=HEADS, behavior_dim=None):
    return build(TargetQuery(num_heads, behavior_dim), (None, None, DIM))


def attention_shapes(heads=HEADS, dim=DIM, width=None):
    """Of queries, behaviors, which are real, bias and, if they have a `width`, values."""
    behaviors = (None, None, None)
    values = [] if width is None else [(*behaviors, width)]
    return (None, None, heads, dim), (*behaviors, dim), behaviors, (*behaviors, heads), *values


def build_attention(heads=HEADS, dim=DIM, width=None):
    return build(TargetAttention(), *attention_shapes(heads, dim, width))


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def per_candidate(x, candidates):
    """What the candidates share, repeated for each."""
    return np.repeat(np.array(x)[:, None], candidates, axis=1)


def multi_head(query, attention, target, behaviors, real, bias, values):
    """Each candidate alone, with its keys and values written out: of target attention, or means."""
    heads, width = query.num_heads, query.head_dim
    query_kernel, key_kernel = query.query_kernel.numpy(), query.key_kernel.numpy()
    outputs = []
    for b, n in np.ndindex(target.shape[:2]):
        used = real[b, n]
        items, told = (x[b, n, used].astype("float64") for x in (behaviors, values))
        queries, keys = target[b, n] @ query_kernel, items @ key_kernel
        results = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            if not used.any():
                results.append(np.zeros(query.key_kernel.shape[0]))
                continue
            logits = keys[:, part] @ queries[part] / np.sqrt(width)
            weights = softmax(logits + bias[b, n, used, head])
            if attention:
                results.append(weights @ (told @ attention.value_kernel.numpy())[:, part])
            else:
                results.append(weights @ told)
        if attention and used.any():
            results = [np.concatenate(results) @ attention.output_kernel.numpy()]
        elif attention:
            results = results[:1]
        outputs.append(np.concatenate(results))
    return np.reshape(outputs, (*target.shape[:2], -1))


@pytest.fixture
def query():
    return build_query()


@pytest.fixture(params=["pooling", "attention"])
def attend(request):
    if request.param == "pooling":
        return AttentionPooling()
    return build_attention()


@pytest.fixture
def inputs():
    """Target, behaviors of each candidate, which are real, and bias; padding is not zero."""
    rng = np.random.default_rng(0)
    target, behaviors = rng.normal(size=(4, 3, DIM)), rng.normal(size=(4, 3, 7, DIM))
    bias = rng.normal(size=(4, 3, 7, HEADS))
    real = np.arange(7) < LENGTHS[..., None]
    return target.astype("f"), behaviors.astype("f"), real, bias.astype("f")


def reference(query, attend, target, behaviors, real, bias=None, values=None):
    bias = np.zeros((*real.shape, query.num_heads)) if bias is None else bias
    known = [behaviors, real, bias, behaviors if values is None else values]
    if behaviors.ndim == 3:
        known = [per_candidate(x, target.shape[1]) for x in known]
    attention = attend if isinstance(attend, TargetAttention) else None
    return multi_head(query, attention, target, *known)


# === Queries ===


@pytest.mark.parametrize(("heads", "behavior_dim"), [(1, None), (2, None), (4, None), (3, 10)])
def test_queries_give_the_products_of_query_and_key(inputs, heads, behavior_dim):
    dim = behavior_dim or DIM
    layer = build_query(heads, behavior_dim)
    behavior, width = np.random.default_rng(2).normal(size=dim), -(-dim // heads)
    queries = layer(inputs[0])
    assert queries.shape == (4, 3, heads, dim)
    keys = (behavior @ layer.key_kernel.numpy()).reshape(heads, width)
    asked = (inputs[0] @ layer.query_kernel.numpy()).reshape(4, 3, heads, width)
    expected = (asked * keys).sum(axis=-1) / width**0.5
    np.testing.assert_allclose(queries.numpy() @ behavior, expected, rtol=1e-4, atol=1e-5)


def test_one_head_by_hand():
    query, attention = TargetQuery(1, behavior_dim=2), TargetAttention()
    query.build((None, None, 1))
    attention.build(*attention_shapes(heads=1, dim=2))
    query.query_kernel.assign([[2**0.5, 0]])
    query.key_kernel.assign([[0, 1], [1, 0]])
    attention.value_kernel.assign([[1, 0], [0, 2]])
    attention.output_kernel.assign([[0, 1], [1, 0]])
    target = np.array([[[np.log(3)], [0]]], "f")
    behaviors = np.array([[[4, 0], [0, 1], [9, 9]]], "f")
    # The first candidate's products are 0 and log 3, so weights 1/4 and 3/4; the other's equal.
    real = np.array([[True, True, False]])
    np.testing.assert_allclose(query(target)[0, :, 0], [[0, np.log(3)], [0, 0]], atol=1e-6)
    outputs = attention(query(target), behaviors, real)
    np.testing.assert_allclose(outputs, [[[1.5, 1], [1, 2]]], rtol=1e-6)
    pooled = AttentionPooling()(query(target), behaviors, real)
    np.testing.assert_allclose(pooled, [[[1, 0.75], [2, 0.5]]], rtol=1e-6)


# === Attention ===


@pytest.mark.parametrize("with_bias", [True, False])
def test_is_plain_multi_head_attention(query, attend, inputs, with_bias):
    target, behaviors, real, bias = inputs
    bias = bias if with_bias else None
    outputs = attend(query(target), behaviors, real, bias)
    expected = reference(query, attend, target, behaviors, real, bias)
    assert outputs.shape == expected.shape
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


def test_behaviors_wider_than_the_target(inputs):
    query, attention = build_query(3, behavior_dim=10), build_attention(3, dim=10)
    behaviors = np.random.default_rng(2).normal(size=(4, 3, 7, 10))
    for attend in (AttentionPooling(), attention):
        outputs = attend(query(inputs[0]), behaviors, inputs[2])
        expected = reference(query, attend, inputs[0], behaviors, inputs[2])
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_bias", [True, False])
def test_shared_behaviors_are_those_of_every_candidate(query, attend, inputs, with_bias):
    target, (behaviors, real, bias) = inputs[0], (x[:, 2] for x in inputs[1:])
    shared = [behaviors, real, *([bias] if with_bias else [])]
    own = [per_candidate(x, 3) for x in shared]
    outputs = attend(query(target), *shared)
    np.testing.assert_allclose(outputs, attend(query(target), *own), rtol=1e-5, atol=1e-5)
    expected = reference(query, attend, target, *shared)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [4, DIM, 9])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shared", [False, True])
def test_values_other_than_the_keys(query, inputs, shared, with_bias, width):
    target, behaviors, real, bias = inputs
    values = np.random.default_rng(3).normal(size=(4, 3, 7, width)).astype("f")
    known = [x[:, 2] if shared else x for x in (behaviors, real, bias, values)]
    known[2] = known[2] if with_bias else None
    attention = build_attention(width=width)
    outputs = attention(query(target), *known)
    expected = reference(query, attention, target, *known)
    assert outputs.shape == (4, 3, DIM)  # of the queries
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    known[3] = np.where(known[1][..., None], known[3], 1e6).astype("f")
    np.testing.assert_array_equal(attention(query(target), *known), outputs)


def test_without_values_the_behaviors_are_averaged(query, inputs):
    attention, target = build_attention(), inputs[0]
    for known in (inputs[1:], [x[:, 2] for x in inputs[1:]]):
        np.testing.assert_array_equal(
            attention(query(target), *known),
            attention(query(target), *known, values=known[0]),
        )


def test_padding_has_no_weight_and_order_does_not_matter(query, attend, inputs):
    target, behaviors, real, bias = inputs
    expected = attend(query(target), *inputs[1:])
    order = np.random.default_rng(1).permutation(7)
    behaviors = np.where(real[..., None], behaviors, 1e6).astype("f")
    bias = np.where(real[..., None], bias, 1e6).astype("f")
    outputs = attend(query(target), *(x[:, :, order] for x in (behaviors, real, bias)))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


def test_candidates_do_not_see_each_other(query, attend, inputs):
    alone = []
    for n in range(3):
        target, *others = (x[:, n : n + 1] for x in inputs)
        alone.append(attend(query(target), *others))
    outputs = attend(query(inputs[0]), *inputs[1:])
    np.testing.assert_allclose(outputs, np.concatenate(alone, axis=1), rtol=1e-4, atol=1e-5)


def test_large_logits_do_not_overflow(query, attend, inputs):
    query.query_kernel.assign(query.query_kernel * 1e3)
    outputs = attend(query(inputs[0]), *inputs[1:])
    np.testing.assert_allclose(outputs, reference(query, attend, *inputs), rtol=1e-3, atol=1e-3)


# Attention does all that pooling does, and so stands for both with XLA.
@pytest.mark.parametrize(
    ("attend", "jit_compile"),
    [("pooling", False), ("attention", False), ("attention", True)],
    indirect=["attend"],
)
@pytest.mark.parametrize("shared", [False, True])
def test_open_shapes_and_gradients(query, attend, inputs, shared, jit_compile):
    lead = [None] if shared else [None, None]
    weights = [*query.trainable_variables, *attend.trainable_variables]
    signature = [
        tf.TensorSpec([None, None, DIM]),
        tf.TensorSpec([*lead, None, DIM]),
        tf.TensorSpec([*lead, None], tf.bool),
        tf.TensorSpec([*lead, None, HEADS]),
    ]

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def run(target, behaviors, real, bias):
        with tf.GradientTape() as tape:
            tape.watch([target, behaviors, bias])
            outputs = attend(query(target), behaviors, real, bias)
            loss = tf.reduce_sum(outputs**2)
        return outputs, tape.gradient(loss, [target, behaviors, bias, *weights])

    for requests, candidates, k in ((4, 3, 7), (2, 2, 0)):
        target = inputs[0][:requests, :candidates]
        others = [x[:requests, :candidates, :k] for x in inputs[1:]]
        others = [x[:, 0] for x in others] if shared else others
        outputs, gradients = run(target, *others)
        expected = reference(query, attend, target, *others)
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
        assert (outputs.numpy()[expected == 0] == 0).all()
        of_target, of_behaviors, of_bias, *of_weights = (np.array(g) for g in gradients)
        for gradient in (of_target, of_behaviors, of_bias, *of_weights):
            assert np.isfinite(gradient).all()
        padding = ~others[1]
        assert (of_behaviors[padding] == 0).all() and (of_bias[padding] == 0).all()
        if k == 7:
            assert (of_behaviors[~padding] != 0).all() and all(g.any() for g in of_weights)
            assert of_target.any() and of_bias.any()


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.3), ("float16", 0.03)])
def test_half_precision_is_near_to_float32(query, attend, inputs, dtype, tolerance):
    low_query = TargetQuery(HEADS, dtype=f"mixed_{dtype}")
    low_attend = type(attend)(dtype=f"mixed_{dtype}")
    low_query.build((None, None, DIM))
    if attend.weights:
        low_attend.build(*attention_shapes())
    for low, layer in ((low_query, query), (low_attend, attend)):
        low.set_weights([weight / 2 for weight in layer.get_weights()])
        layer.set_weights(low.get_weights())
    target, behaviors = tf.constant(inputs[0]), tf.constant(inputs[1])
    with tf.GradientTape() as tape:
        tape.watch([target, behaviors])
        outputs = low_attend(low_query(target), behaviors, *inputs[2:])
        loss = tf.reduce_sum(tf.cast(outputs, "float32") ** 2)
    assert outputs.dtype == dtype
    expected = attend(query(inputs[0]), *inputs[1:])
    np.testing.assert_allclose(tf.cast(outputs, "float32"), expected, atol=tolerance)
    assert (outputs.numpy()[LENGTHS == 0] == 0).all()
    for gradient in tape.gradient(loss, [target, behaviors]):
        assert np.isfinite(gradient).all()


# === TWIN's first stage ===


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("heads", [1, 4])
def test_scores_are_the_attention_s_mean_logits(heads, with_bias):
    """Of behaviors that are the unit vectors, the pooled means are the weights themselves."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(2, 3, DIM)).astype("f")
    history = np.stack([np.eye(DIM)] * 2).astype("f")
    bias = rng.normal(size=(2, DIM, heads)).astype("f") if with_bias else None
    queries = build_query(heads)(target)
    scores = QueryScores()(queries, history, bias)
    assert (scores.shape, scores.dtype) == ((2, 3, DIM), "float32")

    weights = AttentionPooling()(queries, history, np.ones((2, DIM), bool), bias)
    logits = np.log(np.array(weights, "float64")).reshape(2, 3, heads, DIM).mean(axis=2)
    shift = logits - scores.numpy()  # the softmax's
    np.testing.assert_allclose(shift, np.broadcast_to(shift[..., :1], shift.shape), atol=1e-4)
    if heads == 1:
        highest = np.argsort(-logits, axis=-1)[..., :4]
        positions, _ = TopScores(4)(scores, np.ones((2, DIM), bool))
        np.testing.assert_array_equal(positions, np.sort(highest)[..., ::-1])


@pytest.mark.parametrize("heads", [1, 3])
def test_scores_rank_as_keys_and_queries_written_out(heads):
    rng = np.random.default_rng(0)
    target, history = rng.normal(size=(4, 3, DIM)), rng.normal(size=(4, 40, DIM))
    bias = rng.normal(size=(4, 40, heads))
    query = build_query(heads)
    scores = QueryScores()(query(target), history.astype("f"), bias.astype("f"))
    width = query.head_dim
    keys = (history @ query.key_kernel.numpy()).reshape(4, 40, heads, width)
    queries = (target @ query.query_kernel.numpy()).reshape(4, 3, heads, width)
    logits = np.einsum("bnhk,bjhk->bnjh", queries, keys) / width**0.5 + bias[:, None]
    np.testing.assert_allclose(scores, logits.mean(axis=-1), rtol=1e-4, atol=1e-4)
    positions, _ = TopScores(10)(scores, np.ones((4, 40), bool))
    highest = np.argsort(-logits.mean(axis=-1), axis=-1, kind="stable")[..., :10]
    np.testing.assert_array_equal(positions, np.sort(highest)[..., ::-1])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_scores_of_open_shapes(query, inputs, jit_compile):
    target, (history, _, bias) = inputs[0], (x[:, 0] for x in inputs[1:])
    signature = [
        tf.TensorSpec([None, None, HEADS, DIM]),
        tf.TensorSpec([None, None, DIM]),
        tf.TensorSpec([None, None, HEADS]),
    ]
    scores = tf.function(QueryScores(), input_signature=signature, jit_compile=jit_compile)
    queries = query(target).numpy()
    for requests, candidates, length in ((4, 3, 7), (1, 1, 4), (2, 2, 0)):
        asked, known = queries[:requests, :candidates], history[:requests, :length]
        weights = bias[:requests, :length]
        expected = np.zeros((requests, candidates, length))
        for b, n, j in np.ndindex(expected.shape):
            expected[b, n, j] = np.mean(asked[b, n] @ known[b, j] + weights[b, j])
        np.testing.assert_allclose(scores(asked, known, weights), expected, rtol=1e-4, atol=1e-5)


def test_scores_have_no_gradient(query, inputs):
    target, (history, _, bias) = inputs[0], (tf.constant(x[:, 0]) for x in inputs[1:])
    with tf.GradientTape() as tape:
        tape.watch([history, bias])
        loss = tf.reduce_sum(QueryScores()(query(target), history, bias))
    watched = [history, bias, *query.trainable_variables]
    assert tape.gradient(loss, watched) == [None] * len(watched)


# === Saving and arguments ===


def test_a_saved_model_attends_the_same(inputs, tmp_path):
    target, behaviors = keras.Input((None, DIM)), keras.Input((None, None, DIM))
    real, bias = keras.Input((None, None), dtype="bool"), keras.Input((None, None, HEADS))
    queries = TargetQuery(HEADS)(target)
    attended = TargetAttention()(queries, behaviors, real, bias)
    without_bias = TargetAttention()(queries, behaviors, real)
    of_values = TargetAttention()(queries, behaviors, real, values=keras.ops.tile(behaviors, 2))
    pooled = AttentionPooling()(queries, behaviors, real, bias)
    scores = QueryScores()(queries, keras.Input((None, DIM)))
    assert queries.shape == (None, None, HEADS, DIM)
    assert attended.shape == without_bias.shape == of_values.shape == (None, None, DIM)
    assert pooled.shape == (None, None, HEADS * DIM)
    assert (scores.shape, scores.dtype) == ((None, None, None), "float32")

    outputs = [attended, without_bias, of_values, pooled]
    model = keras.Model([target, behaviors, real, bias], outputs)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(again(list(inputs)), model(list(inputs)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("num_heads", [0, 1.5, "4"])
def test_wrong_heads(num_heads):
    with pytest.raises(ValueError, match="`num_heads` must be a positive integer. Received: num_h"):
        TargetQuery(num_heads)
