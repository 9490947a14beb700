"""Random texts of several values, beside Python's own reading of them."""

import math
import random
import re

import duckdb
import numpy as np
import pytest

from tfrec_diffusion.datasets import sql_lists
from tfrec_diffusion.datasets.sql import quoted

NULLS = ("NULL", "nan")
VALUES = (
    *("red", "blue", " 7 ", "-3", "12.0", "1e3", "0.25", "é", "", " ", "NULL", "nan", "inf", "x y"),
    *("9223372036854775808", "'a'", '"b"', "[", "]", "+5", "-.5", "1_0", "0x1F"),
)


def random_text(rng, separator):
    text = separator.join(rng.choice(VALUES) for _ in range(rng.randrange(6)))
    return f"[{text}]" if rng.random() < 0.3 else text


def parts_of(text, separator):
    """The values in a text, as text; `None` if the whole is missing."""
    text = text.strip(" ")
    if text in ("", "[]", *NULLS):
        return None
    quotes = ""
    if text.startswith("[") and text.endswith("]"):
        text, quotes = text[1:-1], "'\""
    text = text.strip(" ")
    parts = re.split(r"\s+", text) if separator == " " else text.split(separator)
    return [part.strip(" " + quotes) for part in parts]


def integer_of(part):
    whole = re.fullmatch(r"\s*[+-]?[0-9]+(\.0*)?\s*", part)
    return int(float(part)) if whole and abs(float(part)) < 2**63 else None


def number_of(part):
    try:
        return float(part)
    except ValueError:
        return math.nan


@pytest.fixture(params=["|", ",", "; ", " "])
def separator(request):
    return request.param


@pytest.fixture
def texts(separator):
    rng = random.Random(0)
    return [random_text(rng, separator) for _ in range(1500)]


def read(texts, kind, separator):
    """Value and fault of each text."""
    value = sql_lists.of_text("text", kind, "first", separator=separator, nulls=NULLS)
    rows = "SELECT unnest(?) AS text, generate_subscripts(?, 1) AS i"
    if value.first:
        rows = f"SELECT *, {value.first} AS {quoted('first')} FROM ({rows})"
    columns = f"({value.value})::{kind}, {value.fault or 'NULL'}"
    return duckdb.execute(f"SELECT {columns} FROM ({rows}) ORDER BY i", [texts, texts]).fetchall()


def test_texts(texts, separator):
    for text, (found, _) in zip(texts, read(texts, "VARCHAR[]", separator), strict=True):
        parts = parts_of(text, separator)
        assert found == (parts and [part for part in parts if part not in ("", *NULLS)]), text


def test_integers(texts, separator):
    for text, (found, _) in zip(texts, read(texts, "BIGINT[]", separator), strict=True):
        parts = parts_of(text, separator)
        assert found == (
            parts and [integer_of(part) for part in parts if part not in ("", *NULLS)]
        ), text


def test_vectors(texts, separator):
    faults = set()
    for text, (found, fault) in zip(texts, read(texts, "FLOAT[2]", separator), strict=True):
        numbers = [number_of(part) for part in parts_of(text, separator) or ()]
        whole = len(numbers) == 2 and np.isfinite(numbers).all()
        assert (found is not None) == whole, text
        assert fault == ("v" if numbers and not whole else None), text
        if whole:
            np.testing.assert_array_equal(found, np.float32(numbers))
        faults.add(fault)
    assert faults == {None, "v"}


@pytest.mark.parametrize(
    ("column", "kind", "expected"),
    [
        ("[1, NULL, -1]::INTEGER[]", "BIGINT[]", [1, -1]),
        ("[1.0, 2.5, NULL]::DOUBLE[]", "BIGINT[]", [1, None]),
        ("['a', '', 'NULL', ' b']", "VARCHAR[]", ["a", " b"]),
        ("[1, 2]::SMALLINT[]", "VARCHAR[]", ["1", "2"]),
        ("[0.5, 1]::DOUBLE[2]", "FLOAT[2]", (0.5, 1)),
        ("[0.5, NULL]::FLOAT[2]", "FLOAT[2]", None),
        ("[1e300, 1]::DOUBLE[]", "FLOAT[2]", None),
        ("NULL::FLOAT[]", "FLOAT[2]", None),
        ("'0.5|1'", "FLOAT[2]", (0.5, 1)),
    ],
)
def test_columns_of_parquet(column, kind, expected):
    there = duckdb.execute(f"SELECT typeof({column})").fetchone()[0]
    sql_lists.check_type("a.parquet", "tags", there, kind)
    value = sql_lists.of_parquet("c", there, kind, "f", separator="|", nulls=NULLS)
    rows = f"SELECT {column} AS c"
    if value.first:
        rows = f"SELECT *, {value.first} AS f FROM ({rows})"
    assert duckdb.execute(f"SELECT ({value.value})::{kind} FROM ({rows})").fetchone() == (expected,)


@pytest.mark.parametrize(
    ("there", "kind", "message"),
    [
        ("BIGINT", "BIGINT[]", "'tags' must be a list, or text with separators. It is: BIGINT"),
        ("VARCHAR[]", "BIGINT[]", r"'tags' must be one of .*DOUBLE.* It is: VARCHAR"),
        ("FLOAT[]", "VARCHAR[]", r"'tags' must be one of .*VARCHAR. It is: FLOAT"),
    ],
)
def test_columns_that_cannot_be_read(there, kind, message):
    with pytest.raises(ValueError, match=f"a.parquet: column {message}"):
        sql_lists.check_type("a.parquet", "tags", there, kind)
