"""How the metrics of several seeds are summed up, and how sure a difference in AUC is."""

import functools
from typing import NamedTuple

import numpy as np

SURE = 0.05  # p below which a difference is taken for one
REPLICATES = 500  # samples of the users: a standard error to 3%
_LEVELS_AT_ONCE = 256  # scores whose sums stay in the processor's cache


class Difference(NamedTuple):
    """A difference in AUC, and how sure it is.

    Args:
        mean: float. Over the seeds.
        low: float. Lower end of the 95% interval.
        high: float. Its upper end.
        p: float. Two-sided p value of no difference.
    """

    mean: float
    low: float
    high: float
    p: float


def mean_and_deviation(values):
    """Mean ± sample standard deviation, with four decimals.

    Args:
        values: float array of shape (seeds,). Of one value, only the value is given.

    Returns:
        str.
    """
    deviation = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{deviation}"


def resampled_aucs(probabilities, labels, groups, weights=None):
    """The exact AUC on each of `REPLICATES` bootstrap samples of the users.

    A sample has as many users as there are, drawn with replacement, each with all impressions. The
    samples depend on the number of users only. All models that were evaluated on the same users
    thus have the same samples, and differences between their AUCs are paired. The impressions may
    come in any order.

    Args:
        probabilities: float array of shape (impressions,).
        labels: array of shape (impressions,). 0 or 1.
        groups: int array of shape (impressions,). Id of each impression's user.
        weights: float array of shape (impressions,), or `None`. As in `metrics.auc`. Defaults to
            `None`.

    Returns:
        float64 array of shape (`REPLICATES`,). NaN where a sample has one class only.
    """
    users, user = np.unique(groups, return_inverse=True)
    times = _times_drawn(len(users))
    positive = np.asarray(labels) == 1
    # The scores of positives, each of which outscores all negatives of lower levels.
    levels, of_positives = np.unique(probabilities[positive], return_inverse=True)
    of_negatives = np.searchsorted(levels, probabilities[~positive])
    tied = np.append(levels, np.nan)[of_negatives] == probabilities[~positive]
    shape = (len(levels) + 1, len(users))
    weights = np.ones(len(user)) if weights is None else weights
    positives = _counts(of_positives, user[positive], weights[positive], shape)
    negatives = _counts(of_negatives, user[~positive], weights[~positive], shape)
    ties = _counts(of_negatives[tied], user[~positive][tied], weights[~positive][tied], shape)

    ordered, num_positives, num_negatives = np.zeros((3, REPLICATES))
    for start in range(0, len(levels) + 1, _LEVELS_AT_ONCE):
        these = slice(start, start + _LEVELS_AT_ONCE)
        above = positives[these] @ times
        below = negatives[these] @ times
        below[0] += num_negatives
        np.cumsum(below, axis=0, out=below)
        num_negatives = below[-1].copy()
        if ties[these].nnz:
            below -= ties[these] @ times / 2
        ordered += np.einsum("ij,ij->j", above, below)
        num_positives += above.sum(axis=0)
    pairs = num_positives * num_negatives
    return np.divide(ordered, pairs, out=np.full(REPLICATES, np.nan), where=pairs > 0)


@functools.lru_cache(maxsize=1)
def _times_drawn(num_users):
    """How often each sample has each user: float32 of shape (users, `REPLICATES`)."""
    generator = np.random.default_rng(0)
    times = np.empty((num_users, REPLICATES), np.float32)
    for i in range(REPLICATES):
        drawn = generator.integers(num_users, size=num_users)
        times[:, i] = np.bincount(drawn, minlength=num_users)
    return times


def _counts(levels, users, weights, shape):
    """The weights of the impressions that each level has of each user, as a sparse matrix."""
    from scipy import sparse

    return sparse.csr_array((weights.astype(np.float32), (levels, users)), shape)


def difference(differences, resampled, num_users):
    """How sure a difference in AUC is that was measured with several seeds on a sample of users.

    The mean over the seeds would be another one with other users and with other seeds. Its variance
    is the sum of two: that over bootstrap samples of the users, with the trained models as they
    are, and (s² - w) / n, where s² is the variance among the n seeds' differences and w is what the
    sample of users alone makes of it, by the same bootstrap samples (none if s² < w). Resampling
    the seeds instead would make their part a third too small with three of them, and count w
    twice.

    As few seeds say little about their own variance, interval and p are of Student's t. Its degrees
    of freedom are Satterthwaite's, between the number of seeds less one (if all variance is from
    the seeds) and the number of users less one.

    Args:
        differences: float array of shape (seeds,). AUC less that of the base with the same seed;
            two seeds or more.
        resampled: float array of shape (seeds, replicates). The same on the bootstrap samples of
            the users.
        num_users: int. Two or more.

    Returns:
        `Difference`.

    Reference:
        - [Efron and Tibshirani, 1993](https://doi.org/10.1201/9780429246593), chapters 6 and 12:
          standard errors and t intervals by the bootstrap.
        - [Owen, 2007](https://doi.org/10.1214/07-AOAS122): resampling rows and columns of a table
          counts their interaction several times.
        - [Hesterberg, 2015](https://doi.org/10.1080/00031305.2015.1089789): percentile intervals of
          few values are too narrow.
        - [Satterthwaite, 1946](https://doi.org/10.2307/3002019): degrees of freedom of a sum of
          variances.
    """
    from scipy import stats

    mean, num_seeds = differences.mean(), len(differences)
    of_users = np.nanvar(resampled.mean(axis=0), ddof=1)
    of_seeds = differences.var(ddof=1)
    within = np.nanvar(resampled - resampled.mean(axis=0), axis=1, ddof=1).sum() / (num_seeds - 1)
    error = np.sqrt(of_users + max(0, of_seeds - within) / num_seeds)
    if error == 0:  # equal scores
        return Difference(mean, mean, mean, float(mean == 0))
    spread = of_users**2 / (num_users - 1) + (of_seeds / num_seeds) ** 2 / (num_seeds - 1)
    freedom = error**4 / spread
    margin = stats.t.ppf(0.975, freedom) * error
    p = 2 * stats.t.sf(abs(mean) / error, freedom)
    return Difference(mean, mean - margin, mean + margin, p)


def holm(p_values):
    """Holm's adjusted p values, which keep the chance of any false finding at the level.

    In increasing order, the k-th of m (from 0) is the greatest of the (m - i) p_i up to itself.

    Args:
        p_values: list of float. Those of all comparisons made together.

    Returns:
        list of float, at most 1, in the order of `p_values`.

    Reference:
        - [Holm, 1979](https://www.jstor.org/stable/4615733)
    """
    order = np.argsort(p_values)
    steps = np.arange(len(order), 0, -1) * np.asarray(p_values, float)[order]
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()
