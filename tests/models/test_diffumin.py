"""DiffuMIN as a whole: what reaches what, its variants, and that its losses fall."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion import models
from tfrec_diffusion.datasets.preparation import prepare
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam

TAOBAO = pathlib.Path(__file__).parent.parent.parent.parent / "shared" / "data" / "taobao"
SMALL = {"tower_units": (16, 8)}
# Where the defaults depart from the equations.
PAPER = {
    "channel_start": "random",
    "evidence": False,
    "candidate_in_tower": False,
    "profile_units": None,
    "cross_features": (),
    "sampler": "ddpm",
    "sampling_steps": 2,
    "normalize_interests": False,
    "train_interests": True,
}
# In figures 2-3 and tables 3-4 of the paper; see experiments/diffumin.
VARIANTS = [
    {"decompose_target": False},
    {"aggregated_in_tower": False},
    {"contrastive_weight": 0},
    {"generator": None},
    {"short_term_length": None},
    {"generator": "vae"},
    {"channels": 2},
    {"channels": 8},
    {"channel_start": "random"},
    {"channel_start": "target"},
    {"orthogonal_channels": False},
    {"routing": "straight_through"},
    {"routing": "top_2"},
    {"routing": "soft"},
    {"top_k": 3},
    {"evidence": False},
    {"candidate_in_tower": False},
    {"profile_units": None},
    {"profile_units": ()},
    {"profile_units": (8, 4)},
    {"cross_features": ()},
    {"cross_features": ("history_gap",)},
    {"aggregation": "share"},
    {"aggregation": "similarity"},
    {"aggregation": "target_attention"},
    {"aggregation": "self_attention"},
    {"context_guidance": False},
    {"channel_guidance": False},
    {"context_guidance": False, "channel_guidance": False},
    {"sampler": "ddpm", "sampling_steps": 2, "start": "gaussian"},
    {"sampler": "ddpm", "sampling_steps": 2, "start": "uniform"},
    {"sampler": "ddpm", "sampling_steps": 2, "spacing": "strided", "start_step": 300},
    {"sampler": "ddim", "sampling_steps": 2},
    {"sampler": "ddpm", "sampling_steps": 2, "sigma": "posterior"},
    {"sampling_steps": 2},
    {"normalize_interests": False},
    {"normalize_interests": True},
    {"train_interests": True},
    {"inference_draws": 0},
    {"inference_draws": 3},
]
# These change only what training learns from.
OF_THE_GRADIENT = [{"routing": "straight_through"}, {"train_interests": True}]


def name_of(variant):
    return " ".join(f"{name}={value}" for name, value in variant.items())


def create(schema, **kwargs):
    return models.create("diffumin", schema=schema, **{**SMALL, **kwargs})


@pytest.fixture(scope="module")
def default(schema):
    """Embeddings so large that what the model looks at shows."""
    keras.utils.set_random_seed(0)
    return create(schema, embedding_stddev=0.3)


def gradients_by_part(model, features, losses):
    """Which parts of the model each loss moves: the first piece of a weight's path."""
    reached = []
    for loss in losses:
        with tf.GradientTape() as tape:
            value = loss(model(features, training=True))
        gradients = tape.gradient(value, model.trainable_weights)
        moved = set()
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
            if gradient is not None and np.abs(tf.convert_to_tensor(gradient)).max() > 0:
                moved.add(weight.path.removeprefix("table.").split("/")[0])
        reached.append(moved)
    return reached


def test_every_loss_reaches_what_it_should_and_nothing_else(schema, make_requests):
    features = make_requests()
    model = create(schema, **PAPER, user_feature="user", embedding_stddev=0.3)
    clicks, diffusion, contrast = gradients_by_part(
        model,
        features,
        [
            lambda scores: tf.reduce_mean(scores),
            lambda _: model.losses[0],
            lambda _: model.losses[1],
        ],
    )
    extracted = {"item", "category", "hour", "diffumin.channels", "diffumin.generator"}
    assert diffusion == extracted
    assert contrast == extracted | {"diffumin.calibrator"}
    tower = {"user", "price", "diffumin.short_term", "click.tower", "click.logit"}
    assert clicks == extracted | tower
    parts = {w.path.removeprefix("table.").split("/")[0] for w in model.weights}
    assert parts - {"seed_generator"} == clicks | contrast


def test_what_the_defaults_add_to_the_paper(schema, make_requests):
    """The tower sees the candidate, evidence and the profile; all but the channels sees ages."""
    added = {
        "candidate_in_tower": set(),
        "evidence": {"diffumin.channels", "diffumin.extractor"},
        "profile_units": {"diffumin.profile"},
        "cross_features": {"diffumin.cross_features", "diffumin.cross_features.add"},
    }
    paper = {**PAPER, "generator": None, "embedding_stddev": 0.3}
    default = create(schema).get_config()
    embeddings = {"user", "item", "category", "hour", "price"}
    tower = embeddings | {"diffumin.short_term", "click.tower", "click.logit"}
    for name, parts in added.items():
        model = create(schema, **{**paper, name: default[name]})
        (reached,) = gradients_by_part(model, make_requests(), [tf.reduce_mean])
        assert reached == tower | parts
    seen = [create(schema, **{**paper, "candidate_in_tower": shown}) for shown in (True, False)]
    widths = [model.get_layer("click.tower").weights[0].shape[0] for model in seen]
    assert widths[0] - widths[1] == 14 - 2  # all of the target but the hour of the context


def test_files_of_before_these_arguments_keep_what_they_were(schema, make_requests):
    new = {
        *("channel_start", "evidence", "candidate_in_tower", "profile_units", "cross_features"),
        "train_interests",
    }
    model = create(schema, **{**PAPER, "channel_start": "target"})
    config = {name: value for name, value in model.get_config().items() if name not in new}
    copy = type(model).from_config(config)
    assert copy.channel_start == "target"
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(copy(make_requests()), model(make_requests()))


def test_r_and_the_channels_need_not_learn_from_the_generator(schema, make_requests):
    model = create(schema, **{**PAPER, "train_interests": False}, embedding_stddev=0.3)
    features = make_requests()
    (diffusion,) = gradients_by_part(model, features, [lambda _: model.losses[0]])
    assert diffusion == {"diffumin.generator"}


@pytest.mark.parametrize(
    ("aggregation", "routing", "evidence", "learns"),
    [
        ("mean", "top_1", False, False),
        ("similarity", "top_1", False, True),
        ("mean", "straight_through", False, True),
        ("mean", "top_1", True, True),
    ],
)
def test_mean_pooling_alone_leaves_the_channels_without_gradient(
    aggregation, routing, evidence, learns, schema, make_requests
):
    variant = {"aggregation": aggregation, "routing": routing, "evidence": evidence}
    model = create(schema, generator=None, **variant, embedding_stddev=0.3)
    (reached,) = gradients_by_part(model, make_requests(), [tf.reduce_mean])
    assert ("diffumin.channels" in reached) == learns


def test_weights_scale_the_losses(schema, make_requests):
    features = make_requests()
    values = []
    for factor in (1, 10):
        keras.utils.set_random_seed(0)
        model = create(schema, diffusion_weight=0.01 * factor, contrastive_weight=0.001 * factor)
        model(features, training=True)
        values.append(np.array(model.losses))
    np.testing.assert_allclose(10 * values[0], values[1], rtol=1e-5)


def test_inference_has_no_auxiliary_losses(default, make_requests):
    default(make_requests())
    assert default.losses == []


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_variants_score_and_have_finite_gradients(variant, default, schema, make_requests):
    features = make_requests(batch=6, candidates=2)
    model = create(schema, **variant, embedding_stddev=0.3)
    assert model.get_config().items() >= variant.items()
    scores = model(features)
    assert scores.shape == (6, 2)
    alone = model({name: value[2:3] for name, value in features.items()})
    np.testing.assert_allclose(scores[2:3], alone, rtol=1e-5)
    moved = np.abs(scores - default(features)).max()
    assert (moved > 1e-6) == (variant not in OF_THE_GRADIENT)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(features, training=True)) + sum(model.losses)
    for gradient in tape.gradient(loss, model.trainable_weights):
        if gradient is not None:
            assert np.isfinite(tf.convert_to_tensor(gradient)).all()


def test_long_term_interests_do_not_know_the_order_of_the_history(default, schema, make_requests):
    features = make_requests(batch=4, length=12)
    for f in schema.group("history", "behavior"):
        features[f.name] = np.where(features[f.name] > 0, features[f.name], 2)  # all real
    order = np.random.default_rng(1).permutation(12)
    shuffled = {
        f.name: features[f.name][:, order]
        if f.group in ("history", "behavior")
        else features[f.name]
        for f in schema.features
    }
    free = create(schema, short_term_length=None, embedding_stddev=0.3)
    np.testing.assert_allclose(free(features), free(shuffled), rtol=1e-5)
    assert np.abs(default(features) - default(shuffled)).max() > 1e-6


def test_requests_of_one_user_are_no_negatives_of_each_other(schema, make_requests):
    features = make_requests(candidates=1)
    features["user"] = np.full_like(features["user"], 7)
    model = create(schema, user_feature="user", contrastive_weight=1.0)
    model(features, training=True)
    assert float(model.losses[-1]) == 0
    model = create(schema, contrastive_weight=1.0)
    model(features, training=True)
    assert float(model.losses[-1]) > 1


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"routing": "top_3"}, "`routing` must be one of .*'top_1'.* Received: routing='top_3'"),
        ({"aggregation": "max"}, "`aggregation` must be one of .* Received: aggregation='max'"),
        ({"generator": "gan"}, "`generator` must be .* Received: generator='gan'"),
        ({"start": "random"}, "`start` must be one of"),
        ({"channels": 30}, "channels` must be at most the width of the target, 14"),
        ({"num_heads": 3}, "`.*heads` must divide"),
        ({"top_p": 0}, r"`p` must be in \(0, 1\]"),
        ({"user_feature": "item"}, "`user_feature` must be one of .*'user'.* Received: .*'item'"),
    ],
    ids=str,
)
def test_wrong_arguments(wrong, message, schema):
    with pytest.raises(ValueError, match=message):
        create(schema, **wrong)


@pytest.mark.slow
def test_losses_fall_on_real_data(tmp_path):
    if not TAOBAO.exists():
        pytest.skip(f"no real sample at {TAOBAO}")
    data = RequestData(prepare("taobao", raw_dir=TAOBAO, data_dir=tmp_path))
    model = models.create("diffumin", schema=data.schema, sampling_steps=2, embedding_stddev=0.3)
    model.compile(LazyAdam(0.003), LogLoss(), jit_compile=False)

    batches = data.batches("train", shuffle_seed=0)
    losses = model.fit(batches, epochs=6, shuffle=False, verbose=0).history
    for name in ("loss", "diffusion_loss", "contrastive_loss"):
        assert losses[name][-1] < 0.9 * losses[name][0], name
