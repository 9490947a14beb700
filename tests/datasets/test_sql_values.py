import datetime

import duckdb
import pytest

from tfrec_diffusion.datasets import sql_values


def read(value, text):
    """The value of a text and what is wrong with it."""
    first = f", {value.first} AS first" if value.first else ""
    rows = f"SELECT *{first} FROM (SELECT ? AS t)"
    sql = f"SELECT {value.value} AS v, {value.fault or 'NULL'} AS f FROM ({rows})"
    found, fault = duckdb.execute(sql, [text]).fetchone()
    return found, fault if found is None else None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(
            (text, (12, None))
            for text in ("12", " 12", "12 ", "+12", "012", "12.0", "12.", " 12.00 ")
        ),
        ("-1", (-1, None)),
        ("9223372036854775807", (2**63 - 1, None)),
        ("-9223372036854775808", (-(2**63), None)),
        ("123456789012345.0", (123456789012345, None)),
        *(
            (text, (None, "b"))
            for text in ("9223372036854775808", "18446744073709551615", "9" * 40)
        ),
        *(
            (text, (None, "i"))
            for text in ("12.7", "1e3", "1E3", "1.234567890123456e+18", "1_000", ".5", "inf")
        ),
        ("1234567890123456.0", (None, "i")),  # a float that may have been another integer
        *((text, (None, "n")) for text in ("abc", "0x1F", "1,5", "1;5", "--3", "12 13", "true")),
        *((text, (None, None)) for text in (None, "", "  ", "NULL", "nan", "\\N")),
    ],
)
def test_integers(text, expected):
    value = sql_values.of_text("t", "BIGINT", "first", nulls=sql_values.NULLS)
    assert read(value, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, (0.5, None)) for text in ("0.5", ".5", " 5e-1 ", "+0.5")),
        *((text, (1.0, None)) for text in ("1", "true", "True", "TRUE ")),
        *((text, (0.0, None)) for text in ("0", "false", "False")),
        *((text, (None, "n")) for text in ("yes", "1,5", "NaN of it")),
        *((text, (None, None)) for text in (None, "", " ", "None", "N/A")),
    ],
)
def test_numbers_and_booleans(text, expected):
    value = sql_values.of_text("t", "FLOAT", "first", nulls=sql_values.NULLS, booleans=True)
    assert read(value, text) == expected


def test_null_markers_are_whole_texts():
    value = sql_values.of_text("t", "VARCHAR", "first", nulls=("NA", "it's"))
    assert [read(value, text)[0] for text in ("NA", "it's", "Na", "NAN", "", " NA")] == [
        *(None, None, "Na", "NAN", "", " NA")
    ]
    assert read(sql_values.of_text("t", "VARCHAR", "first"), "NA") == ("NA", None)


NOON = round(datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Two hours ahead of UTC, where the text has no offset.
        *(
            (text, NOON)
            for text in ("2024-05-01 14:00:00", "2024-05-01T14:00", " 2024-05-01T14:00:00.000 ")
        ),
        *(
            (text, NOON)
            for text in (
                "2024-05-01T12:00:00Z",
                "2024-05-01 12:00:00+00:00",
                "2024-05-01 12:00:00 UTC",
                "2024-05-01 07:00:00-05:00",
                "2024-05-01T17:30:00+0530",
                "2024-05-01T13:00+01",
            )
        ),
        ("2024-05-01", NOON - 14 * 3600 * 10**9),
        ("2024-05-01 14:00:00.123456789", NOON + 123456789),
        ("", None),
        ("NaT", None),
        *((text, "t") for text in ("2024-13-01", "1714564800", "01.05.2024", "epoch", "infinity")),
    ],
)
def test_times(text, expected):
    found, fault = read(sql_values.of_time("t", 2, nulls=("NaT",)), text)
    assert (fault if fault else found) == expected


def test_what_looks_like_a_time():
    assert all(map(sql_values.is_time, ("2024-05-01", " 2024-05-01 12:00:00+02:00")))
    assert not any(map(sql_values.is_time, ("", "20240501", "1714564800", "2024-05", "5 May")))
