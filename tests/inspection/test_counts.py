import numpy as np

from tfrec_diffusion.inspection import counts as counts_lib


def test_counts_of_several_candidates(counts):
    by_length = {0: (1, 2, 2), 2: (1, 3, 1), 12: (1, 3, 1)}
    for length in range(13):
        found = (counts.requests[length], counts.candidates[length], counts.clicks[length])
        assert found == by_length.get(length, (0, 0, 0))
    assert counts.users.count() == 2
    assert (counts.places["item"], counts.unknown["item"], counts.missing["item"]) == (8, 2, 0)
    assert (counts.places["price"], counts.missing["price"]) == (8, 2)
    name = "history_category"
    assert (counts.places[name], counts.missing[name], counts.unknown[name]) == (14, 6, 8)
    assert (counts.shown["hour"][[4, 9]] == [5, 3]).all()
    assert (counts.clicked["hour"][[4, 9]] == [3, 1]).all()
    assert counts.sizes.tolist() == [0, 0, 1, 2]


class TestDistinct:
    def test_counts_across_merges(self, monkeypatch):
        monkeypatch.setattr(counts_lib, "_LEAST_WAITING", 3)
        distinct, rng, seen = counts_lib.Distinct(), np.random.default_rng(0), set()
        for _ in range(20):
            values = rng.integers(0, 40, 5)
            distinct.add(values)
            seen.update(values.tolist())
        assert distinct.count() == len(seen)
