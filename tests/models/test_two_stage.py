"""The models that search the history first: what they retrieve counts, and nothing else does."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_diffusion import models
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam
from tfrec_diffusion.schema import Feature

SEARCHES = {
    "sim_hard": "sim.general_search",
    "sim_soft": "sim.general_search",
    "eta": "eta.search",
    "twin": "twin.search",
    "twin_v2": "twin_v2.search",
}
LENGTH, SHORT, RETRIEVED = 12, 2, 3
ROWS = {"item": 40, "category": 10, "hour": 26, "gap": 4, "size": 5}  # of the histories' tables
ONE, TWO, THREE = 2, 3, 4  # rows of sizes


@pytest.fixture
def full_requests(make_requests):
    """One candidate each, and no padding."""

    def make(batch, seed=1):
        features = make_requests(batch=batch, candidates=1)
        rng = np.random.default_rng(seed)
        for name, rows in ROWS.items():
            shape = (batch, LENGTH)
            features[f"history_{name}"] = rng.integers(2, rows, shape, dtype=np.int32)
        return features

    return make


def create(name, schema, **kwargs):
    """Embeddings so large that what a model looks at shows; few behaviors, retrieved and short."""
    small = {"short_length": SHORT, "embedding_stddev": 0.5, "tower_units": (16, 8)}
    if name != "sdim":
        small["retrieved_length"] = RETRIEVED
    return models.create(name, schema=schema, **{**small, **kwargs})


@pytest.fixture(scope="module")
def default(schema):
    """Name to the model as `create` makes it; to be called, not to be changed."""
    made = {}

    def get(name):
        if name not in made:
            keras.utils.set_random_seed(0)
            made[name] = create(name, schema)
        return made[name]

    return get


def searching(model, name):
    """Features to the retrieved positions as sets, one for each request of one candidate."""
    search = keras.Model(model.input, model.get_layer(SEARCHES[name]).output)

    def run(features):
        positions, real = search(features)
        rows = zip(positions[:, 0].numpy(), real[:, 0].numpy(), strict=True)
        return [{*places[found].tolist()} for places, found in rows]

    return run


def replaced(features, position, seed=7):
    """Another behavior at one position of every history."""
    rng = np.random.default_rng(seed)
    features = dict(features)
    for name, rows in ROWS.items():
        column = features[f"history_{name}"].copy()
        # Not the same row again.
        step = rng.integers(1, rows - 2, len(column))
        column[:, position] = 2 + (column[:, position] - 2 + step) % (rows - 2)
        features[f"history_{name}"] = column
    return features


# === What is retrieved ===


@pytest.mark.parametrize("name", SEARCHES)
def test_what_is_retrieved_counts_and_nothing_else(name, default, full_requests):
    model, features = default(name), full_requests(24)
    search = searching(model, name)
    before, scores = search(features), model(features).numpy()[:, 0]
    sizes = {len(places) for places in before}
    assert max(sizes) == RETRIEVED and (sizes == {RETRIEVED} or name == "sim_hard")
    seen = 0
    for position in range(LENGTH - SHORT):
        other = replaced(features, position)
        after, changed = search(other), model(other).numpy()[:, 0] != scores
        expected = [position in {*a, *b} for a, b in zip(before, after, strict=True)]
        np.testing.assert_array_equal(changed, expected)
        seen += np.sum(expected)
    assert seen > 24  # of the 240 cases


@pytest.mark.parametrize("name", [*SEARCHES, "sdim"])
def test_the_newest_always_count(name, default, full_requests):
    model, features = default(name), full_requests(6)
    scores = model(features).numpy()
    for position in range(LENGTH - SHORT, LENGTH):
        assert (model(replaced(features, position)).numpy() != scores).all()


@pytest.mark.parametrize("name", SEARCHES)
def test_with_everything_retrieved_the_order_of_the_older_does_not_matter(
    name, schema, full_requests
):
    model, features = create(name, schema, retrieved_length=LENGTH), full_requests(6)
    order = np.r_[np.random.default_rng(0).permutation(LENGTH - SHORT), LENGTH - SHORT : LENGTH]
    shuffled = {
        f.name: features[f.name][:, order] if "history" in f.name else features[f.name]
        for f in schema.features
    }
    np.testing.assert_allclose(model(shuffled), model(features), rtol=1e-5)


def test_sim_hard_searches_the_candidates_category(schema, full_requests):
    """Of three behaviors of the category the two newest are retrieved."""
    features = full_requests(1)
    category = int(features["category"][0, 0])
    others = [row for row in range(2, 10) if row != category]
    features["history_category"] = np.array([[*others, *others][:LENGTH]], np.int32)
    features["history_category"][0, [1, 4, 6]] = category
    model = create("sim_hard", schema, retrieved_length=2)
    assert searching(model, "sim_hard")(features) == [{4, 6}]
    score = model(features)
    for position in range(LENGTH - SHORT):
        other = dict(features, history_item=features["history_item"].copy())
        other["history_item"][0, position] = 2 + (other["history_item"][0, position] - 1) % 38
        assert (model(other) != score) == (position in (4, 6))
    features["category"][:] = 1  # nothing like it: no long-term interest
    assert searching(model, "sim_hard")(features) == [set()]
    assert np.isfinite(model(features)).all()


def test_sdim_pools_what_shares_a_bucket(schema, full_requests):
    """The candidate's own embedding is in all of its buckets, its opposite in none."""
    features = full_requests(8)
    model = create("sdim", schema, num_hashes=4, hash_bits=2)
    pairs = {"history_item": "item", "history_category": "category", "history_hour": "hour"}
    same = {name: value.copy() for name, value in features.items()}
    for name, target in pairs.items():
        same[name][:, 0] = features[target].reshape(-1)
    assert (model(same) != model(features)).numpy().all()
    for table in model.tables.values():
        values = table.embeddings.numpy()
        values[3:5] = [values[2], -values[2]]  # row 3 equals row 2, row 4 is its opposite
        table.embeddings.assign(values)
    for name, target in pairs.items():
        features[target][:] = 2
        features[name][:] = 4
    opposite = model(features).numpy()
    fewer = {f: v[:, -SHORT:] if "history" in f else v for f, v in features.items()}
    np.testing.assert_allclose(model(fewer), opposite, rtol=1e-6)  # the older are in no bucket
    for name in pairs:
        features[name][:, 0] = 3
    assert (model(features).numpy() != opposite).all()


# === SIM ===


def test_sim_hard_takes_the_second_of_two_shared_features(default, schema):
    assert default("sim_hard").category_feature == "history_category"
    model = create("sim_hard", schema, category_feature="history_item")
    assert model.get_config()["category_feature"] == "history_item"


def test_sim_hard_asks_which_of_three_shared_features(schema):
    price = Feature("history_price", "history", "price")
    priced = dataclasses.replace(schema, features=[*schema.features, price])
    message = (
        r"`category_feature` must be one of \['history_category', 'history_item', "
        r"'history_price'\]. Received: category_feature=None"
    )
    with pytest.raises(ValueError, match=message):
        create("sim_hard", priced)
    model = create("sim_hard", priced, category_feature="history_price")
    assert model.category_feature == "history_price"


@pytest.mark.parametrize("wrong", ["history_hour", "category", "history_brand"])
def test_sim_hard_refuses_what_no_candidate_has(wrong, schema):
    message = (
        r"`category_feature` must be one of \['history_category', 'history_item'\]. "
        f"Received: category_feature='{wrong}'"
    )
    with pytest.raises(ValueError, match=message):
        create("sim_hard", schema, category_feature=wrong)


def test_sim_soft_trains_its_search_by_a_loss_of_its_own(default, make_requests):
    features = make_requests()
    label = (features["item"] % 2).astype("f")
    model = default("sim_soft")
    with tf.GradientTape(persistent=True) as tape:
        click = LogLoss()(label, model(features, training=True))
        search = LogLoss()(label, model.general_search(features, training=True))

    def moved(loss):
        gradients = tape.gradient(loss, model.trainable_weights)
        return {
            weight.path.removeprefix("table.").split("/")[0]
            for weight, gradient in zip(model.trainable_weights, gradients, strict=True)
            if gradient is not None and np.abs(tf.convert_to_tensor(gradient)).max() > 0
        }

    embeddings = {"item", "category", "hour"}
    own = {"sim.relevance", "sim.search_tower", "sim.search_click"}
    assert moved(search) == embeddings | own
    assert own.isdisjoint(moved(click))
    assert {"click.tower", "sim.query", "sim.intervals", "user"} | embeddings <= moved(click)


def test_sim_softs_loss_is_the_sum_of_both(schema, make_requests):
    features = make_requests(candidates=3)
    label = (features["item"] % 2).astype("f")
    weight = np.random.default_rng(0).integers(0, 2, label.shape).astype("f")
    for alpha in (0, 0.5):
        model = create("sim_soft", schema, search_weight=alpha)
        model.compile(LazyAdam(), LogLoss(), jit_compile=False)
        losses = [
            LogLoss()(label, scored(features, training=True), weight)
            for scored in (model, model.general_search)
        ]
        prediction = model(features, training=True)
        total = model.compute_loss(features, label, prediction, weight, training=True)
        np.testing.assert_allclose(total, losses[0] + alpha * losses[1], rtol=1e-5)
        shown = {metric.name: metric.result() for metric in model.metrics}
        np.testing.assert_allclose(shown["search_loss"], losses[1], rtol=1e-5)
        in_evaluation = model.compute_loss(features, label, prediction, weight, training=False)
        np.testing.assert_allclose(in_evaluation, losses[0], rtol=1e-5)


def test_sim_soft_keeps_training_after_a_reload(schema, make_requests, tmp_path):
    features = make_requests(batch=64)
    label = (features["item"] % 2).astype("f")
    model = create("sim_soft", schema, search_units=(8,))
    model.compile(keras.optimizers.SGD(0.1), LogLoss(), run_eagerly=True)
    first = model.fit(features, label, epochs=2, verbose=0).history["search_loss"]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.general_search(features), model.general_search(features), rtol=1e-6
    )
    kernel = loaded.get_layer("sim.relevance").behavior_kernel
    before = kernel.numpy()
    second = loaded.fit(features, label, epochs=2, verbose=0).history["search_loss"]
    assert first[0] > first[-1] > second[-1]
    assert np.abs(kernel.numpy() - before).max() > 1e-3


# === Behavior features ===


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("sim_hard", "interval_features"),
        ("sim_soft", "interval_features"),
        ("twin", "cross_features"),
        ("twin_v2", "cross_features"),
    ],
)
def test_behavior_features_are_chosen_by_name(name, argument, default, schema, full_requests):
    features = full_requests(4)
    chosen = [create(name, schema, **{argument: names}) for names in ((), ("history_gap",))]
    expected_of_each = (["history_gap", "history_size"], [], ["history_gap"])
    for model, expected in zip((default(name), *chosen), expected_of_each, strict=True):
        used = {*expected, "history_size"} if name == "twin_v2" else {*expected}
        assert {*model.behavior_features} == used
        assert np.isfinite(model(features)).all()
    for wrong in ("history_item", "gap"):
        message = (
            rf"`{argument}` must be one of \['history_gap', 'history_size'\]. "
            f"Received: {argument}='{wrong}'"
        )
        with pytest.raises(ValueError, match=message):
            create(name, schema, **{argument: (wrong,)})


@pytest.mark.parametrize("name", SEARCHES)
def test_a_schema_without_behavior_features(name, schema, full_requests):
    known = schema.group("behavior")
    bare = dataclasses.replace(
        schema,
        features=[f for f in schema.features if f not in known],
        tables=[t for t in schema.tables if t.name not in {f.table for f in known}],
    )
    features = full_requests(4)
    features = {f.name: features[f.name] for f in bare.features}
    if name == "twin_v2":
        message = r"Received: size_feature='history_size'; the schema of 'small' has \[\]"
        with pytest.raises(ValueError, match=message):
            create(name, bare)
    else:
        model = create(name, bare)
        assert [*model.behavior_features] == []
        assert np.isfinite(model(features)).all()


# === TWIN ===


@pytest.mark.parametrize("name", ["twin", "twin_v2"])
def test_cross_features_are_part_of_the_values(name, schema, full_requests):
    """The weight of a single behavior is 1, whatever its bias."""
    one = {f: x[:, -1:] if "history" in f else x for f, x in full_requests(8).items()}
    model = create(name, schema, cross_features=("history_gap",))
    gap = {**one, "history_gap": 5 - one["history_gap"]}
    assert (model(gap) != model(one)).numpy().all()
    size = {**one, "history_size": 2 + one["history_size"] % 3}
    np.testing.assert_array_equal(model(size), model(one))


# === TWIN-V2 ===


def test_twin_v2_with_clusters_of_one_is_twin(schema, full_requests):
    features = full_requests(16)
    features["history_size"] = np.full((16, LENGTH), ONE, np.int32)
    for cross_features in (("history_gap",), ()):
        twin = create("twin", schema, cross_features=cross_features)
        other = create("twin_v2", schema, cross_features=cross_features)
        for layer in twin.layers:
            if layer.weights:
                same = other.get_layer(layer.name.replace("twin.", "twin_v2."))
                same.set_weights(layer.get_weights())
        np.testing.assert_allclose(other(features), twin(features), rtol=1e-5)
        features["history_size"][:, 3] = THREE
        assert (other(features).numpy() != twin(features).numpy()).any()
        features["history_size"][:, 3] = ONE


def test_a_cluster_counts_as_so_many_equal_behaviors(schema, full_requests):
    """a a a b c c d is a, b, c, d of sizes 3, 1, 2, 1; the newest, d, is short-term as well."""
    model = create("twin_v2", schema, short_length=1, retrieved_length=7)
    clusters = {
        name: value[:, :4] if "history" in name else value
        for name, value in full_requests(6).items()
    }
    clusters["history_size"] = np.array([[THREE, ONE, TWO, ONE]] * 6, np.int32)
    behaviors = {
        name: np.repeat(value, [3, 1, 2, 1], axis=1) if "history" in name else value
        for name, value in clusters.items()
    }
    behaviors["history_size"] = np.full((6, 7), ONE, np.int32)
    np.testing.assert_allclose(model(clusters), model(behaviors), rtol=1e-5)
    clusters["history_size"][:, 0] = ONE
    assert (np.abs(model(clusters) - model(behaviors)) > 1e-6).any()


def test_the_size_of_a_cluster_helps_it_to_be_retrieved(schema, full_requests):
    model = create("twin_v2", schema, retrieved_length=1, cross_features=())
    features = full_requests(16)
    search = searching(model, "twin_v2")
    for table in model.tables.values():
        table.embeddings.assign(0.02 * table.embeddings)  # products do not outweigh ln n
    for position in range(LENGTH):
        features["history_size"] = np.full((16, LENGTH), ONE, np.int32)
        features["history_size"][:, position] = THREE
        assert search(features) == [{position}] * 16


def test_the_size_is_no_cross_feature(default):
    model = default("twin_v2")
    assert model.size_feature == "history_size"
    assert model.behavior_features == ("history_gap", "history_size")
    assert [*model.get_layer("twin_v2.cross_features").rows] == ["history_gap"]


def test_what_is_no_size_is_refused(schema):
    message = (
        "`size_feature` must be a behavior feature with the sizes of clusters, .* Received: "
        r"size_feature='history_item'; the schema of 'small' has \['history_gap', 'history_size'\]"
    )
    with pytest.raises(ValueError, match=message):
        create("twin_v2", schema, size_feature="history_item")
    with pytest.raises(ValueError, match=r"must be 2, 3, .. Received: \(30.0,\)"):
        create("twin_v2", schema, size_feature="history_gap")


# === Arguments ===


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"retrieved_length": 0}, "`retrieved_length` must be a positive integer"),
        ({"short_length": 0}, "`short_length` must be a positive integer"),
        ({"num_heads": 0}, "`num_heads` must be a positive integer"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", SEARCHES)
def test_wrong_arguments(name, wrong, message, schema):
    with pytest.raises(ValueError, match=message):
        create(name, schema, **wrong)


def test_wrong_search_weight(schema):
    with pytest.raises(ValueError, match="`search_weight` must be >= 0. Received: .*=-1"):
        create("sim_soft", schema, search_weight=-1)
