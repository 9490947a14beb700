"""Loads the first rows of raw tables as text, to see what their columns are."""

import contextlib
from typing import NamedTuple

from tfrec_diffusion.datasets import places, raw_columns, sql_lists, sql_values
from tfrec_diffusion.datasets.sql import literal, quoted
from tfrec_diffusion.drafting import raw_tables

# How much of a table is looked at, and how many of its files.
ROWS = 100_000
_BYTES = 1 << 27
_FILES = 10
# Between the values of a list that stood in a Parquet file.
OF_PARQUET = "\x01"
# Share of bad lines that makes one look for the reason.
_BAD = 0.01


class Sample(NamedTuple):
    """The first rows of some files of a table, loaded as text.

    Args:
        name: str. Name of the loaded table.
        table: `raw_tables.RawTable`. Where they are from.
        rows: int. How many there are.
        whole: bool. Whether these are all rows of the table.
    """

    name: str
    table: raw_tables.RawTable
    rows: int
    whole: bool


def load(database, report, scratch, table, name):
    """Loads a sample of a table.

    Missing values are NULL, and lists are texts.

    Args:
        database: `tables.Database`. Gets the sample.
        report: `report.Report`. That of `database`.
        scratch: `pathlib.Path`. Directory for copies of lines, which are removed.
        table: `raw_tables.RawTable`. The table.
        name: str. Name for the sample.

    Returns:
        `Sample`. Its table has no quotes if more lines can be read so, and notes what cannot.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a file is not of its format, or has no rows.
    """
    sample, bad = _load(database, report, scratch, table, name)
    if sum(bad.values()) > _BAD * sample.rows:
        plain = table._replace(format=table.format._replace(quote=""))
        other, others_bad = _load(database, report, scratch, plain, f"{name}_plain")
        if other.rows > sample.rows:
            sample, bad = other, others_bad
    if not sample.rows:
        raise ValueError("has no rows that can be read")
    share = sum(bad.values()) / (sum(bad.values()) + sample.rows)
    if share > _BAD:
        note = f"{share:.0%} of the lines cannot be read: {', '.join(bad)}."
        notes = (*sample.table.notes, note)
        sample = sample._replace(table=sample.table._replace(notes=notes))
    return sample


def _load(database, report, scratch, table, name):
    """A `Sample`, and how many lines cannot be read by reason."""
    paths = table.paths[:: max(1, len(table.paths) // _FILES)]
    whole, selects, bad = len(paths) == len(table.paths), [], {}
    columns = ", ".join(map(raw_columns.column, table.columns))
    for i, path in enumerate(paths):
        part, most = f"{name}_{i}", ROWS // len(paths)
        if raw_columns.is_parquet(path):
            complete = _load_parquet(database, table, path, part, most)
        else:
            complete = _load_csv(database, table, path, part, scratch, most, _BYTES // len(paths))
            dropped = report.get_config()["sources"].get(part, {"dropped": {}})["dropped"]
            for reason, drop in dropped.items():
                if reason != places.BLANK:
                    bad[reason] = bad.get(reason, 0) + drop["rows"]
        whole = whole and complete
        selects.append(f"SELECT {columns} FROM {part}")
    database.execute(f"CREATE TABLE {name} AS {' UNION ALL '.join(selects)}")
    for i in range(len(paths)):
        database.execute(f"DROP TABLE {name}_{i}")
    ((rows,),) = database.execute(f"SELECT count(*) FROM {name}")
    return Sample(name, table, rows, whole), bad


def _load_csv(database, table, path, name, scratch, most, size):
    """Loads the first lines of a CSV file; returns whether they are all."""
    lines, complete = raw_tables.first_lines(path, most + 1, size)
    copy = scratch / f"{name}.csv"
    with contextlib.ExitStack() as stack:
        stack.callback(copy.unlink, missing_ok=True)
        copy.write_bytes(b"".join(lines))
        database.load(
            name,
            [copy],
            dict.fromkeys(table.columns, "VARCHAR"),
            format_=table.format,
            nulls=dict.fromkeys(table.columns, sql_values.NULLS),
        )
    return complete


def _load_parquet(database, table, path, name, most):
    """Loads the first rows of a Parquet file; returns whether they are all."""
    types = raw_columns.parquet_types(path)
    missing = ", ".join(map(literal, ("", *sql_values.NULLS)))
    values = []
    for column in table.columns:
        there = list(types)[raw_columns.find_column(path, types, column)]
        value = f"{quoted(there)}::VARCHAR"
        if sql_lists.value_type(types[there]):
            value = f"array_to_string({quoted(there)}::VARCHAR[], {literal(OF_PARQUET)})"
        values.append(
            f"CASE WHEN {value} NOT IN ({missing}) THEN {value} END AS {raw_columns.column(column)}"
        )
    rows = f"read_parquet({literal(path)})"
    database.execute(f"CREATE TABLE {name} AS SELECT {', '.join(values)} FROM {rows} LIMIT {most}")
    ((count,),) = database.execute(f"SELECT count(*) FROM {rows}")
    return count <= most
