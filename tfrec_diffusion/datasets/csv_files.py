"""CSV files as people have them: finds the lines that DuckDB would misread, and takes them out.

DuckDB numbers records, and a stray quote makes a record of all that follows it. So each file is
read through once before, as bytes: only lines with quotes, other ends of lines than the rest of the
file, or more than `MAX_LINE` bytes are looked at, which costs next to nothing where there are none.
"""

import array
import csv
import itertools
import re
from typing import NamedTuple

import numpy as np

from tfrec_diffusion.datasets import text_files

# Longest line, and longest record of several lines, in bytes; DuckDB has the same limit.
MAX_LINE = 2_000_000
# Most lines of a record.
MAX_RECORD_LINES = 100
# With fewer columns, the lines of a text may well have as many delimiters as a record has.
_TELLING_COLUMNS = 4
# How much is looked at at once: little enough to stay in a processor's cache.
_BLOCK = 1 << 20
_NEWLINE, _RETURN = 10, 13

BROKEN_QUOTES = "broken quotes"
TOO_LONG = "line too long"


class Format(NamedTuple):
    """How fields are written.

    Args:
        delimiter: str. The character between fields. Defaults to `","`.
        quote: str. The character around a field that holds a delimiter, a line break or, doubled,
            the quote itself. If empty, there are no quotes. Defaults to `'"'`.
    """

    delimiter: str = ","
    quote: str = '"'


COMMAS = Format()


def header(path, format_):
    """The names in the first line of a file.

    Args:
        path: `pathlib.Path`. A CSV file, plain or compressed.
        format_: `Format`. How it is written.

    Returns:
        list of str.

    Raises:
        ValueError: If the file is no CSV file in UTF-8.
    """
    names = next(_records(path, format_), [])
    if len(names) > 1 and not names[-1]:
        # A delimiter too many at the end of the header alone.
        try:
            first = next(_records(path, format_, errors="replace", skip=1), [])
        except ValueError:
            first = []
        if len(first) == len(names) - 1:
            return names[:-1]
    return names


def first_value(path, format_, position, *, skip, ignored=()):
    """The first value of a column that is not empty, among the first thousand records.

    Args:
        path: `pathlib.Path`. A CSV file, plain or compressed.
        format_: `Format`. How it is written.
        position: int. Which column, from 0.
        skip: int. Number of header lines.
        ignored: collection of str. Values that are as good as none. Defaults to `()`.

    Returns:
        str, or `""` if there is none.
    """
    records = _records(path, format_, errors="replace")
    for number, record in zip(range(1000), records, strict=False):
        if number >= skip and len(record) > position:
            value = record[position].strip()
            if value and value not in ignored:
                return value
    return ""


class Checked(NamedTuple):
    """What was found in a file.

    A record's number counts the records of `path`, the header and blank lines among them, from 1.

    Args:
        path: `pathlib.Path`. The file to read instead: the file itself or a copy without the broken
            lines.
        broken: dict of int arrays by reason. Numbers of the lines that are no part of a record.
        blank_records: int array. Numbers of the records that are blank lines.
        long_records: int array. Numbers of the records of several lines.
        long_lines: int array. How many lines each of those has.
        shifted: int array. Numbers of records after which lines are further ahead of records.
        shifts: int array. How far the lines after each of those are ahead.
        header_lines: int. How many lines the header has.
    """

    path: object
    broken: dict
    blank_records: np.ndarray
    long_records: np.ndarray
    long_lines: np.ndarray
    shifted: np.ndarray
    shifts: np.ndarray
    header_lines: int

    def line(self, records):
        """The first lines of records.

        Args:
            records: int array. Numbers of records.

        Returns:
            int array of the numbers of their lines in the original file, from 1.
        """
        before = np.searchsorted(self.shifted, records, side="left")
        return records + np.concatenate([[0], self.shifts])[before]


def checked(path, format_, columns, copy, *, has_header, readable=True):
    """Looks for lines that DuckDB would misread.

    A line whose quotes are not closed in it begins a record of several lines if that has the right
    number of fields, ends within `MAX_RECORD_LINES` lines, and its lines are not all records by
    themselves. If it does not, this line alone is broken.

    Args:
        path: `pathlib.Path`. A CSV file, plain or compressed.
        format_: `Format`. How it is written.
        columns: int. Number of columns.
        copy: `pathlib.Path`. Where a copy is written if the file needs one.
        has_header: bool. Whether the first record is a header.
        readable: bool. Whether DuckDB can read the file as it is compressed. Defaults to `True`.

    Returns:
        `Checked`.

    Raises:
        text_files.DamagedFileError: If a compressed file is cut off or damaged.
    """
    if readable:
        try:
            return _Check(path, format_, columns, has_header, None).run()
        except _NeedsCopyError:
            pass
    copy.parent.mkdir(parents=True, exist_ok=True)
    with copy.open("wb") as file:
        return _Check(path, format_, columns, has_header, file).run()._replace(path=copy)


class _NeedsCopyError(Exception):
    """The file cannot be read as it is."""


class _Check:
    """One pass over a file.

    Args:
        path: `pathlib.Path`. As in `checked`.
        format_: `Format`. As in `checked`.
        columns: int. As in `checked`.
        has_header: bool. As in `checked`.
        copy: binary file or `None`. Gets the records. If `None`, the first thing that needs a copy
            raises `_NeedsCopyError`.
    """

    def __init__(self, path, format_, columns, has_header, copy):
        self._path = path
        self._columns = columns
        self._delimiter = format_.delimiter.encode()
        self._quote = format_.quote.encode()
        self._parse = _Parser(format_)
        self._copy = copy
        self._lines = 0  # before the chunk
        self._ahead = 0  # lines that are no records, so far
        self._returns = None  # whether lines end with \r\n
        self._has_header = has_header
        self._header_lines = int(has_header)
        self._broken = {}
        self._blank = array.array("q")
        self._long = array.array("q"), array.array("q")
        self._shifts = array.array("q"), array.array("q")

    def run(self):
        rest = b""
        for block in text_files.blocks(self._path, _BLOCK):
            rest = self._take(rest + block if rest else block, at_end=False)
        while rest:
            rest = self._take(rest, at_end=True)
        return Checked(
            self._path,
            {reason: _array(numbers) for reason, numbers in self._broken.items()},
            _array(self._blank),
            *map(_array, self._long),
            *map(_array, self._shifts),
            self._header_lines,
        )

    def _take(self, data, at_end):
        """Checks the whole lines of what was read; returns what must wait for more."""
        cut = len(data)
        if not at_end:
            # The last byte may be the first half of an end of line.
            cut = 1 + max(data.rfind(b"\n"), data.rfind(b"\r", 0, -1))
            if not cut:
                return self._shortened(data)
        chunk, rest = data[:cut], data[cut:]
        chunk = self._with_equal_ends(chunk)
        if not chunk.endswith(b"\n"):
            chunk += b"\n"
        if self._is_plain(chunk):
            self._write(chunk)
            self._lines += int(np.count_nonzero(np.frombuffer(chunk, np.uint8) == _NEWLINE))
            return rest
        return chunk[self._look(chunk, at_end) :] + rest

    def _shortened(self, data):
        # A line that is too long anyway need not be held as a whole.
        return data[: MAX_LINE + 1] + data[-1:] if len(data) > MAX_LINE + _BLOCK else data

    def _with_equal_ends(self, chunk):
        if self._returns is None:
            first = chunk.find(b"\n")
            self._returns = chunk[max(0, first - 1) : first] == b"\r"
        if self._copy is None:
            if not self._returns and b"\r" not in chunk:
                return chunk
            if self._returns and (chunk.count(b"\r") == chunk.count(b"\n") == chunk.count(b"\r\n")):
                return chunk
            raise _NeedsCopyError
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _is_plain(self, chunk):
        if self._quote and self._quote in chunk:
            return False
        if self._columns > 1 and (chunk.startswith((b"\n", b"\r\n")) or _has_blank_lines(chunk)):
            return False
        begin = 0
        while begin < len(chunk):
            begin = 1 + chunk.rfind(b"\n", begin, begin + MAX_LINE)
            if not begin:
                return False
        return True

    def _look(self, chunk, at_end):
        """Checks the lines of a chunk one by one where need be.

        Returns:
            int, the position up to which the chunk is done.
        """
        data = np.frombuffer(chunk, np.uint8)
        ends = np.flatnonzero(data == _NEWLINE)
        starts = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts
        special = lengths > MAX_LINE
        if self._columns > 1:
            blank = (lengths == 0) | ((lengths == 1) & (data[starts] == _RETURN))
            special |= blank
        if self._quote:
            special |= self._odd_quotes(data, starts, ends)
        done = 0  # lines
        for i in np.flatnonzero(special).tolist():
            if i < done:
                continue
            if self._columns > 1 and blank[i]:
                self._blank.append(self._lines + i + 1 - self._ahead)
                continue
            if lengths[i] > MAX_LINE:
                self._copied(chunk, starts, done, i)
                self._drop(TOO_LONG, i)
                done = i + 1
                continue
            last = min(i + MAX_RECORD_LINES, len(ends))
            window_end = min(int(ends[last - 1]) + 1, int(starts[i]) + MAX_LINE)
            fields, end = self._parse(chunk, int(starts[i]), window_end)
            lines = int(np.searchsorted(ends, end)) + 1 - i if fields else 1
            if not fields and last == len(ends) and not at_end and window_end == len(chunk):
                # The record may go on in what is not read yet.
                self._copied(chunk, starts, done, i)
                self._lines += i
                return int(starts[i])
            if fields and (lines == 1 or self._is_record(chunk, starts, ends, i, lines, fields)):
                self._copied(chunk, starts, done, i)
                self._record(i, lines, fields, chunk[starts[i] : end + 1])
                done = i + lines
            else:
                self._copied(chunk, starts, done, i)
                self._drop(BROKEN_QUOTES, i)
                done = i + 1
        self._copied(chunk, starts, done, len(ends))
        self._lines += len(ends)
        return len(chunk)

    def _odd_quotes(self, data, starts, ends):
        """Which lines have quotes that are not simply one before and one after a field."""
        quote, delimiter = self._quote[0], self._delimiter[0]
        quotes = np.flatnonzero(data == quote)
        lines = np.searchsorted(ends, quotes)
        firsts = np.searchsorted(quotes, starts)
        opens = (np.arange(len(quotes)) - firsts[lines]) % 2 == 0
        before = np.where(quotes > 0, data[quotes - 1], _NEWLINE)
        after = data[quotes + 1]
        # A doubled quote closes and opens at once.
        fine = np.where(
            opens,
            (before == delimiter) | (before == _NEWLINE) | (before == quote),
            (after == delimiter) | (after == _NEWLINE) | (after == _RETURN) | (after == quote),
        )
        odd = np.bincount(lines, minlength=len(ends)) % 2 == 1
        odd[lines[~fine]] = True
        return odd

    def _is_record(self, chunk, starts, ends, i, lines, fields):
        """Whether several lines are one record, and no lines with a stray quote each."""
        if self._lines + i == 0 and self._has_header:
            return True
        if len(fields) != self._columns and not (
            len(fields) == self._columns + 1 and not fields[-1]
        ):
            return False
        if self._columns < _TELLING_COLUMNS:
            return True
        counts = [
            chunk.count(self._delimiter, int(starts[j]), int(ends[j])) for j in range(i, i + lines)
        ]
        return any(count != self._columns - 1 for count in counts)

    def _record(self, i, lines, fields, as_it_is):
        number = self._lines + i + 1 - self._ahead
        if len(fields) == self._columns + 1 and not fields[-1]:
            fields = fields[:-1]
        if self._lines + i == 0 and self._has_header:
            self._header_lines = lines
        if lines > 1:
            self._long[0].append(number)
            self._long[1].append(lines)
            self._shift(number, lines - 1)
        if self._copy is not None:
            self._write(self._parse.written(fields))
        elif lines == 1 or not self._parse.is_simple(fields, as_it_is):
            raise _NeedsCopyError

    def _drop(self, reason, i):
        if self._copy is None:
            raise _NeedsCopyError
        number = self._lines + i + 1
        if number == 1 and self._has_header:
            raise ValueError(f"{self._path}: the first line must be a header. It has: {reason}")
        self._broken.setdefault(reason, array.array("q")).append(number)
        self._shift(number - 1 - self._ahead, 1)

    def _shift(self, number, lines):
        self._ahead += lines
        self._shifts[0].append(number)
        self._shifts[1].append(self._ahead)

    def _copied(self, chunk, starts, first, end):
        """Copies whole lines of a chunk as they are."""
        if self._copy is not None and first < end:
            stop = int(starts[end]) if end < len(starts) else len(chunk)
            self._write(chunk[int(starts[first]) : stop])

    def _write(self, data):
        if self._copy is not None:
            self._copy.write(data)


class _Parser:
    """Reads one record, as Python's `csv` does, save for blanks around a quoted field.

    Args:
        format_: `Format`. How it is written.
    """

    def __init__(self, format_):
        quote, delimiter = (re.escape(text.encode()) for text in (format_.quote, format_.delimiter))
        self._delimiter = format_.delimiter.encode()
        self._quote = format_.quote.encode()
        if self._quote:
            self._opens = re.compile(rb" *" + quote)
            self._quoted = re.compile(
                rb" *%(q)s([^%(q)s]*(?:%(q)s%(q)s[^%(q)s]*)*)%(q)s *(?=%(d)s|\r?\n)"
                % {b"q": quote, b"d": delimiter}
            )
        self._plain = re.compile(rb"[^%(d)s\r\n]*" % {b"d": delimiter})

    def __call__(self, text, begin, end):
        """Reads the record that begins at a position.

        Args:
            text: bytes.
            begin: int. First position.
            end: int. Position after which the record cannot end.

        Returns:
            Tuple of the fields and the position of the line break after them; or of `None` and
            `begin` if the quotes are broken or not closed before `end`.
        """
        fields = []
        position = begin
        while True:
            if self._opens.match(text, position, end):
                found = self._quoted.match(text, position, end)
                if not found:
                    return None, begin
                fields.append(found[1].replace(self._quote * 2, self._quote))
            else:
                found = self._plain.match(text, position, end)
                fields.append(found[0])
            position = found.end()
            if text[position : position + 1] == self._delimiter:
                position += 1
                continue
            if text[position : position + 1] == b"\r":
                position += 1
            if position >= end or text[position] != _NEWLINE:
                return None, begin
            return fields, position

    def written(self, fields):
        """Writes a record with a quote before and after each field.

        Args:
            fields: list of bytes. The fields.

        Returns:
            bytes, with a line break at the end.
        """
        quote = self._quote
        quoted = (quote + field.replace(quote, quote * 2) + quote for field in fields)
        return self._delimiter.join(quoted) + b"\n"

    def is_simple(self, fields, text):
        """Whether a record has just the quotes that it needs, or one before and after each field.

        Args:
            fields: list of bytes. The fields.
            text: bytes. The record as it stands in the file.

        Returns:
            bool.
        """
        quote = self._quote
        special = (quote, self._delimiter, b"\n", b"\r")
        needed = (
            quote + field.replace(quote, quote * 2) + quote
            if any(character in field for character in special)
            else field
            for field in fields
        )
        text = text.rstrip(b"\r\n")
        return text in (self._delimiter.join(needed), self.written(fields).rstrip(b"\n"))


def _records(path, format_, errors="strict", skip=0):
    """Yields the records of a file as Python's `csv` reads them, as far as it can."""
    quoting = {"quotechar": format_.quote} if format_.quote else {"quoting": csv.QUOTE_NONE}
    try:
        with text_files.opened(path) as (file, _):
            reader = csv.reader(_decoded(file, errors), delimiter=format_.delimiter, **quoting)
            yield from itertools.islice(reader, skip, None)
    except (csv.Error, UnicodeDecodeError, text_files.DamagedFileError) as error:
        raise ValueError(f"{path} must be a CSV file in UTF-8: {error}") from error


def _decoded(file, errors):
    while line := file.readline(MAX_LINE):
        for part in line.splitlines(keepends=True):
            yield part.decode("utf-8-sig", errors)


def _has_blank_lines(chunk):
    # Numpy compares pairs of bytes several times faster than Python finds them.
    pairs = np.array([b"\n\n", b"\n\r"]).view(np.uint16)
    for offset in (0, 1):
        found = np.frombuffer(chunk, np.uint16, (len(chunk) - offset) // 2, offset)
        if any((found == pair).any() for pair in pairs):
            return True
    return False


def _array(numbers):
    return np.frombuffer(numbers, np.int64) if len(numbers) else np.zeros(0, np.int64)
