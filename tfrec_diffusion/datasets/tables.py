"""Raw tables, read, joined and sorted by DuckDB on disk, so that they may be larger than memory."""

import concurrent.futures
import contextlib
import csv
import fnmatch
import gzip
import pathlib
import shutil
import tempfile

import duckdb
import numpy as np

# What DuckDB holds in memory before it spills to its temporary files.
MEMORY_LIMIT = "4GB"
# A chunk of a streamed result, in DuckDB's vectors of 2048 rows.
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
_REJECTIONS = {
    "MISSING COLUMNS": "too few columns",
    "TOO MANY COLUMNS": "too many columns",
    "UNQUOTED VALUE": "broken quotes",
    "LINE SIZE OVER MAXIMUM": "line too long",
    "INVALID ENCODING": "not UTF-8",
    "INVALID STATE": "broken quotes",
}


def find_files(root, pattern):
    """The files that a glob pattern names below `root`, in the order of their names.

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
    """The columns of a Parquet file, or of a CSV file (plain or .gz) by its first line."""
    if path.suffix == ".parquet":
        return list(_parquet_types(path))
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            return next(csv.reader([file.readline().decode("utf-8-sig")]), [])
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} must be a CSV file in UTF-8: {error}") from error


def holds_timestamps(path, name):
    """Whether a column is a TIMESTAMP of a Parquet file, which `load` reads as nanoseconds."""
    return path.suffix == ".parquet" and _is_any(_parquet_types(path).get(name, ""), [_TIMESTAMP])


def quoted(name):
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(value):
    """A text as an SQL string."""
    return "'" + str(value).replace("'", "''") + "'"


def whole_groups(chunks, key):
    """Cuts chunks (dicts of equally long arrays) anew: equal values of `key` stay in one chunk.

    Rows with the same key must follow each other. Memory holds the largest group at least.
    """
    rest = None
    for chunk in chunks:
        if rest is not None:
            chunk = {name: np.concatenate([rest[name], chunk[name]]) for name in chunk}
        keys = chunk[key]
        start = np.flatnonzero(keys != keys[-1])
        start = start[-1] + 1 if len(start) else 0
        if start:
            yield {name: values[:start] for name, values in chunk.items()}
        rest = {name: values[start:] for name, values in chunk.items()}
    if rest is not None:
        yield rest


class Database:
    """A DuckDB database in a directory of its own, which goes when the `with` block ends.

    Args:
        scratch: Where that directory is made: on a disk with room for the raw data twice.
        report: `Report` that counts the rows read and dropped.
    """

    def __init__(self, scratch, report):
        self._scratch = scratch
        self._report = report

    def __enter__(self):
        self._directory = tempfile.mkdtemp(prefix="duckdb_", dir=self._scratch)
        self._connection = duckdb.connect(
            f"{self._directory}/tables.duckdb",
            config={"memory_limit": MEMORY_LIMIT, "temp_directory": f"{self._directory}/spilled"},
        )
        # It would stand between TFDS's bars.
        self._connection.execute("SET enable_progress_bar = false")
        self._worker = concurrent.futures.ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_):
        self._worker.shutdown()
        self._connection.close()
        shutil.rmtree(self._directory)

    def execute(self, sql):
        """Runs a statement and returns the rows of its result.

        Raises:
            KeyboardInterrupt: If Ctrl-C stops it.
            OSError: If DuckDB cannot; for instance the disk is full or a file is cut off.
            ValueError: If the statement does not fit the data.
        """
        return self._run(self._connection, lambda: self._connection.execute(sql).fetchall())

    def chunks(self, sql):
        """Streams the result of a query without NULLs, as dicts of arrays by column.

        Integers come as int64, floats as float32, text as str objects; rows in the order of the
        query's ORDER BY, or of the one table that it reads.
        """
        cursor = self._connection.cursor()
        self._run(cursor, lambda: cursor.execute(sql))
        while True:
            frame = self._run(cursor, lambda: cursor.fetch_df_chunk(_VECTORS_PER_CHUNK))
            if frame.empty:
                return
            # pandas has a text type of its own.
            yield {
                name: column.to_numpy(object if column.dtype == "str" else column.dtype)
                for name, column in frame.items()
            }

    def columns(self, sql):
        """The whole result of `chunks`, for what is small enough."""
        chunks = list(self.chunks(sql))
        if not chunks:
            names = [row[0] for row in self.execute(f"DESCRIBE {sql}")]
            return {name: np.zeros(0, np.int64) for name in names}
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def load(self, table, paths, columns, *, header=None, lenient=()):
        """Creates `table` with some columns of files; its `rowid` is the order of the rows.

        Rows that cannot be read are counted in the report by reason, with file and line.

        Args:
            paths: Files of one format with the same columns; .csv, .csv.gz or .parquet.
            columns: dict of SQL type (`SQL_TYPES`) by column name.
            header: Names of all columns, where CSV files have no header line, nor quotes.
            lenient: Names of columns in which a text that is not a number is taken for missing and
                counted, while elsewhere such a row is dropped (CSV).

        Raises:
            ValueError: If a file lacks a column, has other columns than the first, or (Parquet)
                has it as another type.
        """
        if all(path.suffix == ".parquet" for path in paths):
            source = self._parquet(paths, columns)
            types = _parquet_types(paths[0])
            stamped = {name for name in columns if _is_any(types[name], [_TIMESTAMP])}
            as_text = {}
        else:
            as_text = {n: k for n, k in columns.items() if n in lenient and k != "VARCHAR"}
            source = self._csv(paths, columns | dict.fromkeys(as_text, "VARCHAR"), header)
            stamped = set()
        selected = ", ".join(
            (f"epoch_ns({quoted(name)})" if name in stamped else quoted(name))
            + f"::{'VARCHAR' if name in as_text else kind} AS {quoted(name)}"
            for name, kind in columns.items()
        )
        self.execute(f"CREATE TABLE {quoted(table)} AS SELECT {selected} FROM {source}")
        ((rows,),) = self.execute(f"SELECT count(*) FROM {quoted(table)}")
        self._report.read(table, rows)
        if source.startswith("read_csv"):
            self._count_rejects(table)
        for name, kind in as_text.items():
            self._read_numbers(table, name, kind)

    def drop(self, table, condition, reason):
        """Deletes the rows of a loaded table where `condition` holds; reports the first of them."""
        first = self.execute(
            f"SELECT t::VARCHAR FROM {quoted(table)} AS t WHERE {condition} ORDER BY rowid LIMIT 5"
        )
        ((rows,),) = self.execute(f"DELETE FROM {quoted(table)} WHERE {condition}")
        self._report.drop(table, reason, rows, [row for (row,) in first])

    def _run(self, connection, work):
        # DuckDB looks for Ctrl-C only where the calling thread has a part of the query to do: one
        # that other threads do would go on to its end.
        with _clear_errors():
            task = self._worker.submit(work)
            try:
                # Waits in slices: a signal that came to another thread wakes no wait of this one.
                while not concurrent.futures.wait([task], timeout=0.1).done:
                    pass
            except KeyboardInterrupt:
                while not task.done():
                    connection.interrupt()
                    concurrent.futures.wait([task], timeout=0.1)
                raise
            return task.result()

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
        return f"read_parquet([{', '.join(map(literal, paths))}])"

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
            f"delim = ',', {quotes}, "
            "store_rejects = true, rejects_table = 'rejects', rejects_scan = 'scans')"
        )

    def _count_rejects(self, table):
        # A line may be wrong in several columns; its first error speaks for it.
        rejects = self.execute(
            """
            WITH lines AS (
                SELECT
                    file_path,
                    line,
                    arg_min(error_type::VARCHAR, column_idx) AS error,
                    arg_min(column_name, column_idx) AS name
                FROM rejects JOIN scans USING (scan_id, file_id)
                GROUP BY file_path, line
            )
            SELECT
                error,
                CASE WHEN error = 'CAST' THEN name END AS wrong,
                count(*),
                list(parse_filename(file_path) || ':' || line ORDER BY file_path, line)[:5]
            FROM lines GROUP BY error, wrong ORDER BY error, wrong
            """
        )
        for error, name, rows, places in rejects:
            reason = f"{name} is not a number" if name else _REJECTIONS[error]
            self._report.read(table, rows)
            self._report.drop(table, reason, rows, places)
        self.execute("DROP TABLE rejects")
        self.execute("DROP TABLE scans")


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
    """DuckDB's errors as Python's own kind, of one line."""
    try:
        yield
    except duckdb.OperationalError as error:
        raise OSError(_first_line(error)) from error
    except duckdb.Error as error:
        raise ValueError(_first_line(error)) from error


def _first_line(error):
    return str(error).splitlines()[0]
