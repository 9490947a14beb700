"""Hierarchical clustering of a user's behaviors (TWIN-V2, algorithm 1), for `clustered.py`."""

import numpy as np

_ITERATIONS = 100  # of k-means at most, which usually ends within ten


def virtual_behaviors(points, groups, max_size):
    """Clusters behaviors, and chooses one to stand for each cluster.

    Args:
        points: float array of shape (n, dim). The behaviors' embeddings, oldest first.
        groups: int array of shape (n,). Behaviors of different groups are never in one cluster.
        max_size: int. Size of the largest cluster.

    Returns:
        Tuple of two int64 arrays of shape (k,), with the clusters in the order of their newest
        members: the index of the member that is nearest to the cluster's centroid (the newest one
        if several are equally near), and the size of the cluster.
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
    """Splits points by k-means, and then the clusters, until none has more than `max_size` points.

    Points that are all the same, which k-means cannot separate, are cut in their order.

    Args:
        points: float array of shape (n, dim).
        max_size: int. Size of the largest cluster. At most so many points are never split.

    Returns:
        list of int64 arrays of shape (size,), the increasing indices of each cluster's points.
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
    """Clusters points by k-means; the same points always get the same labels.

    Args:
        points: float array of shape (n, dim).
        count: int. Number of clusters, of which some may be empty.

    Returns:
        int64 array of shape (n,). The label of each point.
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
    """Draws `count` points by their squared distances to those drawn before (k-means++)."""
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
