"""Logs whose labels depend on a second tag, a number or a vector, and are right if they weigh 1."""

import json

import numpy as np
import pandas as pd
import pytest
from commands import run

from tfrec_diffusion.datasets.preparation import prepare
from tfrec_diffusion.metrics import auc
from tfrec_diffusion.training.run_directory import RunDirectory

IMPRESSIONS = 6000
SPEC = {
    "splits": {"train_until": "2024-05-05", "validation_until": "2024-05-06"},
    "impressions": {
        "files": "impressions.csv",
        "user": "user",
        "time": "time",
        "time_unit": "s",
        "label": "click",
        "labels": {"bought": {"column": "bought"}, "liked": {"column": "liked"}},
        "join": [{"files": "items.csv", "on": "item"}],
    },
    "behaviors": {"files": "behaviors.csv", "user": "user", "time": "time", "time_unit": "s"},
    "tables": {
        "user": {"kind": "hash", "dtype": "int64", "buckets": 3},
        # Items share rows, so that what is known of one is in its own columns.
        "item": {"kind": "hash", "dtype": "int64", "buckets": 3},
        "tag": {"kind": "vocabulary", "dtype": "string"},
        "price": {"kind": "number"},
        "image": {"kind": "vector", "width": 4},
    },
    "features": {
        "user": {"group": "user", "column": "user", "table": "user"},
        "item": {"group": "candidate", "column": "item", "table": "item"},
        "tags": {"group": "candidate", "column": "tags", "table": "tag", "values": 3},
        "price": {"group": "candidate", "column": "price", "table": "price"},
        "image": {"group": "candidate", "column": "image", "table": "image"},
        "history_item": {"group": "history", "column": "item", "table": "item"},
    },
}


def write_tables(directory):
    """The item's second tag makes clicks, its price purchases, and its vector likes.

    Two of three clicks are noted the wrong way round, with a weight of a hundredth.
    """
    rng = np.random.default_rng(0)
    items = pd.DataFrame({"item": np.arange(2000)})
    first, hot = rng.integers(6, size=2000), rng.integers(2, size=2000)
    items["tags"] = [f"first{a}|{('cold', 'hot')[b]}" for a, b in zip(first, hot, strict=True)]
    items["price"] = rng.lognormal(3, 0.5, 2000)
    images = rng.normal(size=(2000, 4))
    items["image"] = ["|".join(map(str, image)) for image in images.round(3)]
    shown = rng.integers(2000, size=IMPRESSIONS)
    rows = pd.DataFrame({"user": rng.integers(100, size=IMPRESSIONS), "item": shown})
    rows["time"] = 1714521600 + np.arange(IMPRESSIONS) * 6 * 86400 // IMPRESSIONS
    click = hot[shown] == 1
    wrong = rng.random(IMPRESSIONS) < 2 / 3
    rows["click"] = (click ^ wrong).astype(int)
    rows["certainty"] = np.where(wrong, 0.01, 1)
    rows["bought"] = (items["price"].to_numpy()[shown] > np.exp(3)).astype(int)
    rows["liked"] = (images[shown] @ [1, -1, 1, -1] > 0).astype(int)
    rows.to_csv(directory / "impressions.csv", index=False)
    items.to_csv(directory / "items.csv", index=False)
    rows[["user", "item"]].assign(time=1714435200).to_csv(directory / "behaviors.csv", index=False)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """`train(label, without, weight)`: directory of a run on the tables above."""
    raw_dir = tmp_path_factory.mktemp("raw")
    write_tables(raw_dir)

    def trained(label="", without=(), weight=""):
        directory = tmp_path_factory.mktemp("run")
        features = {name: f for name, f in SPEC["features"].items() if name not in without}
        used = {feature["table"] for feature in features.values()}
        spec = SPEC | {
            "features": features,
            "tables": {name: table for name, table in SPEC["tables"].items() if name in used},
            "impressions": SPEC["impressions"] | {"weight": weight},
        }
        (directory / "planted.json").write_text(json.dumps(spec))
        prepare("logs", raw_dir=raw_dir, data_dir=directory, spec=directory / "planted.json")
        code, _, stderr = run(
            "train", "--dataset=logs/planted", f"--data_dir={directory}", "--model=avg_pooling",
            f"--model_dir={directory / 'run'}", f"--label={label}", "--learning_rate=0.02",
            "--batch_size=128", "--epochs=3", "--nojit_compile", "--set=tower_units=16",
            "--set=embedding_stddev=0.1",
        )  # fmt: skip
        assert code == 0, stderr
        return RunDirectory(directory / "run")

    return trained


def auc_of(run):
    return run.metrics["splits"]["test"]["auc"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "feature"), [("bought", "price"), ("liked", "image")], ids=["number", "vector"]
)
def test_a_number_and_a_vector_are_found(train, label, feature):
    assert auc_of(train(label)) > 0.95
    assert auc_of(train(label, without=[feature])) < 0.7


@pytest.mark.slow
def test_a_second_tag_is_found(train):
    assert auc_of(train(weight="certainty")) > 0.95
    assert auc_of(train(weight="certainty", without=["tags"])) < 0.7


def test_weights_decide_what_is_learned_and_measured(train):
    weighted, plain = train(weight="certainty"), train()
    probabilities, labels, _, weights = weighted.predictions("test")
    assert set(weights) == {np.float32(0.01), np.float32(1)}
    assert auc_of(weighted) == pytest.approx(auc(labels, probabilities, weights))
    assert auc_of(weighted) > 0.95 > 0.5 > auc(labels, probabilities)
    # Without weights, the labels that are wrong are learned. The requests come in the same order.
    unweighted = plain.predictions("test")
    assert unweighted.weights is None
    assert auc(labels, unweighted.probabilities, weights) < 0.05


def test_evaluate_takes_the_label_of_the_training(train):
    run_directory = train("bought")
    assert run_directory.flags["label"] == "bought"
    code, stdout, stderr = run("evaluate", f"--model_dir={run_directory.path}")
    assert code == 0, stderr
    assert f"test: auc {auc_of(run_directory):.4f}" in stdout
