"""Temperature and Platt scaling, fitted on labels drawn from known probabilities."""

import numpy as np
import pytest

from tfrec_diffusion import metrics
from tfrec_diffusion.calibration import HIGHEST, LOWEST, Calibration, fit


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def logit(p):
    return np.log(p / (1 - p))


def planted(slope, intercept, rows=200_000):
    """Labels that happen with sigmoid(slope * logit(p) + intercept), and p."""
    rng = np.random.default_rng(0)
    log_odds = rng.normal(-2, 1.5, rows)
    labels = rng.random(rows) < sigmoid(slope * log_odds + intercept)
    return labels.astype(np.int8), sigmoid(log_odds).astype(np.float32)


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.4, 0.3), (2.5, -1), (0.8, -3)])
def test_platt_scaling_finds_the_planted_function(slope, intercept):
    labels, probabilities = planted(slope, intercept)
    found = fit("platt", labels, probabilities)
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept), abs=0.06)
    truth = sigmoid(slope * logit(probabilities) + intercept)
    np.testing.assert_allclose(found(probabilities), truth, rtol=0.2)
    assert metrics.log_loss(labels, found(probabilities)) <= metrics.log_loss(labels, truth)
    if (slope, intercept) != (1, 0):
        before, after = (metrics.calibration(labels, p) for p in (probabilities, truth))
        assert before["calibration_error"] > 4 * after["calibration_error"]


@pytest.mark.parametrize("temperature", [0.5, 1, 3])
def test_temperature_scaling_finds_the_planted_temperature(temperature):
    found = fit("temperature", *planted(1 / temperature, 0))
    assert found.slope == pytest.approx(1 / temperature, rel=0.02)
    assert found.intercept == 0
    assert found(0.5) == 0.5


@pytest.mark.parametrize("weighted", [False, True])
def test_the_likelihood_has_no_slope_at_what_is_found(weighted):
    """Its derivatives by intercept and slope are 0 in float64, far from where they started."""
    labels, probabilities = planted(0.3, -2, rows=5000)
    weights = np.random.default_rng(1).integers(0, 5, 5000) if weighted else np.ones(5000)
    log_odds = logit(probabilities.astype(np.float64))
    for method in ("platt", "temperature"):
        found = fit(method, labels, probabilities, weights if weighted else None)
        missing = weights * (sigmoid(found.slope * log_odds + found.intercept) - labels)
        assert abs(np.mean(missing * log_odds)) < 1e-12
        assert (abs(np.mean(missing)) < 1e-12) == (method == "platt")
    predicted = metrics.predicted_over_observed(
        labels, fit("platt", labels, probabilities, weights)(probabilities), weights
    )
    assert predicted == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_a_weight_of_two_is_as_two_rows(method):
    labels, probabilities = planted(0.7, -0.2, rows=3000)
    weights = np.random.default_rng(1).integers(0, 4, 3000)
    repeated = fit(method, np.repeat(labels, weights), np.repeat(probabilities, weights))
    for scale in (1, 1 / 7):
        found = fit(method, labels, probabilities, scale * weights)
        assert found.slope == pytest.approx(repeated.slope, rel=1e-10)
        assert found.intercept == pytest.approx(repeated.intercept, rel=1e-10)
    assert found.slope != pytest.approx(fit(method, labels, probabilities).slope, rel=1e-3)


@pytest.mark.parametrize("slope", [0.02, 0.9, 1, 1.1, 20])
@pytest.mark.parametrize("intercept", [-8, 0, 8])
def test_no_two_change_places(slope, intercept):
    """Not even floats next to each other, nor the most extreme ones."""
    found = Calibration("platt", slope, intercept)
    for low in (0, 1e-38, 1e-3, 0.45, 0.999):
        bits = np.float32(low).view(np.int32) + np.arange(20_000, dtype=np.int32)
        calibrated = found(np.minimum(bits.view(np.float32), np.float32(1)))
        assert np.all(np.diff(calibrated) >= 0)
    most = found(np.float32([0, LOWEST, 0.3, 0.3, 1 - 2.0**-24, 1]))
    assert most[0] == most[1] <= most[2] == most[3] <= most[4] <= most[5]
    assert most[0] >= 0 and most[5] <= 1
    if slope == 0.9:  # more than float64 cannot tell apart
        assert 0 < most[1] < most[2] < most[4] < most[5] < 1


def test_a_certain_prediction_counts_as_what_float32_rounds_to_it():
    found = Calibration("temperature", 0.5)
    assert np.float32(HIGHEST) == 1 and np.float32(LOWEST) > 0
    assert found(1) == pytest.approx(1 - sigmoid(-0.5 * np.log(2.0**25 - 1)), rel=1e-12)
    assert found(0) == pytest.approx(np.sqrt(LOWEST), rel=1e-12)


def test_a_few_clicks_that_were_certain_not_to_come_leave_a_finite_fit():
    labels, probabilities = planted(1, 0, rows=2000)
    labels, probabilities = np.append(labels, [1, 0]), np.append(probabilities, [0, 1])
    for method in ("temperature", "platt"):
        assert 0.2 < fit(method, labels, probabilities).slope < 0.9


@pytest.mark.parametrize("gap", [1e-1, 1e-5, 1e-9])
def test_classes_that_are_nearly_separated(gap):
    """By symmetry, the intercept is 0, and half of the loss is that of the pair that overlaps."""
    outer = np.linspace(1, 6, 1000)
    log_odds = np.concatenate([-outer, [-gap, gap], outer])
    labels = np.repeat([0, 1, 0, 1], [1000, 1, 1, 1000])
    platt, temperature = (fit(m, labels, sigmoid(log_odds)) for m in ("platt", "temperature"))
    assert platt.slope == pytest.approx(temperature.slope, rel=1e-5) and platt.slope > 5
    assert platt.intercept == pytest.approx(0, abs=1e-5)


def test_steps_that_go_too_far_are_damped():
    """One of Newton's steps here ends where all curvature is lost."""
    labels = np.array([1, 0, 1, 0, 0])
    log_odds = np.array([-0.86, -3.2, 6.45, -62.45, -0.39])
    weights = np.array([0.1, 2e-5, 5e-6, 5e-3, 2e-5])
    found = fit("platt", labels, sigmoid(log_odds), weights)
    missing = weights * (sigmoid(found.slope * log_odds + found.intercept) - labels)
    np.testing.assert_allclose([missing.sum(), missing @ log_odds], 0, atol=1e-14)
    assert 3 < found.slope < 5


ALIKE = [0.2, 0.2, 0.2, 0.2]
DIFFERENT = [0.1, 0.4, 0.6, 0.9]


@pytest.mark.parametrize(
    ("method", "labels", "probabilities", "weights", "message"),
    [
        ("platt", [0, 0, 0, 0], DIFFERENT, None, "labels of both classes. Received: 0 clicks of 4"),
        ("temperature", [1, 1, 1, 1], DIFFERENT, None, "both classes. Received: 4 clicks of 4"),
        ("platt", [0, 1, 0, 1], DIFFERENT, [1, 0, 1, 0], "Received: 0 clicks of 2 impressions"),
        ("platt", [], [], None, "both classes. Received: 0 clicks of 0"),
        ("platt", [0, 1, 0, 1], ALIKE, None, "probabilities that differ. Received: 0.2, 4 times"),
        ("temperature", [0, 1, 0, 1], [0.5] * 4, None, "probabilities other than 1/2. Received: 0"),
        ("platt", [0, 0, 1, 1], [0.6, 0.7, 0.8, 0.9], None, "no finite solution where a threshold"),
        ("platt", [0, 1, 0, 1], [0.2, 0.3, 0.3, 0.4], None, "no finite solution"),
        ("platt", [1, 1, 0, 0], DIFFERENT, None, "no finite solution"),
        ("temperature", [0, 0, 1, 1], DIFFERENT, None, "no finite solution"),
        ("temperature", [0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9], None, "no finite solution"),
        ("platt", [1, 0, 1, 0], DIFFERENT, None, r"turn the ranking round.*slope=-0\.\d+$"),
        ("temperature", [1, 0, 1, 0], [0.1, 0.6, 0.7, 0.95], None, "turn the ranking round"),
        ("platt", [0, 2, 0, 1], DIFFERENT, None, r"`labels` must be 0 or 1. Received: labels\[1\]"),
        ("platt", [0, 1], [0.1, 1.2], None, r"in \[0, 1\]. Received: probabilities\[1\]=1.2"),
        ("platt", [0, 1], [0.1, np.nan], None, r"`probabilities` must be a number"),
        ("platt", [0, 1], [0.1, 0.2], [1, -1], "`weights` must be at least 0"),
        (
            "isotonic",
            [0, 1],
            [0.1, 0.2],
            None,
            r"one of \['temperature', 'platt'\]. Received: 'iso",
        ),
    ],
)
def test_what_cannot_be_fitted_is_named(method, labels, probabilities, weights, message):
    with pytest.raises(ValueError, match=message):
        fit(method, labels, probabilities, weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("isotonic", 1.0), "`method` must be one of"),
        (("platt", 0.0), "`slope` must be above 0 and finite. Received: slope=0.0"),
        (("platt", np.inf), "`slope` must be above 0 and finite"),
        (("platt", 1.0, np.nan), "`intercept` must be finite. Received: intercept=nan"),
    ],
)
def test_a_function_that_would_not_keep_the_ranking_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Calibration(*arguments)


def test_a_calibration_says_what_it_does():
    assert str(Calibration("platt", 0.5, -0.25)) == "platt: sigmoid(0.5000 * logit(p) - 0.2500)"
    assert str(Calibration("temperature", 2.0)) == "temperature: sigmoid(2.0000 * logit(p))"
