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


def test_counts_of_several_values_and_numbers(rich_schema, make_rich_requests):
    features = make_rich_requests(batch=2, candidates=2, length=3)
    features["tags"] = np.array([[[3, 1], [0, 0]], [[0, 4], [5, 6]]], "int32")
    features["price"] = np.array([[1.5, np.nan], [np.nan, 2]], "f")
    features["image"][:] = 1
    features["image"][0, 1, 3] = np.nan
    found = counts_lib.Counts(rich_schema, 2)
    weight = np.array([[1, 1], [1, 0]], "f")  # the last candidate is padding
    found.add(features, weight * 0, weight, np.arange(2))
    # Two values of the first candidate, the second one's lack, and one of the third.
    assert (found.places["tags"], found.missing["tags"], found.unknown["tags"]) == (4, 1, 1)
    assert (found.places["price"], found.missing["price"]) == (3, 2)
    assert (found.places["image"], found.missing["image"]) == (3, 1)
    assert "mood" not in found.shown


class TestDistinct:
    def test_counts_across_merges(self, monkeypatch):
        monkeypatch.setattr(counts_lib, "_LEAST_WAITING", 3)
        distinct, rng, seen = counts_lib.Distinct(), np.random.default_rng(0), set()
        for _ in range(20):
            values = rng.integers(0, 40, 5)
            distinct.add(values)
            seen.update(values.tolist())
        assert distinct.count() == len(seen)
