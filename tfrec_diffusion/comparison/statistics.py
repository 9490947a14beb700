"""How the metrics of several seeds are summed up, and compared with others."""


def mean_and_deviation(values):
    """Mean ± sample standard deviation, with four decimals.

    Args:
        values: float array of shape (seeds,). Of one value, only the value is given.

    Returns:
        str.
    """
    deviation = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{deviation}"


def welch(values, base):
    """Two-sided p of Welch's t-test.

    Args:
        values: float array of shape (seeds,).
        base: float array of shape (seeds,).

    Returns:
        float, or `None` with fewer than two values of either.
    """
    from scipy import stats

    if min(len(values), len(base)) < 2:
        return None
    return float(stats.ttest_ind(values, base, equal_var=False).pvalue)
