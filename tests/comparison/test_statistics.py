import math

import numpy as np
import pytest

from tfrec_diffusion import metrics
from tfrec_diffusion.comparison import statistics

pytest.importorskip("scipy")


def student_p(t, df):
    """Two-sided p: one less the area of Student's density between -t and t."""
    x = np.linspace(-t, t, 100_001)
    density = (1 + x**2 / df) ** (-(df + 1) / 2)
    constant = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    return 1 - constant * np.trapezoid(density, x)


def test_mean_and_deviation():
    # The sample variance of 0.72, 0.74 and 0.79 is 0.0013.
    assert statistics.mean_and_deviation(np.array([0.72, 0.74, 0.79])) == "0.7500 ± 0.0361"
    assert statistics.mean_and_deviation(np.array([0.72])) == "0.7200"


class TestResampledAucs:
    @pytest.fixture
    def split(self):
        """Probabilities, labels and users of 900 impressions, in no order."""
        generator = np.random.default_rng(3)
        labels = generator.integers(2, size=900)
        scores = generator.normal(size=900) + labels
        return scores.astype(np.float32), labels, 7 * generator.integers(60, size=900) - 100

    @pytest.mark.parametrize("decimals", [6, 1, 0])
    def test_each_is_the_exact_auc_of_a_sample(self, split, decimals):
        """Whatever is tied: few scores, many, or nearly all."""
        scores, labels, groups = split
        scores = np.round(scores, decimals)
        found = statistics.resampled_aucs(scores, labels, groups)
        assert found.shape == (statistics.REPLICATES,)
        users, user = np.unique(groups, return_inverse=True)
        drawn = statistics._times_drawn(len(users))
        for i in (0, 123, statistics.REPLICATES - 1):
            times = drawn[user, i].astype(int)
            repeated = (np.repeat(column, times) for column in (labels, scores))
            assert found[i] == pytest.approx(metrics.auc(*repeated), abs=1e-6)

    def test_a_weight_of_two_is_as_two_impressions(self, split):
        scores, labels, groups = split
        weights = 1 + groups % 2
        repeated = (np.repeat(column, weights) for column in split)
        np.testing.assert_allclose(
            statistics.resampled_aucs(np.round(scores, 1), labels, groups, weights),
            statistics.resampled_aucs(np.round(next(repeated), 1), *repeated),
            atol=1e-6,
        )

    def test_a_sample_has_as_many_users(self, split):
        drawn = statistics._times_drawn(60)
        assert (drawn.sum(axis=0) == 60).all()
        # As a Poisson's nearly: of 30,000 times drawn, the variance is 1 - 1/60.
        assert drawn.var() == pytest.approx(59 / 60, abs=0.03)

    def test_all_models_have_the_same_samples(self, split):
        scores, labels, groups = split
        once = statistics.resampled_aucs(scores, labels, groups)
        np.testing.assert_array_equal(once, statistics.resampled_aucs(scores, labels, groups))
        reverse = statistics.resampled_aucs(-scores, labels, groups)
        np.testing.assert_allclose(once + reverse, 1, atol=1e-6)

    def test_the_order_of_impressions_does_not_matter(self, split):
        shuffled = np.random.default_rng(0).permutation(900)
        np.testing.assert_allclose(
            statistics.resampled_aucs(*split),
            statistics.resampled_aucs(*(column[shuffled] for column in split)),
            atol=1e-6,
        )

    def test_the_variance_is_that_of_clustered_roc_curves(self, split):
        """Obuchowski's (1997): that of the users' sums of placement values."""
        scores, labels, groups = split
        above = scores[labels == 1][:, None] > scores[labels == 0]
        auc = above.mean()
        users, user = np.unique(groups, return_inverse=True)
        of_positives = np.bincount(user[labels == 1], above.mean(axis=1) - auc, len(users))
        of_negatives = np.bincount(user[labels == 0], above.mean(axis=0) - auc, len(users))
        parts = of_positives / (labels == 1).sum() + of_negatives / (labels == 0).sum()
        variance = len(users) / (len(users) - 1) * (parts**2).sum()
        found = statistics.resampled_aucs(scores, labels, groups).std()
        assert found == pytest.approx(math.sqrt(variance), rel=0.1)

    def test_a_sample_of_one_class_has_none(self):
        # Of two users, one of clicks only and one of none, every other sample has both.
        found = statistics.resampled_aucs(
            np.array([0.3, 0.2, 0.1], np.float32), np.array([1, 0, 0]), np.array([5, 6, 6])
        )
        assert 0.4 < np.isnan(found).mean() < 0.6 and set(found[~np.isnan(found)]) == {1.0}
        assert np.isnan(statistics.resampled_aucs(np.ones(3), np.zeros(3), np.arange(3))).all()


class TestDifference:
    """Of hand-made AUCs on the samples of the users."""

    def test_of_users_alone_if_all_seeds_agree(self):
        # Squares of the deviations sum up to 4 * 0.01²: the variance is 4/3 * 1e-4.
        resampled = np.array([[0.05, 0.03, 0.05, 0.03]] * 3)
        found = statistics.difference(np.array([0.04, 0.04, 0.04]), resampled, 11)
        error = math.sqrt(4 / 3) * 0.01
        assert found.mean == pytest.approx(0.04)
        assert found.p == pytest.approx(student_p(0.04 / error, 10), abs=1e-6)
        # The 97.5% quantile of Student's t with 10 degrees of freedom, from a table.
        assert found.high - 0.04 == pytest.approx(2.228 * error, rel=1e-4)
        assert 0.04 - found.low == pytest.approx(found.high - 0.04)

    def test_of_seeds_alone_if_users_make_no_difference(self):
        # s² is 0.0001, over 3 seeds; the quantile with 2 degrees of freedom is 4.303.
        measured = np.array([0.03, 0.04, 0.05])
        found = statistics.difference(measured, np.tile(measured[:, None], 4), 1000)
        error = math.sqrt(0.0001 / 3)
        assert found.high - 0.04 == pytest.approx(4.303 * error, rel=1e-4)
        assert found.p == pytest.approx(student_p(0.04 / error, 2), abs=1e-6)

    def test_of_both(self):
        # Over the samples, means are 0.05, 0.03, 0.05, 0.03, of variance 4/3 * 1e-4. Around them
        # the seeds are 0.03 or 0 away: variances 4/3 * 9e-4, twice, over 3 - 1 seeds make w. Then
        # s² is 0.0025 - 0.0012 more.
        resampled = np.array([[0.08, 0, 0.02, 0.06], [0.02, 0.06, 0.08, 0], [0.05, 0.03] * 2])
        measured = np.array([-0.01, 0.04, 0.09])
        found = statistics.difference(measured, resampled, 101)
        of_users, of_seeds, within = 4 / 3 * 1e-4, 0.0025, 4 / 3 * 9e-4
        square = of_users + (of_seeds - within) / 3
        freedom = square**2 / (of_users**2 / 100 + (of_seeds / 3) ** 2 / 2)
        assert found.p == pytest.approx(student_p(0.04 / math.sqrt(square), freedom), abs=1e-6)

    def test_seeds_that_differ_less_than_users_explain_add_nothing(self):
        resampled = np.array([[0.08, 0, 0.02, 0.06], [0.02, 0.06, 0.08, 0], [0.05, 0.03] * 2])
        found = statistics.difference(np.array([0.04, 0.04, 0.04]), resampled, 11)
        assert found.high - 0.04 == pytest.approx(2.228 * math.sqrt(4 / 3) * 0.01, rel=1e-4)

    def test_equal_scores_do_not_differ(self):
        assert statistics.difference(np.zeros(2), np.zeros((2, 4)), 9) == (0, 0, 0, 1)

    def test_samples_of_one_class_are_left_out(self):
        resampled = np.array([[0.05, 0.03, np.nan, 0.05, 0.03]] * 3)
        without = resampled[:, [0, 1, 3, 4]]
        measured = np.array([0.03, 0.04, 0.05])
        found = statistics.difference(measured, resampled, 11)
        assert found == pytest.approx(statistics.difference(measured, without, 11))


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        # 4 * 0.005; 3 * 0.01; 2 * 0.03; then 0.04, less than the step before.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.5], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm(p_values, adjusted):
    assert statistics.holm(p_values) == pytest.approx(adjusted)
