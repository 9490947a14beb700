"""Reads, joins and sorts raw tables with DuckDB on disk, so that they may be larger than memory."""

import concurrent.futures
import contextlib
import glob
import os
import pathlib
import shutil
import tempfile
from fractions import Fraction
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from pyarrow import parquet

from tfrec_diffusion.datasets import csv_files, loading, text_files
from tfrec_diffusion.datasets.raw_columns import column as column
from tfrec_diffusion.datasets.raw_columns import column_names as column_names
from tfrec_diffusion.datasets.sql import literal as literal
from tfrec_diffusion.datasets.sql import quoted as quoted

# How much DuckDB holds in memory before it writes to temporary files.
MEMORY_LIMIT = "4GB"
# Length of a chunk of a streamed result, in DuckDB's vectors of 2048 rows.
_VECTORS_PER_CHUNK = 64

SQL_TYPES = {"int64": "BIGINT", "string": "VARCHAR", "float32": "FLOAT"}
MISSING = {"BIGINT": "-1", "VARCHAR": "''", "FLOAT": "'nan'::FLOAT"}

# `Database.moments` makes numbers integers, the largest the first of these. A variance that is less
# than the second, relative to the largest number, is none.
_UNIT, _LEAST_VARIANCE = 2**40, 2.0**-40
# How many characters of a dropped row the report shows.
_SHOWN = 200


class Counts(NamedTuple):
    """Values of a column, and how often they occur.

    Args:
        values: array of shape (n,). Distinct values, ascending.
        counts: int64 array of shape (n,). How often each occurs.
        total: int. How often all values occur, also those that are not among `values`.
        last: int array of shape (n,). The greatest of an integer that comes with each.
    """

    values: np.ndarray
    counts: np.ndarray
    total: int
    last: np.ndarray


def find_files(root, pattern):
    """Finds the files that match a pattern.

    Args:
        root: str or `pathlib.Path`. Directory in which to look.
        pattern: str. Glob pattern relative to `root`, or of absolute paths.

    Returns:
        list of `pathlib.Path`, in the order of their names.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If they are not on a disk of this machine.
    """
    text_files.check_is_local("`raw_dir`", root)
    text_files.check_is_local("files", pattern)
    root = pathlib.Path(root)
    found = glob.glob(os.path.join(glob.escape(os.fspath(root)), pattern), recursive=True)
    paths = sorted(path for path in map(pathlib.Path, found) if path.is_file())
    if not paths:
        there = ", ".join(sorted(path.name for path in root.glob("*"))[:10]) or "nothing"
        raise FileNotFoundError(f"{root} must hold a file {pattern!r}. It holds: {there}")
    return paths


def read(path):
    """Reads a Parquet file that `Database.cut` has written.

    Args:
        path: `pathlib.Path`. The file.

    Returns:
        dict of arrays by column name, as `Database.chunks` yields them. A column of lists, all of
        one length, is an array of shape (rows, length).
    """
    with parquet.ParquetFile(path) as file:
        columns = file.read(use_threads=False)
    return {name: _column(columns[name]) for name in columns.column_names}


class Database:
    """A DuckDB database in a directory of its own, which is removed when the `with` block ends.

    Args:
        scratch: `pathlib.Path`. Directory in which that directory is made, on a disk with room for
            twice the raw data.
        report: `report.Report`. Counts the rows that are read and dropped.

    Attributes:
        part_rows: int. About how many rows a part of `cut` has; a part is longer where a single key
            has more rows.
    """

    part_rows = 1 << 18

    def __init__(self, scratch, report):
        self._scratch = scratch
        self._report = report

    def __enter__(self):
        self._directory = tempfile.mkdtemp(prefix="duckdb_", dir=self._scratch)
        self._connection = duckdb.connect(
            f"{self._directory}/tables.duckdb",
            config={"memory_limit": MEMORY_LIMIT, "temp_directory": f"{self._directory}/spilled"},
        )
        # DuckDB measures the progress and leaves it to us to show.
        self._connection.execute("SET enable_progress_bar = true")
        self._connection.execute("SET enable_progress_bar_print = false")
        self._places = {}
        self._of_several_lines = set()
        self._worker = concurrent.futures.ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_):
        self._worker.shutdown()
        self._connection.close()
        shutil.rmtree(self._directory)

    def execute(self, sql, description=None):
        """Runs a statement.

        Args:
            sql: str. The statement.
            description: str or `None`. What a progress bar says meanwhile. If `None`, there is no
                progress bar. Defaults to `None`.

        Returns:
            list of tuples, the rows of the result.

        Raises:
            KeyboardInterrupt: If Ctrl-C stops it.
            OSError: If DuckDB fails, for instance because the disk is full or a file is cut off.
            ValueError: If the statement does not fit the data.
        """
        return self._run(
            self._connection, lambda: self._connection.execute(sql).fetchall(), description
        )

    def chunks(self, sql):
        """Streams the result of a query.

        Args:
            sql: str. A query whose result has no NULLs. Its rows come in the order of its ORDER BY,
                or of the table that it reads if it reads just one.

        Yields:
            dict of arrays by column name: int64 for integers, float32 for floats, and objects (str)
            for text.
        """
        cursor = self._connection.cursor()
        self._run(cursor, lambda: cursor.execute(sql))
        while True:
            frame = self._run(cursor, lambda: cursor.fetch_df_chunk(_VECTORS_PER_CHUNK))
            if frame.empty:
                return
            yield _as_arrays(frame)

    def columns(self, sql):
        """The whole result of a query, which must fit into memory.

        Args:
            sql: str. As in `chunks`.

        Returns:
            dict of arrays by column name, as `chunks` yields them.
        """
        chunks = list(self.chunks(sql))
        if not chunks:
            names = [row[0] for row in self.execute(f"DESCRIBE {sql}")]
            return {name: np.zeros(0, np.int64) for name in names}
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def load(
        self,
        table,
        paths,
        columns,
        *,
        header=None,
        lenient=(),
        wanted=None,
        format_=csv_files.COMMAS,
        nulls=None,
        times=None,
        separators=None,
    ):
        """Creates a table of some columns of files. Its `rowid` is the order of the rows.

        Lines that cannot be read are counted in the report by reason, with file and line. The lines
        of a file are those that become rows and those that are counted as dropped; a record of
        several lines counts as that many. A compressed file that is cut off or damaged is read up
        to that place. What follows counts as one bad row or, if bytes are left, as many bad rows as
        it may hold. A table with records of several lines has one column more, `loading.LINES`.

        `sql_values` says what an integer is. In a column of another type than text, `true` and
        `false` are 1 and 0, unless it is one of integers that is not lenient.

        Args:
            table: str. Name of the table.
            paths: list of `pathlib.Path`. CSV files, plain or `.gz`, `.bz2` or `.zst`, and
                `.parquet` files. Columns are found by their names in each file.
            columns: dict of SQL type (one of `SQL_TYPES`, or a list of one as `sql_lists` has it)
                by column name. The columns to read; `column` says how SQL names them in the table.
            header: sequence of str or `None`. Names of all columns of CSV files that have no header
                line, and then no quotes. If `None`, CSV files have a header line. Defaults to
                `None`.
            lenient: collection of str. Names of columns in which a value that is no number is
                counted and taken for missing. In other columns it makes the row a bad one. Defaults
                to `()`.
            wanted: str or `None`. SQL condition on `columns`. The table gets a column `wanted` that
                says whether the condition holds; where it does not, the other columns are NULL,
                which takes little room. If `None`, there is no such column. Defaults to `None`.
            format_: `csv_files.Format`. How CSV files are written. Defaults to commas and double
                quotes.
            nulls: dict of collections of str by column name, or `None`. Texts that are missing
                values, beside the empty text. If `None`, there are none. Defaults to `None`.
            times: dict of float by column name, or `None`. Columns of integers that may hold times
                in ISO 8601 instead, which are read as nanoseconds since 1970 UTC, as TIMESTAMPs of
                Parquet are; and the offset from UTC, in hours, of the times that have none. If
                `None`, there are none. Defaults to `None`.
            separators: dict of str by column name, or `None`. What stands between the values of
                each column of lists in texts. If `None`, there are no such columns. Defaults to
                `None`.

        Returns:
            set of the names of the columns that hold nanoseconds, because the files have TIMESTAMPs
            or times in ISO 8601.

        Raises:
            ValueError: If a file lacks a column or, in Parquet, has a column of another type, or if
                too many rows are bad.
        """
        options = loading.Options(
            header,
            frozenset(lenient),
            wanted,
            format_._replace(quote="") if header else format_,
            nulls or {},
            times or {},
            separators or {},
        )
        loader = loading.Loader(
            self.execute, self._report, self._directory, table, columns, options
        )
        self._places[table], stamped = loader.load(paths)
        if self._places[table].long_rows:
            self._of_several_lines.add(table)
        return stamped

    def drop(self, table, condition, reason, *, bad=True):
        """Deletes rows of a loaded table, and shows the first of them in the report.

        Args:
            table: str. Name of the table.
            condition: str. SQL that holds for the rows to delete.
            reason: str. As in `Report.drop`.
            bad: bool. As in `Report.drop`. Defaults to `True`.

        Raises:
            ValueError: If too many rows are bad.
        """
        first = self.execute(
            f"SELECT rowid, left({self._shown(table)}::VARCHAR, {_SHOWN}) "
            f"FROM {quoted(table)} AS t WHERE {condition} ORDER BY rowid LIMIT 5"
        )
        if not first:
            return
        lines = None
        if table in self._of_several_lines:
            ((lines,),) = self.execute(
                f"SELECT coalesce(sum({loading.LINES}), 0)::BIGINT FROM {quoted(table)} "
                f"WHERE {condition}"
            )
        ((rows,),) = self.execute(f"DELETE FROM {quoted(table)} WHERE {condition}")
        of = self._places[table]
        places = [f"{of.of(rowid)} {row}" if of else row for rowid, row in first]
        self._report.drop(table, reason, rows if lines is None else lines, places, bad=bad)
        # When many rows are gone, DuckDB may give the others new numbers.
        if not bad:
            self._places[table] = None

    def drop_repeated(self, table, key, reason, *, bad=True):
        """Deletes all but the first of the rows that have the same key.

        Args:
            table: str. Name of the table.
            key: str. SQL of one or more columns.
            reason: str. As in `Report.drop`.
            bad: bool. As in `Report.drop`. Defaults to `True`.

        Raises:
            ValueError: If too many rows are bad.
        """
        first = f"SELECT min(rowid) FROM {quoted(table)} GROUP BY {key}"
        self.drop(table, f"rowid NOT IN ({first})", reason, bad=bad)

    def value_counts(self, select, least=1, last="0"):
        """Counts the values of the column `value` of a query.

        Args:
            select: str. The query.
            least: int. How often a value must occur to be returned. Defaults to `1`.
            last: str. SQL of an integer of the query's rows, the greatest of which is returned with
                each value. Defaults to `"0"`.

        Returns:
            `Counts`.
        """
        self.execute(
            f"CREATE TABLE counts AS SELECT value, count(*) AS n, max({last})::INTEGER AS last "
            f"FROM ({select}) GROUP BY value"
        )
        counts = self.columns(
            f"SELECT value, n, last FROM counts WHERE n >= {least} ORDER BY value"
        )
        ((total,),) = self.execute("SELECT coalesce(sum(n), 0)::BIGINT FROM counts")
        self.execute("DROP TABLE counts")
        return Counts(counts["value"], counts["n"], total, counts["last"])

    def moments(self, select):
        """Mean and variance of the finite ones among the numbers `value` of a query.

        They are sums of integers, so that they do not depend on the order of the rows.

        Args:
            select: str. The query.

        Returns:
            Tuple of two floats, 0 without numbers. Differences of less than about a millionth of
            the largest number count as none.
        """
        finite = f"FROM ({select}) WHERE isfinite(value)"
        ((largest,),) = self.execute(f"SELECT max(abs(value))::DOUBLE {finite}")
        if not largest:
            return 0.0, 0.0
        share = f"(value::DOUBLE / {largest!r})"
        ((n, first, second),) = self.execute(
            f"SELECT count(*), sum(round({share} * {_UNIT})::BIGINT), "
            f"sum(round({share} * {share} * {_UNIT})::BIGINT) {finite}"
        )
        mean, square = Fraction(first, n * _UNIT), Fraction(second, n * _UNIT)
        variance = square - mean**2
        if variance < _LEAST_VARIANCE:
            variance = 0
        return float(mean) * largest, float(variance) * largest**2

    def cut(self, directory, key, queries):
        """Writes the results of queries to Parquet files, cut into parts by a key.

        All rows with the same key, of all queries, are in one part.

        Args:
            directory: `pathlib.Path`. Directory of the files, which is made if it is not there.
            key: str. Name of a column that all queries have, without NULLs.
            queries: dict of SQL queries by name. A query that reads just one table has its rows in
                the order of that table.

        Returns:
            list of the parts in the order of their keys; each is a dict of `pathlib.Path` by the
            names of `queries`.
        """
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        column = quoted(key)
        keys = " UNION ALL ".join(f"SELECT {column} FROM ({query})" for query in queries.values())
        counts = self.columns(
            f"SELECT {column} AS key, count(*) AS n FROM ({keys}) GROUP BY key ORDER BY key"
        )
        number = np.cumsum(counts["n"]) // self.part_rows
        firsts = counts["key"][np.flatnonzero(np.diff(number, prepend=-1))]
        lasts = counts["key"][np.flatnonzero(np.diff(number, append=-1))]
        parts = []
        ranges = tfds.core.utils.tqdm(
            list(zip(firsts.tolist(), lasts.tolist(), strict=True)),
            desc="Cutting into parts", unit=" parts", leave=False,
        )  # fmt: skip
        for i, (first, last) in enumerate(ranges):
            part = {name: directory / f"{name}-{i:05}.parquet" for name in queries}
            for name, query in queries.items():
                within = f"{column} BETWEEN {_constant(first)} AND {_constant(last)}"
                self.execute(
                    f"COPY (SELECT * FROM ({query}) WHERE {within}) TO {literal(part[name])} "
                    "(FORMAT parquet, COMPRESSION lz4)"
                )
            parts.append(part)
        return parts

    def _shown(self, table):
        """SQL of a row of a table named `t`, as the report shows it."""
        if table not in self._of_several_lines:
            return "t"
        names = [quoted(row[0]) for row in self.execute(f"DESCRIBE {quoted(table)}")]
        return f"{{{', '.join(f'{n}: t.{n}' for n in names if n != loading.LINES)}}}"

    def _run(self, connection, work, description=None):
        # DuckDB looks for Ctrl-C only while the calling thread itself works on the query: if other
        # threads do all the work, the query would run to its end.
        with _clear_errors(), _bar(description) as show:
            task = self._worker.submit(work)
            try:
                # Waits in slices, because a signal that reaches another thread does not end a wait.
                while not concurrent.futures.wait([task], timeout=0.1).done:
                    show(connection)
            except KeyboardInterrupt:
                while not task.done():
                    connection.interrupt()
                    concurrent.futures.wait([task], timeout=0.1)
                raise
            return task.result()


def _column(column):
    if not pa.types.is_list(column.type):
        return column.to_numpy()
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), len(values) // max(1, len(column)))


def _constant(value):
    return literal(value) if isinstance(value, str) else str(value)


def _as_arrays(frame):
    # pandas has a text type of its own.
    return {
        name: column.to_numpy(object if column.dtype == "str" else column.dtype)
        for name, column in frame.items()
    }


@contextlib.contextmanager
def _bar(description):
    """Shows a progress bar; yields a function that updates it from a connection."""
    if description is None:
        yield lambda connection: None
        return
    bar = tfds.core.utils.tqdm(desc=description, total=100, unit="%", leave=False)
    with bar:

        def show(connection):
            bar.update(max(0, connection.query_progress()) - bar.n)

        yield show


@contextlib.contextmanager
def _clear_errors():
    """Turns DuckDB's errors into `OSError`s and `ValueError`s with a message of one line."""
    try:
        yield
    except duckdb.OperationalError as error:
        raise OSError(_first_line(error)) from error
    except duckdb.Error as error:
        raise ValueError(_first_line(error)) from error


def _first_line(error):
    return str(error).splitlines()[0]
