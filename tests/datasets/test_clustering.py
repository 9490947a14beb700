import numpy as np
import pytest

from tfrec_diffusion.datasets import clustering


def on_a_line(*places):
    return np.array(places, np.float32)[:, None]


def virtual(points, groups=None, max_size=2):
    groups = np.zeros(len(points), np.int32) if groups is None else np.array(groups)
    members, sizes = clustering.virtual_behaviors(points, groups, max_size)
    return members.tolist(), sizes.tolist()


def test_far_pairs_in_the_order_of_their_newest_members():
    # {0, 1}, {10, 11} and {100}; both of a pair are as near to its centroid: the newest stands.
    assert virtual(on_a_line(0, 100, 10, 1, 11)) == ([1, 3, 4], [1, 2, 2])


def test_the_member_nearest_to_the_centroid_stands_for_a_cluster():
    # {0, 1, 5} has its centroid at 2, {200, 206, 201} at 202.3.
    assert virtual(on_a_line(0, 200, 1, 206, 5, 201), max_size=3) == ([2, 5], [3, 3])


def test_few_are_left_together_however_far_they_are():
    assert virtual(on_a_line(0, 50, 1000), max_size=3) == ([1], [3])


def test_members_are_of_one_group():
    points = on_a_line(0, 0, 1, 1)
    assert virtual(points, [7, 3, 7, 3]) == ([2, 3], [2, 2])
    assert virtual(points, [7, 3, 3, 7]) == ([2, 3], [2, 2])
    assert virtual(points, [7, 3, 5, 7]) == ([1, 2, 3], [1, 1, 2])


def test_equal_points_are_cut_in_their_order():
    assert virtual(on_a_line(*[4] * 7), max_size=3) == ([2, 5, 6], [3, 3, 1])


def test_none():
    assert virtual(np.zeros((0, 3), np.float32)) == ([], [])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("max_size", [2, 5, 20])
def test_properties(seed, max_size):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 150))
    # Some behaviors again and again, as in life.
    points = rng.normal(size=(n, 6)).astype(np.float32)[rng.integers(0, n, n)]
    groups = rng.integers(0, 3, n)
    clusters = [
        members[cluster]
        for members in (np.flatnonzero(groups == group) for group in range(3))
        for cluster in clustering.hierarchical_clusters(points[members], max_size)
    ]
    clusters = sorted((c for c in clusters if len(c)), key=max)
    assert sorted(np.concatenate(clusters)) == list(range(n))
    members, sizes = clustering.virtual_behaviors(points, groups, max_size)
    assert sizes.tolist() == [len(cluster) for cluster in clusters]
    assert sizes.max() <= max_size
    for member, cluster in zip(members, clusters, strict=True):
        assert member in cluster
        assert len(set(groups[cluster])) == 1
        centroid = points[cluster].astype(np.float64).mean(axis=0)
        distances = {i: float(np.linalg.norm(points[i] - centroid)) for i in cluster}
        nearest = min(distances.values())
        assert member == max(i for i in cluster if distances[i] <= nearest + 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_k_means_comes_to_rest(seed):
    points = np.random.default_rng(seed).normal(size=(90, 4))
    labels = clustering.k_means(points, 5)
    centroids = {label: points[labels == label].mean(axis=0) for label in set(labels)}
    assert len(centroids) == 5
    for point, label in zip(points, labels, strict=True):
        distances = {other: np.linalg.norm(point - c) for other, c in centroids.items()}
        assert label == min(distances, key=distances.get)


def test_k_means_finds_far_clusters():
    rng = np.random.default_rng(0)
    which = rng.integers(0, 4, 80)
    labels = clustering.k_means(1000 * np.eye(4)[which] + rng.normal(size=(80, 4)), 4)
    assert len(set(zip(which, labels, strict=True))) == 4


@pytest.mark.parametrize(("n", "count"), [(3, 2), (40, 3), (110, 4), (1000, 7)])
def test_number_of_clusters(monkeypatch, n, count):
    counts = []

    def k_means(points, count):
        counts.append(count)
        return np.zeros(len(points), np.int32)

    monkeypatch.setattr(clustering, "k_means", k_means)
    clustering.hierarchical_clusters(np.zeros((n, 2)), max_size=2)
    assert counts == [count]
