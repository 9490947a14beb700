"""The tools in tools/ that draw pictures, as a user runs them."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest

from tfrec_diffusion.evaluate import evaluate
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.prepare import prepare
from tfrec_diffusion.runs import load_model

REPOSITORY = pathlib.Path(__file__).parent.parent
CHANNELS, TOP_P = 6, 0.1  # some channels are empty


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    return RequestData(
        prepare(
            "synthetic", data_dir=directory, users=40, items=60, categories=6, history_length=20
        )
    )


@pytest.fixture(scope="module")
def model_dir(data, tmp_path_factory):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    directory = tmp_path_factory.mktemp("diffumin")
    settings = {"channels": CHANNELS, "top_p": TOP_P, "sampling_steps": 2, "tower_units": "16,8"}
    done = run(
        *("-m", "tfrec_diffusion.train", "--dataset=synthetic", "--model=diffumin"),
        "--nojit_compile",
        *(f"--data_dir={data.directory.parent.parent}", f"--model_dir={directory}"),
        *(f"--set={name}={value}" for name, value in settings.items()),
    )
    assert done.returncode == 0, done.stderr
    return directory


@pytest.mark.slow
class TestPlotInterests:
    def test_draws_a_panel_for_each_user(self, data, model_dir, tmp_path):
        picture = tmp_path / "picture.png"
        done = run("tools/plot_interests.py", f"--model_dir={model_dir}", f"--picture={picture}")
        assert done.returncode == 0, done.stderr
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000

        points = pd.read_csv(tmp_path / "picture.csv", dtype={"channels": str}).fillna("")
        assert np.isfinite(points[["x", "y"]]).all(axis=None)
        users = points.groupby("request")
        assert len(users) == 2
        for number, user in users:
            features, label, _ = next(iter(data.batches("test", 1, first_batch=number)))
            length = np.count_nonzero(features[data.schema.history_key])
            assert label.numpy().any() and length == 20

            kinds = user["kind"].value_counts()
            behaviors = user[user["kind"] == "behavior"]
            kept = behaviors["channels"].value_counts().drop("", errors="ignore")
            assert kinds["target"] == 1 and kinds["behavior"] == length
            assert set(kept.index) <= set("123456") and kept.max() <= TOP_P * length
            model = load_model(model_dir)
            extractor_input = model.get_layer("diffumin.extractor").input
            history, _, target, _ = keras.Model(model.input, extractor_input)(features)
            scores = history[0].numpy() @ target[0, 0].numpy()
            nearest = set(np.argsort(scores)[-int(TOP_P * length) :])
            assert set(np.flatnonzero(behaviors["searched"])) == nearest
            for kind in ("channel", "aggregated", "augmented"):
                assert set(user.loc[user["kind"] == kind, "channels"]) == set(kept.index)

    def test_draws_who_is_asked_for(self, model_dir, tmp_path):
        arguments = (f"--model_dir={model_dir}", f"--picture={tmp_path / 'picture.png'}")
        done = run("tools/plot_interests.py", *arguments, "--split=train", "--users=5,2,9")
        assert done.returncode == 0, done.stderr
        assert list(pd.read_csv(tmp_path / "picture.csv")["request"].unique()) == [5, 2, 9]
        done = run("tools/plot_interests.py", *arguments, "--users=99999")
        assert "--users must be in [0, " in done.stderr and "Received: 99999" in done.stderr


@pytest.fixture(scope="module")
def hierdiffuse_dir(data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("hierdiffuse")
    settings = {"long_length": 10, "short_length": 8, "num_heads": 1, "tower_units": "16,8"}
    done = run(
        *("-m", "tfrec_diffusion.train", "--dataset=synthetic", "--model=hierdiffuse"),
        "--nojit_compile",
        *(f"--data_dir={data.directory.parent.parent}", f"--model_dir={directory}"),
        *(f"--set={name}={value}" for name, value in settings.items()),
    )
    assert done.returncode == 0, done.stderr
    return directory


def rows(markdown):
    """Cells by the first cell of each row of numbers."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line[:1] == "|"]
    return {name: cells for name, *cells in lines if cells and cells[0][0].isdigit()}


@pytest.mark.slow
class TestMeasureFusion:
    def test_tells_convergence_and_what_guidance_is_worth(self, data, hierdiffuse_dir):
        done = run("tools/measure_fusion.py", f"--model_dir={hierdiffuse_dir}", "--users=20")
        assert done.returncode == 0, done.stderr
        table = {name: float(cells[0]) for name, cells in rows(done.stdout).items()}
        steps = 500  # where the model starts
        nearest = table["two runs of DDPM"]
        assert nearest <= 1 and table["DDPM for two users"] < nearest
        for count in (1, 2, 4):
            assert -1 <= table[f"TCC of {count} and DDPM of {steps} evaluations"] <= 1
        expected = evaluate(load_model(hierdiffuse_dir), data, "test", 256)["auc"]
        np.testing.assert_allclose(table["as it is"], expected, atol=5e-5)
        assert table["none"] != table["as it is"] != table["of another user"]

    def test_another_model_is_refused(self, model_dir):
        done = run("tools/measure_fusion.py", f"--model_dir={model_dir}")
        assert "must hold a HierDiffuse" in done.stderr


@pytest.mark.slow
class TestPlotRobustness:
    def test_replaces_popular_behaviors_alike_for_all(
        self, data, model_dir, hierdiffuse_dir, tmp_path
    ):
        picture = tmp_path / "robustness.png"
        done = run(
            *("tools/plot_robustness.py", f"--run=HierDiffuse={hierdiffuse_dir},{hierdiffuse_dir}"),
            *(f"--run=DiffuMIN={model_dir}", "--shares=0,0.5", f"--picture={picture}"),
        )
        assert done.returncode == 0, done.stderr
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
        points = pd.read_csv(tmp_path / "robustness.csv")
        twice = points[points["run"] == "HierDiffuse"].groupby("share")["auc"]
        assert (twice.nunique() == 1).all() and (twice.size() == 2).all()
        for name, directory in (("HierDiffuse", hierdiffuse_dir), ("DiffuMIN", model_dir)):
            whole, half = points[points["run"] == name].groupby("share")["auc"].first()
            expected = evaluate(load_model(directory), data, "test", 256)["auc"]
            np.testing.assert_allclose(whole, expected)
            assert half != whole
        assert set(rows(done.stdout)) == {"0%", "50%"}

    def test_a_run_without_directories_is_refused(self, tmp_path):
        done = run("tools/plot_robustness.py", "--run=DIN", f"--picture={tmp_path / 'p.png'}")
        assert "`run` must be name=directory,directory. Received: run=DIN" in done.stderr
