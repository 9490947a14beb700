import numpy as np
import pytest
from finished_runs import finish, leave_predictions

from tfrec_diffusion.comparison import plan, statistics
from tfrec_diffusion.comparison.claims import Claim, Contrast, judge
from tfrec_diffusion.comparison.differences import Measured, measured, summary
from tfrec_diffusion.comparison.entry import DataSet

pytest.importorskip("scipy")


@pytest.fixture
def entries(tmp_path):
    """Of a data set: a base, a row as good, a better and a much better one."""

    def make(name, *noise, users=200):
        runs = ["din", "dien", "twin", "eta"]
        entries = plan.from_runs(runs, DataSet(name, [], tmp_path / name), 3).entries
        for entry, own in zip(entries, noise, strict=False):
            for run in entry.of_seeds():
                finish(run)
                leave_predictions(run, own, users=users)
        return entries

    return make


def contrast(entry, against, minus=None):
    return Contrast(entry, against, "test"), minus and Contrast(*minus, "test")


def verdict(*pair, **expected):
    (one,) = judge([Claim("", "", [contrast(*pair)], **expected)])
    return one.verdict


class TestVerdict:
    @pytest.fixture
    def rows(self, entries):
        return entries("a", 1, 1.02, 0.5, 0.45)

    def test_above(self, rows):
        base, alike, better, _ = rows
        assert verdict(better, base) == "holds"
        assert verdict(base, better) == "does not hold"
        assert verdict(alike, base) == "cannot tell"

    def test_below(self, rows):
        base, alike, better, _ = rows
        assert verdict(base, better, expected="below") == "holds"
        assert verdict(better, base, expected="below") == "does not hold"
        assert verdict(alike, base, expected="below") == "cannot tell"

    def test_a_margin(self, rows):
        base, alike, better, _ = rows
        assert verdict(alike, base, margin=-0.1) == "holds"
        assert verdict(better, base, margin=0.01) == "holds"
        assert verdict(better, base, margin=0.5) == "does not hold"
        assert verdict(alike, base, expected="below", margin=0.1) == "holds"

    def test_equal_within_a_margin(self, rows):
        base, alike, better, _ = rows
        assert verdict(alike, base, expected="equal within", margin=0.1) == "holds"
        assert verdict(base, alike, expected="equal within", margin=0.1) == "holds"
        assert verdict(alike, base, expected="equal within", margin=0.001) == "cannot tell"
        for pair in ((better, base), (base, better)):
            assert verdict(*pair, expected="equal within", margin=0.01) == "does not hold"

    def test_p_is_that_of_the_nearest_bound(self, rows):
        base, _, better, _ = rows
        seeds = measured(better, base, "test").values()
        (one,) = judge([Claim("", "", [contrast(better, base)], "equal within", 0.01)])
        assert one.difference.p == summary(seeds, 0.01).p > summary(seeds, -0.01).p
        assert one.difference[:3] == summary(seeds)[:3]

    def test_of_one_seed_there_is_none(self, rows):
        base, alike, *_ = rows
        for run in alike.of_seeds()[1:]:
            (run.directory / "metrics.json").unlink()
        (one,) = judge([Claim("", "", [contrast(alike, base)])])
        assert (one.difference, one.verdict, one.missing) == (None, "", "dien: 1 of 3 seeds")


def test_p_is_adjusted_over_the_contrasts_of_each_claim(entries):
    base, alike, better, _ = entries("a", 1, 1.02, 0.5)
    pairs = [contrast(alike, base), contrast(better, base), contrast(better, alike)]
    found = judge([Claim("", "", pairs[:2]), Claim("", "", pairs[2:], "below")])
    plain = [summary(measured(*pair, "test").values()).p for (*pair, _), _ in pairs]
    expected = [*statistics.holm(plain[:2]), plain[2]]
    assert [one.difference.p for one in found] == pytest.approx(expected)
    assert [one.verdict for one in found] == ["cannot tell", "holds", "does not hold"]


class TestDifferenceOfDifferences:
    def test_on_another_data_set(self, entries):
        base, _, better, _ = entries("a", 1, 1, 0.4)
        other_base, _, other, _ = entries("b", 1, 1, 0.7, users=230)
        pair = contrast(better, base, (other, other_base))
        (one,) = judge([Claim("", "", [pair])])
        first, second = (
            summary(measured(*rows, "test").values())
            for rows in ((better, base), (other, other_base))
        )
        assert one.difference.mean == pytest.approx(first.mean - second.mean)
        assert one.verdict == "holds"
        (other_way,) = judge([Claim("", "", [pair[::-1]])])
        assert other_way.verdict == "does not hold"

    def test_variances_of_other_users_add_up(self):
        """3² and 4² make 5²; by a normal distribution, as users are many."""
        generator = np.random.default_rng(0)
        one, other = (
            Measured(0.1, 0.1 + deviation * generator.normal(size=5000), 10**6)
            for deviation in (0.03, 0.04)
        )
        found = summary([one - other] * 3)
        assert found.high - found.low == pytest.approx(2 * 1.96 * 0.05, rel=0.03)

    def test_of_itself_is_none(self, entries):
        base, _, better, _ = entries("a", 1, 1, 0.5)
        (one,) = judge([Claim("", "", [contrast(better, base, (better, base))])])
        assert one.difference == (0, 0, 0, 1) and one.verdict == "cannot tell"

    def test_only_seeds_of_both(self, entries):
        base, _, better, _ = entries("a", 1, 1, 0.5)
        other_base, _, other, _ = entries("b", 1, 1, 0.7)
        (other.of_seeds()[0].directory / "metrics.json").unlink()
        (one,) = judge([Claim("", "", [contrast(better, base, (other, other_base))])])
        of_seeds = [
            measured(better, base, "test")[seed].auc - measured(other, other_base, "test")[seed].auc
            for seed in (1, 2)
        ]
        assert one.difference.mean == pytest.approx(sum(of_seeds) / 2)
        assert one.missing == "twin: 2 of 3 seeds"

    def test_users_are_those_of_the_smaller_one(self):
        assert (Measured(0.5, 1.0, 7) - Measured(0.25, 3.0, 5)) == (0.25, -2.0, 5, "")
