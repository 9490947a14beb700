"""What the columns of a raw table hold, as far as a sample of its rows tells."""

import dataclasses
import functools
import re

from tfrec_diffusion.datasets import logs_spec, raw_columns, sql_lists, sql_values, tables
from tfrec_diffusion.datasets.sql import literal
from tfrec_diffusion.drafting import raw_samples, raw_tables

_SEPARATORS = (raw_samples.OF_PARQUET, "|", ";", ",", " ")
_BEFORE_LISTS = 1000  # how many distinct values tell whether they are lists
# Times from 1990 to 2100, in seconds since 1970.
_FIRST_TIME, LAST_TIME = 631_152_000, 4_102_444_800
# Share of the values that tells what a column is; a few may be wrong.
_MOST = 0.95
# How many rows must repeat a key to tell that it determines a column, and how many may contradict.
_REPEATED, _FEW = 10, 0.02
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.I)


@dataclasses.dataclass(frozen=True)
class Column:
    """What a column holds.

    Args:
        name: str. Its name.
        type: str. Its type in Parquet files, `""` in CSV files.
        present: int. How many values of the sample are not missing.
        distinct: int. How many of them differ.
        integers: bool. Whether all are integers, such as `12` or `12.0`.
        numbers: bool. Whether they are integers, or numbers with decimals save for a few.
        large: bool. Whether there are integers beyond 64 bits.
        minus_one: bool. Whether one of them is -1.
        binary: bool. Whether they are 0 and 1, or `true` and `false`.
        iso: bool. Whether they are times in ISO 8601, or TIMESTAMPs.
        unit: str. The unit, if they are integers that are times since 1970, else `""`.
        low: float. The least number.
        high: float. The greatest number.
        characters: float. Mean length as text.
        words: float. Mean number of blanks in a text.
        separator: str. What stands between the values of lists, `""` if there are no lists.
        values: int. How many values the longest list has.
        width: int. How many numbers each has, if they are vectors, else `0`.
        part: `Column` or `None`. What the values of lists are.
    """

    name: str
    type: str
    present: int
    distinct: int
    integers: bool
    numbers: bool
    large: bool
    minus_one: bool
    binary: bool
    iso: bool
    unit: str
    low: float
    high: float
    characters: float
    words: float
    separator: str = ""
    values: int = 1
    width: int = 0
    part: "Column | None" = None

    @property
    def is_list(self):
        """bool. Whether it holds lists or vectors."""
        return bool(self.separator)


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """A table and what is known of it from a sample.

    Args:
        table: `raw_tables.RawTable`. Its files.
        database: `tables.Database`. Has the sample.
        sample: str. Name of the sample there.
        rows: int. How many rows the sample has.
        whole: bool. Whether these are all rows of the table.
        columns: dict of `Column` by name.
    """

    table: raw_tables.RawTable
    database: tables.Database = dataclasses.field(repr=False)
    sample: str
    rows: int
    whole: bool
    columns: dict[str, Column]

    @property
    def name(self):
        """str. What messages call it."""
        return self.table.pattern

    def counts(self, name):
        """How often each value of a column occurs.

        Args:
            name: str. Name of the column.

        Returns:
            dict of int by text, the most frequent first.
        """
        column = raw_columns.column(name)
        return dict(
            self.database.execute(
                f"SELECT {column}, count(*) AS n FROM {self.sample} WHERE {column} IS NOT NULL "
                f"GROUP BY {column} ORDER BY n DESC, {column} LIMIT 1000"
            )
        )

    def distinct(self, *names):
        """How many combinations of values there are in some columns.

        Args:
            *names: str. Names of columns. Rows in which one of them is missing are left out.

        Returns:
            Tuple of the number of combinations of the first one, of two, and so on; and that of the
            rows.
        """
        columns = list(map(raw_columns.column, names))
        counts = [
            f"count(DISTINCT ({', '.join(columns[: i + 1])}, 0))" for i in range(len(columns))
        ]
        there = " AND ".join(f"{column} IS NOT NULL" for column in columns)
        (found,) = self.database.execute(
            f"SELECT {', '.join(counts)}, count(*) FROM {self.sample} WHERE {there}"
        )
        return found

    @functools.cache  # noqa: B019 - a profile lives as long as the draft
    def determines(self, key, name):
        """Whether a column has one value for each value of another column, save for a few.

        Args:
            key: str. Name of the other column.
            name: str. Name of the column.

        Returns:
            bool, or `None` if too few rows have the same key.
        """
        keys, pairs, rows = self.distinct(key, name)
        if rows - keys < _REPEATED:
            return None
        return pairs - keys <= _FEW * min(keys, rows - keys)


def profile(database, sample):
    """Looks at the columns of a sample.

    Args:
        database: `tables.Database`. Has the sample.
        sample: `raw_samples.Sample`. The sample.

    Returns:
        `Profile`.
    """
    columns = {
        name: _column(database, sample.name, name, kind)
        for name, kind in sample.table.columns.items()
    }
    return Profile(sample.table, database, sample.name, sample.rows, sample.whole, columns)


def _column(database, sample, name, kind):
    texts = f"SELECT {raw_columns.column(name)} AS v FROM {sample}"
    column = _described(database, texts, name, kind)
    inner = sql_lists.value_type(kind)
    separator = raw_samples.OF_PARQUET
    if not inner:
        if column.numbers or column.iso or not column.present:
            return column
        some = database.execute(
            f"SELECT v FROM (SELECT v, row_number() OVER () AS n FROM ({texts})) "
            f"WHERE v IS NOT NULL GROUP BY v ORDER BY min(n) LIMIT {_BEFORE_LISTS}"
        )
        separator = _separator([text for (text,) in some])
        if not separator:
            return column
    return _list(database, texts, column, separator, inner)


def _described(database, texts, name, kind):
    """A `Column` of the texts `v` of a query, which are no lists."""
    number, integer = "TRY_CAST(t AS DOUBLE)", "TRY_CAST(t AS BIGINT)"
    whole = f"regexp_full_match(t, {literal(sql_values.INTEGER)})"
    counted = {
        "integers": f"{whole}",
        "numbers": f"isfinite({number})",
        "large": f"{whole} AND {integer} IS NULL",
        "minus_one": f"{number} = -1",
        "binary": f"lower(t) IN ('true', 'false') OR ({whole} AND {number} IN (0, 1))",
        "iso": f"{sql_values.of_time('t', 0).value} IS NOT NULL",
        **{
            unit: f"{whole} AND {number} BETWEEN {first} AND {last}"
            for unit, first, last in (
                (unit, *(time * 10**9 // size for time in (_FIRST_TIME, LAST_TIME)))
                for unit, size in logs_spec.TIME_UNITS.items()
            )
        },
    }
    counts = ", ".join(f"count(*) FILTER ({sql})" for sql in counted.values())
    ((present, distinct, low, high, characters, words, *found),) = database.execute(
        f"SELECT count(v), count(DISTINCT v), min({number}), max({number}), "
        f"coalesce(avg(length(t)), 0), coalesce(avg(length(t) - length(replace(t, ' ', ''))), 0), "
        f"{counts} FROM (SELECT v, trim(v) AS t FROM ({texts}))"
    )
    found = dict(zip(counted, found, strict=True))
    mostly = {name: present > 0 and n >= _MOST * present for name, n in found.items()}
    units = [unit for unit in logs_spec.TIME_UNITS if mostly[unit]]
    integers = 0 < present == found["integers"]
    # Integers and a few texts are ids.
    decimals = found["numbers"] - found["integers"] > present - found["numbers"]
    return Column(
        name=name,
        type=kind,
        present=present,
        distinct=distinct,
        integers=integers,
        numbers=integers or (mostly["numbers"] and decimals),
        large=found["large"] > 0,
        minus_one=found["minus_one"] > 0,
        binary=mostly["binary"],
        iso=mostly["iso"] or sql_values.is_timestamp(kind),
        unit=units[0] if units else "",
        low=low,
        high=high,
        characters=characters,
        words=words,
    )


def _separator(texts):
    """What stands between the values of lists, or `""`."""
    inside = [_in_brackets(text) for text in texts]
    brackets = all(text is not None for text in inside)
    for separator in _SEPARATORS:
        lists = [_split(text, separator) for text in (inside if brackets else texts)]
        several = [values for values in lists if len(values) > 1]
        if len(several) < max(1, 0.02 * len(texts)):
            continue
        if brackets or _are_lists(lists, several, separator):
            return separator
    # One value in brackets each.
    return "," if brackets else ""


def _in_brackets(text):
    text = text.strip()
    return text[1:-1].strip() if text[:1] == "[" and text[-1:] == "]" else None


def _split(text, separator):
    return text.split() if separator == " " else text.split(separator)


def _are_lists(lists, several, separator):
    values = [value.strip() for some in several for value in some]
    numbers = all(_NUMBER.fullmatch(value) for value in values)
    if numbers and len({len(some) for some in lists}) == 1 and any("." in v for v in values):
        return True
    if separator == " " or any(len(value) > 40 for value in values):
        return False
    # The ends of intervals, such as `(250,500]`, and thousands, such as `12,500`.
    if any(re.search(r"[()\[\]{}]", value) for value in values):
        return False
    if separator == "," and all(re.fullmatch(r"\d{3}", v) for some in several for v in some[1:]):
        return False
    # Parts of other texts have blanks and differ; values of lists come again.
    plain = all(not re.search(r"\s", value) for value in values)
    if plain and (separator != "," or numbers):
        return True
    return len(set(values)) <= 0.5 * len(values)


def _list(database, texts, column, separator, inner):
    """A `Column` of lists: that of their whole texts, with what their values are."""
    value = sql_lists.of_text(
        "v", "VARCHAR[]", "first", separator=separator, nulls=sql_values.NULLS
    )
    firsts = f", {value.first} AS first" if value.first else ""
    lists = f"SELECT {value.value} AS l FROM (SELECT *{firsts} FROM ({texts}))"
    part = _described(database, f"SELECT unnest(l) AS v FROM ({lists})", column.name, inner or "")
    ((least, most),) = database.execute(f"SELECT min(len(l)), max(len(l)) FROM ({lists})")
    floats = inner and any(kind in inner for kind in ("FLOAT", "DOUBLE", "DECIMAL"))
    vectors = least == most and (most or 0) > 1 and part.numbers and (floats or not part.integers)
    return dataclasses.replace(
        column,
        separator=separator,
        values=most or 1,
        width=most if vectors else 0,
        part=part,
    )
