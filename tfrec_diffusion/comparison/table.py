"""A table of a comparison: which rows it shows, on which data sets, and against which row."""

from typing import NamedTuple

from tfrec_diffusion.comparison.entry import Entry, by_data_set


class Figure(NamedTuple):
    """The picture of a table.

    Args:
        kind: str. `"bars"`: the AUC of each row, a panel for each data set and split. `"line"`: the
            same against a number that each row stands for. `"data_sets"`: the rows' differences
            from the base against a number that each data set stands for. `"splits"`: the AUC less
            that of an oracle against the number that the name of each split ends with.
        label: str. What the numbers are. Defaults to `""`.
        points: dict or `None`. Of `"line"`, the number of each row, or a list of it and the name of
            the line that it is on. Of `"data_sets"`, the number of each data set. Defaults to
            `None`.
        oracle: str. Name of the oracle of `"splits"`. Defaults to `""`.
    """

    kind: str
    label: str = ""
    points: dict | None = None
    oracle: str = ""


class Section(NamedTuple):
    """What a table shows of one data set and split.

    Args:
        entries: list of `Entry`.
        base: `Entry`. The one of them that the others are compared with.
        split: str.
    """

    entries: list[Entry]
    base: Entry
    split: str


class Table(NamedTuple):
    """A table of a comparison.

    Args:
        name: str. Its heading. Empty if it is the only one.
        entries: list of `Entry`, data set by data set.
        base: str. The row that the others are compared with.
        splits: list of str. Splits to show, or `["all"]`.
        caption: str. What the table is about. Defaults to `""`.
        figure: `Figure` or `None`. Its picture. If `None`, it has none. Defaults to `None`.
        speed: bool. Whether it shows the speed at inference. Defaults to `False`.
    """

    name: str
    entries: list[Entry]
    base: str
    splits: list[str]
    caption: str = ""
    figure: Figure | None = None
    speed: bool = False

    def sections(self):
        """What it shows, data set by data set.

        Of a data set that has finished runs, it shows the splits that these were evaluated on.

        Returns:
            list of `Section`.
        """
        found = []
        every = self.splits == ["all"]
        for entries in by_data_set(self.entries):
            (base,) = (entry for entry in entries if entry.row == self.base)
            results = [result for entry in entries for result in entry.results()]
            known = list(results[0]) if results else ["test"] if every else self.splits
            splits = known if every else [split for split in self.splits if split in known]
            found += [Section(entries, base, split) for split in splits]
        return found
