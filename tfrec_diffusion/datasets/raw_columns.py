"""Columns of raw files: their names and types, and how SQL names them in a loaded table."""

import duckdb

from tfrec_diffusion.datasets import csv_files
from tfrec_diffusion.datasets.sql import literal, quoted


def column(name):
    """SQL of a column of a loaded table.

    Args:
        name: str. Name of the column in the files.

    Returns:
        str.
    """
    # DuckDB has a `rowid` of its own.
    return quoted(f"{name} of the file" if name.lower() == "rowid" else name)


def is_parquet(path):
    """Whether a file is read as Parquet.

    Args:
        path: `pathlib.Path`. Path of the file.

    Returns:
        bool.
    """
    return path.suffix.lower() in (".parquet", ".pq")


def column_names(path, format_=csv_files.COMMAS):
    """Names of the columns of a file; of a CSV file they stand in its first line.

    Args:
        path: `pathlib.Path`. A `.parquet` file or a CSV file, plain or compressed.
        format_: `csv_files.Format`. How a CSV file is written. Defaults to commas and double
            quotes.

    Returns:
        list of str.

    Raises:
        ValueError: If the file is not of that format.
    """
    return list(parquet_types(path)) if is_parquet(path) else csv_files.header(path, format_)


def find_column(path, there, name, format_=None):
    """Finds a column, whose name may have blanks around it in the file.

    Args:
        path: `pathlib.Path`. The file, for the error.
        there: sequence of str. Names of its columns.
        name: str. Name of the column.
        format_: `csv_files.Format` or `None`. How a CSV file was read. Defaults to `None`.

    Returns:
        int, the position in `there`.

    Raises:
        ValueError: If there is none, or more than one.
    """
    for names in (list(there), [other.strip() for other in there]):
        if names.count(name) == 1:
            return names.index(name)
        if name in names:
            raise ValueError(f"{path} must have one column {name!r}. It has {names.count(name)}")
    listing = ", ".join(other or "(no name)" for other in there)
    raise ValueError(
        f"{path} must have a column {name!r}. It has: {listing}{hint(there, name, format_)}"
    )


def hint(there, name, format_=None):
    """What may be meant by a name that is not there.

    Args:
        there: sequence of str. Names that are there.
        name: str. The name.
        format_: `csv_files.Format` or `None`. How a CSV file was read. Defaults to `None`.

    Returns:
        str, a sentence after a period, or `""`.
    """
    for other in there:
        if other.strip().lower() == name.strip().lower():
            return f". There is {other!r}"
    if format_ and len(there) == 1:
        for delimiter in set(";\t|,") - {format_.delimiter}:
            if delimiter in there[0]:
                return f". Is {delimiter!r} the delimiter?"
    return ""


def parquet_types(path):
    """Types of the columns of a Parquet file.

    Args:
        path: `pathlib.Path`. Path of the file.

    Returns:
        dict of str by name.

    Raises:
        ValueError: If it is no Parquet file.
    """
    try:
        rows = duckdb.execute(f"DESCRIBE SELECT * FROM read_parquet({literal(path)})").fetchall()
    except duckdb.Error as error:
        raise ValueError(f"{path} must be a Parquet file: {str(error).splitlines()[0]}") from error
    return {name: kind for name, kind, *_ in rows}


def check_case(columns):
    """Checks that names differ not only in case, of which SQL takes no notice.

    Args:
        columns: iterable of str. Names.

    Raises:
        ValueError: If two do.
    """
    seen = {}
    for name in columns:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(f"columns must differ not only in case. Received: {other!r}, {name!r}")
