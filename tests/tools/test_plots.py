"""The tools that look into trained models, on small ones that were never trained."""

import keras
import measure_fusion
import numpy as np
import pandas as pd
import pytest
import run_tool

from tfrec_diffusion import models
from tfrec_diffusion.datasets.preparation import prepare
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.training.evaluation import evaluate
from tfrec_diffusion.training.run_directory import RunDirectory

plot_interests = pytest.importorskip("plot_interests")  # needs scikit-learn and matplotlib
plot_robustness = pytest.importorskip("plot_robustness")  # needs matplotlib

CHANNELS, TOP_P = 6, 0.1  # some channels are empty


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    return RequestData(
        prepare(
            "synthetic", data_dir=directory, users=40, items=60, categories=6, history_length=20
        )
    )


@pytest.fixture(scope="module")
def diffumin(data):
    return models.create(
        "diffumin",
        schema=data.schema,
        channels=CHANNELS,
        top_p=TOP_P,
        channel_start="target",  # a channel of one feature has equal scores
        tower_units=(16, 8),
        embedding_stddev=0.3,
    )


def save_run(model, data, directory):
    """Makes the directory of a run that has ended an epoch."""
    run = RunDirectory(directory)
    flags = {"data_dir": str(data.directory.parent.parent), "dataset": "synthetic"}
    run.claim(flags, {}, data.schema)
    run.save_model(model)
    return directory


@pytest.fixture(scope="module")
def diffumin_dir(diffumin, data, tmp_path_factory):
    return save_run(diffumin, data, tmp_path_factory.mktemp("diffumin"))


@pytest.fixture(scope="module")
def hierdiffuse_dir(data, tmp_path_factory):
    model = models.create(
        "hierdiffuse",
        schema=data.schema,
        long_length=10,
        short_length=8,
        num_heads=1,
        start_step=50,
        tower_units=(16, 8),
        embedding_stddev=0.3,
    )
    return save_run(model, data, tmp_path_factory.mktemp("hierdiffuse"))


class TestInterests:
    def test_channels_and_the_search_keep_what_they_score_highest(self, data, diffumin):
        (number,) = plot_interests.longest_clicked(data, "test", 1)
        features, label = plot_interests.read(data, "test", number)
        length = np.count_nonzero(features[data.schema.history_key])
        assert label.any() and length == 20
        candidate = int(label.argmax())
        probability, points = plot_interests.interests(diffumin, features, candidate)
        assert probability == pytest.approx(float(diffumin(features)[0, candidate]), abs=1e-6)

        kinds = points["kind"].value_counts()
        behaviors = points[points["kind"] == "behavior"]
        assert kinds["target"] == 1 and kinds["behavior"] == length
        kept = behaviors["channels"].explode().dropna().value_counts()
        assert set(kept.index) <= set(range(1, CHANNELS + 1)) and kept.max() <= TOP_P * length
        extractor_input = diffumin.get_layer("diffumin.extractor").input
        history, _, target, *_ = keras.Model(diffumin.input, extractor_input)(features)
        scores = history[0].numpy() @ target[0, candidate].numpy()
        nearest = set(np.argsort(scores)[-int(TOP_P * length) :])
        assert set(np.flatnonzero(behaviors["searched"])) == nearest
        for kind in ("channel", "aggregated", "augmented"):
            drawn = points.loc[points["kind"] == kind, "channels"]
            assert {channel for (channel,) in drawn} == set(kept.index)
        norms = np.linalg.norm(np.stack(points["vector"]), axis=1)
        np.testing.assert_allclose(norms, 1, rtol=1e-5)

    def test_a_request_that_is_not_there(self, data):
        with pytest.raises(ValueError, match=r"--users must be in \[0, .*Received: 99999"):
            plot_interests.read(data, "test", 99999)


class TestReplace:
    def test_a_share_of_the_newest_behaviors_and_nothing_else(self, data):
        schema = data.schema
        features, *_ = next(iter(data.batches("test", 64)))
        popular = {feature.name: np.array([-7]) for feature in schema.group("history")}
        replaced, again = (
            plot_robustness.replace(features, schema, 0.5, 5, popular, np.random.default_rng(0))
            for _ in range(2)
        )
        before = features[schema.history_key].numpy()
        changed = replaced[schema.history_key] != before
        newest = (before > 0) & (np.arange(20) >= np.count_nonzero(before, axis=1)[:, None] - 5)
        assert not changed[~newest].any()
        assert changed[newest].mean() == pytest.approx(0.5, abs=0.1)
        for name, values in replaced.items():
            np.testing.assert_array_equal(values, again[name])
            expected = np.where(changed, -7, features[name]) if name in popular else features[name]
            np.testing.assert_array_equal(values, expected)

    def test_popular_behaviors_are_those_of_the_first_tier(self, data):
        popular = plot_robustness.popular_behaviors(data, seed=0)
        assert set(popular) == {feature.name for feature in data.schema.group("history")}
        tiers = data.schema.table(data.schema.group("history")[0].table).tiers
        items = popular[data.schema.history_key]
        assert items.min() >= 2 and items.max() < tiers[0]

    def test_a_run_without_directories_is_refused(self, tmp_path):
        status, _, error = run_tool.ended(
            plot_robustness, "--run=DIN", f"--picture={tmp_path / 'p.png'}"
        )
        assert status == 2
        assert "`run` must be name=directory,directory. Received: run=DIN" in error


class TestMeasureFusion:
    def test_another_model_is_refused(self, diffumin):
        with pytest.raises(ValueError, match="must hold a HierDiffuse"):
            measure_fusion.fusion_of(diffumin)


@pytest.mark.slow
class TestAsAUserRunsThem:
    def test_draws_a_panel_for_each_user(self, diffumin_dir, tmp_path):
        picture = tmp_path / "picture.png"
        arguments = (f"--model_dir={diffumin_dir}", f"--picture={picture}")
        run_tool.run_as_user("tools/plot_interests.py", *arguments)
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
        points = pd.read_csv(tmp_path / "picture.csv", dtype={"channels": str}).fillna("")
        assert np.isfinite(points[["x", "y"]]).all(axis=None)
        assert points["request"].nunique() == 2
        run_tool.run(plot_interests, *arguments, "--split=train", "--users=5,2,9")
        assert list(pd.read_csv(tmp_path / "picture.csv")["request"].unique()) == [5, 2, 9]

    def test_tells_convergence_and_what_guidance_is_worth(self, data, hierdiffuse_dir):
        printed = run_tool.run_as_user(
            *("tools/measure_fusion.py", f"--model_dir={hierdiffuse_dir}", "--users=20")
        )
        cosines, aucs = (
            {name: float(cells[0]) for name, cells in table.items()}
            for table in run_tool.tables(printed)
        )
        nearest = cosines["two runs of DDPM"]
        assert nearest <= 1 and cosines["DDPM for two users"] < nearest
        for count in (1, 2, 4):
            assert -1 <= cosines[f"TCC of {count} and DDPM of 50 evaluations"] <= 1
        model = RunDirectory(hierdiffuse_dir).load_model()
        expected = evaluate(model, data, "test", 256)["auc"]
        np.testing.assert_allclose(aucs["as it is"], expected, atol=5e-5)
        assert aucs["none"] != aucs["as it is"] != aucs["of another user"]

    def test_replaces_behaviors_alike_for_all(self, data, diffumin_dir, hierdiffuse_dir, tmp_path):
        picture = tmp_path / "robustness.png"
        printed = run_tool.run_as_user(
            *("tools/plot_robustness.py", f"--run=HierDiffuse={hierdiffuse_dir},{hierdiffuse_dir}"),
            *(f"--run=DiffuMIN={diffumin_dir}", "--shares=0,0.5", f"--picture={picture}"),
        )
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
        points = pd.read_csv(tmp_path / "robustness.csv")
        twice = points[points["run"] == "HierDiffuse"].groupby("share")["auc"]
        assert (twice.nunique() == 1).all() and (twice.size() == 2).all()
        for name, directory in (("HierDiffuse", hierdiffuse_dir), ("DiffuMIN", diffumin_dir)):
            whole, half = points[points["run"] == name].groupby("share")["auc"].first()
            model = RunDirectory(directory).load_model()
            np.testing.assert_allclose(whole, evaluate(model, data, "test", 256)["auc"])
            assert half != whole
        (table,) = run_tool.tables(printed)
        assert set(table) == {"0%", "50%"}
