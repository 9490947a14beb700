"""Finds the tables in a directory of raw files: which files belong together, how they are written.

Files are one table if they have the same columns and their names differ in numbers only, or if they
lie in a folder of their own.
"""

import collections
import csv
import glob
import itertools
import os
import pathlib
import re
from typing import NamedTuple

from tfrec_diffusion import files
from tfrec_diffusion.datasets import (
    csv_files,
    raw_columns,
    sql_lists,
    sql_values,
    tables,
    text_files,
)

_ENDING = re.compile(
    rf"\.(csv|tsv|txt)({'|'.join(map(re.escape, text_files.COMPRESSIONS))})?$|\.(parquet|pq)$", re.I
)
# In the order in which they win where several would do.
_DELIMITERS = ("\t", ",", ";", "|")
# What differs between the names of parts: dates, numbers and the identifiers that Spark writes.
_NUMBERS = re.compile(r"\d+(?:[-_.T]?\d+)*")
_IDENTIFIERS = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SPLITS = re.compile(r"(?<![A-Za-z])(train|valid|validation|val|dev|test)(?![A-Za-z])", re.I)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.I)
# What tells a delimiter.
_HEAD_LINES, _HEAD_BYTES = 50, 1 << 20
_NO_NAME = "(no name)"


class RawTable(NamedTuple):
    """Files that are one table.

    Args:
        pattern: str. Glob pattern below the directory that finds them.
        paths: tuple of `pathlib.Path`. The files.
        format: `csv_files.Format`. How CSV files are written.
        columns: dict of str by name. The columns that can be used: their types in Parquet files,
            and `""` in CSV files.
        unusable: dict of str by name. Why the other columns cannot be used.
        notes: tuple of str. What the user should do about the files.
    """

    pattern: str
    paths: tuple[pathlib.Path, ...]
    format: csv_files.Format
    columns: dict[str, str]
    unusable: dict[str, str]
    notes: tuple[str, ...] = ()


class _File(NamedTuple):
    """A file that can be read, with its part of what `RawTable` has."""

    path: pathlib.Path
    format: csv_files.Format
    columns: dict[str, str]
    unusable: dict[str, str]


def find_tables(root):
    """Finds the tables below a directory. Names that begin with `.` or `_` are left out.

    Args:
        root: `pathlib.Path`. The directory.

    Returns:
        Tuple of a list of `RawTable`s and a dict of str: why files were left out, by their paths
        below `root`.

    Raises:
        ValueError: If `root` is no directory of this machine.
    """
    text_files.check_is_local("`raw_dir`", root)
    if not root.is_dir():
        raise ValueError(f"`raw_dir` must be a directory. Received: {root}")
    found, left_out = [], {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith((".", "_", files.INCOMPLETE)) for part in relative.parts)
        if hidden or not _ENDING.search(path.name) or not path.is_file():
            continue
        try:
            found.append(_opened(path))
        except (ValueError, OSError, text_files.DamagedFileError) as error:
            reason = str(error).splitlines()[0].removeprefix(str(path)).strip(" :")
            left_out[os.fsencode(relative).decode(errors="replace")] = reason
    unread = {root / name for name in left_out}
    found = [table for group in _groups(root, found) for table in _tables(root, group, unread)]
    return list(_with_splits(root, found)), left_out


def first_lines(path, count, size):
    """The first lines of a file, as far as they can be read.

    Args:
        path: `pathlib.Path`. A text file, plain or compressed.
        count: int. Most lines.
        size: int. About the most bytes.

    Returns:
        Tuple of a list of bytes and whether they are all that can be read.

    Raises:
        text_files.DamagedFileError: If nothing can be read.
    """
    lines, read = [], 0
    try:
        with text_files.opened(path) as (file, _):
            while line := file.readline(csv_files.MAX_LINE):
                if len(lines) == count or read > size:
                    return lines, False
                lines.append(line)
                read += len(line)
    except text_files.DamagedFileError:
        if not lines:
            raise
    return lines, True


def _opened(path):
    str(path).encode()  # the name in a spec file must be UTF-8
    if raw_columns.is_parquet(path):
        types = raw_columns.parquet_types(path)
        return _File(path, csv_files.COMMAS, *_usable(list(types), types))
    if not path.stat().st_size:
        raise ValueError("is empty")
    lines, _ = first_lines(path, _HEAD_LINES, _HEAD_BYTES)
    if not b"".join(lines).strip():
        raise ValueError("is empty")
    if any(b"\0" in line for line in lines):
        raise ValueError("is no text in UTF-8")
    format_ = csv_files.Format(_delimiter(lines))
    names = csv_files.header(path, format_)
    if len(names) < 2:
        raise ValueError("has one column only")
    numbers = sum(bool(_NUMBER.fullmatch(name) or sql_values.is_time(name)) for name in names)
    if 2 * numbers > len(names) and names != [str(i) for i in range(len(names))]:
        raise ValueError(f"has no header line; its first line is {', '.join(names[:5])} ..")
    return _File(path, format_, *_usable(names, dict.fromkeys(names, "")))


def _usable(names, types):
    """The columns that can be used with their types, and why others cannot."""
    stripped = [name.strip() for name in names]
    columns, unusable = {}, {}
    for name, original in zip(stripped, names, strict=True):
        same = next((other for other in columns if other.lower() == name.lower()), name)
        kind = types[original]
        if not name:
            unusable[_NO_NAME] = "has no name"
        elif stripped.count(name) > 1:
            unusable[name] = "is there more than once"
        elif same != name:
            unusable[name] = f"differs from {same!r} in case only"
        elif not any(
            can_be_read(kind, as_ + list_) for as_ in tables.MISSING for list_ in ("", "[]")
        ):
            unusable[name] = f"has the type {kind}, which cannot be read"
        else:
            columns[name] = kind
    return columns, unusable


def can_be_read(there, kind):
    """Whether `prepare` can read a column as a type.

    Args:
        there: str. Type of the column in Parquet files, or `""` in CSV files.
        kind: str. SQL type: a key of `tables.MISSING`, or a list of it such as `"VARCHAR[]"`.

    Returns:
        bool.
    """
    if there in ("", "VARCHAR"):
        return True
    try:
        sql_lists.check_type("", "", there, kind)
    except ValueError:
        return False
    return True


def _delimiter(lines):
    """The delimiter with which most lines have as many fields as the first."""
    text = [line.decode("utf-8-sig", "replace") for line in lines]

    def evenness(delimiter):
        try:
            counts = [len(record) for record in csv.reader(text, delimiter=delimiter) if record]
        except csv.Error:
            return 0, 0
        if not counts or counts[0] < 2:
            return 0, 0
        return counts.count(counts[0]) / len(counts), counts[0]

    return max(_DELIMITERS, key=evenness)


# Which files belong together


def _groups(root, found):
    """Files whose names differ in numbers only, or that have a folder to themselves."""
    by_folder = collections.defaultdict(list)
    for file in found:
        by_folder[file.path.parent, file.format].append(file)
    alone, others = [], collections.defaultdict(list)
    for (folder, format_), group in by_folder.items():
        names = {frozenset((*file.columns, *file.unusable)) for file in group}
        if folder != root and len(group) > 1 and len(names) == 1:
            alone.append(group)
            continue
        for file in group:
            others[_templates(root, file.path)[0], format_].append(file)
    # Folders of days hold a file of each table, or parts of one.
    merged = collections.defaultdict(list)
    for group in alone:
        folder = group[0].path.parent.relative_to(root).as_posix()
        merged[_NUMBERS.sub("*", folder), group[0].format].extend(group)
    return [*others.values(), *merged.values()]


def _tables(root, group, unread):
    """The tables of a group of files: one, unless their columns have too little in common."""
    shared = set.intersection(*(set(file.columns) for file in group))
    every = set().union(*(file.columns for file in group))
    parts = [group]
    if len(shared) < 2 or 2 * len(shared) < len(every):
        by_columns = collections.defaultdict(list)
        for file in group:
            by_columns[frozenset(file.columns)].append(file)
        parts = list(by_columns.values())
    for part in parts:
        pattern = _pattern(root, [file.path for file in part], unread)
        if pattern:
            yield _table(root, pattern, part, unread)
        else:
            for file in part:
                yield _table(root, _literal(root, file.path), [file], unread)


def _with_splits(root, found):
    """Tables that somebody has split into `train`, `test` and so on become one again.

    So do parts with other endings, such as those that are not compressed yet.
    """
    merged = collections.defaultdict(list)
    for table in found:
        name = _NUMBERS.sub("*", _ENDING.sub("", _SPLITS.sub("*", table.pattern)))
        merged[name, table.format, frozenset(table.columns)].append(table)
    for group in merged.values():
        paths = sorted(path for table in group for path in table.paths)
        pattern = _pattern(root, paths, set()) if len(group) > 1 else None
        if pattern:
            unusable = {name: why for table in group for name, why in table.unusable.items()}
            notes = tuple(note for table in group for note in table.notes)
            first = group[0]
            yield first._replace(
                pattern=pattern, paths=tuple(paths), unusable=unusable, notes=notes
            )
        else:
            yield from group


def _table(root, pattern, part, unread):
    shared = set.intersection(*(set(file.columns) for file in part))
    columns = {name: kind for name, kind in part[0].columns.items() if name in shared}
    unusable = {
        name: "is in some of the files only"
        for file in part
        for name in file.columns
        if name not in shared
    }
    for file in part:
        unusable |= file.unusable
        for name, kind in file.columns.items():
            if name in columns and kind != columns[name] and "DOUBLE" in kind:
                columns[name] = kind  # the integers of a part without missing values
    paths = tuple(sorted(file.path for file in part))
    extra = sorted(set(tables.find_files(root, pattern)) - set(paths))
    notes = tuple(
        f"move {path.relative_to(root)} away, which cannot be read and {pattern} finds."
        for path in extra
    )
    return RawTable(pattern, paths, part[0].format, columns, unusable, notes)


def _literal(root, path):
    return glob.escape(path.relative_to(root).as_posix())


def _templates(root, path):
    """Patterns for the path of a file and of others like it, the most general first."""
    name = path.relative_to(root).as_posix()
    ending = _ENDING.search(name)
    stem, ending = glob.escape(name[: ending.start()]), glob.escape(ending[0])
    stem = _IDENTIFIERS.sub("*", stem)
    varied = (_NUMBERS.sub("*", stem), _NUMBERS.sub("[0-9]*", stem), re.sub(r"\d", "[0-9]", stem))
    return [stem + ending for stem in varied]


def _pattern(root, paths, unread):
    """A pattern that finds these files; others only if they cannot be read anyway."""
    paths = sorted(paths)
    if len(paths) == 1:
        return _literal(root, paths[0])
    candidates = list(zip(*(_templates(root, path) for path in paths), strict=True))
    patterns = [names[0] for names in candidates if len(set(names)) == 1]
    folders = {_NUMBERS.sub("*", _literal(root, path.parent)) for path in paths}
    endings = {glob.escape(_ENDING.search(path.name)[0]) for path in paths}
    if len(folders) == len(endings) == 1:
        patterns.append(f"{folders.pop()}/*{endings.pop()}".removeprefix("./"))
    names = [path.relative_to(root).as_posix() for path in paths]
    first = _beginning(names)
    last = _beginning([name[len(first) :][::-1] for name in names])[::-1]
    patterns.append(f"{glob.escape(first)}*{glob.escape(last)}")
    for allowed, pattern in itertools.product((set(), unread), patterns):
        if set(_found(root, pattern)) - allowed == set(paths):
            return pattern
    return None


def _beginning(names):
    """What names have in common at their beginning."""
    equal = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in equal)


def _found(root, pattern):
    try:
        return tables.find_files(root, pattern)
    except FileNotFoundError:
        return []
