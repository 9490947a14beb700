"""SQL that reads raw values: texts of CSV files and columns of Parquet files, cut to fit nowhere.

An integer is written as an integer, or as pandas writes one beside a blank: `12.0`. What has other
decimals (`12.7`), an exponent (`1e3`) or more than 64 bits is no integer here.
"""

import fnmatch
import re
from typing import NamedTuple

from tfrec_diffusion.datasets.sql import literal, quoted

# What `NULL` is written as, beside an empty text.
NULLS = ("NULL", "null", "\\N", "None", "nan", "NaN", "N/A", "NA")

_TIMES = ("TIMESTAMP*", "DATE")
_INTEGERS = (
    *("BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT"),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "DECIMAL(*,0)"),
)
# Types of Parquet columns, as patterns; a TIMESTAMP or a DATE is read as nanoseconds since 1970
# UTC, and of a DOUBLE only what is an integer.
_READABLE_AS = {
    "BIGINT": (*_INTEGERS, "DOUBLE", *_TIMES),
    "VARCHAR": (*_INTEGERS, "VARCHAR"),
    "FLOAT": (*_INTEGERS, "DECIMAL*", "FLOAT", "DOUBLE"),
}
# Largest number up to which a DOUBLE has all integers, and as many digits as surely are below.
_LARGEST_EXACT, _EXACT_DIGITS = 2**53, 15
_TIME = (
    r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d+)?)?)?"
    r" ?(Z|UTC|[+-]\d\d(:?\d\d)?)?"
)
# An integer in text, such as `12`, or `12.0` as pandas writes one beside a blank.
INTEGER = rf"\s*[+-]?[0-9]+\s*|\s*[+-]?[0-9]{{1,{_EXACT_DIGITS}}}\.0*\s*"
_OFFSET = r":\d\d.*(Z|UTC|[+-]\d\d(:?\d\d)?)"

# What is wrong with a value, by the code that `Value.fault` gives.
FAULTS = {
    "n": "is not a number",
    "i": "is not an integer",
    "b": 'is an integer beyond 64 bits, which must be read as text (dtype "string")',
    "t": "is not a time in ISO 8601",
    "v": "is not a vector of its table's width",
}


class Value(NamedTuple):
    """SQL of a column's value.

    Args:
        first: str or `None`. SQL of something that `value` and `fault` use under the name that the
            function was given. If `None`, they use nothing.
        value: str. SQL of the value, NULL if it is missing or wrong.
        fault: str or `None`. SQL of a key of `FAULTS` if the value is wrong, or NULL. If `None`, no
            value is wrong.
    """

    first: str | None
    value: str
    fault: str | None


def is_timestamp(kind):
    """Whether a Parquet column is a TIMESTAMP or a DATE.

    Args:
        kind: str. Its type.

    Returns:
        bool.
    """
    return any(fnmatch.fnmatchcase(kind, pattern) for pattern in _TIMES)


def check_type(path, name, there, kind):
    """Checks that a Parquet column can be read as a type.

    Args:
        path: `pathlib.Path`. The file, for the error.
        name: str. Name of the column.
        there: str. Its type in the file.
        kind: str. A key of `tables.MISSING`.

    Raises:
        ValueError: If it cannot be read so.
    """
    if not any(fnmatch.fnmatchcase(there, pattern) for pattern in _READABLE_AS[kind]):
        raise ValueError(
            f"{path}: column {name!r} must be one of {', '.join(_READABLE_AS[kind])}. "
            f"It is: {there}"
        )


def of_text(text, kind, name, *, nulls=(), booleans=False):
    """SQL that reads a column of text.

    Args:
        text: str. SQL of the column.
        kind: str. SQL type to read it as: `"VARCHAR"`, `"BIGINT"` or `"FLOAT"`.
        name: str. A name that no column has.
        nulls: collection of str. Values that are missing. Defaults to `()`.
        booleans: bool. Whether `true` and `false` are numbers, 1 and 0. Defaults to `False`.

    Returns:
        `Value`.
    """
    known = f"{text} NOT IN ({', '.join(map(literal, nulls))})" if nulls else ""
    if kind == "VARCHAR":
        return Value(None, f"CASE WHEN {known} THEN {text} END" if known else text, None)
    number = quoted(name)
    cases = [f"WHEN {text} IS NULL THEN NULL"]
    if kind == "FLOAT":
        cases = [f"WHEN {number} IS NOT NULL THEN {number}"]
    else:
        cases = [
            f"WHEN {number}::VARCHAR = {text} THEN {number}",
            *cases,
            f"WHEN regexp_full_match({text}, {literal(INTEGER)}) THEN {number}",
        ]
    if booleans:
        cases += [
            f"WHEN lower(trim({text})) = '{truth}' THEN {n}"
            for truth, n in (("true", 1), ("false", 0))
        ]
    value = f"CASE {' '.join(cases)} END"
    fault = "'n'"
    if kind == "BIGINT":
        fault = (
            f"CASE WHEN TRY_CAST({text} AS DOUBLE) IS NULL THEN 'n' "
            rf"WHEN regexp_full_match({text}, '\s*[+-]?[0-9]+\s*') THEN 'b' ELSE 'i' END"
        )
    return Value(f"TRY_CAST({text} AS {kind})", value, _fault(text, fault, nulls))


def of_time(text, hours, nulls=()):
    """SQL that reads a column of times in ISO 8601 as nanoseconds since 1970 UTC.

    Args:
        text: str. SQL of the column.
        hours: float. Offset from UTC of the times that have none themselves.
        nulls: collection of str. Values that are missing. Defaults to `()`.

    Returns:
        `Value`.
    """
    offset = round(hours * 3600) * 10**9
    trimmed = f"trim({text})"
    value = (
        f"CASE WHEN NOT regexp_full_match({trimmed}, {literal(_TIME)}) THEN NULL "
        f"WHEN regexp_matches({trimmed}, {literal(_OFFSET + '$')}) "
        f"THEN epoch_ns(TRY_CAST({trimmed} AS TIMESTAMPTZ)) "
        f"ELSE epoch_ns(TRY_CAST({trimmed} AS TIMESTAMP_NS)) - {offset} END"
    )
    return Value(None, f"TRY({value})", _fault(text, "'t'", nulls))


def is_time(text):
    """Whether a text looks like a time in ISO 8601, rather than a number.

    Args:
        text: str.

    Returns:
        bool.
    """
    return re.fullmatch(_TIME, text.strip(), re.ASCII) is not None


def of_parquet(column, there, kind, nulls=()):
    """SQL that reads a column of a Parquet file.

    Args:
        column: str. SQL of the column.
        there: str. Its type, which `check_type` has checked.
        kind: str. SQL type to read it as: `"VARCHAR"`, `"BIGINT"` or `"FLOAT"`.
        nulls: collection of str. Values of a column of text that are missing. Defaults to `()`.

    Returns:
        `Value`.
    """
    if there == "VARCHAR":
        return of_text(column, kind, "", nulls=nulls)
    if is_timestamp(there):
        return Value(None, f"TRY(epoch_ns({column}))", None)
    if kind == "BIGINT" and there == "DOUBLE":
        whole = f"trunc({column}) = {column} AND abs({column}) <= {_LARGEST_EXACT}"
        value = f"CASE WHEN {whole} THEN TRY_CAST({column} AS BIGINT) END"
        return Value(None, value, f"CASE WHEN NOT isnan({column}) THEN 'i' END")
    fault = f"CASE WHEN {column} IS NOT NULL THEN '{'b' if kind == 'BIGINT' else 'n'}' END"
    return Value(None, f"TRY_CAST({column} AS {kind})", fault)


def _fault(text, code, nulls):
    missing = ", ".join(map(literal, ("", *nulls)))
    return f"CASE WHEN trim({text}) NOT IN ({missing}) THEN {code} END"
