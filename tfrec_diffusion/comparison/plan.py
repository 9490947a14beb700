"""Which rows are trained on which data sets: from a comparison file, or from a command line."""

import pathlib
import shlex
from typing import NamedTuple

from tfrec_diffusion.comparison import comparison_file
from tfrec_diffusion.comparison.claims import Claim, Contrast
from tfrec_diffusion.comparison.entry import DataSet, Entry
from tfrec_diffusion.comparison.run import file_name
from tfrec_diffusion.comparison.table import Figure, Table


class Plan(NamedTuple):
    """What a comparison trains, and what it makes of that.

    Args:
        entries: list of `Entry`, data set by data set.
        tables: list of `Table` of these entries.
        claims: list of `Claim` about these entries. Defaults to `()`.
    """

    entries: list[Entry]
    tables: list[Table]
    claims: list[Claim] = ()


def from_runs(runs, data_set, num_seeds, learning_rates=(), splits=("test",)):
    """The plan of a command line: each run is a row of the only table.

    Args:
        runs: list of str. As of `Run`.
        data_set: `DataSet`.
        num_seeds: int. Seeds from 0 on.
        learning_rates: list of str. To choose from. If empty, the learning rates are those of the
            flags. Defaults to `()`.
        splits: list of str. As of `Table`. Defaults to `("test",)`.

    Returns:
        `Plan`.
    """
    tune = _groups(learning_rates)
    entries = [Entry(run, run, data_set, num_seeds, tune) for run in dict.fromkeys(runs)]
    return Plan(entries, [Table("", entries, entries[0].row, [*splits], figure=Figure("bars"))])


def from_file(
    path,
    model_dir,
    num_seeds,
    flags=(),
    learning_rates=None,
    row_names=None,
    data_set_names=None,
    splits=("test",),
):
    """The plan of a comparison file.

    `experiments/comparison.json` shows a file of one table, which has all rows on all data sets,
    and `experiments/paper_tables.json` one of several tables and of claims.

    Args:
        path: str or `pathlib.Path`. The file.
        model_dir: str or `pathlib.Path`. Directory of the runs.
        num_seeds: int. Seeds from 0 on.
        flags: list of str. Flags of `tfrec_diffusion.train` for every run. Defaults to `()`.
        learning_rates: list of str or `None`. To choose from. If `None`, those of the file.
            Defaults to `None`.
        row_names: list of str or `None`. The rows to take, and with them the base of each of their
            tables. Tables and claims that are left without are left out. If `None`, all. Defaults
            to `None`.
        data_set_names: list of str or `None`. The data sets to take. If `None`, all. Defaults to
            `None`.
        splits: list of str. As of `Table`, for tables that do not say. Defaults to `("test",)`.

    Returns:
        `Plan`. Its entries are in the order of the file. Some may be in no table, but cluster or
        tune for others; they have seed 0 only.

    Raises:
        OSError: If there is no such file.
        ValueError: If there is no such row or data set, or the file lacks what a row needs.
    """
    file = comparison_file.read(path)
    row_names = _choose("rows", row_names, file.rows)
    data_set_names = _choose("datasets", data_set_names, file.data_sets)
    shown = {}
    for name in file.tables:
        cells = [
            (data_set, row)
            for data_set, row in file.cells(name)
            if data_set in data_set_names and row in {*row_names, file.base(name)}
        ]
        if {row for _, row in cells} & {*row_names}:
            shown[name] = cells
    if not shown:
        raise ValueError(f"{path} has no table with {row_names} on {data_set_names}")
    needed = {cell for cells in shown.values() for cell in cells}
    entries = {}
    for data_set in data_set_names:
        of_data_set = [row for other, row in needed if other == data_set]
        entries |= _entries(
            file, data_set, of_data_set, pathlib.Path(model_dir), num_seeds, flags, learning_rates
        )
    tables = [
        _table(file, name, [entries[cell] for cell in cells], splits)
        for name, cells in shown.items()
    ]
    shown_entries = {cell: entries[cell] for cell in needed}
    claims = [_claim(claim, shown_entries) for claim in file.claims]
    claims = [claim for claim in claims if claim.contrasts]
    return Plan([*entries.values()], tables, claims)


def _entries(file, name, shown, model_dir, num_seeds, flags, learning_rates):
    """The entries of rows on a data set, and before them those that they need, by place."""
    given = file.data_sets[name]
    if learning_rates is None:
        learning_rates = given.get("learning_rates", file.learning_rates)
    of_all = [*_groups(learning_rates), *given.get("tune", ())]
    needed = {*shown}
    for row in reversed(file.rows):
        if row in needed:
            needed |= {file.rows[row].get(how) for how in ("clustered_by", "tuned_as")}
    of_rows = {None: None}
    for row in filter(needed.__contains__, file.rows):
        says = file.rows[row]
        try:
            groups = says.get("tune", ())
            groups = [[setting.format(**given) for setting in group] for group in groups]
            of_rows[row] = Entry(
                row=row,
                run=says["run"].format(**given),
                data_set=DataSet(
                    name,
                    [*shlex.split(given["flags"]), *flags],
                    model_dir / file_name(name),
                    shlex.split(given["prepare"]) if "prepare" in given else None,
                ),
                # To cluster or tune for others, seed 0 will do.
                num_seeds=num_seeds if row in shown else 1,
                tune=groups if "tuned_as" in says else [*of_all, *groups],
                clustered_by=of_rows[says.get("clustered_by")],
                clustering=shlex.split(says.get("clustering", "").format(**given)),
                tuned_as=of_rows[says.get("tuned_as")],
            )
        except KeyError as missing:
            raise ValueError(
                f"{file.path}: {row} on {name} needs {missing}, which neither the data set nor a "
                "row above gives"
            ) from None
    return {(name, row): entry for row, entry in of_rows.items() if row is not None}


def _table(file, name, entries, splits):
    says = file.tables[name]
    return Table(
        name,
        entries,
        file.base(name),
        [*says.get("splits", splits)],
        says.get("caption", ""),
        Figure(**says["figure"]) if "figure" in says else None,
        says.get("speed", False),
    )


def _claim(claim, entries):
    """A claim with those of its contrasts whose entries are there."""

    def made(contrast):
        cells = ((contrast["data_set"], contrast[which]) for which in ("row", "against"))
        return Contrast(*(entries.get(cell) for cell in cells), contrast["split"])

    contrasts = [
        (made(contrast), made(minus) if minus else None)
        for contrast, minus in comparison_file.contrasts(claim)
    ]
    optional = {name: claim[name] for name in ("expected", "margin", "gap", "why") if name in claim}
    return Claim(
        claim["claim"],
        claim.get("paper", ""),
        [pair for pair in contrasts if None not in (*pair[0], *(pair[1] or ()))],
        **optional,
    )


def _groups(learning_rates):
    """What an entry is tuned by: the learning rates, as one group."""
    return [[f"--learning_rate={rate}" for rate in learning_rates]] if learning_rates else []


def _choose(flag, names, known):
    """Those of the known names that a flag gives, in their own order; `None`: all."""
    unknown = set(names or ()) - set(known)
    if unknown:
        raise ValueError(f"`{flag}` must be among {list(known)}. Received: {sorted(unknown)}")
    return [name for name in known if names is None or name in names]
