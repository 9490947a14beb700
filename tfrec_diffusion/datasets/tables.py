"""Raw tables, read, joined and sorted by DuckDB on disk, so that they may be larger than memory."""

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
# Letters of a dropped row that the report shows.
_SHOWN = 200
# Column of a loaded table that says the file of a row, for a while.
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


def read(path):
    """The columns of a Parquet file of `Database.cut`, as arrays like `Database.chunks`'."""
    with duckdb.connect(config={"threads": 1}) as connection:
        return _as_arrays(connection.execute(f"SELECT * FROM {_parquet([path])}").df())


class DamagedFileError(Exception):
    """A .gz file cannot be read on.

    Attributes:
        lost_lines: How many lines the unread rest may hold, at least 1: the file may have been
            longer.
    """

    def __init__(self, message, lost_lines):
        super().__init__(message)
        self.lost_lines = lost_lines


def lines(path):
    """Yields the lines of a file, plain or .gz, as bytes.

    Raises:
        DamagedFileError: If a .gz file is cut off or damaged, after the lines before.
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
    """A DuckDB database in a directory of its own, which goes when the `with` block ends.

    Args:
        scratch: Where that directory is made: on a disk with room for the raw data twice.
        report: `Report` that counts the rows read and dropped.

    Attributes:
        part_rows: Rows of a part that `cut` makes, or those of its largest group.
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
        """Runs a statement and returns the rows of its result.

        Args:
            sql: The statement.
            description: What a progress bar says meanwhile; default: there is none.

        Raises:
            KeyboardInterrupt: If Ctrl-C stops it.
            OSError: If DuckDB cannot; for instance the disk is full or a file is cut off.
            ValueError: If the statement does not fit the data.
        """
        return self._run(
            self._connection, lambda: self._connection.execute(sql).fetchall(), description
        )

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
            yield _as_arrays(frame)

    def columns(self, sql):
        """The whole result of `chunks`, for what is small enough."""
        chunks = list(self.chunks(sql))
        if not chunks:
            names = [row[0] for row in self.execute(f"DESCRIBE {sql}")]
            return {name: np.zeros(0, np.int64) for name in names}
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def load(self, table, paths, columns, *, header=None, lenient=(), wanted=None):
        """Creates `table` with some columns of files; its `rowid` is the order of the rows.

        Rows that cannot be read are counted in the report by reason, with file and line. Of a .gz
        file that is cut off or damaged what comes before is read; the rest counts as one bad row
        or, where bytes are left, as many as it may hold.

        Args:
            paths: Files of one format with the same columns; .csv, .csv.gz or .parquet.
            columns: dict of SQL type (`SQL_TYPES`) by column name.
            header: Names of all columns, where CSV files have no header line, nor quotes.
            lenient: Names of columns in which a text that is not a number is taken for missing and
                counted, while elsewhere such a row is dropped (CSV).
            wanted: SQL condition on the files' columns. The table gets a column `wanted` that says
                whether it holds; where it does not, the others are NULL, which costs little.

        Raises:
            ValueError: If a file lacks a column, has other columns than the first, or (Parquet)
                has it as another type; or if too many rows are bad.
        """
        # DuckDB reads nothing of a file that ends early, and anything of one that is damaged.
        sound, places, lost = self._without_damage(paths)
        self._load(table, sound, columns, header, lenient, wanted)
        self._report.read(table, lost)
        self._report.drop(table, "gzip cut off or damaged, here at the latest", lost, places)
        for path in set(sound) - set(paths):
            path.unlink()

    def drop(self, table, condition, reason, *, bad=True):
        """Deletes the rows of a loaded table where `condition` holds; reports the first of them.

        Args:
            table: Name of the table.
            condition: SQL.
            reason: As in `Report.drop`.
            bad: As in `Report.drop`.
        """
        first = self.execute(
            f"SELECT rowid, left(t::VARCHAR, {_SHOWN}) FROM {quoted(table)} AS t "
            f"WHERE {condition} ORDER BY rowid LIMIT 5"
        )
        ((rows,),) = self.execute(f"DELETE FROM {quoted(table)} WHERE {condition}")
        places = [f"{self._place(table, rowid)}{row}" for rowid, row in first]
        self._report.drop(table, reason, rows, places, bad=bad)
        # Once many are gone, DuckDB may number the others anew.
        if rows and not bad:
            self._files[table] = None

    def drop_repeated(self, table, key, reason, *, bad=True):
        """Deletes all but the first of the rows with the same `key`, SQL of some columns."""
        first = f"SELECT min(rowid) FROM {quoted(table)} GROUP BY {key}"
        self.drop(table, f"rowid NOT IN ({first})", reason, bad=bad)

    def value_counts(self, select, least=1):
        """How often each value stands in the column `value` of a SELECT.

        Returns:
            Distinct values, ascending, and their counts, of those that stand at least `least`
            times; and how often all do together.
        """
        self.execute(
            f"CREATE TABLE counts AS SELECT value, count(*) AS n FROM ({select}) GROUP BY value"
        )
        counts = self.columns(f"SELECT value, n FROM counts WHERE n >= {least} ORDER BY value")
        ((total,),) = self.execute("SELECT coalesce(sum(n), 0)::BIGINT FROM counts")
        self.execute("DROP TABLE counts")
        return counts["value"], counts["n"], total

    def cut(self, directory, key, queries):
        """Writes results to Parquet files, as many as it takes; equal keys stand in one part.

        Args:
            directory: Of the files; made if it is not there.
            key: Name of a column of all queries, without NULLs.
            queries: dict of a SELECT by name. The rows of a part are in its order if it is that of
                the one table that it reads.

        Returns:
            list of the parts in the order of their keys: dicts of a path by the names of `queries`.
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
        # DuckDB looks for Ctrl-C only where the calling thread has a part of the query to do: one
        # that other threads do would go on to its end.
        with _clear_errors(), _bar(description) as show:
            task = self._worker.submit(work)
            try:
                # Waits in slices: a signal that came to another thread wakes no wait of this one.
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
        """File and line that a row of a loaded table was read from, where that is known."""
        if self._files[table] is None:
            return ""
        file = [file for file in self._files[table] if file.first_row <= rowid][-1]
        line = rowid - file.first_row + file.first_line
        # Good lines before each rejected one, which do not change when those are taken out.
        before = np.asarray(file.rejected, np.int64) - np.arange(len(file.rejected))
        return f"{file.name}:{line + np.searchsorted(before, line, side='right')} "

    def _without_damage(self, paths):
        """The files, copies of what is readable for damaged ones; where these end; lines lost."""
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
        """Reports the lines that could not be read; the ascending numbers of all by file."""
        # A line may be wrong in several columns; its first error speaks for it.
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
    """Whether a .gz file is whole, by its own checksum."""
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
    """Where the rows of a loaded file stand.

    Args:
        name: Of the file.
        first_row: Its first row's place in the table.
        first_line: The line of that row, if it could be read.
        rejected: Ascending lines that could not be.
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
    """Yields what shows a connection's progress."""
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
    """DuckDB's errors as Python's own kind, of one line."""
    try:
        yield
    except duckdb.OperationalError as error:
        raise OSError(_first_line(error)) from error
    except duckdb.Error as error:
        raise ValueError(_first_line(error)) from error


def _first_line(error):
    return str(error).splitlines()[0]
