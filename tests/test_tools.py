"""The tools in tools/ that draw pictures, as a user runs them."""

import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tfrec_diffusion.evaluate import load_model
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.prepare import prepare

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
            embedded = load_model(model_dir).embedding(features)
            scores = embedded["history"][0].numpy() @ embedded["target"][0, 0].numpy()
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
