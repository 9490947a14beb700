import fractions
import itertools
import math

import numpy as np
import pytest

from tfrec_diffusion import metrics


def reference_auc(labels, scores):
    """The share of ordered pairs as a fraction, pair by pair; `None` without pairs."""
    positives = [score for label, score in zip(labels, scores, strict=True) if label == 1]
    negatives = [score for label, score in zip(labels, scores, strict=True) if label == 0]
    if not positives or not negatives:
        return None
    half_wins = sum(
        2 if p > n else 1 if p == n else 0 for p, n in itertools.product(positives, negatives)
    )
    return fractions.Fraction(half_wins, 2 * len(positives) * len(negatives))


def reference_gauc(labels, scores, groups):
    """Mean of the groups' fractions, weighted by rows; `None` without any."""
    total, weight = fractions.Fraction(0), 0
    for group in set(groups):
        rows = [i for i in range(len(groups)) if groups[i] == group]
        group_auc = reference_auc([labels[i] for i in rows], [scores[i] for i in rows])
        if group_auc is not None:
            total += group_auc * len(rows)
            weight += len(rows)
    return total / weight if weight else None


def make_impressions(seed, rows=300, users=25, distinct_scores=40):
    random = np.random.default_rng(seed)
    ids = random.integers(-(2**63), 2**63 - 1, size=users)
    labels = random.integers(0, 2, size=rows)
    scores = random.normal(size=distinct_scores)[random.integers(0, distinct_scores, size=rows)]
    return labels, scores, ids[random.integers(0, users, size=rows)]


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([0, 1], [0.2, 0.7], 1.0),
        ([1, 0], [0.2, 0.7], 0.0),
        ([1, 0], [0.5, 0.5], 0.5),
        ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.75),  # 0.35 loses against 0.4
        ([1, 0, 1, 0, 0], [0.9, 0.9, 0.3, 0.3, 0.1], 4 / 6),  # (1/2 + 1 + 1) + (0 + 1/2 + 1)
        ([0, 1, 1], [-math.inf, math.inf, math.inf], 1.0),
        ([0, 1], [0.0, -0.0], 0.5),
        ([False, True, True], [3, 3, 7], 0.75),
    ],
)
def test_auc_by_hand(labels, scores, expected):
    assert metrics.auc(labels, scores) == expected


def test_gauc_by_hand():
    labels = [1, 0, 1, 0, 0, 1, 1, 0]
    scores = [0.8, 0.1, 0.2, 0.2, 0.9, 0.5, 0.4, 0.7]
    groups = [7, 7, -3, -3, -3, 9, 9, 5]
    # Group 7: 1 of 2 rows; group -3: (1/2 + 0) / 2 of 3 rows; groups 9 and 5 have one class.
    assert metrics.gauc(labels, scores, groups) == pytest.approx((2 * 1 + 3 * 0.25) / 5, rel=1e-15)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("distinct_scores", [1, 5, 10_000])
def test_auc_and_gauc_equal_pair_by_pair_counting(seed, distinct_scores):
    labels, scores, groups = make_impressions(seed, distinct_scores=distinct_scores)
    assert metrics.auc(labels, scores) == float(reference_auc(labels, scores))
    expected = float(reference_gauc(labels, scores, groups))
    assert metrics.gauc(labels, scores, groups) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("users", [100, 290])
def test_gauc_leaves_out_groups_with_one_class(users):
    labels, scores, groups = make_impressions(seed=0, users=users)
    classes = {group: set(labels[groups == group]) for group in groups}
    both = np.array([len(classes[group]) == 2 for group in groups])
    assert 0 < both.sum() < len(both)
    assert metrics.gauc(labels, scores, groups) == metrics.gauc(
        labels[both], scores[both], groups[both]
    )


@pytest.mark.parametrize("distinct_scores", [5, 10_000])
def test_a_weight_of_two_is_as_two_rows(distinct_scores):
    labels, scores, groups = make_impressions(seed=0, distinct_scores=distinct_scores)
    probabilities = 1 / (1 + np.exp(-scores))
    weights = np.random.default_rng(1).integers(0, 4, len(labels))
    repeated = [np.repeat(column, weights) for column in (labels, probabilities, groups)]
    expected = metrics.summary(*repeated)
    found = metrics.summary(labels, probabilities, groups, weights)
    assert found == pytest.approx(expected, rel=1e-12)
    # Only their proportions matter.
    assert metrics.summary(labels, probabilities, groups, weights / 7) == pytest.approx(expected)
    assert found != pytest.approx(metrics.summary(labels, probabilities, groups))


def test_auc_is_gauc_of_one_group():
    labels, scores, _ = make_impressions(seed=1)
    assert metrics.gauc(labels, scores, np.full(300, 42)) == metrics.auc(labels, scores)


def test_order_of_the_rows_does_not_matter():
    columns = make_impressions(seed=2)
    shuffled = np.random.default_rng(3).permutation(300)
    assert metrics.gauc(*columns) == metrics.gauc(*(column[shuffled] for column in columns))
    assert metrics.auc(*columns[:2]) == metrics.auc(*(column[shuffled] for column in columns[:2]))


def test_score_shifts_between_groups_do_not_matter_to_gauc():
    labels, scores, groups = make_impressions(seed=4)
    shifts = np.random.default_rng(5).integers(-9, 9, size=300)[np.unique(groups, False, True)[1]]
    scores = np.round(scores, 1) * 10
    assert metrics.gauc(labels, scores + shifts, groups) == metrics.gauc(labels, scores, groups)
    assert metrics.auc(labels, scores + shifts) != metrics.auc(labels, scores)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scores_are_compared_in_their_own_dtype(dtype):
    above_half = np.nextafter(dtype(0.5), dtype(1))
    assert metrics.auc([0, 1], np.array([0.5, above_half], dtype)) == 1
    labels, scores, groups = make_impressions(seed=6)
    scores = scores.astype(dtype)
    expected = float(reference_gauc(labels, scores, groups))
    for label_dtype in (bool, np.int8, np.uint8, np.float32):
        result = metrics.gauc(labels.astype(label_dtype), scores, groups)
        assert result == pytest.approx(expected, rel=1e-14)


def test_pairs_beyond_32_bits_are_counted_exactly():
    half = 100_000  # 10^10 pairs, of which the last positive loses half
    scores = np.concatenate([np.arange(half), np.arange(half) + half]).astype(np.float32)
    scores[-1] = half / 2 - 0.5
    labels = np.repeat([0, 1], half)
    assert metrics.auc(labels, scores) == 1 - (half / 2) / half**2


def test_inputs_are_left_as_they_are():
    columns = make_impressions(seed=7)
    copies = [column.copy() for column in columns]
    metrics.gauc(*columns)
    for column, copy in zip(columns, copies, strict=True):
        np.testing.assert_array_equal(column, copy)


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1, 1]])
def test_auc_without_a_pair_is_nan(labels):
    assert math.isnan(metrics.auc(labels, np.arange(len(labels))))


@pytest.mark.parametrize("labels", [[], [0, 0, 0], [1, 0, 1]])
def test_gauc_without_a_group_of_both_classes_is_nan(labels):
    assert math.isnan(metrics.gauc(labels, np.zeros(len(labels)), np.arange(len(labels))))


def test_log_loss_by_hand():
    assert metrics.log_loss([1, 0], [0.5, 0.5]) == pytest.approx(math.log(2), rel=1e-15)
    expected = -(math.log(0.8) + math.log(1 - 0.3) + math.log(1 - 0.1)) / 3
    assert metrics.log_loss([1, 0, 0], [0.8, 0.3, 0.1]) == pytest.approx(expected, rel=1e-15)
    assert metrics.log_loss([1, 0, 0], np.float32([0.8, 0.3, 0.1])) == pytest.approx(expected, 1e-6)
    assert math.isnan(metrics.log_loss([], []))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_loss_of_certain_probabilities_is_clipped(dtype):
    certain = np.array([0, 1], dtype)
    assert metrics.log_loss([1, 0], certain) == pytest.approx(23 * math.log(2), rel=1e-9)
    assert metrics.log_loss([0, 1], certain) == pytest.approx(2.0**-23, rel=1e-6)


@pytest.mark.parametrize(
    ("aucs", "log_losses", "expected"),
    [
        ([0.6, 0.7, 0.65], [0.3, 0.9, 0.1], 1),
        ([0.6, 0.7, 0.7], [0.3, 0.9, 0.1], 1),  # the first of equals
        ([math.nan, math.nan, math.nan], [0.3, 0.1, 0.2], 1),
        ([None, None], [0.2, 0.2], 0),  # as files have it
    ],
)
def test_the_best_result_has_the_highest_auc_or_else_the_lowest_log_loss(
    aucs, log_losses, expected
):
    pairs = zip(aucs, log_losses, strict=True)
    assert metrics.best([{"auc": auc, "log_loss": loss} for auc, loss in pairs]) == expected


def test_predicted_over_observed_by_hand():
    labels, probabilities = [1, 0, 0, 1, 0], [0.9, 0.6, 0.1, 0.5, 0.4]
    assert metrics.predicted_over_observed(labels, probabilities) == pytest.approx(2.5 / 2)
    # 2 * 0.9 + 3 * 0.4 of 2 clicks
    weighted = metrics.predicted_over_observed(labels, probabilities, [2, 0, 0, 0, 3])
    assert weighted == pytest.approx(3.0 / 2)
    assert metrics.predicted_over_observed([True], np.float32([0.5])) == 0.5


def test_reliability_by_hand():
    # Three bins of two rows each, in order: (0.1, 0.2), (0.3, 0.5), (0.7, 0.9).
    labels, probabilities = [1, 0, 0, 1, 1, 0], [0.9, 0.1, 0.7, 0.3, 0.5, 0.2]
    found = metrics.reliability(labels, probabilities, bins=3)
    np.testing.assert_allclose(found.predicted, [0.15, 0.4, 0.8])
    assert found.observed.tolist() == [0, 1, 0.5]
    np.testing.assert_allclose(found.share, 1 / 3)
    assert found.impressions.tolist() == [2, 2, 2] == found.effective.tolist()
    error = metrics.calibration_error(labels, probabilities, bins=3)
    assert error == pytest.approx((0.15 + 0.6 + 0.3) / 3)
    # Of one bin, only the means count.
    assert metrics.calibration_error(labels, probabilities, bins=1) == pytest.approx(0.05)


def test_bins_have_equal_weight_not_equal_width():
    """With weights (3, 1, 2, 2, 0, 4), two bins have 6 each."""
    probabilities = [0.01, 0.02, 0.03, 0.04, 0.05, 0.9]
    found = metrics.reliability([0, 0, 1, 1, 1, 1], probabilities, [3, 1, 2, 2, 0, 4], bins=2)
    np.testing.assert_allclose(found.share, 1 / 2)
    np.testing.assert_allclose(found.observed, [2 / 6, 1])
    np.testing.assert_allclose(found.predicted, [0.11 / 6, 3.68 / 6])
    assert found.impressions.tolist() == [3, 2]  # none of weight 0
    np.testing.assert_allclose(found.effective, [36 / 14, 36 / 20])


def test_equal_probabilities_share_a_bin_however_the_rows_are_ordered():
    labels = np.array([1, 0, 0, 0, 0, 1, 1, 1])
    probabilities = np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.1, 0.9])
    found = metrics.reliability(labels, probabilities, bins=4)
    assert found.impressions.tolist() == [1, 6, 1]
    np.testing.assert_allclose(found.observed, [1, 1 / 3, 1])
    error = metrics.calibration_error(labels, probabilities, bins=4)
    assert error == pytest.approx((1 * 0.9 + 6 * (1 / 2 - 1 / 3) + 1 * 0.1) / 8)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(8)
        again = metrics.reliability(labels[order], probabilities[order], bins=4)
        np.testing.assert_allclose(again.observed, found.observed)
    constant = metrics.reliability([1, 0], [0.5, 0.5])
    assert constant.share.tolist() == [1] and constant.observed.tolist() == [0.5]


@pytest.mark.parametrize("distinct_scores", [5, 10_000])
def test_calibration_with_a_weight_of_two_is_as_two_rows(distinct_scores):
    labels, scores, _ = make_impressions(seed=0, distinct_scores=distinct_scores)
    probabilities = 1 / (1 + np.exp(-scores))
    weights = np.random.default_rng(1).integers(0, 4, len(labels))
    repeated = [np.repeat(column, weights) for column in (labels, probabilities)]
    found = metrics.calibration(labels, probabilities, weights)
    assert found == pytest.approx(metrics.calibration(*repeated), rel=1e-12)
    assert found != pytest.approx(metrics.calibration(labels, probabilities), rel=1e-3)
    # Of one row that is heavier than a bin, too.
    heavy = np.where(np.arange(len(labels)) == 7, 100, 1)
    repeated = [np.repeat(column, heavy) for column in (labels, probabilities)]
    found = metrics.calibration(labels, probabilities, heavy)
    assert found == pytest.approx(metrics.calibration(*repeated), rel=1e-12)


def test_the_calibration_error_of_a_calibrated_model_is_what_chance_makes_it():
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.2, 0.4, 40_000)
    labels = rng.random(40_000) < probabilities
    by_chance = math.sqrt(2 / math.pi * 0.3 * 0.7 * metrics.CALIBRATION_BINS / 40_000)
    found = metrics.calibration_error(labels, probabilities)
    assert found == pytest.approx(by_chance, rel=0.3)
    # A tenth too much is a tenth of 0.3 more.
    assert metrics.calibration_error(labels, 1.1 * probabilities) == pytest.approx(0.03, rel=0.1)


def test_calibration_of_nothing_is_nan():
    assert math.isnan(metrics.predicted_over_observed([0, 0], [0.1, 0.2]))
    assert metrics.calibration_error([0, 0], [0.1, 0.3]) == pytest.approx(0.2)
    for columns in (([], []), ([1, 0], [0.1, 0.2], [0, 0])):
        assert all(math.isnan(value) for value in metrics.calibration(*columns).values())
        assert all(len(column) == 0 for column in metrics.reliability(*columns))


@pytest.mark.parametrize(("by", "expected"), [("auc", 1), ("gauc", 2), ("log_loss", 0)])
def test_the_best_result_by_a_metric(by, expected):
    results = [
        {"auc": 0.7, "gauc": 0.6, "log_loss": 0.3},
        {"auc": 0.8, "gauc": 0.6, "log_loss": 0.4},
        {"auc": 0.7, "gauc": 0.7, "log_loss": 0.5},
    ]
    assert metrics.best(results, by) == expected


def test_rela_impr_by_hand():
    assert metrics.rela_impr(0.75, 0.7) == pytest.approx(25)
    assert metrics.rela_impr(0.7, 0.75) == pytest.approx(-20)
    assert metrics.rela_impr(0.6, 0.6) == 0
    assert math.isnan(metrics.rela_impr(0.7, 0.5))
    assert math.isnan(metrics.rela_impr(math.nan, 0.7))
    assert math.isnan(metrics.rela_impr(0.7, math.nan))


@pytest.mark.parametrize(
    ("labels", "scores", "groups", "message"),
    [
        ([0, 1], [0.1, 0.2, 0.3], [1, 1], r"must have the same length. Received: .*'scores': 3"),
        ([0, 1], [0.1, 0.2], [1], r"must have the same length. Received: .*'groups': 1"),
        ([[0, 1]], [0.1, 0.2], [1, 1], r"`labels` must be 1-D. Received: shape=\(1, 2\)"),
        ([0, 1], [[0.1], [0.2]], [1, 1], r"`scores` must be 1-D. Received: shape=\(2, 1\)"),
        ([0, 1], [0.1, 0.2], 1, r"`groups` must be 1-D. Received: shape=\(\)"),
        ([0, 2], [0.1, 0.2], [1, 1], r"`labels` must be 0 or 1. Received: labels\[1\]=2"),
        ([0.5, 1], [0.1, 0.2], [1, 1], r"`labels` must be 0 or 1. Received: labels\[0\]=0.5"),
        ([0, math.nan], [0.1, 0.2], [1, 1], r"`labels` must be 0 or 1. .* labels\[1\]=nan"),
        (["0", "1"], [0.1, 0.2], [1, 1], r"`labels` must be numbers. Received: dtype=<U1"),
        ([0, 1], [0.1, math.nan], [1, 1], r"`scores` must be a number. .* scores\[1\]=nan"),
        ([0, 1], [0.1, None], [1, 1], r"`scores` must be numbers. Received: dtype=object"),
        ([0, 1], [0.1, 0.2], [1.0, 1.0], r"`groups` must be integers. Received: dtype=float64"),
    ],
)
def test_wrong_input_is_refused(labels, scores, groups, message):
    with pytest.raises(ValueError, match=message):
        metrics.gauc(labels, scores, groups)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1, 1], [0.1, 0.2], "must have the same length"),
        ([[0, 1]], [0.1, 0.2], "`labels` must be 1-D"),
        (1, 0.3, "`labels` must be 1-D"),
        ([0, 3], [0.1, 0.2], "`labels` must be 0 or 1"),
        ([0, 1], [math.nan, 0.2], "must be a number"),
    ],
)
@pytest.mark.parametrize(
    "metric",
    [metrics.auc, metrics.log_loss, metrics.predicted_over_observed, metrics.calibration_error],
)
def test_wrong_input_of_auc_and_log_loss_is_refused(metric, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        metric(labels, scores)


@pytest.mark.parametrize(
    "metric",
    [metrics.auc, metrics.log_loss, metrics.predicted_over_observed, metrics.calibration_error],
)
@pytest.mark.parametrize("weight", [-1, math.nan])
def test_wrong_weights_are_refused(metric, weight):
    with pytest.raises(ValueError, match=r"`weights` must be at least 0. Received: weights\[1\]="):
        metric([0, 1], [0.1, 0.2], weights=[1, weight])


@pytest.mark.parametrize(
    "metric", [metrics.log_loss, metrics.predicted_over_observed, metrics.calibration_error]
)
def test_probabilities_outside_0_and_1_are_refused(metric):
    with pytest.raises(ValueError, match=r"in \[0, 1\]. Received: probabilities\[1\]=1.5"):
        metric([0, 1], [0.5, 1.5])
    with pytest.raises(ValueError, match=r"in \[0, 1\]. Received: probabilities\[0\]=-0.1"):
        metric([0, 1], [-0.1, 0.5])


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="`bins` must be at least 1. Received: bins=0"):
        metrics.reliability([0, 1], [0.1, 0.2], bins=0)


def test_percentages_are_no_auc():
    with pytest.raises(ValueError, match=r"`auc` must be in \[0, 1\]. Received: auc=70.1"):
        metrics.rela_impr(70.1, 0.6)
    with pytest.raises(ValueError, match=r"`base_auc` must be in \[0, 1\]. Received: base_auc=-1"):
        metrics.rela_impr(0.7, -1)
