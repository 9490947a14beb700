import gzip
import os
import signal
import threading

import duckdb
import numpy as np
import pandas as pd
import pytest

from tfrec_diffusion.datasets import tables
from tfrec_diffusion.datasets.requests import Report

TYPES = {"user": "BIGINT", "name": "VARCHAR"}


@pytest.fixture
def report():
    return Report()


@pytest.fixture
def database(tmp_path, report):
    with tables.Database(tmp_path, report) as database:
        yield database
    assert not list(tmp_path.glob("duckdb_*"))


def rows(database, table="t"):
    return database.execute(f"SELECT * FROM {table} ORDER BY rowid")


def test_rows_come_in_the_order_of_the_files(database, tmp_path):
    (tmp_path / "b.csv").write_text("user,other,name\n3,x,c\n1,x,d\n")
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write('user,other,name\n2,x,"a,\n""a"""\n9,x,\n')
    database.load("t", tables.find_files(tmp_path, "[ab].csv*"), TYPES)
    assert rows(database) == [(2, 'a,\n"a"'), (9, None), (3, "c"), (1, "d")]


def test_rejected_lines_are_counted_with_file_and_line(database, report, tmp_path):
    (tmp_path / "t.csv").write_bytes(
        b"user,name,n\n1,a,1\nx,b,2\n2,c\n3,d,4,5\n4,\xff,6\n5,e,seven\n6,f,8\n99,g"
    )
    database.load("t", [tmp_path / "t.csv"], {**TYPES, "n": "BIGINT"})
    assert [user for user, *_ in rows(database)] == [1, 6]
    assert report.get_config()["sources"]["t"] == {
        "read": 8,
        "kept": 2,
        "dropped": {
            "user is not a number": {"rows": 1, "places": ["t.csv:3"]},
            "n is not a number": {"rows": 1, "places": ["t.csv:7"]},
            "not UTF-8": {"rows": 1, "places": ["t.csv:6"]},
            "too few columns": {"rows": 2, "places": ["t.csv:4", "t.csv:9"]},
            "too many columns": {"rows": 1, "places": ["t.csv:5"]},
        },
    }


def test_parquet(database, tmp_path):
    pd.DataFrame({"name": ["a", None], "user": [5, 6]}).to_parquet(tmp_path / "t.parquet")
    database.load("t", [tmp_path / "t.parquet"], TYPES)
    assert rows(database) == [(5, "a"), (6, None)]


def test_lenient_columns_keep_the_row(database, report, tmp_path):
    (tmp_path / "t.csv").write_text("user,name,n,m\n1,a,NULL,1\n2,b,,x\n3,c,7,3\nx,d,8,4\n")
    columns = {**TYPES, "n": "FLOAT", "m": "BIGINT"}
    database.load("t", [tmp_path / "t.csv"], columns, lenient={"m", "n", "name"})
    assert rows(database) == [(1, "a", None, 1), (2, "b", None, None), (3, "c", 7.0, 3)]
    config = report.get_config()
    assert config["t: n not a number, taken for missing"] == 1
    assert config["t: m not a number, taken for missing"] == 1
    assert config["sources"]["t"]["dropped"] == {
        "user is not a number": {"rows": 1, "places": ["t.csv:5"]}
    }


def test_files_without_header_have_no_quotes(database, report, tmp_path):
    (tmp_path / "t.csv").write_text('1,a\n2,"b\n3,c\n')
    database.load("t", [tmp_path / "t.csv"], TYPES, header=("user", "name"))
    assert rows(database) == [(1, "a"), (2, '"b'), (3, "c")]


def test_parquet_types(database, tmp_path):
    path = tmp_path / "t.parquet"
    duckdb.sql(
        "SELECT TIMESTAMP '1970-01-01 00:00:05' AS a, TIMESTAMPTZ '1970-01-01 01:00:06+01' AS b, "
        "TIMESTAMP_NS '1970-01-01 00:00:00.000000007' AS c, true AS d, 8::UBIGINT AS e, "
        "9::DECIMAL(18, 0) AS f, 1.5::DECIMAL(4, 2) AS g"
    ).write_parquet(str(path))
    integers = dict.fromkeys("abcdef", "BIGINT")
    database.load("t", [path], {**integers, "g": "FLOAT"})
    assert rows(database) == [(5 * 10**9, 6 * 10**9, 7, 1, 8, 9, 1.5)]
    with pytest.raises(ValueError, match=r"column 'g' must be .* It is: DECIMAL\(4,2\)"):
        database.load("u", [path], {"g": "BIGINT"})


def test_errors_of_the_database_are_pythons_own(database):
    with pytest.raises(ValueError, match="^Conversion Error.*abc"):
        database.execute("SELECT 'abc'::BIGINT\n")


@pytest.fixture
def _ctrl_c_interrupts():
    # A shell's background jobs ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_interrupts")
def test_ctrl_c_stops_a_query(database):
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        database.execute(
            "SELECT count(*) FROM range(100000) a, range(10000000) b "
            "WHERE a.range * b.range % 7 = 3"
        )
    timer.join()


def test_dropped_rows_are_shown(database, report, tmp_path):
    (tmp_path / "t.csv").write_text("user,name\n1,a\n2,b\n3,b\n")
    database.load("t", [tmp_path / "t.csv"], TYPES)
    database.drop("t", "name = 'b'", "is b")
    assert rows(database) == [(1, "a")]
    dropped = report.get_config()["sources"]["t"]["dropped"]["is b"]
    assert dropped == {"rows": 2, "places": ["{'user': 2, 'name': b}", "{'user': 3, 'name': b}"]}


def test_chunks_keep_the_order_of_a_sorted_table(database):
    database.execute(
        "CREATE TABLE t AS SELECT i * 7919 % 300007 AS x, 'n' || x AS s FROM range(300007) r(i) "
        "ORDER BY x"
    )
    chunks = list(database.chunks("SELECT * FROM t"))
    assert len(chunks) > 1
    np.testing.assert_array_equal(np.concatenate([c["x"] for c in chunks]), np.arange(300007))
    assert chunks[0]["s"].dtype == object
    assert chunks[0]["s"][:2].tolist() == ["n0", "n1"]


def test_whole_groups_are_never_cut():
    keys = np.array([1, 1, 2, 2, 2, 2, 2, 3, 4, 4])
    chunks = [{"k": keys[i : i + 2], "v": np.arange(10)[i : i + 2]} for i in range(0, 10, 2)]
    groups = list(tables.whole_groups(chunks, "k"))
    np.testing.assert_array_equal(np.concatenate([g["v"] for g in groups]), np.arange(10))
    held = [set(g["k"].tolist()) for g in groups]
    assert sum(map(len, held)) == 4
    assert list(tables.whole_groups([], "k")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user,title\n1,a\n", r"t\.csv must have a column 'name'\. It has: user, title"),
        ("", r"t\.csv must have a column 'user'"),
    ],
)
def test_missing_column(database, tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        database.load("t", [tmp_path / "t.csv"], TYPES)


def test_files_of_one_table_have_the_same_columns(database, tmp_path):
    (tmp_path / "a.csv").write_text("user,name\n1,a\n")
    (tmp_path / "b.csv").write_text("name,user\nb,2\n")
    with pytest.raises(ValueError, match=r"b\.csv must have the columns of .*a\.csv"):
        database.load("t", tables.find_files(tmp_path, "*.csv"), TYPES)


def test_parquet_of_another_type(database, tmp_path):
    pd.DataFrame({"name": ["a"], "user": ["5"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet: column 'user' must be .* It is: VARCHAR"):
        database.load("t", [tmp_path / "t.parquet"], TYPES)


def test_damaged_files(database, tmp_path):
    whole = gzip.compress(b"user,name\n" + b"1,a\n" * 50000)
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "not.csv.gz").write_bytes(b"user,name\n")
    (tmp_path / "not.parquet").write_bytes(b"user,name\n")
    with pytest.raises((OSError, ValueError), match="GZIP"):
        database.load("a", [tmp_path / "cut.csv.gz"], TYPES, header=["user", "name"])
    with pytest.raises(ValueError, match=r"not\.csv\.gz must be a CSV file"):
        database.load("b", [tmp_path / "not.csv.gz"], TYPES)
    with pytest.raises(ValueError, match=r"not\.parquet must be a Parquet file"):
        database.load("c", [tmp_path / "not.parquet"], TYPES)


def test_missing_file_says_what_is_there(tmp_path):
    (tmp_path / "other.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"must hold a file 'a\*\.csv'.*other\.csv"):
        tables.find_files(tmp_path, "a*.csv")
