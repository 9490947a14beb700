"""A comparison file: its rows, data sets, tables and claims, checked."""

import itertools
import json
import pathlib
from typing import NamedTuple

from tfrec_diffusion.comparison.claims import EXPECTED
from tfrec_diffusion.comparison.picture import KINDS
from tfrec_diffusion.comparison.table import Figure

_TABLE = ("base", "splits", "caption", "figure", "speed")
_CLAIM = ("paper", "split", "expected", "margin", "minus", "gap", "why")
_MINUS = ("row", "against", "data_set", "split")


class ComparisonFile(NamedTuple):
    """What a comparison file says.

    Args:
        path: str or `pathlib.Path`. The file.
        rows: dict by name of dicts, as in the file.
        data_sets: dict by name of dicts, as in the file.
        tables: dict by name of dicts, as in the file; without any, one of all rows on all data
            sets, named `""`.
        claims: list of dicts, as in the file.
        learning_rates: list of float. To choose from on data sets that do not say.
    """

    path: str | pathlib.Path
    rows: dict
    data_sets: dict
    tables: dict
    claims: list
    learning_rates: list

    def base(self, table):
        """The row that the others of a table are compared with.

        Args:
            table: str. Its name.

        Returns:
            str.
        """
        return self.tables[table].get("base", self.tables[table]["rows"][0])

    def cells(self, table):
        """Which rows a table has on which data sets.

        A row may be of some data sets only.

        Args:
            table: str. Its name.

        Returns:
            list of pairs of a data set and a row, data set by data set.
        """
        return [
            (data_set, row)
            for data_set in self.tables[table]["data_sets"]
            for row in self.tables[table]["rows"]
            if data_set in self.rows[row].get("data_sets", self.data_sets)
        ]


def read(path):
    """Reads a comparison file.

    Args:
        path: str or `pathlib.Path`. The file.

    Returns:
        `ComparisonFile`.

    Raises:
        OSError: If there is no such file.
        ValueError: If it lacks something, or has something that means nothing.
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
    every = {"rows": [*rows], "data_sets": [*data_sets], "figure": {"kind": "bars"}}
    file = ComparisonFile(
        path,
        rows,
        data_sets,
        comparison.get("tables", {"": every}),
        comparison.get("claims", []),
        comparison.get("learning_rates", []),
    )
    for name, says in [*rows.items(), *data_sets.items()]:
        _check_groups(f"{path}: `tune` of {name}", says.get("tune", []))
    for name, row in rows.items():
        _check_names(f"{path}: `data_sets` of {name}", row.get("data_sets", []), data_sets)
    for name in file.tables:
        _check_table(file, name)
    cells = {cell for name in file.tables for cell in file.cells(name)}
    for claim in file.claims:
        _check_claim(file, claim, cells)
    return file


def contrasts(claim):
    """The differences that a claim is about, one on each of its data sets.

    Args:
        claim: dict, as in the file.

    Yields:
        Pairs of dicts of `row`, `against`, `data_set` and `split`: the difference, and the one that
        is taken off, or `None`.
    """
    for data_set in claim["data_sets"]:
        contrast = {
            "row": claim["row"],
            "against": claim["against"],
            "data_set": data_set,
            "split": claim.get("split", "test"),
        }
        yield contrast, {**contrast, **claim["minus"]} if "minus" in claim else None


def _check_groups(what, groups):
    if not isinstance(groups, list) or not all(
        isinstance(group, list) and group and all(isinstance(setting, str) for setting in group)
        for group in groups
    ):
        raise ValueError(f"{what} must be a list of lists of strings. Received: {groups}")


def _check_table(file, name):
    what, table = f"{file.path}: table {name}", file.tables[name]
    _check_keys(what, table, ("rows", "data_sets"), _TABLE)
    _check_names(f"`rows` of {what}", table["rows"], file.rows)
    _check_names(f"`data_sets` of {what}", table["data_sets"], file.data_sets)
    _check_names(f"`base` of {what}", [file.base(name)], table["rows"])
    for data_set in table["data_sets"]:
        if (data_set, file.base(name)) not in file.cells(name):
            raise ValueError(f"{what} has no {file.base(name)} on {data_set} to compare with")
    figure = table.get("figure")
    if figure:
        _check_keys(f"`figure` of {what}", figure, ("kind",), Figure._fields[1:])
        _check_names(f"`kind` of the figure of {what}", [figure["kind"]], KINDS)
        numbered = {"line": "rows", "data_sets": "data_sets"}.get(figure["kind"])
        if numbered:
            _check_names(f"`{numbered}` of {what}", table[numbered], figure.get("points", ()))


def _check_claim(file, claim, cells):
    what = f"{file.path}: claim {claim.get('claim')}"
    _check_keys(what, claim, ("claim", "row", "against", "data_sets"), _CLAIM)
    _check_keys(f"`minus` of {what}", claim.get("minus", {}), (), _MINUS)
    _check_names(f"`expected` of {what}", [claim.get("expected", "above")], EXPECTED)
    if claim.get("expected") == "equal within" and claim.get("margin", 0) <= 0:
        raise ValueError(f"{what} needs a `margin` above 0. Received: {claim.get('margin')}")
    for contrast in filter(None, itertools.chain(*contrasts(claim))):
        for row in (contrast["row"], contrast["against"]):
            if (contrast["data_set"], row) not in cells:
                raise ValueError(f"{what} needs a table with {row} on {contrast['data_set']}")


def _check_keys(what, found, needed, allowed):
    if set(needed) - set(found) or set(found) - {*needed, *allowed}:
        raise ValueError(
            f"{what} must have {list(needed)} and may have {list(allowed)}. "
            f"Received: {sorted(found)}"
        )


def _check_names(what, names, known):
    unknown = set(names) - set(known)
    if unknown:
        raise ValueError(f"{what} must be among {list(known)}. Received: {sorted(unknown)}")
