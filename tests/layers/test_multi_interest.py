import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion.layers.aggregation import (
    MeanAggregation,
    SelfAttentionAggregation,
    SimilarityAggregation,
    TargetAttentionAggregation,
)
from tfrec_diffusion.layers.multi_interest import MultiInterestExtractor
from tfrec_diffusion.layers.orthogonal import OrthogonalChannels
from tfrec_diffusion.layers.routing import SoftRouting, TopK, TopP, TopRouting

VARIANTS = {
    "paper": lambda: (TopRouting(), TopP(0.2), MeanAggregation()),
    "top_2": lambda: (TopRouting(2), TopP(0.2), MeanAggregation()),
    "soft": lambda: (SoftRouting(), TopP(0.2), MeanAggregation()),
    "top_k": lambda: (TopRouting(), TopK(3), MeanAggregation()),
    "similarity": lambda: (TopRouting(), TopP(0.2), SimilarityAggregation()),
    "target_attention": lambda: (TopRouting(), TopP(0.2), TargetAttentionAggregation()),
    "self_attention": lambda: (TopRouting(), TopP(0.2), SelfAttentionAggregation()),
}


def paper(history, channels, history_mask, p):
    """Equations 5 to 8 with mean pooling, one behavior and one channel at a time."""
    interests = np.zeros(channels.shape)
    for b, i in np.ndindex(*channels.shape[:2]):
        behaviors = history[b, history_mask[b]].astype("float64")
        scores = behaviors @ channels[b, i].T.astype("float64")  # (n, c)
        k = int(np.ceil(round(p * len(behaviors), 6)))
        for j in range(channels.shape[2]):
            threshold = np.sort(scores[:, j])[-k] if k else None
            selected = [
                behavior
                for behavior, row in zip(behaviors, scores, strict=True)
                if row.argmax() == j and row[j] >= threshold
            ]
            if selected:
                interests[b, i, j] = np.mean(selected, axis=0)
    return interests


def make_extractor(variant="paper", **kwargs):
    extractor = MultiInterestExtractor(*VARIANTS[variant](), **kwargs)
    extractor.build((None, None, 8), (None, None, 4, 8), (None, None, 8))
    return extractor


@functools.cache
def make_traced(variant, jit_compile):
    """An extractor, and the same with open shapes."""
    extractor = make_extractor(variant)
    signature = [
        tf.TensorSpec([None, None, 8]),
        tf.TensorSpec([None, None, 4, 8]),
        tf.TensorSpec([None, None, 8]),
        tf.TensorSpec([None, None], tf.bool),
    ]
    traced = tf.function(extractor, input_signature=signature, jit_compile=jit_compile)
    return extractor, traced


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    history = rng.normal(size=(6, 35, 8)).astype("f")
    history[0, 20:30] = history[0, :10]  # behaviors that come twice
    target = rng.normal(size=(6, 3, 8)).astype("f")
    target[5, 2] = 0
    channels = OrthogonalChannels(4)(target).numpy()
    history_mask = np.arange(35) < np.array([35, 0, 1, 20, 7, 35])[:, None]
    return {
        "history": history,
        "channels": channels,
        "target": target,
        "history_mask": history_mask,
    }


@pytest.mark.parametrize("p", [0.05, 0.2, 1.0])
def test_equals_the_paper_s_equations(inputs, p):
    extractor = MultiInterestExtractor(TopRouting(), TopP(p), MeanAggregation())
    expected = paper(inputs["history"], inputs["channels"], inputs["history_mask"], p)
    np.testing.assert_allclose(extractor(**inputs), expected, rtol=1e-5, atol=1e-5)


def test_select_gives_scores_and_weights(inputs):
    scores, weights = make_extractor().select(
        inputs["history"], inputs["channels"], inputs["history_mask"]
    )
    expected = np.einsum("bld,bncd->bncl", inputs["history"], inputs["channels"])
    real = np.broadcast_to(inputs["history_mask"][:, None, None], expected.shape)
    np.testing.assert_allclose(scores.numpy()[real], expected[real], rtol=1e-4, atol=1e-5)
    assert (scores.numpy()[~real] == -np.inf).all()
    assert (weights.numpy()[~real] == 0).all()
    assert (weights.numpy().sum(axis=2) <= 1).all()  # each behavior in one channel at most


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(inputs, variant):
    extractor = make_extractor(variant)
    expected = extractor(**inputs)
    history_mask = inputs["history_mask"]
    other = {
        **inputs,
        "history": np.pad(
            np.where(history_mask[..., None], inputs["history"], 7), [(0, 0), (0, 9), (0, 0)]
        ).astype("f"),
        "history_mask": np.pad(history_mask, [(0, 0), (0, 9)]),
    }
    np.testing.assert_allclose(extractor(**other), expected, rtol=1e-5, atol=1e-6)
    assert (expected.numpy()[1] == 0).all()  # no behavior at all


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_order_of_the_history_changes_nothing(inputs, variant):
    extractor = make_extractor(variant)
    order = np.random.default_rng(1).permutation(35)
    permuted = {
        **inputs,
        "history": inputs["history"][:, order],
        "history_mask": inputs["history_mask"][:, order],
    }
    np.testing.assert_allclose(extractor(**permuted), extractor(**inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_candidates_and_requests_do_not_see_each_other(inputs, variant):
    _, extractor = make_traced(variant, False)
    expected = extractor(*inputs.values()).numpy()
    for b, i in np.ndindex(6, 3):
        alone = {name: tensor[b : b + 1] for name, tensor in inputs.items()}
        for name in ("channels", "target"):
            alone[name] = alone[name][:, i : i + 1]
        outputs = extractor(*alone.values())
        np.testing.assert_allclose(outputs[0, 0], expected[b, i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_finite(inputs, variant):
    extractor = make_extractor(variant)
    tensors = {name: tf.constant(tensor) for name, tensor in inputs.items()}
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = tf.reduce_sum(tf.square(extractor(**tensors)))
    gradients = tape.gradient(loss, {**tensors, "weights": extractor.trainable_variables})
    for gradient in tf.nest.flatten(gradients):
        assert gradient is None or np.isfinite(gradient).all()
    # Mean pooling gives the channels no gradient (PAPERS.md); scores and soft routing do.
    assert (gradients["channels"] is not None) == (variant in ("soft", "similarity"))


# With XLA, the parts of the other variants are tested alone.
@pytest.mark.parametrize(
    ("variant", "jit_compile"), [*((variant, False) for variant in VARIANTS), ("paper", True)]
)
def test_open_shapes_change_nothing(inputs, variant, jit_compile):
    extractor, traced = make_traced(variant, jit_compile)
    for requests, candidates, length in ((6, 3, 35), (1, 1, 9), (2, 3, 0)):
        part = (
            inputs["history"][:requests, :length],
            inputs["channels"][:requests, :candidates],
            inputs["target"][:requests, :candidates],
            inputs["history_mask"][:requests, :length],
        )
        np.testing.assert_allclose(traced(*part), extractor(*part), rtol=1e-4, atol=1e-5)


def test_mixed_precision_selects_in_float32(inputs):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = make_extractor()
    finally:
        keras.config.set_dtype_policy("float32")
    outputs = mixed(**inputs)
    assert outputs.dtype == "bfloat16"
    np.testing.assert_array_equal(outputs, tf.cast(make_extractor()(**inputs), "bfloat16"))


@pytest.mark.parametrize("jit_compile", [True, False])
def test_fits_and_survives_saving(inputs, jit_compile, tmp_path):
    """In any Keras model, not only in those of this package."""
    arguments = {
        "history": keras.Input((None, 8), name="history"),
        "target": keras.Input((None, 8), name="target"),
        "history_mask": keras.Input((None,), dtype="bool", name="history_mask"),
    }
    channels = OrthogonalChannels(2)(arguments["target"])
    extractor = MultiInterestExtractor(*VARIANTS["similarity"]())
    model = keras.Model(arguments, extractor(channels=channels, **arguments))
    model.compile("adam", "mse", jit_compile=jit_compile)
    features = {name: inputs[name] for name in arguments}
    before = model.get_weights()
    model.fit(features, np.ones((6, 3, 2, 8), "f"), verbose=0)
    assert all((a != b).any() for a, b in zip(model.get_weights(), before, strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(features), model(features))
