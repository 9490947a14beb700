"""SQL that reads lists of raw values: texts with separators in CSV files, and lists of Parquet.

The SQL type of a list is that of its values with brackets, such as `VARCHAR[]`. Missing values are
left out of it, and NULL stands for what is no value of the type. The type of a vector, all of whose
values must be there, has their number, such as `FLOAT[8]`.
"""

import re

from tfrec_diffusion.datasets import sql_values
from tfrec_diffusion.datasets.sql import literal, quoted
from tfrec_diffusion.datasets.sql_values import Value

_LIST = re.compile(r"(.*)\[(\d*)\]")


def value_type(kind):
    """SQL type of the values of a list.

    Args:
        kind: str. An SQL type.

    Returns:
        str, or `None` if `kind` is no list.
    """
    match = _LIST.fullmatch(kind)
    return match and match[1]


def check_type(path, name, there, kind):
    """Checks that a Parquet column can be read as a type, which may be a list.

    Args:
        path: `pathlib.Path`. As in `sql_values.check_type`.
        name: str. As in `sql_values.check_type`.
        there: str. As in `sql_values.check_type`.
        kind: str. As in `sql_values.check_type`, or a list of that.

    Raises:
        ValueError: If it cannot be read so.
    """
    if not value_type(kind):
        sql_values.check_type(path, name, there, kind)
    elif there != "VARCHAR":
        if not value_type(there):
            raise ValueError(
                f"{path}: column {name!r} must be a list, or text with separators. It is: {there}"
            )
        sql_values.check_type(path, name, value_type(there), value_type(kind))


def of_text(text, kind, name, *, separator, nulls=()):
    """SQL that reads a column of text with several values in each.

    Args:
        text: str. SQL of the column.
        kind: str. SQL type of the list.
        name: str. A name that no column has.
        separator: str. What stands between the values. Blanks around a value are left out, and so
            are brackets around the whole and, within brackets, quotes around a value.
        nulls: collection of str. Values that are missing. Defaults to `()`.

    Returns:
        `sql_values.Value`.
    """
    whole = f"trim({text})"
    in_brackets = f"(starts_with({whole}, '[') AND ends_with({whole}, ']'))"
    inner = f"trim(CASE WHEN {in_brackets} THEN {whole}[2:-2] ELSE {whole} END)"
    if separator.isspace():
        parts = rf"string_split_regex({inner}, '\s+')"
    else:
        parts = f"string_split({inner}, {literal(separator)})"
    trimmed = f"CASE WHEN {in_brackets} THEN trim(part, ' ''\"') ELSE trim(part) END"
    missing = ", ".join(map(literal, ("", *nulls)))
    parts = f"CASE WHEN {whole} NOT IN ({missing}, '[]') THEN [{trimmed} FOR part IN {parts}] END"
    return _of_parts(f"({parts})", "VARCHAR", kind, name, nulls)


def of_parquet(column, there, kind, name, *, separator, nulls=()):
    """SQL that reads a column of lists of a Parquet file, or of text as `of_text` does.

    Args:
        column: str. SQL of the column.
        there: str. Its type, which `check_type` has checked.
        kind: str. SQL type of the list.
        name: str. As in `of_text`.
        separator: str. As in `of_text`.
        nulls: collection of str. As in `of_text`. Defaults to `()`.

    Returns:
        `sql_values.Value`.
    """
    if there == "VARCHAR":
        return of_text(column, kind, name, separator=separator, nulls=nulls)
    whole = value_type(there)
    return _of_parts(f"{column}::{whole}[]", whole, kind, name, nulls)


def _of_parts(parts, there, kind, name, nulls):
    base, width = _LIST.fullmatch(kind).groups()
    missing = "part IS NULL"
    if there == "VARCHAR":
        missing = f"trim(coalesce(part, '')) IN ({', '.join(map(literal, ('', *nulls)))})"
    if base == "VARCHAR":
        value = "part::VARCHAR"
    elif there == "VARCHAR" and base == "BIGINT":
        integer = f"regexp_full_match(part, {literal(sql_values.INTEGER)})"
        value = f"CASE WHEN {integer} THEN TRY_CAST(part AS BIGINT) END"
    elif there == "VARCHAR":
        value = "TRY_CAST(part AS FLOAT)"
    else:
        value = sql_values.of_parquet("part", there, base).value
    number = quoted(name)
    if width:
        # A vector without one of its numbers is none.
        finite = f"len([1 FOR x IN {number} IF isfinite(x)])"
        whole = f"coalesce(len({number}) = {width} AND {finite} = {width}, false)"
        return Value(
            f"[{value} FOR part IN {parts}]",
            f"CASE WHEN {whole} THEN {number} END",
            f"CASE WHEN len({number}) > 0 AND NOT {whole} THEN 'v' END",
        )
    return Value(None, f"[{value} FOR part IN {parts} IF NOT ({missing})]", None)
