"""How far rows are from each other, by the predictions that their runs keep."""

import functools
import hashlib
from typing import NamedTuple

import numpy as np

from tfrec_diffusion import metrics
from tfrec_diffusion.comparison import statistics
from tfrec_diffusion.training.run_directory import RunDirectory


class Measured(NamedTuple):
    """An AUC, or a difference of some, also on resampled users.

    Args:
        auc: float.
        resampled: float array of shape (replicates,).
        num_users: int. The users of the split; the fewer ones where there are two.
        digest: str. Of users and labels. Empty where there are two.
    """

    auc: float
    resampled: np.ndarray
    num_users: int
    digest: str = ""

    def __sub__(self, other):
        """Their difference.

        Args:
            other: `Measured`. On the same users, it has the same samples of them. On as many other
                users, it has as if each user were paired with one of them, and on more or fewer
                users samples of its own: both leave independent variances to add up.

        Returns:
            `Measured`.
        """
        return Measured(
            self.auc - other.auc,
            self.resampled - other.resampled,
            min(self.num_users, other.num_users),
        )


def differences(entries, base, split):
    """How far the entries' AUCs are from that of a base, with p adjusted by Holm.

    Args:
        entries: list of `Entry`. Those of a table.
        base: `Entry`. One of them.
        split: str.

    Returns:
        list of `Difference` or `None`, one for each entry. `None` of the base, and where an entry
        and the base have not two seeds in common whose predictions are there.

    Raises:
        ValueError: If two runs were evaluated on other users or labels.
    """
    found = [
        None if entry is base else summary(measured(entry, base, split).values())
        for entry in entries
    ]
    adjusted = iter(statistics.holm([one.p for one in found if one]))
    return [one and one._replace(p=next(adjusted)) for one in found]


def measured(entry, base, split):
    """The difference in AUC between two entries, of each seed.

    Args:
        entry: `Entry`.
        base: `Entry`. It is trained on the same data set.
        split: str.

    Returns:
        dict of `Measured` by seed, of those that both have finished with predictions.

    Raises:
        ValueError: As `differences`.
    """
    found = {}
    for runs in zip(entry.of_seeds(), base.of_seeds(), strict=False):
        row, of_base = (_evaluated(run, split) for run in runs)
        if row and of_base:
            if row.digest != of_base.digest:
                raise ValueError(
                    f"{runs[0].directory} and {runs[1].directory} cannot be compared: their "
                    f"{split} splits have other users or labels"
                )
            found[runs[0].seed] = row - of_base
    return found


def summary(seeds, less=0.0):
    """How sure a difference is that was measured with several seeds.

    Args:
        seeds: iterable of `Measured`.
        less: float. What is taken off, so that p is that of a difference of `less`. Defaults to
            `0.0`.

    Returns:
        `Difference`, or `None` of fewer than two seeds or where an AUC is undefined.
    """
    seeds = list(seeds)
    aucs = np.array([one.auc for one in seeds])
    if len(seeds) < 2 or np.isnan(aucs).any():
        return None
    resampled = np.array([one.resampled for one in seeds])
    return statistics.difference(aucs - less, resampled - less, seeds[0].num_users)


def lacking(entries, split):
    """The runs that were evaluated on a split and whose predictions are missing.

    Args:
        entries: list of `Entry`.
        split: str.

    Returns:
        list of `Run`.
    """
    return [
        run
        for entry in entries
        for run in entry.of_seeds()
        if run.is_finished
        and split in run.metrics["splits"]
        and not RunDirectory(run.directory).predictions_file(split).exists()
    ]


def _evaluated(run, split):
    file = RunDirectory(run.directory).predictions_file(split)
    if not run.is_finished or not file.exists():
        return None
    return _evaluate(run.directory, split, file.stat().st_mtime_ns)


@functools.cache  # it is asked for after every training
def _evaluate(directory, split, modified):
    probabilities, labels, groups, weights = RunDirectory(directory).predictions(split)
    auc = metrics.auc(labels, probabilities, weights)
    # On several machines, a split comes in another order.
    users, user = np.unique(groups, return_inverse=True)
    rows = np.stack([users, np.bincount(user), np.bincount(user, labels).astype(np.int64)])
    digest = hashlib.sha256(rows.tobytes()).hexdigest()
    resampled = statistics.resampled_aucs(probabilities, labels, groups, weights)
    return Measured(auc, resampled, len(users), digest)
