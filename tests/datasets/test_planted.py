"""Users with planted interests, and the oracles that know how they were planted."""

import itertools
import json
import math
import pathlib

import numpy as np
import pandas as pd
import pytest

from tfrec_diffusion import metrics
from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import (
    planted,
    planted_files,
    planted_oracles,
    planted_users,
    preparation,
)
from tfrec_diffusion.datasets.logs_spec import Spec
from tfrec_diffusion.datasets.planted_users import STRENGTHS, Users, World
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.prepared_directory import PreparedDirectory
from tfrec_diffusion.training.evaluation import describe

_WORLD = {
    "items": 300,
    "aspects": 3,
    "values": 8,
    "types": 10,
    "visible": True,
    "impressions": 4,
    "history_length": 60,
    "sessions": False,
    "spurious_items": "popular",
    "seed": 3,
}
_SMALL = {**_WORLD, "users": 60, "held_out_users": 20}
_TINY = {**_WORLD, "aspects": 2, "values": 3, "types": 4, "sessions": True}


def _users(number, spurious_share=0.2, seed=0, **options):
    world = World(**{**_WORLD, **options})
    return world, Users(world, number, spurious_share, np.random.default_rng(seed))


def _raw(directory, name):
    files = sorted(pathlib.Path(directory).glob(f"{name}*.parquet"))
    return pd.concat([pd.read_parquet(file).assign(file=file.stem) for file in files])


# Oracles


def _enumerated(world, users, user, candidate, *, population, newest, aspects, credulous):
    """Click probability of a candidate, by going through all that the oracle does not know.

    Preferences, strengths and the intents of each session, in all aspects together.
    """
    shown = users.candidates[user, candidate]
    values = users.values[user]
    known = len(values) - newest
    seen = range(aspects)
    every, of_one = range(world.aspects), range(world.values)
    mass = 0.0
    clicks = 0.0
    for preferred, strengths in itertools.product(
        itertools.product(of_one, repeat=world.aspects),
        itertools.product(STRENGTHS, repeat=world.aspects),
    ):

        def shows(value, aspect, intent=None, preferred=preferred, strengths=strengths):
            usual = (1 - strengths[aspect]) / world.values
            usual += strengths[aspect] * (value == preferred[aspect])
            return usual if intent is None else 0.5 * usual + 0.5 * (value == intent)

        weight = 1.0
        if population:
            weight = np.mean(
                [
                    math.prod(
                        0.9 * (preferred[a] == of_type[a]) + 0.1 / world.values for a in every
                    )
                    for of_type in world.type_values
                ]
            )
        for a in every:
            weight *= 0.3 * (shown[a] == preferred[a]) + 0.7 / world.values
        for behavior in values[known:-50]:
            weight *= math.prod(shows(behavior[a], a) for a in seen)
        no_hit = 1.0
        for session in range(5):
            begin = len(values) - 50 + 10 * session
            behaviors = values[begin : begin + 10] if begin >= known else []
            likelihood = with_none = 0.0
            for intents in itertools.product([None, *of_one], repeat=world.aspects):
                chance = math.prod(
                    1 - 1 / world.aspects if i is None else 1 / world.aspects / world.values
                    for i in intents
                )
                for behavior in behaviors:
                    chance *= math.prod(shows(behavior[a], a, intents[a]) for a in seen)
                likelihood += chance
                with_none += chance * all(intents[a] != shown[a] for a in every)
            if len(behaviors):
                genuine = credulous or not users.spurious[user, session]
            else:
                genuine = 1.0 if credulous else 1 - users.spurious_share
            no_hit *= genuine * with_none / likelihood + (1 - genuine)
            weight *= likelihood
        matches = sum(shown[a] == preferred[a] for a in every)
        item = users.candidate_items[user, candidate]
        log_odds = world.log_odds(matches, item)
        mass += weight
        clicks += weight * no_hit / (1 + math.exp(-log_odds))
        clicks += weight * (1 - no_hit) / (1 + math.exp(-log_odds - 1.2))
    return clicks / mass


@pytest.mark.parametrize(
    ("oracle", "knows"),
    [
        ("population", {}),
        ("own", {"population": False}),
        ("newest_20_population", {"newest": 20}),
        ("newest_20", {"newest": 20, "population": False}),
        ("category", {"aspects": 1, "population": False}),
        ("population_credulous", {"credulous": True}),
    ],
)
def test_oracles_are_what_enumeration_gives(oracle, knows):
    world, users = _users(3, spurious_share=0.4, **_TINY)
    assert users.spurious.any(), "or the kinds of sessions are not tested"
    knows = {"population": True, "newest": 60, "aspects": 2, "credulous": False, **knows}
    predicted = planted_oracles.click_probabilities(world, users)[oracle]
    for user, candidate in itertools.product(range(3), range(2)):
        expected = _enumerated(world, users, user, candidate, **knows)
        assert predicted[user, candidate] == pytest.approx(expected, rel=1e-9)


def test_without_the_sessions_an_oracle_knows_the_others(monkeypatch):
    world, users = _users(50, sessions=True)
    before = planted_oracles.click_probabilities(world, users)
    users.values[:, -50:] = 0
    after = planted_oracles.click_probabilities(world, users)
    name = "population_without_sessions"
    np.testing.assert_array_equal(after[name], before[name])
    users.values[:, :-50] = 0
    assert (planted_oracles.click_probabilities(world, users)[name] != before[name]).mean() > 0.5


@pytest.mark.parametrize("options", [{}, {"sessions": True}, {"visible": False, "items": 600}])
def test_what_an_oracle_predicts_comes_true(options):
    world, users = _users(4000, **options)
    known = {
        "true": users.probabilities,
        **planted_oracles.click_probabilities(world, users),
    }
    known.pop("population_credulous", None)
    for name, probabilities in known.items():
        # In each tenth of the candidates by probability, within four standard errors.
        for tenth in np.array_split(np.argsort(probabilities, axis=None), 10):
            p, labels = probabilities.ravel()[tenth], users.labels.ravel()[tenth]
            error = np.sqrt((p * (1 - p)).sum()) / len(p)
            assert abs(labels.mean() - p.mean()) < 4 * error, name


def _losses(options):
    world, users = _users(4000, **options)
    labels = users.labels.ravel().astype(int)
    predicted = planted_oracles.click_probabilities(world, users)
    predicted["true"] = users.probabilities
    return {name: metrics.log_loss(labels, p.ravel()) for name, p in predicted.items()}


def test_who_knows_more_predicts_better():
    loss = _losses({"sessions": True})
    for more, less in (
        ("true", "population"),
        ("population", "own"),
        ("population", "newest_20_population"),
        ("population", "population_without_sessions"),
        ("population", "population_credulous"),
        ("own", "newest_20"),
        ("own", "category"),
        ("newest_20_population", "newest_20"),
    ):
        assert loss[more] < loss[less] - 0.002, (more, less)


def test_without_types_the_population_tells_nothing():
    world, users = _users(100, types=0)
    predicted = planted_oracles.click_probabilities(world, users)
    np.testing.assert_array_equal(predicted["population"], predicted["own"])
    assert (users.types == -1).all()


def test_pooled_counts():
    _, users = _users(5)
    counted = planted_oracles.pooled_counts(users)
    for user, candidate in itertools.product(range(5), range(4)):
        same = users.values[user] == users.candidates[user, candidate]
        assert counted[user, candidate] == same.sum()


# Users


@pytest.mark.parametrize(("aspects", "values"), [(1, 16), (2, 16), (8, 16), (4, 8)])
def test_the_true_probabilities_have_the_same_auc_whatever_the_aspects(aspects, values):
    assert planted_users.match_weight(4, 16) == 1.8
    goal = {"aspects": 4, "values": 16}
    aucs = []
    for options in (goal, {"aspects": aspects, "values": values}):
        _, users = _users(15000, items=5000, history_length=1, **options)
        aucs.append(metrics.auc(users.labels.ravel().astype(int), users.probabilities.ravel()))
    assert aucs[0] == pytest.approx(aucs[1], abs=0.007)  # about four standard errors


def test_types_and_strengths_show_in_what_users_do():
    world, users = _users(2000, items=1000)
    own = world.type_values[users.types] == users.preferred
    assert own.mean() == pytest.approx(0.9 + 0.1 / 8, abs=0.01)
    shows = (users.values == users.preferred[:, None]).mean(1)
    for strength in STRENGTHS:
        expected = strength + (1 - strength) / 8
        assert shows[users.strengths == strength].mean() == pytest.approx(expected, abs=0.005)


def test_times_rise_and_sessions_are_apart():
    _, users = _users(50)
    steps = users.ages[:, :-1] - users.ages[:, 1:]
    assert users.ages.min() >= 60 and steps.min() >= 20
    begins = np.arange(1, 60) % 10 == 0
    assert (steps[:, begins] > 30 * 60).all() and (steps[:, ~begins] < 30 * 60).all()


@pytest.mark.parametrize("tier", ["popular", "niche"])
def test_only_the_items_tell_a_spurious_session(tier):
    world, users = _users(3000, sessions=True, spurious_items=tier)
    _, others = _users(3000, spurious_share=0.5, sessions=True, spurious_items=tier)
    for name in ("preferred", "values", "intents", "candidates", "candidate_items", "ages"):
        np.testing.assert_array_equal(getattr(users, name), getattr(others, name))
    assert users.spurious.mean() == pytest.approx(0.2, abs=0.02)
    of_tier = world.catalog.is_popular[users.items[:, -50:]] == (tier == "popular")
    np.testing.assert_array_equal(of_tier.reshape(-1, 5, 10).all(2), users.spurious)
    # An intent is shown by half of the behaviors, and by others that show any value.
    has = users.intents >= 0
    assert has.mean() == pytest.approx(1 / 3, abs=0.02)
    shown = users.values[:, -50:].reshape(-1, 5, 10, 3) == users.intents[:, :, None]
    assert shown.mean(2)[has].mean() == pytest.approx(0.5 + 0.5 / 8, abs=0.02)
    # It raises the clicks where the session is genuine.
    hit = users.candidates[:, :, None] == users.intents[:, None]
    raised = (hit & ~users.spurious[:, None, :, None]).any((2, 3))
    matches = (users.candidates == users.preferred[:, None]).sum(-1)
    expected = world.log_odds(matches, users.candidate_items) + 1.2 * raised
    np.testing.assert_allclose(users.probabilities, 1 / (1 + np.exp(-expected)))


def test_a_hidden_items_aspects_are_what_its_behaviors_show():
    world, users = _users(200, visible=False, items=600)
    combination = np.ravel_multi_index(np.moveaxis(users.values, -1, 0), (8, 8, 8))
    np.testing.assert_array_equal(world.catalog.groups[users.items], combination)
    assert set(np.bincount(world.catalog.groups)) == {1, 2}


def test_a_visible_item_tells_nothing_of_the_aspects():
    world, users = _users(3000)
    popular = world.catalog.is_popular[users.items]
    for value in range(8):
        share = popular[users.values[..., 0] == value].mean()
        assert share == pytest.approx(0.49, abs=0.02)


# Raw files


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return preparation.prepare("planted", data_dir=tmp_path_factory.mktemp("planted"), **_SMALL)


def test_prepare(prepared, read_records):
    report = PreparedDirectory(prepared).report
    assert {name: split["requests"] for name, split in report["splits"].items()} == {
        "train": 60,
        "validation": 20,
        "test": 20,
    }
    assert not any(source["dropped"] for source in report["sources"].values())
    assert report["sources"]["behaviors"]["read"] == 100 * 60
    assert [len(split["days"]) for split in report["splits"].values()] == [7, 1, 1]
    users = []
    for split in report["splits"]:
        requests = read_records(prepared, split)
        users.append({request["group_id"] for request in requests})
        for request in requests:
            lengths = {name: len(v) for name, v in request.items() if name != "group_id"}
            assert lengths == {name: 60 if name.startswith("history") else 4 for name in lengths}
            assert set(request["history_gap"]) == {0, 2, 3}
    # Numbered in the order of the raw files, so that no user is in two splits.
    assert users == [set(range(1, 61)), set(range(61, 81)), set(range(81, 101))]


def test_features_and_tables(prepared):
    schema = schema_lib.Schema.load(prepared)
    aspects = ["aspect_1", "aspect_2", "aspect_3"]
    assert [f.name for f in schema.group("candidate")] == ["item", *aspects]
    assert [f.name for f in schema.group("history")] == [
        f"history_{name}" for name in ("item", *aspects)
    ]
    assert [f.name for f in schema.group("behavior")] == ["history_gap", "history_age"]
    assert [schema.table(name).rows for name in aspects] == [10] * 3
    (tier,) = schema.table("item").tiers
    popular = _raw(prepared.parent / "raw", "items")["is_popular"].sum()
    assert tier - schema_lib.FIRST_INDEX == pytest.approx(popular, rel=0.15)


def test_the_first_tier_has_the_items_of_spurious_sessions(tmp_path):
    options = {**_SMALL, "users": 400, "sessions": True}
    directory = preparation.prepare("planted", data_dir=tmp_path, **options)
    schema = schema_lib.Schema.load(directory)
    lines = pathlib.Path(schema.vocabulary_path(schema.table("item"))).read_text().split()
    items = _raw(tmp_path / "planted" / "raw", "items").set_index("item_id")["is_popular"]
    (tier,) = schema.table("item").tiers
    first = items[np.array(lines[: tier - schema_lib.FIRST_INDEX], int)]
    assert first.sum() >= 0.95 * items.sum()
    report = PreparedDirectory(directory).report
    spurious = [f"test_spurious_{percent}" for percent in range(0, 60, 10)]
    assert list(report["splits"]) == ["train", "validation", "test", *spurious]
    assert {split["requests"] for split in report["splits"].values()} == {400, 20}
    assert report["oracles"].keys() == {"validation", "test", *spurious}


def test_the_data_set_logs_makes_the_same_of_the_files(prepared, read_records, tmp_path):
    raw_dir = prepared.parent / "raw"
    spec = raw_dir / "planted.json"
    assert Spec.load(spec) == planted_files.spec(3, visible=True)
    directory = preparation.prepare(
        "logs",
        raw_dir=raw_dir,
        data_dir=tmp_path,
        spec=spec,
        history_length=60,
        preparation=preparation.Preparation(group_by="request"),
    )
    for split in ("train", "validation", "test"):
        ours, theirs = read_records(prepared, split), read_records(directory, split)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_equal(one, other)


def test_hidden_aspects_are_no_features(tmp_path):
    options = {**_SMALL, "visible": False, "items": 512}
    directory = preparation.prepare("planted", data_dir=tmp_path, **options)
    names = [feature.name for feature in schema_lib.Schema.load(directory).features]
    assert names == ["item", "history_item", "history_gap", "history_age"]
    raw = tmp_path / "planted" / "raw"
    items = _raw(raw, "items").set_index("item_id")
    behaviors = _raw(raw, "behaviors")
    for aspect in ("aspect_1", "aspect_2", "aspect_3"):
        of_item = items.loc[behaviors["item_id"], aspect].to_numpy()
        np.testing.assert_array_equal(of_item, behaviors[aspect])


def test_truth_and_oracles_lie_beside_the_logs(prepared):
    raw_dir = prepared.parent / "raw"
    users = _raw(raw_dir, "users")
    assert users["user_id"].is_unique and len(users) == 100
    report = PreparedDirectory(prepared).report
    for split in ("validation", "test"):
        rows = planted_files.read_oracles(raw_dir, split)
        impressions = _raw(raw_dir, f"impressions_{split}")
        for name in ("user_id", "label"):
            np.testing.assert_array_equal(rows[name], impressions[name])
        expected = metrics.gauc(rows["label"], rows["true"], rows["user_id"])
        assert report["best_reachable"][split]["gauc"] == expected
        for name in ("population", "own", "newest_20_population", "newest_20", "category"):
            assert report["oracles"][split][name] == {
                "auc": metrics.auc(rows["label"], rows[name]),
                "gauc": metrics.gauc(rows["label"], rows[name], rows["user_id"]),
                "log_loss": metrics.log_loss(rows["label"], rows[name]),
            }
        counts = report["oracles"][split]["counts"]
        assert counts["auc"] == pytest.approx(metrics.auc(rows["label"], rows["counts"]))
    assert report["best_reachable"].keys() == {"train", "validation", "test"}


def test_counts_become_probabilities_in_the_training_split(tmp_path):
    planted_files.write(tmp_path / "raw", **{**_SMALL, "users": 2000, "held_out_users": 500})
    _, oracles = planted.oracle_metrics(tmp_path / "raw", ["train", "test"])
    rows = planted_files.read_oracles(tmp_path / "raw", "test")
    constant = metrics.log_loss(rows["label"], np.full(len(rows["label"]), rows["label"].mean()))
    assert oracles["test"]["own"]["log_loss"] < oracles["test"]["counts"]["log_loss"] < constant


def test_oracles_stand_beside_a_result(prepared):
    data = RequestData(prepared)
    result = {"auc": 0.6, "gauc": 0.5, "log_loss": 0.4, "impressions": 80}
    text = describe("test", result, data.best_reachable("test"), data.oracles("test"))
    own = data.oracles("test")["own"]["auc"]
    assert text.count("\n") == 1 and f"own {own:.4f}" in text
    assert data.oracles("train") is None


def test_same_options_same_bytes(prepared, tmp_path, digests):
    directory = preparation.prepare("planted", data_dir=tmp_path, **_SMALL)
    assert digests(directory) == digests(prepared)
    raw = digests(prepared.parent / "raw")
    assert digests(directory.parent / "raw") == raw
    planted_files.write(tmp_path / "other", **{**_SMALL, "seed": 4})
    other = digests(tmp_path / "other")
    assert other["behaviors_test_0000.parquet"] != raw["behaviors_test_0000.parquet"]


def test_more_users_only_add_files(tmp_path, monkeypatch, digests):
    monkeypatch.setattr(planted_files, "_USERS_PER_PART", 20)
    planted_files.write(tmp_path / "few", **{**_SMALL, "users": 40})
    planted_files.write(tmp_path / "many", **{**_SMALL, "users": 60})
    few, many = digests(tmp_path / "few"), digests(tmp_path / "many")
    assert "behaviors_train_0002.parquet" in many.keys() - few.keys()
    for name in few.keys() - {"options.json"}:
        if "train" in name or name == "items.parquet":
            assert few[name] == many[name]


def test_whole_raw_files_are_used_again_and_others_replaced(tmp_path):
    path = tmp_path / "raw"
    planted_files.write(path, **_SMALL)
    marked = path / "items.parquet"
    marked.write_text("kept")
    planted_files.write(path, **_SMALL)
    assert marked.read_text() == "kept"
    planted_files.write(path, **{**_SMALL, "seed": 4})
    assert marked.read_bytes() != b"kept"


def test_what_a_killed_run_left_is_not_taken_for_whole(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(planted_oracles, "pooled_counts", die)
        planted_files.write(tmp_path / "raw", **_SMALL)
    assert not (tmp_path / "raw").exists()
    planted_files.write(tmp_path / "raw", **_SMALL)
    assert list(tmp_path.iterdir()) == [tmp_path / "raw"]
    assert json.loads((tmp_path / "raw" / "options.json").read_text())["users"] == 60


def test_files_of_another_origin_are_not_touched(tmp_path):
    (tmp_path / "items.parquet").write_text("precious")
    with pytest.raises(ValueError, match=r"`raw_dir` must be empty, absent or written by"):
        planted_files.write(tmp_path, **_SMALL)
    assert (tmp_path / "items.parquet").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": 0}, r"`users` must be an integer of at least 1. Received: users=0"),
        ({"types": -1}, r"`types` must be an integer of at least 0. Received: types=-1"),
        ({"values": 1}, r"`values` must be an integer of at least 2. Received: values=1"),
        ({"values": 101}, r"`values` must be at most 100. Received: values=101"),
        ({"aspects": 17}, r"`aspects` must be at most 16. Received: aspects=17"),
        ({"visible": 1}, r"`visible` must be True or False. Received: visible=1"),
        ({"visible": False}, r"`items` must be at least values \*\* aspects = 512 .* items=300"),
        (
            {"visible": False, "sessions": True},
            r"`visible` must be True where `sessions` is. Received: visible=False",
        ),
        (
            {"sessions": True, "history_length": 49},
            r"`history_length` must be an integer of at least 50. Received: history_length=49",
        ),
        (
            {"spurious_items": "rare"},
            r"`spurious_items` must be 'popular' or 'niche'. Received: spurious_items='rare'",
        ),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        planted_files.write(tmp_path / "raw", **{**_SMALL, **options})
    with pytest.raises(ValueError, match=message):
        planted.Planted(data_dir=tmp_path, **{**_SMALL, **options})
    assert not list(tmp_path.iterdir())


def test_a_data_set_that_makes_its_own_files_is_made_when_it_is_missing(tmp_path, monkeypatch):
    made = []

    def prepare(dataset, data_dir):
        made.append(dataset)
        return data_dir / dataset

    monkeypatch.setattr(preparation, "prepare", prepare)
    for dataset in ("planted", "synthetic"):
        assert preparation.find_or_make(dataset, tmp_path) == tmp_path / dataset
    for dataset in ("taobao", "logs", "logs/mine", "unknown"):
        with pytest.raises(FileNotFoundError, match="no prepared data set"):
            preparation.find_or_make(dataset, tmp_path)
    assert made == ["planted", "synthetic"]
