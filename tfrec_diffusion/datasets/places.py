"""Where the rows of a loaded table stood in their files, and what became of the other lines."""

import numpy as np

BLANK = "blank line"
# How many places the report shows.
SHOWN = 5


class Places:
    """Where the rows of a loaded table stood.

    Args:
        files: list of `FilePlaces` in the order of their rows.

    Attributes:
        long_rows: list of pairs of ints. The `rowid` of each record of several lines, and how many
            lines it has.
    """

    def __init__(self, files):
        self._files = files
        self.long_rows = [row for file in files for row in file.long_rows()]

    def of(self, rowid):
        """Name of the file and number of the line of a row.

        Args:
            rowid: int.

        Returns:
            str, such as `"clicks.csv:17"`.
        """
        file = [file for file in self._files if file.first_row <= rowid][-1]
        return file.place(rowid - file.first_row)


class FilePlaces:
    """Where the rows of a file are in its table, and what became of its other lines.

    Args:
        name: str. Name of the file.
        first_row: int. Position of its first row in the table.
        first_record: int. Number of the first record that is no header.
        rejected: dict of str by int. Why DuckDB left out the records of these numbers.
        checked: `csv_files.Checked` or `None`. What was found in a CSV file.
    """

    def __init__(self, name, first_row, first_record, rejected, checked):
        self.name = name
        self.first_row = first_row
        self._first_record = first_record
        self._rejected = rejected
        self._checked = checked
        blank = [] if checked is None else checked.blank_records.tolist()
        self._without_row = np.asarray(sorted([*rejected, *blank]), np.int64)

    def place(self, row):
        """Where one of its rows stood, which are counted from 0."""
        base = row + self._first_record
        # The number that each of these would have if those before it were taken out.
        before = self._without_row - np.arange(len(self._without_row))
        return self._place(base + int(np.searchsorted(before, base, side="right")))

    def long_rows(self):
        """Pairs of the `rowid` and the number of lines of the rows that have several."""
        if self._checked is None or not len(self._checked.long_records):
            return []
        numbers, lines = self._checked.long_records, self._checked.long_lines
        kept = ~np.isin(numbers, self._without_row) & (numbers >= self._first_record)
        rows = numbers - self._first_record - np.searchsorted(self._without_row, numbers)
        rows += self.first_row
        return list(zip(rows[kept].tolist(), lines[kept].tolist(), strict=True))

    def left_out(self):
        """Yields why lines became no row, how many, and the places of the first."""
        if self._checked is None:
            return
        lines = dict(
            zip(self._checked.long_records.tolist(), self._checked.long_lines.tolist(), strict=True)
        )
        by_reason = {}
        for record in sorted(self._rejected):
            by_reason.setdefault(self._rejected[record], []).append(record)
        by_reason[BLANK] = self._checked.blank_records.tolist()
        for reason, records in by_reason.items():
            count = sum(lines.get(record, 1) for record in records)
            yield reason, count, [self._place(record) for record in records[:SHOWN]]
        for reason, numbers in self._checked.broken.items():
            yield reason, len(numbers), [f"{self.name}:{line}" for line in numbers[:SHOWN]]

    def _place(self, record):
        line = record if self._checked is None else int(self._checked.line(np.asarray(record)))
        return f"{self.name}:{line}"
