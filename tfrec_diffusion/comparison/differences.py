"""How far the rows of a table are from its first row, by the predictions that their runs keep."""

import functools
import hashlib
from typing import NamedTuple

import numpy as np

from tfrec_diffusion import metrics
from tfrec_diffusion.comparison import statistics
from tfrec_diffusion.training.run_directory import RunDirectory


class _Evaluated(NamedTuple):
    """A run on a split: its AUC, also on resampled users, and who these are."""

    auc: float
    resampled: np.ndarray
    num_users: int
    digest: str


def differences(entries, split):
    """How far the entries' AUCs are from the first one's, with p adjusted by Holm.

    Args:
        entries: list of `Entry`. Those of a table.
        split: str.

    Returns:
        list of `Difference` or `None`, one for each entry. `None` of the first, and where it and
        the first have not two seeds in common whose predictions are there.

    Raises:
        ValueError: If two runs were evaluated on other users or labels.
    """
    base, *others = entries
    found = [_difference(entry, base, split) for entry in others]
    adjusted = iter(statistics.holm([one.p for one in found if one]))
    return [None, *(one and one._replace(p=next(adjusted)) for one in found)]


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


def _difference(entry, base, split):
    pairs = []
    for runs in zip(entry.of_seeds(), base.of_seeds(), strict=False):
        row, of_base = (_evaluated(run, split) for run in runs)
        if row and of_base:
            if row.digest != of_base.digest:
                raise ValueError(
                    f"{runs[0].directory} and {runs[1].directory} cannot be compared: their "
                    f"{split} splits have other users or labels"
                )
            pairs.append((row, of_base))
    measured = np.array([row.auc - of_base.auc for row, of_base in pairs])
    if len(pairs) < 2 or np.isnan(measured).any():
        return None
    resampled = np.array([row.resampled - of_base.resampled for row, of_base in pairs])
    return statistics.difference(measured, resampled, pairs[0][0].num_users)


def _evaluated(run, split):
    file = RunDirectory(run.directory).predictions_file(split)
    if not run.is_finished or not file.exists():
        return None
    return _evaluate(run.directory, split, file.stat().st_mtime_ns)


@functools.cache  # it is asked for after every training
def _evaluate(directory, split, modified):
    probabilities, labels, groups = RunDirectory(directory).predictions(split)
    auc = metrics.auc(labels, probabilities)
    # On several machines, a split comes in another order.
    users, user = np.unique(groups, return_inverse=True)
    rows = np.stack([users, np.bincount(user), np.bincount(user, labels).astype(np.int64)])
    digest = hashlib.sha256(rows.tobytes()).hexdigest()
    resampled = statistics.resampled_aucs(probabilities, labels, groups)
    return _Evaluated(auc, resampled, len(users), digest)
