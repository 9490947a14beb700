"""Loads CSV and Parquet files into a table of DuckDB, and knows where each of its rows stood."""

import pathlib
from typing import NamedTuple

from tfrec_diffusion.datasets import (
    csv_files,
    places,
    raw_columns,
    sql_lists,
    sql_values,
    text_files,
)
from tfrec_diffusion.datasets.sql import literal, quoted

# Column of a table while it is loaded: what is wrong with the values of each row.
_FAULTS = quoted("faults of the row")
# Column of a table with records of several lines: how many lines a row has.
LINES = quoted("lines of the row")
# DuckDB's own reasons for leaving out a line.
_REJECTIONS = {
    "MISSING COLUMNS": "too few columns",
    "TOO MANY COLUMNS": "too many columns",
    "UNQUOTED VALUE": csv_files.BROKEN_QUOTES,
    "LINE SIZE OVER MAXIMUM": csv_files.TOO_LONG,
    "INVALID ENCODING": "not UTF-8",
    "INVALID STATE": csv_files.BROKEN_QUOTES,
}
# Compressions of CSV files that DuckDB reads itself.
_READABLE = ("", ".gz", ".zst")


class Options(NamedTuple):
    """How files are read.

    Args:
        header: sequence of str or `None`. As in `tables.Database.load`.
        lenient: frozenset of str. As in `tables.Database.load`.
        wanted: str or `None`. As in `tables.Database.load`.
        format: `csv_files.Format`. How CSV files are written.
        nulls: dict of collections of str by column name. As in `tables.Database.load`.
        times: dict of float by column name. As in `tables.Database.load`.
        separators: dict of str by column name. As in `tables.Database.load`.
    """

    header: tuple[str, ...] | None
    lenient: frozenset[str]
    wanted: str | None
    format: csv_files.Format
    nulls: dict[str, tuple[str, ...]]
    times: dict[str, float]
    separators: dict[str, str]


class _Input(NamedTuple):
    """A file that is to be read.

    Args:
        path: `pathlib.Path`. The original.
        checked: `csv_files.Checked` or `None`. If `None`, it is a Parquet file.
        names: tuple of str. Names of its columns.
        types: tuple of str. Types of the columns to read: those of a Parquet file; `"text"` or
            `"time"` in a CSV file, and of times that a Parquet file has as text.
    """

    path: pathlib.Path
    checked: csv_files.Checked | None
    names: tuple[str, ...]
    types: tuple[str, ...]

    @property
    def read_path(self):
        return self.path if self.checked is None else self.checked.path


class Loader:
    """Loads files into one table.

    Args:
        execute: callable. `tables.Database.execute`.
        report: `report.Report`. Counts the lines that are read and dropped.
        directory: str. Directory for copies of files.
        table: str. Name of the table.
        columns: dict of SQL types by name. The columns to read.
        options: `Options`. How to read them.
    """

    def __init__(self, execute, report, directory, table, columns, options):
        self._execute = execute
        self._report = report
        self._directory = pathlib.Path(directory)
        self._table = table
        self._columns = columns
        self._options = options
        self._damage = []

    def load(self, paths):
        """Creates the table.

        Args:
            paths: list of `pathlib.Path`. The files.

        Returns:
            Tuple of the `places.Places` of its rows and of the set of the names of the columns that
            hold nanoseconds, because the files have TIMESTAMPs, DATEs or times in ISO 8601.
        """
        inputs = [self._input(i, path) for i, path in enumerate(paths)]
        raw_columns.check_case(self._columns)
        inputs, stamped = self._with_times(inputs)
        # Of several files in one statement, DuckDB may take the second one first.
        read = [self._insert(item, created=i > 0) for i, item in enumerate(inputs)]
        at = self._places(inputs, read)
        self._drop_damage()
        for item in inputs:
            if item.read_path != item.path:
                item.read_path.unlink()
        self._take_faults(at)
        return at, stamped

    # Before reading

    def _input(self, i, path):
        if raw_columns.is_parquet(path):
            types = raw_columns.parquet_types(path)
            names = tuple(types)
            found = {
                name: types[names[raw_columns.find_column(path, names, name)]]
                for name in self._columns
            }
            for name, kind in self._columns.items():
                if name in self._options.times and found[name] == "VARCHAR":
                    found[name] = self._type_of_times(self._first_value(path, names, name))
                    continue
                sql_lists.check_type(path, name, found[name], kind)
            return _Input(path, None, names, tuple(found.values()))
        header, format_ = self._options.header, self._options.format
        names = tuple(header or csv_files.header(path, format_))
        positions = {
            name: raw_columns.find_column(path, names, name, format_) for name in self._columns
        }
        checked = self._checked(i, path, len(names))
        types = ["text"] * len(positions)
        for j, name in enumerate(positions):
            if name in self._options.times:
                nulls = self._options.nulls.get(name, ())
                value = csv_files.first_value(
                    checked.path,
                    format_,
                    positions[name],
                    skip=0 if header else checked.header_lines,
                    ignored=nulls,
                )
                types[j] = self._type_of_times(value)
        return _Input(path, checked, names, tuple(types))

    def _type_of_times(self, first):
        """What a column of texts holds that has this first value, if it has any."""
        if not first:
            return "unknown"
        return "time" if sql_values.is_time(first) else "text"

    def _first_value(self, path, names, name):
        """The first value of a column of text in a Parquet file, or `None`."""
        column = quoted(names[raw_columns.find_column(path, names, name)])
        nulls = ", ".join(map(literal, ("", *self._options.nulls.get(name, ()))))
        rows = self._execute(
            f"SELECT {column} FROM read_parquet({literal(path)}) "
            f"WHERE trim({column}) NOT IN ({nulls}) LIMIT 1"
        )
        return rows[0][0] if rows else None

    def _checked(self, i, path, columns):
        copy = self._directory / f"{i:05}" / path.name.removesuffix(path.suffix)
        copy = copy.with_suffix(".csv")
        arguments = {"has_header": self._options.header is None}
        format_ = self._options.format
        try:
            return csv_files.checked(
                path, format_, columns, copy,
                readable=path.suffix in _READABLE or not text_files.compression(path), **arguments,
            )  # fmt: skip
        except text_files.DamagedFileError:
            pass
        whole = copy.with_name("readable.csv")
        whole.parent.mkdir(parents=True, exist_ok=True)
        number = 0
        with whole.open("wb") as file:
            try:
                for line in text_files.lines(path):
                    file.write(line)
                    number += 1
            except text_files.DamagedFileError as error:
                if not number:
                    raise ValueError(f"{path} must be a CSV file: {error}") from error
                self._damage.append((path, number + 1, error.lost_lines))
        checked = csv_files.checked(whole, format_, columns, copy, **arguments)
        if checked.path != whole:
            whole.unlink()
        return checked

    def _with_times(self, inputs):
        """Settles which columns hold times; files without a value follow the others."""
        stamped = set()
        settled = [list(item.types) for item in inputs]
        for j, name in enumerate(self._columns):
            first = {
                types[j] == "time" or sql_values.is_timestamp(types[j]): item.path
                for types, item in zip(settled, inputs, strict=True)
                if types[j] != "unknown"
            }
            if len(first) > 1:
                raise ValueError(
                    f"column {name!r} must hold either times or numbers in all files. It holds "
                    f"times in {first[True]} and numbers in {first[False]}"
                )
            stamped |= {name} if True in first else set()
            for types in settled:
                if types[j] == "unknown":
                    types[j] = "time" if True in first else "text"
        inputs = [
            item._replace(types=tuple(types)) for item, types in zip(inputs, settled, strict=True)
        ]
        return inputs, stamped

    # Reading

    def _insert(self, item, created):
        """Reads a file; returns its number of rows, and why each rejected record was left out."""
        raw = [f"{self._raw(item, j)} AS {quoted(f'raw {j}')}" for j in self._indices]
        values = [self._value(item.types[j], j) for j in self._indices]
        firsts = [
            f"{value.first} AS {quoted(f'first {j}')}"
            for j, value in enumerate(values)
            if value.first
        ]
        parsed = [f"{value.value} AS {quoted(f'value {j}')}" for j, value in enumerate(values)]
        names = [
            f"{quoted(f'value {j}')}::{kind} AS {raw_columns.column(name)}"
            for j, (name, kind) in enumerate(self._columns.items())
        ]
        rows = f"SELECT {', '.join(raw)} FROM {self._source(item)}"
        rows = f"SELECT {', '.join(['*', *firsts])} FROM ({rows})"
        rows = f"SELECT {', '.join(['*', *parsed])} FROM ({rows})"
        rows = f"SELECT {', '.join([*names, _faults(values)])} FROM ({rows})"
        if self._options.wanted:
            rows = f"SELECT *, coalesce({self._options.wanted}, false) AS wanted FROM ({rows})"
            columns = map(raw_columns.column, self._columns)
            cases = [f"CASE WHEN wanted THEN {name} END AS {name}" for name in columns]
            rows = f"SELECT {', '.join([*cases, 'wanted', _FAULTS])} FROM ({rows})"
        begin = "INSERT INTO {} {}" if created else "CREATE TABLE {} AS {}"
        ((count,),) = self._execute(
            begin.format(quoted(self._table), rows), f"Reading {self._table}"
        )
        return count, self._rejected() if item.checked else {}

    @property
    def _indices(self):
        return range(len(self._columns))

    def _source(self, item):
        path = literal(item.read_path)
        if item.checked is None:
            return f"read_parquet({path})"
        delimiter, quote = map(literal, self._options.format)
        columns = ", ".join(f"'c{i}': 'VARCHAR'" for i in range(len(item.names)))
        # Threads that begin within a value of several lines may take it for several records.
        parallel = not len(item.checked.long_records)
        return (
            f"read_csv({path}, columns = {{{columns}}}, auto_detect = false, "
            f"header = {self._options.header is None}, delim = {delimiter}, quote = {quote}, "
            f"escape = {quote}, parallel = {parallel}, "
            f"store_rejects = true, rejects_table = 'rejects', rejects_scan = 'scans')"
        )

    def _raw(self, item, j):
        position = raw_columns.find_column(item.path, item.names, list(self._columns)[j])
        return quoted(item.names[position] if item.checked is None else f"c{position}")

    def _value(self, there, j):
        name, kind = list(self._columns.items())[j]
        raw, nulls = quoted(f"raw {j}"), self._options.nulls.get(name, ())
        if sql_lists.value_type(kind):
            separator = self._options.separators[name]
            arguments = {"name": f"first {j}", "separator": separator, "nulls": nulls}
            if there == "text":
                return sql_lists.of_text(raw, kind, **arguments)
            return sql_lists.of_parquet(raw, there, kind, **arguments)
        if there == "time":
            return sql_values.of_time(raw, self._options.times[name], nulls)
        if there == "text":
            booleans = kind == "FLOAT" or name in self._options.lenient
            return sql_values.of_text(raw, kind, f"first {j}", nulls=nulls, booleans=booleans)
        return sql_values.of_parquet(raw, there, kind, nulls)

    def _rejected(self):
        # A line may be wrong in several columns; the first of them is reported.
        records = self._execute(
            """
            SELECT line, arg_min(error_type::VARCHAR, column_idx)
            FROM rejects
            GROUP BY line
            ORDER BY line
            """
        )
        for name in ("rejects", "scans"):
            self._execute(f"DROP TABLE {name}")
        return {number: _REJECTIONS[error] for number, error in records}

    # After reading

    def _places(self, inputs, read):
        """Counts all lines in the report; returns where the rows stood."""
        files, first_row = [], 0
        for item, (rows, rejected) in zip(inputs, read, strict=True):
            has_header = item.checked is not None and self._options.header is None
            files.append(
                places.FilePlaces(item.path.name, first_row, 1 + has_header, rejected, item.checked)
            )
            first_row += rows
        at = places.Places(files)
        self._report.read(self._table, first_row + sum(n - 1 for _, n in at.long_rows))
        dropped = {}
        for file in files:
            for reason, lines, first in file.left_out():
                count, known = dropped.get(reason, (0, []))
                dropped[reason] = count + lines, [*known, *first][: places.SHOWN]
        self._report.read(self._table, sum(count for count, _ in dropped.values()))
        for reason, (count, first) in dropped.items():
            self._report.drop(self._table, reason, count, first, bad=reason != places.BLANK)
        if at.long_rows:
            self._add_lines(at.long_rows)
        return at

    def _add_lines(self, long_rows):
        table = quoted(self._table)
        self._execute(f"ALTER TABLE {table} ADD COLUMN {LINES} INTEGER DEFAULT 1")
        for begin in range(0, len(long_rows), 10_000):
            some = ", ".join(map(str, long_rows[begin : begin + 10_000]))
            self._execute(
                f"UPDATE {table} SET {LINES} = v.n FROM (VALUES {some}) AS v(r, n) "
                f"WHERE {table}.rowid = v.r"
            )

    def _drop_damage(self):
        for path, line, lost in self._damage:
            self._report.read(self._table, lost)
            self._report.drop(
                self._table,
                f"{text_files.compression(path)} cut off or damaged, here at the latest",
                lost,
                [f"{path.name}:{line}"],
            )

    def _take_faults(self, at):
        """Drops the rows with wrong values in columns that are not lenient; notes the others."""
        table = quoted(self._table)
        lines = f"sum({LINES})" if at.long_rows else "count(*)"
        found = self._execute(
            f"SELECT {_FAULTS}, {lines}::BIGINT, count(*), "
            f"list(rowid ORDER BY rowid)[:{places.SHOWN}] FROM {table} "
            f"WHERE {_FAULTS} IS NOT NULL GROUP BY {_FAULTS} ORDER BY min(rowid)"
        )
        names = list(self._columns)
        bad, notes, strict = {}, {}, []
        for faults, lines, rows, rowids in found:
            wrong = {names[int(fault[:-1])]: fault[-1] for fault in faults.split()}
            first = next((name for name in wrong if name not in self._options.lenient), None)
            if first is None:
                for name, code in wrong.items():
                    notes[name, code] = notes.get((name, code), 0) + rows
                continue
            strict.append(literal(faults))
            reason = f"{first} {sql_values.FAULTS[wrong[first]]}"
            count, known = bad.get(reason, (0, []))
            bad[reason] = count + lines, sorted([*known, *rowids])[: places.SHOWN]
        if strict:
            self._execute(f"DELETE FROM {table} WHERE {_FAULTS} IN ({', '.join(strict)})")
        self._execute(f"ALTER TABLE {table} DROP COLUMN {_FAULTS}")
        for (name, code), rows in notes.items():
            fault = sql_values.FAULTS[code].removeprefix("is ")
            self._report.note(f"{self._table}: {name} {fault}, taken for missing", rows)
        for reason, (lines, rowids) in bad.items():
            self._report.drop(self._table, reason, lines, list(map(at.of, rowids)))


def _faults(values):
    """SQL of what is wrong with the values of a row: the numbers of columns and codes, or NULL."""
    wrong = {j: value.fault for j, value in enumerate(values) if value.fault}
    if not wrong:
        return f"NULL::VARCHAR AS {_FAULTS}"
    some = " OR ".join(
        f"({quoted(f'value {j}')} IS NULL AND {quoted(f'raw {j}')} IS NOT NULL)" for j in wrong
    )
    codes = ", ".join(
        f"'{j}' || CASE WHEN {quoted(f'value {j}')} IS NULL THEN {fault} END"
        for j, fault in wrong.items()
    )
    return f"CASE WHEN {some} THEN nullif(concat_ws(' ', {codes}), '') END AS {_FAULTS}"
