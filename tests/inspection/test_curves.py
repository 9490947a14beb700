import collections
import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest

from tfrec_diffusion.inspection.counts import Counts
from tfrec_diffusion.inspection.curves import curves
from tfrec_diffusion.inspection.picture import draw, interval


class TestCurves:
    def test_what_is_drawn(self, data, report, records):
        drawn = report[1]
        assert set(drawn["split"]) == set(records) and drawn["panel"].nunique() == 5
        train = drawn[drawn["split"] == "train"].groupby("panel")
        requests, longest = records["train"], data.schema.history_length

        lengths = collections.Counter(len(record["item_id_list"]) for record in requests)
        panel = train.get_group("history lengths")  # of 12, each length has a bin of its own
        assert list(panel["x"]) == list(range(longest + 1))
        expected = [lengths[x] / len(requests) for x in panel["x"]]
        np.testing.assert_allclose(panel["y"], expected)

        panel = train.get_group("label rate by history length")
        assert panel["n"].sum() == sum(len(record["label"]) for record in requests)
        (full,) = panel.loc[panel["x"] == longest, "y"]
        labels = [r["label"] for r in requests if len(r["item_id_list"]) == longest]
        np.testing.assert_allclose(full, np.concatenate(labels).mean())

        panel = train.get_group("popularity")
        for name in ("item_id", "item_id_list"):
            rows = np.concatenate([record[name] for record in requests])
            ranked = sorted(np.bincount(rows)[2:], reverse=True)
            curve = panel[panel["feature"] == name]
            expected = [ranked[x - 1] / len(rows) for x in curve["x"].astype(int)]
            np.testing.assert_allclose(curve["y"], expected)

        panel = train.get_group("label rate by popularity")
        items = np.concatenate([record["item_id"] for record in requests])
        shown = sorted(np.bincount(items)[2:], reverse=True)  # rank 1, 2 to 3, 4 to 7, ..
        expected = [sum(shown[2**i - 1 : 2 ** (i + 1) - 1]) for i in range(len(panel))]
        assert list(panel["n"]) == expected and sum(expected) == sum(shown)
        clicked = np.concatenate([record["label"] for record in requests])[items >= 2]
        np.testing.assert_allclose((panel["y"] * panel["n"]).sum(), clicked.sum())

    def test_days_are_drawn_on_one_axis(self, report):
        panel = report[1][report[1]["panel"] == "label rate by day"]
        since = pd.to_timedelta(panel["x"], unit="D")
        assert [str(day.date()) for day in pd.Timestamp(0) + since] == [
            *("2022-04-30", "2022-05-01", "2022-05-02")
        ]
        assert list(panel["split"]) == ["train", "train", "validation"]
        assert list(panel["y"]) == [0.25, 0.175, 0.1] and list(panel["n"]) == [1200, 40, 60]

    def test_long_histories_share_bins(self, schema):
        schema = dataclasses.replace(schema, history_length=60)  # 1 to 2, 3 to 5, 6 to 8, ..
        counts = Counts(schema, size=0)
        for length, requests in ((0, 3), (3, 4), (5, 1), (60, 2)):
            counts.requests[length] = requests
        drawn = curves(schema, {"train": counts}, {}).set_index("x")["y"]
        assert list(drawn.index[:4]) == [0, 1, 3, 6] and drawn.index[-1] == 60
        np.testing.assert_allclose(drawn[[0, 1, 3, 6, 60]], [0.3, 0, 0.5 / 3, 0, 0.2])

    def test_ranks_are_of_known_items(self, schema, counts):
        panels = curves(schema, {"train": counts}, {}).groupby(["panel", "feature"])

        def points(*panel):
            return panels.get_group(panel)[["x", "y"]].to_numpy()

        expected = [(1, 3 / 8), (2, 2 / 8), (3, 1 / 8)]
        np.testing.assert_allclose(points("popularity", "item"), expected)
        expected = [(1, 6 / 14), (2, 5 / 14)]
        np.testing.assert_allclose(points("popularity", "history_item"), expected)
        # Item 5 alone, clicked 2 times of 3; 6 and 7 together, 1 of 3.
        expected = [(1, 2 / 3), (6**0.5, 1 / 3)]
        np.testing.assert_allclose(points("label rate by popularity", "item"), expected)


def test_wilsons_interval():
    # Half of 4: (1 / (1 + 1.96² / 4)) (1/2 + 1.96²/8 ± 1.96 √(1/16 + 1.96²/64)).
    np.testing.assert_allclose(interval(0.5, 4), (0.15, 0.85), atol=5e-4)
    low, high = interval(np.array([0.0, 1.0]), np.array([50, 50]))
    np.testing.assert_allclose(low, [0, 0.9287], atol=1e-4)
    np.testing.assert_allclose(high, [0.0713, 1], atol=1e-4)


class TestPicture:
    def test_rates_of_few_candidates_are_not_drawn(self, schema, counts):
        pytest.importorskip("matplotlib")
        many = copy.deepcopy(counts)
        for name in ("requests", "candidates", "clicks"):
            getattr(many, name)[:] *= 20
        drawn = curves(schema, {"few": counts, "many": many}, {})
        axes = {axes.get_title(): axes for axes in draw(drawn, schema).axes}
        lines = axes["Label rate by history length"].lines
        assert [len(line.get_xdata()) for line in lines] == [0, 2]  # 2, 3 and 3 candidates

    def test_a_panel_of_days_only_where_they_are_known(self, schema, counts):
        pytest.importorskip("matplotlib")
        days = {"train": {"2022-05-02": {"candidates": 60, "clicks": 6}}}
        for known, panels in (({}, 4), (days, 5)):
            assert len(draw(curves(schema, {"train": counts}, known), schema).axes) == panels
