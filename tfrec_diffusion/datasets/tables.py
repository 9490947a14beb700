"""Reads, joins and sorts raw tables with DuckDB on disk, so that they may be larger than memory."""

import concurrent.futures
import contextlib
import csv
import fnmatch
import gzip
import pathlib
import shutil
import tempfile
import zlib
from typing import NamedTuple

import duckdb
import numpy as np
import tensorflow_datasets as tfds
from pyarrow import parquet

# How much DuckDB holds in memory before it writes to temporary files.
MEMORY_LIMIT = "4GB"
# Length of a chunk of a streamed result, in DuckDB's vectors of 2048 rows.
_VECTORS_PER_CHUNK = 64

SQL_TYPES = {"int64": "BIGINT", "string": "VARCHAR", "float32": "FLOAT"}
MISSING = {"BIGINT": "-1", "VARCHAR": "''", "FLOAT": "'nan'::FLOAT"}

_INTEGERS = (
    *("BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT"),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "DECIMAL(*,0)"),
)
# Types of Parquet columns, as patterns; a TIMESTAMP is read as nanoseconds since 1970 UTC.
_TIMESTAMP = "TIMESTAMP*"
_READABLE_AS = {
    "BIGINT": (*_INTEGERS, _TIMESTAMP),
    "VARCHAR": (*_INTEGERS, "VARCHAR"),
    "FLOAT": (*_INTEGERS, "DECIMAL*", "FLOAT", "DOUBLE"),
}
# How many characters of a dropped row the report shows.
_SHOWN = 200
# Column of a table with the file of each row, while the table is loaded.
_FILE = '"file of the row"'
_REJECTIONS = {
    "MISSING COLUMNS": "too few columns",
    "TOO MANY COLUMNS": "too many columns",
    "UNQUOTED VALUE": "broken quotes",
    "LINE SIZE OVER MAXIMUM": "line too long",
    "INVALID ENCODING": "not UTF-8",
    "INVALID STATE": "broken quotes",
}


def find_files(root, pattern):
    """Finds the files that match a pattern.

    Args:
        root: str or `pathlib.Path`. Directory in which to look.
        pattern: str. Glob pattern relative to `root`.

    Returns:
        list of `pathlib.Path`, in the order of their names.

    Raises:
        FileNotFoundError: If there is none.
    """
    root = pathlib.Path(root)
    paths = sorted(path for path in root.glob(pattern) if path.is_file())
    if not paths:
        there = ", ".join(sorted(path.name for path in root.glob("*"))[:10]) or "nothing"
        raise FileNotFoundError(f"{root} must hold a file {pattern!r}. It holds: {there}")
    return paths


def column_names(path):
    """Names of the columns of a file; of a CSV file they stand in its first line.

    Args:
        path: `pathlib.Path`. A `.parquet` file or a CSV file, plain or `.gz`.

    Returns:
        list of str.

    Raises:
        ValueError: If the file is not of that format.
    """
    if path.suffix == ".parquet":
        return list(_parquet_types(path))
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            return next(csv.reader([file.readline().decode("utf-8-sig")]), [])
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} must be a CSV file in UTF-8: {error}") from error


def holds_timestamps(path, name):
    """Whether a column is a TIMESTAMP, which `Database.load` reads as nanoseconds.

    Args:
        path: `pathlib.Path`. A `.parquet` file or a CSV file, which has no TIMESTAMPs.
        name: str. Name of a column.

    Returns:
        bool.
    """
    return path.suffix == ".parquet" and _is_any(_parquet_types(path).get(name, ""), [_TIMESTAMP])


def quoted(name):
    """Quotes a name as an SQL identifier.

    Args:
        name: str.

    Returns:
        str.
    """
    return '"' + name.replace('"', '""') + '"'


def literal(value):
    """Quotes a value's text as an SQL string.

    Args:
        value: Anything that `str` makes a text of.

    Returns:
        str.
    """
    return "'" + str(value).replace("'", "''") + "'"


def read(path):
    """Reads a Parquet file that `Database.cut` has written.

    Args:
        path: `pathlib.Path`. The file.

    Returns:
        dict of arrays by column name, as `Database.chunks` yields them.
    """
    with parquet.ParquetFile(path) as file:
        columns = file.read(use_threads=False)
    return {name: columns[name].to_numpy() for name in columns.column_names}


class DamagedFileError(Exception):
    """The rest of a `.gz` file cannot be read.

    Args:
        message: str. What is wrong.
        lost_lines: int. How many lines the rest may hold; at least 1, because a file that has been
            cut off was longer.
    """

    def __init__(self, message, lost_lines):
        super().__init__(message)
        self.lost_lines = lost_lines


def lines(path):
    """Reads a file line by line.

    Args:
        path: `pathlib.Path`. A text file, plain or `.gz`.

    Yields:
        bytes, one line each.

    Raises:
        DamagedFileError: If a `.gz` file is cut off or damaged, after the lines before that place.
    """
    if path.suffix != ".gz":
        with path.open("rb") as file:
            yield from file
        return
    number = 0
    with path.open("rb") as raw, gzip.open(raw) as file:
        try:
            for line in file:
                yield line
                number += 1
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            read = max(1, raw.tell())
            lost = number * (path.stat().st_size - read) / read
            raise DamagedFileError(str(error), max(1, round(lost))) from error


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
        self._files = {}
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

    def load(self, table, paths, columns, *, header=None, lenient=(), wanted=None):
        """Creates a table of some columns of files. Its `rowid` is the order of the rows.

        Rows that cannot be read are counted in the report by reason, with file and line. A `.gz`
        file that is cut off or damaged is read up to that place. What follows counts as one bad row
        or, if bytes are left, as many bad rows as it may hold.

        Args:
            table: str. Name of the table.
            paths: list of `pathlib.Path`. `.csv`, `.csv.gz` or `.parquet` files, all of one format
                and with the same columns.
            columns: dict of SQL type (one of `SQL_TYPES`) by column name. The columns to read.
            header: sequence of str or `None`. Names of all columns of CSV files that have no header
                line, and then no quotes. If `None`, CSV files have a header line. Defaults to
                `None`.
            lenient: collection of str. Names of columns in which a text that is not a number is
                counted and taken for missing. In other columns of a CSV file it makes the row a bad
                one. Defaults to `()`.
            wanted: str or `None`. SQL condition on the columns of the files. The table gets a
                column `wanted` that says whether the condition holds; where it does not, the other
                columns are NULL, which takes little room. If `None`, there is no such column.
                Defaults to `None`.

        Raises:
            ValueError: If a file lacks a column, has other columns than the first file or, in
                Parquet, has a column of another type, or if too many rows are bad.
        """
        # DuckDB reads nothing of a file that ends early, and anything of one that is damaged.
        sound, places, lost = self._without_damage(paths)
        self._load(table, sound, columns, header, lenient, wanted)
        self._report.read(table, lost)
        self._report.drop(table, "gzip cut off or damaged, here at the latest", lost, places)
        for path in set(sound) - set(paths):
            path.unlink()

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
            f"SELECT rowid, left(t::VARCHAR, {_SHOWN}) FROM {quoted(table)} AS t "
            f"WHERE {condition} ORDER BY rowid LIMIT 5"
        )
        ((rows,),) = self.execute(f"DELETE FROM {quoted(table)} WHERE {condition}")
        places = [f"{self._place(table, rowid)}{row}" for rowid, row in first]
        self._report.drop(table, reason, rows, places, bad=bad)
        # When many rows are gone, DuckDB may give the others new numbers.
        if rows and not bad:
            self._files[table] = None

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

    def value_counts(self, select, least=1):
        """Counts the values of the column `value` of a query.

        Args:
            select: str. The query.
            least: int. How often a value must occur to be returned. Defaults to `1`.

        Returns:
            Tuple of an array of the distinct values, ascending; an int64 array of how often each
            occurs; and an int, how often all values occur, also those that are not returned.
        """
        self.execute(
            f"CREATE TABLE counts AS SELECT value, count(*) AS n FROM ({select}) GROUP BY value"
        )
        counts = self.columns(f"SELECT value, n FROM counts WHERE n >= {least} ORDER BY value")
        ((total,),) = self.execute("SELECT coalesce(sum(n), 0)::BIGINT FROM counts")
        self.execute("DROP TABLE counts")
        return counts["value"], counts["n"], total

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

    def _load(self, table, paths, columns, header, lenient, wanted):
        if all(path.suffix == ".parquet" for path in paths):
            source = self._parquet(paths, columns)
            types = _parquet_types(paths[0])
            stamped = {name for name in columns if _is_any(types[name], [_TIMESTAMP])}
            as_text = {}
        else:
            as_text = {n: k for n, k in columns.items() if n in lenient and k != "VARCHAR"}
            source = self._csv(paths, columns | dict.fromkeys(as_text, "VARCHAR"), header)
            stamped = set()
        values = {
            name: (f"epoch_ns({quoted(name)})" if name in stamped else quoted(name))
            + f"::{'VARCHAR' if name in as_text else kind}"
            for name, kind in columns.items()
        }
        rows = source
        if wanted:
            rows = f"(SELECT *, coalesce({wanted}, false) AS wanted FROM {source})"
            values = {name: f"CASE WHEN wanted THEN {sql} END" for name, sql in values.items()}
            values["wanted"] = "wanted"
        selected = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in values.items())
        of_file = f", filename AS {_FILE}" if len(paths) > 1 else ""
        self.execute(
            f"CREATE TABLE {quoted(table)} AS SELECT {selected}{of_file} FROM {rows}",
            f"Reading {table}",
        )
        kept = dict.fromkeys(map(str, paths), 0)
        if of_file:
            kept |= dict(
                self.execute(f"SELECT {_FILE}, count(*) FROM {quoted(table)} GROUP BY {_FILE}")
            )
            self.execute(f"ALTER TABLE {quoted(table)} DROP COLUMN {_FILE}")
        else:
            ((kept[str(paths[0])],),) = self.execute(f"SELECT count(*) FROM {quoted(table)}")
        self._report.read(table, sum(kept.values()))
        rejected = {}
        if source.startswith("read_csv"):
            rejected = self._count_rejects(table)
        header_lines = int(source.startswith("read_csv") and header is None)
        ends = np.cumsum(list(kept.values()))
        self._files[table] = [
            _File(pathlib.Path(path).name, end - rows, header_lines + 1, rejected.get(path, ()))
            for (path, rows), end in zip(kept.items(), ends.tolist(), strict=True)
        ]
        for name, kind in as_text.items():
            self._read_numbers(table, name, kind)

    def _place(self, table, rowid):
        """The file and line from which a row of a loaded table was read, if they are known."""
        if self._files[table] is None:
            return ""
        file = [file for file in self._files[table] if file.first_row <= rowid][-1]
        line = rowid - file.first_row + file.first_line
        # The number that each rejected line would have if those before it were taken out.
        before = np.asarray(file.rejected, np.int64) - np.arange(len(file.rejected))
        return f"{file.name}:{line + np.searchsorted(before, line, side='right')} "

    def _without_damage(self, paths):
        """Replaces damaged files by copies of what is readable of them.

        Returns:
            Tuple of the paths, a list of the places at which damaged files end, and the number of
            lines that are lost.
        """
        sound, places, lost = [], [], 0
        for i, path in enumerate(paths):
            if path.suffix != ".gz" or _is_sound(path):
                sound.append(path)
                continue
            copy = pathlib.Path(self._directory) / f"{i:05}" / path.stem
            copy.parent.mkdir()
            number = 0
            with copy.open("wb") as file:
                try:
                    for line in lines(path):
                        file.write(line)
                        number += 1
                except DamagedFileError as error:
                    if not number:
                        raise ValueError(f"{path} must be a CSV file: {error}") from error
                    lost += error.lost_lines
            sound.append(copy)
            places.append(f"{path.name}:{number + 1}")
        return sound, places, lost

    def _read_numbers(self, table, name, kind):
        """Turns a column of text into one of numbers."""
        column, number = quoted(name), f"TRY_CAST({quoted(name)} AS {kind})"
        ((rows,),) = self.execute(
            f"SELECT count(*) FROM {quoted(table)} WHERE trim({column}) <> '' AND {number} IS NULL"
        )
        if rows:
            self._report.note(f"{table}: {name} not a number, taken for missing", rows)
        self.execute(f"ALTER TABLE {quoted(table)} ALTER {column} TYPE {kind} USING {number}")

    def _parquet(self, paths, columns):
        for path in paths:
            types = _parquet_types(path)
            _check_columns(path, types, columns)
            for name, kind in columns.items():
                if not _is_any(types[name], _READABLE_AS[kind]):
                    raise ValueError(
                        f"{path}: column {name!r} must be one of {', '.join(_READABLE_AS[kind])}. "
                        f"It is: {types[name]}"
                    )
        return _parquet(paths)

    def _csv(self, paths, columns, header):
        names = header or column_names(paths[0])
        for path in paths if header is None else ():
            there = column_names(path)
            _check_columns(path, there, columns)
            if there != names:
                raise ValueError(
                    f"{path} must have the columns of {paths[0]}: {', '.join(names)}. "
                    f"It has: {', '.join(there)}"
                )
        types = ", ".join(
            f"{literal(name)}: {literal(columns.get(name, 'VARCHAR'))}" for name in names
        )
        quotes = "quote = '', escape = ''" if header else "quote = '\"', escape = '\"'"
        return (
            f"read_csv([{', '.join(map(literal, paths))}], columns = {{{types}}}, "
            f"auto_detect = false, header = {header is None}, "
            f"delim = ',', {quotes}, filename = true, "
            "store_rejects = true, rejects_table = 'rejects', rejects_scan = 'scans')"
        )

    def _count_rejects(self, table):
        """Reports the lines that could not be read, and returns their ascending numbers by file."""
        # A line may be wrong in several columns; the first of them is reported.
        self.execute(
            """
            CREATE TEMP TABLE rejected_lines AS
            SELECT
                file_path,
                line,
                arg_min(error_type::VARCHAR, column_idx) AS error,
                arg_min(column_name, column_idx) AS name
            FROM rejects JOIN scans USING (scan_id, file_id)
            GROUP BY file_path, line
            """
        )
        reasons = self.execute(
            """
            SELECT
                error,
                CASE WHEN error = 'CAST' THEN name END AS wrong,
                count(*),
                list(parse_filename(file_path) || ':' || line ORDER BY file_path, line)[:5]
            FROM rejected_lines GROUP BY error, wrong ORDER BY error, wrong
            """
        )
        lines = self.execute(
            "SELECT file_path, list(line ORDER BY line) FROM rejected_lines GROUP BY file_path"
        )
        for name in ("rejected_lines", "rejects", "scans"):
            self.execute(f"DROP TABLE {name}")
        self._report.read(table, sum(rows for _, _, rows, _ in reasons))
        for error, name, rows, places in reasons:
            reason = f"{name} is not a number" if name else _REJECTIONS[error]
            self._report.drop(table, reason, rows, places)
        return dict(lines)


def _is_sound(path):
    """Whether a `.gz` file is whole, by its own checksum."""
    size = path.stat().st_size
    with (
        path.open("rb") as raw,
        gzip.open(raw) as file,
        tfds.core.utils.tqdm(
            desc=f"Checking {path.name}", total=size, unit="B", unit_scale=True, leave=False
        ) as bar,
    ):
        try:
            while file.read(1 << 20):
                bar.update(raw.tell() - bar.n)
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return False
    return True


class _File(NamedTuple):
    """Where the rows of a loaded file are in its table.

    Args:
        name: str. Name of the file.
        first_row: int. Position of its first row in the table.
        first_line: int. First line of the file that holds a row.
        rejected: list of int. Numbers of the lines that could not be read, ascending.
    """

    name: str
    first_row: int
    first_line: int
    rejected: list[int]


def _parquet(paths):
    return f"read_parquet([{', '.join(map(literal, paths))}])"


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


def _parquet_types(path):
    try:
        rows = duckdb.execute(f"DESCRIBE SELECT * FROM read_parquet({literal(path)})").fetchall()
    except duckdb.Error as error:
        raise ValueError(f"{path} must be a Parquet file: {_first_line(error)}") from error
    return {name: kind for name, kind, *_ in rows}


def _is_any(kind, patterns):
    return any(fnmatch.fnmatchcase(kind, pattern) for pattern in patterns)


def _check_columns(path, there, columns):
    for name in columns:
        if name not in there:
            raise ValueError(f"{path} must have a column {name!r}. It has: {', '.join(there)}")


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
