"""Hierarchical clustering of a user's behaviors: algorithm 1 of TWIN-V2, for `clustered.py`."""

import numpy as np

_ITERATIONS = 100  # of k-means, at most; it mostly comes to rest within ten


def virtual_behaviors(points, groups, max_size):
    """Clusters behaviors, and chooses one to stand for each cluster.

    Args:
        points: (n, dim) floats, a behavior each, oldest first.
        groups: (n,) integers; behaviors with different ones are never in one cluster.
        max_size: Largest cluster.

    Returns:
        The members nearest to their clusters' centroids, the newest of equally near ones: (k,)
        indices; and the sizes of the clusters: (k,). Clusters are in the order of their newest
        members.
    """
    points = np.asarray(points, np.float64)
    clusters = [
        members[cluster]
        for members in (np.flatnonzero(groups == value) for value in np.unique(groups))
        for cluster in hierarchical_clusters(points[members], max_size)
    ]
    clusters.sort(key=lambda members: members[-1])
    chosen = [members[_nearest_to_centroid(points[members])] for members in clusters]
    return np.array(chosen, np.int64), np.array([len(c) for c in clusters], np.int64)


def hierarchical_clusters(points, max_size):
    """Parts points by k-means, and the parts again, until none has more than `max_size`.

    Args:
        points: (n, dim) floats.
        max_size: Largest cluster; so few points are left together.

    Returns:
        List of increasing (size,) indices, each point in one of them. Points that k-means cannot
        part, as they are all the same, are cut in their order.
    """
    clusters, parts = [], [np.arange(len(points))]
    while parts:
        members = parts.pop()
        if len(members) <= max_size:
            clusters.append(members)
            continue
        labels = k_means(points[members], max(2, int(len(members) ** 0.3)))
        if np.all(labels == labels[0]):
            clusters.extend(np.split(members, range(max_size, len(members), max_size)))
        else:
            parts.extend(members[labels == label] for label in np.unique(labels))
    return clusters


def k_means(points, count):
    """Labels of points, (n,), by k-means; the same points always get the same labels.

    Args:
        points: (n, dim) floats.
        count: Number of clusters; some may be empty.
    """
    centers = _spread_centers(points, count)
    labels = None
    for _ in range(_ITERATIONS):
        before, labels = labels, np.argmin(_squared_distances(points, centers), axis=1)
        if np.array_equal(labels, before):
            break
        member = labels == np.arange(count)[:, None]  # (count, n)
        sizes = member.sum(axis=1, keepdims=True)
        centers = np.where(sizes > 0, member @ points / np.maximum(sizes, 1), centers)
    return labels


def _spread_centers(points, count):
    """`count` of the points, drawn by their squared distance to those drawn before (k-means++)."""
    random = np.random.default_rng(0)
    centers = points[random.integers(len(points))][None]
    while len(centers) < count:
        distances = _squared_distances(points, centers).min(axis=1)
        ends = np.cumsum(distances)
        drawn = np.searchsorted(ends, random.random() * ends[-1], side="right")
        centers = np.concatenate([centers, points[[min(drawn, len(points) - 1)]]])
    return centers


def _nearest_to_centroid(points):
    distances = _squared_distances(points, points.mean(axis=0, keepdims=True))[:, 0]
    return len(points) - 1 - np.argmin(distances[::-1])


def _squared_distances(points, centers):
    """(n, dim) and (k, dim) to (n, k)."""
    return np.square(points[:, None] - centers).sum(axis=-1)
