"""A row on a data set: which runs it takes, in which order, and what has come out so far."""

import dataclasses
import itertools
import pathlib
from typing import NamedTuple

from tfrec_diffusion.comparison.clustering import Clustering
from tfrec_diffusion.comparison.run import Run
from tfrec_diffusion.metrics import best


class DataSet(NamedTuple):
    """A data set of a comparison.

    Args:
        name: str. Its name in the tables.
        flags: list of str. Flags of `tfrec_diffusion.train` for every run on it.
        directory: `pathlib.Path`. Where its runs are.
        options: list of str or `None`. Options that it is prepared with where it is missing, as
            `name=value`; it makes its own raw files. If `None`, it has to be there, or is made with
            the defaults. Defaults to `None`.
    """

    name: str
    flags: list[str]
    directory: pathlib.Path
    options: list[str] | None = None


class Entry:
    """A row on a data set.

    It is tuned by one group of alternatives after the other: each alternative is tried with seed 0
    beside the best of the groups before, and that with the best AUC on the validation split stays.
    What is left in the end is trained with all seeds.

    Args:
        row: str. Name of the row.
        run: str. As of `Run`.
        data_set: `DataSet`.
        num_seeds: int. Seeds from 0 on.
        tune: list of lists of str. Groups of alternatives; each is what `Run.having` adds, and an
            empty one the row as it stands. Defaults to `()`.
        clustered_by: `Entry` or `None`. The entry whose model clusters the data set first. If
            `None`, it is not clustered. Defaults to `None`.
        clustering: list of str. Flags of `tfrec_diffusion.prepare` for that. Defaults to `()`.
        tuned_as: `Entry` or `None`. The entry whose chosen settings it takes. If `None`, it has its
            own. Defaults to `None`.
    """

    def __init__(
        self,
        row,
        run,
        data_set,
        num_seeds,
        tune=(),
        clustered_by=None,
        clustering=(),
        tuned_as=None,
    ):
        self.row = row
        self.run = run
        self.data_set = data_set
        self.num_seeds = num_seeds
        self.tune = tune
        self.clustered_by = clustered_by
        self.clustering = clustering
        self.tuned_as = tuned_as
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
        return self.tried()

    def tried(self):
        """The runs with seed 0 that the tuning takes, as far as they are known yet.

        Returns:
            list of `Run`. Empty before the data set is clustered.
        """
        first = self._first()
        return _tuned(first, self.tune, _best)[0] if first else []

    def unclustered(self):
        """A run of every setting to try, on the data set as it is before it is clustered.

        Returns:
            list of `Run`.
        """
        run = self._unclustered()
        return [run.having(setting) for group in self.tune for setting in group] or [run]

    def _unclustered(self):
        return Run(self.run, 0, self.data_set.flags, self.data_set.directory)

    def _first(self):
        run = self._unclustered()
        if self.clustered_by:
            clustering = self._clustering()
            if not clustering or not clustering.is_finished:
                return None
            flags = [*self.data_set.flags, *clustering.train_flags]
            run = Run(self.run, 0, flags, clustering.directory)
        if self.tuned_as:
            return run.having(self.tuned_as.chosen()) if self.tuned_as.best() else None
        return run

    def _clustering(self):
        best = self.clustered_by and self.clustered_by.best()
        return Clustering(best, self.clustering) if best and best.is_finished else None

    def of_seeds(self):
        """The run of each seed.

        Returns:
            list of `Run`. Empty before the settings are chosen.
        """
        best = self.best()
        if not best:
            return []
        return [dataclasses.replace(best, seed=seed) for seed in range(self.num_seeds)]

    @property
    def num_tried(self):
        """int. Runs with seed 0 from the first to the last."""
        # As many whatever is chosen.
        return len(_tuned(self._unclustered(), self.tune, lambda runs: runs[0])[0])

    @property
    def num_runs(self):
        """int. Runs from the first to the last."""
        return self.num_tried + self.num_seeds - 1

    # What has come out

    def best(self):
        """The run with seed 0 of the settings that are taken.

        Returns:
            `Run`, finished or not if there was nothing to choose. `None` before all that it is
            chosen from are finished.
        """
        first = self._first()
        return _tuned(first, self.tune, _best)[1] if first else None

    def chosen(self):
        """str. The settings that tuning has chosen, here or for `tuned_as`; empty if none yet."""
        best = self.best()
        return best.run.removeprefix(self.run).strip() if best else ""

    def finished(self):
        """list of those of its `Run`s that are finished."""
        return [run for run in (*self.tried(), *self.of_seeds()[1:]) if run.is_finished]

    def results(self):
        """list of dicts: metrics by split of each seed that is finished."""
        return [run.metrics["splits"] for run in self.of_seeds() if run.is_finished]

    def results_on(self, split):
        """Metrics of each seed that is finished and was evaluated on a split.

        Args:
            split: str.

        Returns:
            list of dicts.
        """
        return [result[split] for result in self.results() if split in result]

    def oracles(self, split):
        """What is known of a split, as far as a finished run tells.

        Args:
            split: str.

        Returns:
            dict of metrics by name: of the true click probabilities, `"best reachable"`, and of
            best estimates, `"oracle: <name>"`.
        """
        for run in self.finished():
            best = run.metrics.get("best_reachable", {}).get(split)
            oracles = run.metrics.get("oracles", {}).get(split) or {}
            if best or oracles:
                named = {f"oracle: {name}": known for name, known in oracles.items()}
                return {**({"best reachable": best} if best else {}), **named}
        return {}

    def missing(self):
        """What the tables still lack of it.

        Returns:
            str. Empty if nothing.
        """
        if self.failed:
            return "failed"
        if self.num_tried > 1 and not self.best():
            return f"{len(self.finished())} of {self.num_tried} settings"
        finished = len(self.results())
        return f"{finished} of {self.num_seeds} seeds" if finished < self.num_seeds else ""


def _tuned(run, groups, choose):
    """The runs that tuning takes, and the one that it ends with.

    `choose` takes the runs of a group, and returns one of them, or `None` if that cannot be told
    yet; then the groups behind it are left out.
    """
    tried = []
    for group in groups:
        runs = [run.having(setting) for setting in group]
        if len(runs) > 1:
            tried += [run for run in runs if run not in tried]
        run = choose(runs)
        if run is None:
            return tried, None
    return (tried if run in tried else [*tried, run]), run


def _best(runs):
    if len(runs) > 1:
        if not all(run.is_finished for run in runs):
            return None
        return runs[best([run.metrics["splits"]["validation"] for run in runs])]
    return runs[0]


def by_data_set(entries):
    """Yields the entries of each data set.

    Args:
        entries: list of `Entry`, data set by data set.

    Yields:
        list of `Entry`.
    """
    for _, of_data_set in itertools.groupby(entries, lambda entry: entry.data_set.name):
        yield list(of_data_set)
