"""HierDiffuse as a whole: what reaches what, its variants, and that its losses fall."""

import dataclasses
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
DIM = 14  # of a behavior

EMBEDDINGS = {"item", "category", "hour"}  # of behaviors
LONG, SHORT, GATE, FUSION = (
    f"hierdiffuse.{part}" for part in ("long_term", "short_term", "guidance", "fusion")
)
TOWER = {"user", "hour", "item", "category", "price", "click.tower", "click.logit"}
# The tower sees h^fusion alone, as in the paper, so that what reaches it shows.
PAPER = {
    "interests_in_tower": False,
    "interaction": False,
    "profile_units": None,
    "cross_features": (),
}
# In table 2 of the paper, and our own: what the clicks reach beside the tower, and what the
# diffusion's losses reach.
BY_SHORT = {*EMBEDDINGS, SHORT, FUSION}
VARIANTS = [
    ({}, {LONG, SHORT, GATE, FUSION}, BY_SHORT),
    ({"guidance": "cfg"}, {LONG, SHORT, FUSION}, BY_SHORT),
    ({"guidance": "cfg", "guidance_weight": 2.5}, {LONG, SHORT, FUSION}, BY_SHORT),
    ({"backbone": "transformer"}, {LONG, SHORT, GATE, FUSION}, BY_SHORT),
    ({"reconstruction": False}, {LONG, SHORT, GATE, FUSION}, BY_SHORT),
    ({"trajectory": False}, {LONG, SHORT, GATE, FUSION}, BY_SHORT),
    ({"trajectory_state": "ddim"}, {LONG, SHORT, GATE, FUSION}, BY_SHORT),
    ({"diffusion_weight": 0}, {LONG, SHORT, GATE, FUSION}, set()),
    ({"sampling_steps": 3}, {LONG, SHORT, GATE, FUSION}, BY_SHORT),
    ({"sampler": "ddpm", "sampling_steps": 3}, {LONG, SHORT, GATE, FUSION}, BY_SHORT),
    ({"sampler": "ddim", "sampling_steps": 3}, {LONG, SHORT, GATE, FUSION}, BY_SHORT),
    ({"start_step": 300}, {LONG, SHORT, GATE, FUSION}, BY_SHORT),
    ({"direction": "short_to_long"}, {LONG, SHORT, FUSION}, {*EMBEDDINGS, LONG, FUSION}),
    ({"direction": "long"}, {LONG, FUSION}, {FUSION}),
    ({"direction": "short"}, {SHORT, FUSION}, {FUSION}),
    ({"fusion": "concatenation"}, {LONG, SHORT}, set()),
    (
        {"target_attention": True},
        {LONG, SHORT, GATE, FUSION, "hierdiffuse.attention"},
        BY_SHORT,
    ),
    ({"num_blocks": 2, "num_heads": 1}, {LONG, SHORT, GATE, FUSION}, BY_SHORT),
    (
        {"long_length": 3, "short_length": 2, "max_sessions": 1},
        {LONG, SHORT, GATE, FUSION},
        BY_SHORT,
    ),
]


def name_of(value):
    return " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""


def create(schema, **kwargs):
    return models.create(
        "hierdiffuse", schema=schema, **{"tower_units": (16, 8), "embedding_stddev": 0.3, **kwargs}
    )


@pytest.fixture(scope="module")
def default(schema):
    keras.utils.set_random_seed(0)
    return create(schema)


def fused(model, features):
    """h^fusion."""
    return keras.Model(model.inputs, model.get_layer(FUSION).output)(features).numpy()


def reached(model, gradients):
    """Parts of the model that have a gradient: the first piece of a weight's path."""
    parts = set()
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        if gradient is not None:
            gradient = tf.convert_to_tensor(gradient)
            assert np.isfinite(gradient).all(), weight.path
            if np.abs(gradient).max() > 0:
                parts.add(weight.path.removeprefix("table.").split("/")[0])
    return parts


@pytest.mark.parametrize(("variant", "by_clicks", "by_diffusion"), VARIANTS, ids=name_of)
def test_variants_score_and_learn_what_they_should(
    variant, by_clicks, by_diffusion, schema, make_requests
):
    features = make_requests(batch=6, candidates=2)
    model = create(schema, **{**PAPER, **variant})
    assert model.get_config().items() >= variant.items()
    scores = model(features)
    assert scores.shape == (6, 2) and np.isfinite(scores).all() and model.losses == []
    np.testing.assert_array_equal(scores, model(features))
    with tf.GradientTape(persistent=True) as tape:
        clicks = tf.reduce_mean(model(features, training=True))
        diffusion = tf.add_n([*model.losses, 0.0])
    assert reached(model, tape.gradient(clicks, model.trainable_weights)) == by_clicks | TOWER
    assert reached(model, tape.gradient(diffusion, model.trainable_weights)) == by_diffusion


def test_what_the_defaults_add_to_the_paper(schema, make_requests):
    """The tower sees each interest, products with the candidate, the profile; encoders see ages."""
    added = {
        "interests_in_tower": {LONG, SHORT},
        "interaction": {"hierdiffuse.product_0"},
        "profile_units": {"hierdiffuse.profile"},
        "cross_features": {"hierdiffuse.cross_features", "hierdiffuse.cross_features.add"},
    }
    features = make_requests(batch=6, candidates=2)
    unguided = {**PAPER, "direction": "long"}  # where h^S has no other way to the tower
    default = models.create("hierdiffuse", schema=schema).get_config()
    for name, parts in added.items():
        model = create(schema, **{**unguided, name: default[name]})
        with tf.GradientTape() as tape:
            clicks = tf.reduce_mean(model(features, training=True))
        gradients = tape.gradient(clicks, model.trainable_weights)
        assert reached(model, gradients) == TOWER | {LONG, FUSION} | parts


def test_files_of_before_these_arguments_keep_the_paper_s_tower(schema, make_requests):
    model = create(schema, **PAPER)
    config = {name: value for name, value in model.get_config().items() if name not in PAPER}
    copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(copy(make_requests()), model(make_requests()))


def test_files_of_before_hidden_layers_of_the_products_have_linear_ones(schema, make_requests):
    model = create(schema, interaction_units=(), profile_units=None)
    config = model.get_config()
    del config["interaction_units"], config["profile_units"]
    copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(copy(make_requests()), model(make_requests()))


# === The fusion ===


@pytest.mark.parametrize("direction", ["long_to_short", "short_to_long"])
def test_the_fusion_sees_the_user_only(schema, make_requests, direction):
    features, other = make_requests(candidates=3), make_requests(candidates=7, seed=1)
    of_behaviors = {f.name for f in schema.group("history", "behavior")}
    other = {k: features[k] if k in of_behaviors else v for k, v in other.items()}
    model = create(schema, direction=direction)
    expected = fused(model, features)
    assert expected.shape == (16, DIM)
    np.testing.assert_array_equal(fused(model, other), expected)


def test_equal_users_are_fused_alike(schema, make_requests):
    features = {k: np.repeat(v[:1], 3, axis=0) for k, v in make_requests(seed=2).items()}
    result = fused(create(schema, sampling_steps=3), features)
    np.testing.assert_allclose(result, np.broadcast_to(result[:1], result.shape), atol=1e-6)


def test_recent_behaviors_guide(schema, make_requests):
    """The newest one matters; what is older than both encoders see does not."""
    features = make_requests(batch=8)
    for f in schema.group("history"):
        features[f.name] = np.maximum(features[f.name], 2)  # all real
    model = create(schema, long_length=6, short_length=4)
    expected = fused(model, features)
    for place, matters in ((-1, True), (5, False)):
        item = features["history_item"].copy()
        item[:, place] = item[:, place] % 30 + 2
        changed = np.abs(fused(model, {**features, "history_item": item}) - expected)
        assert (changed.max(axis=1) > 1e-4).any() == matters


def test_categories_are_the_tiers_of_the_schema_s_items(schema):
    for tiers, categories in (((), 1), ((9,), 2), ((5, 9), 3)):
        tables = [
            dataclasses.replace(t, tiers=tiers) if t.name == "item" else t for t in schema.tables
        ]
        model = create(dataclasses.replace(schema, tables=tables))
        assert model.get_layer(GATE).kernel.shape == (categories, DIM + 2)
    for unsplit in ({"guidance": "cfg"}, {"direction": "short_to_long"}):
        model = create(schema, **unsplit)
        assert model.get_layer(SHORT).tiers == () and model.get_layer(GATE).weights == []


def test_sessions_are_parted_by_gaps_or_cut_equally(schema, make_requests):
    features = make_requests()
    other = {**features, "history_gap": np.where(features["history_gap"] == 3, 2, 3)}
    for gap_feature in (None, "history_gap"):
        model = create(schema, gap_feature=gap_feature, cross_features=())
        assert np.abs(fused(model, features) - fused(model, other)).max() > 1e-3
    timeless = dataclasses.replace(
        schema,
        features=[f for f in schema.features if f.group != "behavior"],
        tables=[t for t in schema.tables if t.name not in ("gap", "size")],
    )
    del features["history_gap"], features["history_size"]
    assert np.isfinite(create(timeless)(features)).all()
    with pytest.raises(
        ValueError, match="`gap_feature` must be one of .*Received: .*'history_gap'"
    ):
        create(timeless, gap_feature="history_gap")


# === Training ===


def test_weight_scales_the_losses(schema, make_requests):
    values = []
    for weight in (0.1, 1.0):
        keras.utils.set_random_seed(0)
        model = create(schema, diffusion_weight=weight)
        model(make_requests(), training=True)
        values.append(np.array(model.losses))
    np.testing.assert_allclose(10 * values[0], values[1], rtol=1e-5)


def test_requests_without_history_have_no_loss(default, schema, make_requests):
    features = make_requests(length=1)
    for real, losses in ((1, True), (0, False)):
        for feature in schema.group("history", "behavior"):
            features[feature.name][:] = 2 * real
        default(features, training=True)
        assert (np.array(default.losses) > 0).tolist() == [losses] * 2


def test_fit_advances_the_curriculum(schema, make_requests):
    features = make_requests(batch=16)
    model = create(schema, curriculum_steps=8)
    model.compile(keras.optimizers.SGD(), LogLoss(), run_eagerly=True)
    label = (features["item"] % 2).astype("f")
    model.fit(features, label, batch_size=4, verbose=0)
    model.evaluate(features, label, verbose=0)
    assert model.get_layer(FUSION).steps_done == 4
    assert float(model.get_layer(FUSION).progress()) == 0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fusion": "sum"}, "`fusion` must be one of .*'diffusion'.* Received: fusion='sum'"),
        ({"direction": "up"}, "`direction` must be one of .* Received: direction='up'"),
        ({"guidance": None}, "`guidance` must be one of .* Received: guidance=None"),
        ({"backbone": "cnn"}, "`backbone` must be one of .* Received: backbone='cnn'"),
        ({"sampler": "sde"}, "`sampler` must be one of .* Received: sampler='sde'"),
        ({"guidance": "cfg", "guidance_weight": -1}, "`weight` must be >= 0"),
        ({"long_length": 0}, "`length` must be a positive integer"),
        ({"max_sessions": 0}, "`max_sessions` must be a positive integer"),
        ({"num_heads": 3}, "`num_heads` must divide the width of the behaviors"),
        ({"gap_feature": "hour"}, "`gap_feature` must be one of .*'history_gap'.* Received: .*'ho"),
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
    model = create(data.schema, tower_units=(64, 32))
    model.compile(LazyAdam(0.003), LogLoss(), jit_compile=False)
    losses = model.fit(data.batches("train", shuffle_seed=0), epochs=6, shuffle=False, verbose=0)
    for name in ("loss", "reconstruction_loss", "trajectory_loss"):
        assert losses.history[name][-1] < 0.9 * losses.history[name][0], name
