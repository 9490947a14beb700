"""Versions that serve calibrated probabilities."""

import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_exports import with_vocabularies
from small_models import perturb

from tfrec_diffusion import models
from tfrec_diffusion.calibration import Calibration
from tfrec_diffusion.serving.example_requests import as_examples, example_requests
from tfrec_diffusion.serving.served_model import ServedModel, calibrate, correct
from tfrec_diffusion.serving.version import write_version

PLATT = Calibration("platt", 0.6, -1.5)
METRICS = {"test": {"before": {"log_loss": 0.5}, "after": {"log_loss": float("nan")}}}


@pytest.fixture(scope="module")
def model(schema, tmp_path_factory):
    """An SDIM, which has all signatures, of data with a tenth of the negatives."""
    directory = tmp_path_factory.mktemp("sdim")
    schema = with_vocabularies(dataclasses.replace(schema, negative_rate=0.1), directory)
    keras.utils.set_random_seed(0)
    model = models.create("sdim", schema=schema, embedding_stddev=0.5)
    perturb(model)
    return model


@pytest.fixture(scope="module")
def versions(model):
    """Of the model as it is, and calibrated."""
    directory = pathlib.Path(model.schema.directory)
    return [
        write_version(model, directory, directory / "versions", **more)
        for more in ({}, {"calibration": PLATT, "calibration_metrics": METRICS})
    ]


@pytest.fixture(scope="module")
def raw(model):
    """Three requests, one of them with padding."""
    raw = example_requests(model.schema, batch=3, candidates=5, length=4)
    raw["item"][1, 3:] = -1
    return raw


def scores(version, raw):
    """By each signature that gives some."""
    signatures = tf.saved_model.load(str(version)).signatures

    def call(name, values):
        taken = signatures[name].structured_input_signature[1]
        return signatures[name](**{x: tf.constant(values[x]) for x in taken})

    found = {
        "serving_default": call("serving_default", raw),
        "examples": call("examples", {"examples": as_examples(raw)}),
        "score": call("score", {**raw, **call("user_state", raw)}),
    }
    return {name: outputs["click_probability"].numpy() for name, outputs in found.items()}


def test_every_signature_serves_the_calibrated_probability(versions, raw):
    plain, calibrated = (scores(version, raw) for version in versions)
    real = raw["item"] != -1
    assert len(plain) == 3
    for name, before in plain.items():
        after = calibrated[name]
        assert after.dtype == np.float32
        assert (after[~real] == 0).all() and (before[~real] == 0).all()
        np.testing.assert_allclose(after[real], PLATT(before[real]), rtol=1e-6)
        assert np.abs(after - before)[real].min() > 0.01
        np.testing.assert_array_equal(np.argsort(after[real]), np.argsort(before[real]))


def test_the_correction_comes_after_the_calibration(model):
    served = ServedModel(model, model.schema.directory, True, PLATT)
    of_model = np.float32([[0.2, 0.5, 0.9]])
    found = served._output(tf.constant(of_model), {"item": tf.constant([[2, 3, 4]])})
    kept = PLATT(of_model)
    expected = kept / (kept + (1 - kept) / 0.1)
    np.testing.assert_allclose(found["click_probability"], expected, rtol=1e-6)
    other_way_round = PLATT(correct(tf.constant(of_model), 0.1))
    assert np.abs(expected - other_way_round).min() > 0.01


def test_a_state_is_of_a_model_whatever_its_calibration(model, raw):
    of_user = {
        name: raw[name] for name in ("user", "history_item", "history_category", "history_hour")
    }
    plain, calibrated = (
        ServedModel(model, model.schema.directory, calibration=calibration).user_state(of_user)
        for calibration in (None, PLATT)
    )
    np.testing.assert_array_equal(plain["state_version"], calibrated["state_version"])


def test_a_version_says_how_it_is_calibrated(versions):
    plain, calibrated = (
        json.loads((version / "describe.json").read_text())["calibration"] for version in versions
    )
    assert plain is None
    assert calibrated == {
        "method": "platt",
        "slope": 0.6,
        "intercept": -1.5,
        "splits": {"test": {"before": {"log_loss": 0.5}, "after": {"log_loss": None}}},
    }


@pytest.mark.parametrize("slope", [0.02, 0.9, 1.1, 20])
@pytest.mark.parametrize("intercept", [-4, 0, 4])
def test_the_graph_computes_what_the_calibration_says(slope, intercept):
    """For the most extreme scores, equal ones and floats next to each other, too."""
    calibration = Calibration("platt", slope, intercept)
    for low in (0, 1.2e-38, 1e-3, 0.45, 0.999):
        bits = np.float32(low).view(np.int32) + np.arange(20_000, dtype=np.int32)
        scores = np.minimum(bits.view(np.float32), np.float32(1))  # 0.999 goes up to 1, many times
        found = calibrate(tf.constant(scores), calibration).numpy()
        assert found.dtype == np.float32
        assert np.all(np.diff(found) >= 0)
        assert np.all(np.diff(found)[np.diff(scores) == 0] == 0)
        np.testing.assert_allclose(found, calibration(scores), rtol=1e-6, atol=1e-37)
