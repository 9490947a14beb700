import pickle

import numpy as np
import pandas as pd
import pytest

from tfrec_diffusion.datasets import vocabularies
from tfrec_diffusion.datasets.impressions import Encoder
from tfrec_diffusion.datasets.records import DAY
from tfrec_diffusion.schema import Feature

FEATURES = (
    Feature("user", "user", "user"),
    Feature("item", "candidate", "item"),
    Feature("history_item", "history", "item"),
    Feature("gap", "behavior", "gap"),
    Feature("age", "behavior", "age"),
)
# Rows of minutes: 2 and 1 more for each whole one.
MINUTES = range(1, 100)


@pytest.fixture
def encoder():
    """`encoder(span, history_length)`: of times in seconds, by clocks of China."""

    def make(span, history_length=9):
        tables = {
            "user": vocabularies.Vocabulary("user", "string", ["ann", "bob"]),
            "item": vocabularies.Vocabulary("item", "int64", range(100)),
            "gap": vocabularies.Boundaries("gap", MINUTES),
            "age": vocabularies.Boundaries("age", MINUTES),
        }
        return Encoder(
            features=FEATURES,
            vocabularies=tables,
            gaps=["gap"],
            ages=["age"],
            history_length=history_length,
            span=span,
            ticks=1,
            time_zone_hours=8,
        )

    return make


@pytest.fixture
def part(tmp_path):
    """`part(impressions, behaviors)`: from (user, minute, item)s; rows of impressions count."""

    def make(impressions, behaviors):
        names = ["user", "time", "f_item"]
        shown = pd.DataFrame(impressions, columns=names)
        done = pd.DataFrame(behaviors, columns=names).rename(columns={"f_item": "f_history_item"})
        shown["f_user"] = shown["user"].map({1: "ann", 2: "bob", 3: "cat"})
        shown["row"] = np.arange(len(shown))
        shown["label"] = (shown["f_item"] % 2).astype(np.float32)
        paths = {}
        for name, frame in (("impressions", shown), ("behaviors", done)):
            frame["time"] *= 60
            paths[name] = tmp_path / f"{name}.parquet"
            frame.to_parquet(paths[name])
        return paths

    return make


def test_worked_out_by_hand(encoder, part):
    impressions = [(1, 10, 70), (1, 20, 71), (1, 25, 72), (1, 30, 73), (3, 20, 74)]
    behaviors = [(1, 9, 10), (1, 12, 11), (1, 19, 12), (1, 20, 13), (2, 19, 14), (3, 20, 15)]
    # From 15 to 30 minutes. Unpickled, as by a worker of Beam.
    encode = pickle.loads(pickle.dumps(encoder((900, 1800))))
    (first, one), (second, other), (third, alone) = encode(part(impressions, behaviors))
    assert (first, second, third) == (1, 2, 4)
    assert (one["group_id"], one["user"], one["item"].tolist()) == (1, 2, [73])
    assert (one["label"].tolist(), one["label"].dtype) == ([1.0], np.float32)
    # What is done in the minute of the impression is not before it, but before the next.
    assert one["history_item"].tolist() == [12, 13, 14]
    assert one["gap"].tolist() == [0, 2 + 3, 2 + 7]
    assert one["age"].tolist() == [2 + 11, 2 + 8, 2 + 1]
    assert (other["item"].tolist(), other["label"].tolist()) == ([74], [0.0])
    assert other["history_item"].tolist() == [12, 13, 14, 15]
    assert other["gap"].tolist() == [0, 2 + 3, 2 + 7, 2 + 1]
    assert other["age"].tolist() == [2 + 16, 2 + 13, 2 + 6, 2 + 5]
    # Of a user who is unknown, at the time of the only behavior.
    assert (alone["group_id"], alone["user"], alone["history_item"].tolist()) == (3, 1, [])


def test_history_keeps_the_newest(encoder, part):
    behaviors = [(1, 9, 10), (1, 12, 11), (1, 19, 12)]
    ((_, request),) = encoder((0, 9999), history_length=2)(part([(1, 20, 70)], behaviors))
    assert request["history_item"].tolist() == [13, 14]
    assert request["gap"].tolist() == [2 + 3, 2 + 7]
    assert request["age"].tolist() == [2 + 8, 2 + 1]


def test_days_begin_at_midnight_in_china(encoder, part):
    # 16:00 in Greenwich.
    impressions = [(1, 16 * 60 - 1, 70), (1, 16 * 60, 70)]
    found = [request for _, request in encoder((0, 10**6))(part(impressions, [(1, 0, 9)]))]
    assert [request[DAY] for request in found] == [0, 1]


def test_no_behaviors_and_no_impressions(encoder, part):
    ((_, request),) = encoder((0, 9999))(part([(1, 20, 70)], [(2, 1, 10)]))
    assert [len(request[name]) for name in ("history_item", "gap", "age")] == [0, 0, 0]
    assert not list(encoder((0, 1200))(part([(1, 20, 70)], [(1, 1, 10)])))
    assert not list(encoder((0, 9999))(part([], [(1, 1, 10)])))
