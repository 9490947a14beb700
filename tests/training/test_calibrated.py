"""`python -m tfrec_diffusion.export --calibrate`, of predictions that lie in a run's directory."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from commands import run
from small_models import write_vocabularies

from tfrec_diffusion import metrics, models
from tfrec_diffusion.calibration import Calibration, fit
from tfrec_diffusion.files import write_json
from tfrec_diffusion.serving.example_requests import example_requests
from tfrec_diffusion.serving.served_model import ServedModel
from tfrec_diffusion.training.calibrated import calibrate
from tfrec_diffusion.training.run_directory import RunDirectory


def predictions(rows, seed, weighted=False):
    """Columns of predictions that are too high, and too sure."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(0, 2, rows)
    labels = rng.random(rows) < 1 / (1 + np.exp(1 - 0.5 * log_odds))
    weights = rng.integers(0, 3, rows) if weighted else None
    return 1 / (1 + np.exp(-log_odds)), labels, np.arange(rows) % 50, weights


@pytest.fixture(scope="module")
def ended(schema, tmp_path_factory):
    """The directory of a run, whose model has predicted validation and test."""
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    write_vocabularies(directory.path)
    schema.save(directory.path)
    write_json(directory.path / "flags.json", {"dataset": "small"})
    directory.save_model(models.create("avg_pooling", schema=schema, embedding_stddev=0.5))
    directory.write_predictions("validation", *predictions(4000, seed=0))
    directory.write_predictions("test", *predictions(3000, seed=1))
    return directory


@pytest.fixture
def copy(ended, tmp_path):
    shutil.copytree(ended.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def test_it_is_fitted_on_validation_and_measured_on_all_that_is_predicted(copy):
    copy.write_predictions("test_99", *predictions(2000, seed=2))
    copy.write_metrics({"splits": {"validation": {}, "test": {}, "test_99": {}, "test_1": {}}})
    calibration, measured = calibrate(copy, "platt")
    probabilities, labels, *_ = copy.predictions("validation")
    assert calibration == fit("platt", labels, probabilities)
    assert list(measured) == ["validation", "test", "test_99"]
    for split, found in measured.items():
        probabilities, labels, *_ = copy.predictions(split)
        for when, p in (("before", probabilities), ("after", calibration(probabilities))):
            assert found[when]["log_loss"] == metrics.log_loss(labels, p)
            assert found[when].items() >= metrics.calibration(labels, p).items()
        assert found["after"]["log_loss"] < found["before"]["log_loss"] - 0.1
        assert found["after"]["calibration_error"] < found["before"]["calibration_error"] / 4
    assert measured["validation"]["after"]["predicted_over_observed"] == pytest.approx(1)


def test_the_weights_of_impressions_count(copy):
    columns = predictions(4000, seed=0, weighted=True)
    copy.write_predictions("validation", *columns)
    calibration, measured = calibrate(copy, "platt")
    kept = copy.predictions("validation")
    assert calibration == fit("platt", kept.labels, kept.probabilities, kept.weights)
    assert calibration != fit("platt", kept.labels, kept.probabilities)
    before = metrics.log_loss(kept.labels, kept.probabilities, kept.weights)
    assert measured["validation"]["before"]["log_loss"] == before
    assert measured["validation"]["after"]["predicted_over_observed"] == pytest.approx(1)


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_an_export_serves_what_was_fitted(ended, tmp_path, method):
    status, out, err = run(
        "export", f"--model_dir={ended.path}", f"--export_dir={tmp_path}", f"--calibrate={method}"
    )
    assert status == 0, err
    fitted, of_validation, of_test, path = out.splitlines()
    described = json.loads((tmp_path / "1" / "describe.json").read_text())["calibration"]
    measured = described.pop("splits")
    calibration = Calibration(**described)
    assert fitted == str(calibration) and path == str(tmp_path / "1")
    for line, split in ((of_validation, "validation"), (of_test, "test")):
        numbers = [float(number) for number in re.findall(r"\d\.\d+", line)]
        before, after = (list(measured[split][when].values()) for when in ("before", "after"))
        assert line.startswith(f"{split}: log_loss ") and " predicted/observed " in line
        np.testing.assert_allclose(numbers[0::2], before, atol=6e-5)
        np.testing.assert_allclose(numbers[1::2], after, atol=6e-5)

    served = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    raw = example_requests(ended.schema, batch=2, candidates=4)
    inputs = {name: tf.constant(raw[name]) for name in served.structured_input_signature[1]}
    plain = ServedModel(ended.load_model(), ended.path).score(inputs)["click_probability"]
    found = served(**inputs)["click_probability"]
    np.testing.assert_allclose(found, calibration(plain), rtol=1e-6)
    assert np.abs(found - plain).min() > 1e-4


def test_without_predictions_of_validation_it_says_what_writes_them(copy, tmp_path):
    copy.predictions_file("validation").unlink()
    arguments = (f"--model_dir={copy.path}", f"--export_dir={tmp_path / 'export'}")
    status, out, err = run("export", *arguments, "--calibrate=platt")
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert f"{copy.path}/predictions.validation.npz is missing, or older than the model" in err
    assert f"evaluate --model_dir={copy.path} --split=validation --write_predictions`" in err
    assert not (tmp_path / "export").exists()


def test_predictions_of_an_earlier_model_are_not_taken_for_its_own(copy):
    time = copy.model_file.stat().st_mtime
    for split in ("validation", "test"):
        os.utime(copy.predictions_file(split), (time + 1, time + 1))
    os.utime(copy.predictions_file("test"), (time - 1, time - 1))
    assert list(calibrate(copy, "platt")[1]) == ["validation"]
    os.utime(copy.predictions_file("validation"), (time - 1, time - 1))
    with pytest.raises(FileNotFoundError, match="older than the model"):
        calibrate(copy, "platt")


def test_wrong_usage_ends_in_one_line(copy, tmp_path):
    probabilities, labels, groups, _ = predictions(100, seed=0)
    copy.write_predictions("validation", probabilities, np.zeros_like(labels), groups)
    arguments = (f"--model_dir={copy.path}", f"--export_dir={tmp_path / 'export'}")
    for calibrate_flag, message in (
        ("--calibrate=platt", "error: platt scaling needs labels of both classes. Received: 0 cl"),
        ("--calibrate=isotonic", "should be one of <temperature|platt>"),
    ):
        status, _, err = run("export", *arguments, calibrate_flag)
        assert status == 2 and message in err and err.count("\n") == 1
    missing = (f"--model_dir={tmp_path / 'none'}", f"--export_dir={tmp_path / 'export'}")
    status, _, err = run("export", *missing, "--calibrate=platt")
    assert status == 2 and "model.keras is missing" in err
    assert not (tmp_path / "export").exists()
