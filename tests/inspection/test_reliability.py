"""The reliability diagram: its points, and `python -m tfrec_diffusion.evaluate --picture`."""

import re
import sys

import numpy as np
import pandas as pd
import pytest
from commands import run

from tfrec_diffusion import metrics, models
from tfrec_diffusion.inspection.picture import interval
from tfrec_diffusion.inspection.reliability import draw, points
from tfrec_diffusion.training.run_directory import RunDirectory


def test_points_have_the_interval_of_what_was_observed():
    labels, probabilities = [0, 0, 1, 0, 1, 1, 0, 1], np.arange(8) / 8
    drawn = points(labels, probabilities)
    bins = metrics.reliability(labels, probabilities)
    assert list(drawn) == ["predicted", "observed", "low", "high", "share", "impressions"]
    np.testing.assert_array_equal(drawn["predicted"], bins.predicted)
    np.testing.assert_array_equal(drawn["observed"], bins.observed)
    assert drawn["impressions"].sum() == 8
    assert ((drawn["low"] >= -1e-12) & (drawn["high"] <= 1 + 1e-12)).all()
    assert ((drawn["low"] <= drawn["observed"]) & (drawn["observed"] <= drawn["high"])).all()
    # Rows of other weights say less than as many of the same.
    one = points([0, 0, 1, 1], [0.5] * 4, [1, 1, 1, 1])
    other = points([0, 0, 1, 1], [0.5] * 4, [1, 7, 1, 7])
    assert one["observed"][0] == other["observed"][0] == 0.5
    assert (one["low"][0], one["high"][0]) == pytest.approx(interval(0.5, 4))
    assert (other["low"][0], other["high"][0]) == pytest.approx(interval(0.5, 16**2 / 100))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run's directory, with a model that was not trained."""
    directory = RunDirectory(tmp_path_factory.mktemp("run") / "din")
    directory.path.mkdir()
    flags = {"dataset": "synthetic", "data_dir": str(data.directory.parent.parent)}
    directory.claim(flags, {}, data.schema)
    model = models.create("din", schema=data.schema, embedding_stddev=0.5, tower_units=8)
    directory.save_model(model)
    return directory


class TestPicture:
    @pytest.fixture(autouse=True)
    def _with_matplotlib(self):
        pytest.importorskip("matplotlib")

    @pytest.mark.parametrize(
        ("middle", "rows", "scale"),
        [
            (0, 4000, "linear"),
            (-3, 20_000, "log"),
            (-3, 400, "linear"),  # some bins have no click
        ],
    )
    def test_what_is_drawn(self, middle, rows, scale):
        rng = np.random.default_rng(0)
        probabilities = 1 / (1 + np.exp(-rng.normal(middle, 1.5, rows)))
        drawn = points(rng.random(rows) < probabilities**0.8, probabilities)
        assert (drawn["observed"].min() == 0) == (rows == 400)
        rates, differences = draw(drawn, "DIN, small, test").axes
        (line, calibrated), (difference, zero) = rates.get_lines(), differences.get_lines()
        np.testing.assert_array_equal(line.get_xydata(), drawn[["predicted", "observed"]])
        np.testing.assert_array_equal(*calibrated.get_xydata().T)
        np.testing.assert_allclose(difference.get_ydata(), drawn["observed"] - drawn["predicted"])
        assert list(zero.get_ydata()) == [0, 0]
        (bars,) = rates.collections
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_array_equal(ends, drawn[["low", "high"]])
        scales = {rates.get_xscale(), rates.get_yscale(), differences.get_xscale()}
        assert scales == {scale}
        assert differences.get_yscale() == "linear"

    def test_of_a_split(self, trained, tmp_path):
        picture = tmp_path / "reliability.png"
        status, out, err = run(
            "evaluate", f"--model_dir={trained.path}", "--split=validation", "--write_predictions",
            f"--picture={picture}",
        )  # fmt: skip
        assert status == 0, err
        assert out.splitlines()[-1] == str(picture)
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
        found = trained.predictions("validation")
        drawn = pd.read_csv(picture.with_suffix(".csv"))
        pd.testing.assert_frame_equal(drawn, points(found.labels, found.probabilities))
        (said,) = re.findall(r"predicted/observed (\S+)  calibration_error (\S+)  \(\d+ imp", out)
        expected = metrics.calibration(found.labels, found.probabilities)
        np.testing.assert_allclose(np.array(said, float), list(expected.values()), atol=6e-5)

    def test_what_is_wrong_is_said_before_the_work(self, tmp_path, monkeypatch):
        missing = f"--model_dir={tmp_path}/missing"
        status, out, err = run("evaluate", missing, "--picture=nowhere/a.png")
        assert (status, out) == (2, "")
        assert err == "error: no directory nowhere for --picture=nowhere/a.png\n"
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        status, _, err = run("evaluate", missing, f"--picture={tmp_path}/a.png")
        assert status == 2 and "pip install 'tfrec_diffusion[tools]'" in err
