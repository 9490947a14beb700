"""Which rows are trained on which data sets: from a comparison file, or from a command line."""

import json
import pathlib
import shlex

from tfrec_diffusion.comparison.entry import DataSet, Entry
from tfrec_diffusion.comparison.run import file_name


def from_runs(runs, data_set, num_seeds, learning_rates=()):
    """Entries of a command line: each run is a row.

    Args:
        runs: list of str. As of `Run`.
        data_set: `DataSet`.
        num_seeds: int. Seeds from 0 on.
        learning_rates: list of str. To choose from. If empty, the learning rates are those of the
            flags. Defaults to `()`.

    Returns:
        list of `Entry`.
    """
    tune = _groups(learning_rates)
    return [Entry(run, run, data_set, num_seeds, tune) for run in dict.fromkeys(runs)]


def from_file(
    path, model_dir, num_seeds, flags=(), learning_rates=None, row_names=None, data_set_names=None
):
    """Entries of a comparison file, which `experiments/comparison.json` shows.

    Args:
        path: str or `pathlib.Path`. The file.
        model_dir: str or `pathlib.Path`. Directory of the runs.
        num_seeds: int. Seeds from 0 on.
        flags: list of str. Flags of `tfrec_diffusion.train` for every run. Defaults to `()`.
        learning_rates: list of str or `None`. To choose from. If `None`, those of the file.
            Defaults to `None`.
        row_names: list of str or `None`. The rows to take; the first of the file is always there.
            If `None`, all. Defaults to `None`.
        data_set_names: list of str or `None`. The data sets to take. If `None`, all. Defaults to
            `None`.

    Returns:
        list of `Entry`, data set by data set in the order of the file. Rows that are only there to
        cluster for others are not `shown`.

    Raises:
        OSError: If there is no such file.
        ValueError: If there is no such row or data set, or the file lacks what a row needs.
    """
    try:
        comparison = json.loads(pathlib.Path(path).read_text())
        rows, data_sets = comparison["rows"], comparison["data_sets"]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    except KeyError as missing:
        raise ValueError(f"{path} needs {missing}") from None
    if not rows or not data_sets:
        raise ValueError(f"{path} needs a row and a data set")
    if learning_rates is None:
        learning_rates = comparison.get("learning_rates", ())
    for row in rows:
        _check_groups(f"{path}: `tune` of {row}", rows[row].get("tune", []))
    shown = {next(iter(rows)), *_choose("rows", row_names, rows)}
    needed = shown | {rows[row].get("clustered_by") for row in shown}
    entries = []
    for name in _choose("datasets", data_set_names, data_sets):
        of_data_set = {None: None}
        for row in filter(needed.__contains__, rows):
            try:
                of_data_set[row] = Entry(
                    row=row,
                    run=rows[row]["run"].format(**data_sets[name]),
                    data_set=DataSet(
                        name,
                        [*shlex.split(data_sets[name]["flags"]), *flags],
                        pathlib.Path(model_dir, file_name(name)),
                    ),
                    # To cluster, seed 0 will do.
                    num_seeds=num_seeds if row in shown else 1,
                    tune=[
                        *_groups(learning_rates),
                        *(
                            [setting.format(**data_sets[name]) for setting in group]
                            for group in rows[row].get("tune", ())
                        ),
                    ],
                    clustered_by=of_data_set[rows[row].get("clustered_by")],
                    clustering=shlex.split(
                        rows[row].get("clustering", "").format(**data_sets[name])
                    ),
                    shown=row in shown,
                )
            except KeyError as missing:
                raise ValueError(
                    f"{path}: {row} on {name} needs {missing}, which neither the data set nor a "
                    "row above gives"
                ) from None
        entries += list(of_data_set.values())[1:]
    return entries


def _groups(learning_rates):
    """What an entry is tuned by: the learning rates, as one group."""
    return [[f"--learning_rate={rate}" for rate in learning_rates]] if learning_rates else []


def _check_groups(what, groups):
    if not isinstance(groups, list) or not all(
        isinstance(group, list) and group and all(isinstance(setting, str) for setting in group)
        for group in groups
    ):
        raise ValueError(f"{what} must be a list of lists of strings. Received: {groups}")


def _choose(flag, names, known):
    """Those of the known names that a flag gives, in their own order; `None`: all."""
    unknown = set(names or ()) - set(known)
    if unknown:
        raise ValueError(f"`{flag}` must be among {list(known)}. Received: {sorted(unknown)}")
    return [name for name in known if names is None or name in names]
