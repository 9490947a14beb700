"""A row on a data set: which runs it takes, in which order, and what has come out so far."""

import dataclasses
import itertools
import pathlib
from typing import NamedTuple

from tfrec_diffusion.comparison.clustering import Clustering
from tfrec_diffusion.comparison.run import Run
from tfrec_diffusion.metrics import comparable


class DataSet(NamedTuple):
    """A data set of a comparison.

    Args:
        name: str. Its name in the tables.
        flags: list of str. Flags of `tfrec_diffusion.train` for every run on it.
        directory: `pathlib.Path`. Where its runs are.
    """

    name: str
    flags: list[str]
    directory: pathlib.Path


class Entry:
    """A row on a data set.

    Each learning rate is tried with seed 0; that with the best AUC on the validation split is taken
    for all seeds.

    Args:
        row: str. Name of the row.
        run: str. As of `Run`.
        data_set: `DataSet`.
        num_seeds: int. Seeds from 0 on.
        learning_rates: list of str. To choose from. If empty, the learning rate is that of the
            flags. Defaults to `()`.
        clustered_by: `Entry` or `None`. The entry whose model clusters the data set first. If
            `None`, it is not clustered. Defaults to `None`.
        clustering: list of str. Flags of `tfrec_diffusion.prepare` for that. Defaults to `()`.
        shown: bool. Whether it is in the tables, and not only there to cluster. Defaults to `True`.
    """

    def __init__(
        self,
        row,
        run,
        data_set,
        num_seeds,
        learning_rates=(),
        clustered_by=None,
        clustering=(),
        shown=True,
    ):
        self.row = row
        self.run = run
        self.data_set = data_set
        self.num_seeds = num_seeds
        self.learning_rates = learning_rates
        self.clustered_by = clustered_by
        self.clustering = clustering
        self.shown = shown
        self.failed = False

    # What there is to run

    def tasks(self, seed):
        """What has to be run for a seed, as far as it is known yet.

        Args:
            seed: int.

        Returns:
            list of `Run`, of the `Clustering` before them, or empty as long as others go first.
        """
        if seed:
            return self.of_seeds()[seed : seed + 1]
        clustering = self._clustering()
        if clustering and not clustering.is_finished:
            return [clustering]
        return self.of_learning_rates()

    def of_learning_rates(self):
        """The run with seed 0 of each learning rate.

        Returns:
            list of `Run`. Empty before the data set is clustered.
        """
        if not self.clustered_by:
            return self.unclustered()
        clustering = self._clustering()
        if not clustering or not clustering.is_finished:
            return []
        flags = [*self.data_set.flags, *clustering.train_flags]
        return self._runs(flags, clustering.directory)

    def unclustered(self):
        """As `of_learning_rates`, on the data set as it is before it is clustered."""
        return self._runs(self.data_set.flags, self.data_set.directory)

    def _runs(self, flags, directory):
        rates = self.learning_rates or (None,)
        return [Run(self.run, 0, flags, directory, rate) for rate in rates]

    def _clustering(self):
        best = self.clustered_by and self.clustered_by.best()
        return Clustering(best, self.clustering) if best and best.is_finished else None

    def of_seeds(self):
        """The run of each seed.

        Returns:
            list of `Run`. Empty before the learning rate is chosen.
        """
        best = self.best()
        if not best:
            return []
        return [dataclasses.replace(best, seed=seed) for seed in range(self.num_seeds)]

    @property
    def num_runs(self):
        """int. Runs from the first to the last."""
        return max(1, len(self.learning_rates)) + self.num_seeds - 1

    # What has come out

    def best(self):
        """The run with seed 0 of the learning rate that is taken.

        Returns:
            `Run`. The one with the best validation AUC, or the only one, finished or not. `None`
            before all have been tried.
        """
        runs = self.of_learning_rates()
        if len(runs) == 1:
            return runs[0]
        if not runs or not all(run.is_finished for run in runs):
            return None
        aucs = {run.learning_rate: run.validation_auc for run in runs}
        return max(runs, key=lambda run: comparable(aucs[run.learning_rate]))

    def finished(self):
        """list of those of its `Run`s that are finished."""
        return [run for run in (*self.of_learning_rates(), *self.of_seeds()[1:]) if run.is_finished]

    def results(self):
        """list of dicts: metrics by split of each seed that is finished."""
        return [run.metrics["splits"] for run in self.of_seeds() if run.is_finished]

    def missing(self):
        """What the tables still lack of it.

        Returns:
            str. Empty if nothing.
        """
        if self.failed:
            return "failed"
        if len(self.learning_rates) > 1 and not self.best():
            return f"{len(self.finished())} of {len(self.learning_rates)} learning rates"
        finished = len(self.results())
        return f"{finished} of {self.num_seeds} seeds" if finished < self.num_seeds else ""


def by_data_set(entries):
    """Yields the entries of each data set.

    Args:
        entries: list of `Entry`, data set by data set.

    Yields:
        list of `Entry`.
    """
    for _, of_data_set in itertools.groupby(entries, lambda entry: entry.data_set.name):
        yield list(of_data_set)
