import gzip
import os
import signal
import threading

import duckdb
import numpy as np
import pandas as pd
import pytest

from tfrec_diffusion.datasets import tables
from tfrec_diffusion.datasets.report import Report

TYPES = {"user": "BIGINT", "name": "VARCHAR"}


@pytest.fixture
def report():
    return Report(max_bad_rows=1)


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


def test_rows_that_are_not_wanted_are_empty_and_keep_their_lines(database, report, tmp_path):
    (tmp_path / "t.csv").write_text("1,a\n2,b\nx\n,c\n3,d\n")
    path = tmp_path / "t.csv"
    database.load("t", [path], TYPES, header=("user", "name"), wanted='"user" <> 2')
    assert rows(database) == [
        (1, "a", True), (None, None, False), (None, None, False), (3, "d", True)
    ]  # fmt: skip
    database.drop("t", "name = 'd'", "is d")
    places = report.get_config()["sources"]["t"]["dropped"]["is d"]["places"]
    assert places == ["t.csv:5 {'user': 3, 'name': d, 'wanted': true}"]


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
    places = ["t.csv:3 {'user': 2, 'name': b}", "t.csv:4 {'user': 3, 'name': b}"]
    assert dropped == {"rows": 2, "places": places}


def test_dropped_rows_have_the_line_of_their_file(database, report, tmp_path):
    # Lines with a letter cannot be read; those with a number of at least 5 are dropped.
    (tmp_path / "a.csv").write_text("user,name\nx,\n1,\n5,\nx,\nx,\n6,\n2,\n")
    (tmp_path / "b.csv").write_text("user,name\n7,\nx,\n")
    (tmp_path / "c.csv").write_text("user,name\n3,\nx,\nx,\n8,\n")
    database.load("t", tables.find_files(tmp_path, "?.csv"), TYPES)
    database.drop("t", '"user" = 6', "is six")
    database.drop("t", '"user" > 4', "is large")
    dropped = report.get_config()["sources"]["t"]["dropped"]
    places = {reason: [p.split()[0] for p in drop["places"]] for reason, drop in dropped.items()}
    assert places == {
        "user is not a number": ["a.csv:2", "a.csv:5", "a.csv:6", "b.csv:3", "c.csv:3"],
        "is six": ["a.csv:7"],
        "is large": ["a.csv:4", "b.csv:2", "c.csv:5"],
    }
    assert rows(database) == [(1, None), (2, None), (3, None)]


def test_no_line_is_told_once_many_rows_may_be_gone(database, report, tmp_path):
    (tmp_path / "t.csv").write_text("user,name\n1,a\n2,b\n3,c\n")
    database.load("t", [tmp_path / "t.csv"], TYPES)
    database.drop("t", "name = 'a'", "not wanted", bad=False)
    database.drop("t", "name = 'b'", "odd")
    dropped = report.get_config()["sources"]["t"]["dropped"]
    assert [drop["places"] for drop in dropped.values()] == [
        ["t.csv:2 {'user': 1, 'name': a}"],
        ["{'user': 2, 'name': b}"],
    ]


def test_too_many_bad_rows(tmp_path):
    (tmp_path / "t.csv").write_text("user,name\n" + "1,a\n" * 98 + "x,b\n-1,c\n")
    for share in (0.04, 0.03):
        report = Report(max_bad_rows=share)
        with tables.Database(tmp_path, report) as database:
            database.load("t", [tmp_path / "t.csv"], TYPES)
            database.drop("t", "name = 'a' AND rowid < 50", "not wanted", bad=False)
            if share == 0.04:
                database.drop("t", '"user" < 0', "no user")
                continue
            with pytest.raises(
                ValueError,
                match=r"t: 2 of 50 rows are bad, more than `max_bad_rows`=0\.03 of them\. "
                r"The last found: no user \(",
            ):
                database.drop("t", '"user" < 0', "no user")


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


@pytest.mark.parametrize("as_text", [False, True])
def test_parts_hold_whole_groups_in_order(database, tmp_path, as_text):
    kind = "VARCHAR" if as_text else "BIGINT"
    database.execute(
        "CREATE TABLE t AS SELECT k, v FROM "
        "(VALUES (1, 5), (1, 4), (2, 9), (2, 8), (2, 7), (3, 1), (4, 3), (4, 2)) t(k, v)"
    )
    database.execute("CREATE TABLE u AS SELECT 2 AS k, 'x' AS w")
    database.part_rows = 3
    queries = {"t": f"SELECT k::{kind} AS k, v FROM t", "u": f"SELECT k::{kind} AS k, w FROM u"}
    parts = database.cut(tmp_path / "parts", "k", queries)
    read = [{name: tables.read(path) for name, path in part.items()} for part in parts]
    groups = [part["t"]["k"].astype(int).tolist() for part in read]
    assert groups == [[1, 1], [2, 2, 2, 3], [4, 4]]
    assert np.concatenate([part["t"]["v"] for part in read]).tolist() == [5, 4, 9, 8, 7, 1, 3, 2]
    assert [part["u"]["w"].tolist() for part in read] == [[], ["x"], []]
    assert read[0]["t"]["k"].dtype == (object if as_text else np.int64)


def test_no_rows_no_parts(database, tmp_path):
    assert database.cut(tmp_path, "k", {"t": "SELECT 1 AS k WHERE false"}) == []


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


def test_a_gzip_that_is_cut_off_is_read_up_to_there(database, report, tmp_path):
    lines = [f"{i},{i * 7919 % 10007}\n" for i in range(50000)]
    whole = gzip.compress("".join(lines).encode())
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    with gzip.open(tmp_path / "whole.csv.gz", "wt") as file:
        file.writelines(lines)
    paths = [tmp_path / "cut.csv.gz", tmp_path / "whole.csv.gz"]
    database.load("t", paths, TYPES, header=["user", "name"])
    config = report.get_config()["sources"]["t"]
    dropped = config["dropped"].pop("gzip cut off or damaged, here at the latest")
    (place,) = dropped["places"]
    assert dropped["rows"] == 1
    read = config["kept"] - len(lines)
    assert len(lines) / 4 < read < len(lines)
    # The line that is cut itself may be whole enough to look like one.
    assert place in (f"cut.csv.gz:{read + 1}", f"cut.csv.gz:{read + 2}")
    assert rows(database)[:read] == [(i, str(i * 7919 % 10007)) for i in range(read)]
    assert rows(database)[-1] == (49999, lines[-1].strip().split(",")[1])
    assert not list(tmp_path.rglob("cut.csv"))


def test_what_a_damaged_gzip_may_still_hold_is_counted(database, report, tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        lines = "".join(f"{x},{name}\n" for x in rng.integers(1e9, size=50_000))
        good = gzip.compress(lines.encode())
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.csv.gz").write_bytes(good + b"x" * len(good))
    database.load("t", tables.find_files(tmp_path, "*/t.csv.gz"), TYPES, header=["user", "name"])
    # As much as was good is left of each file; a reader is some bytes ahead of what it has given.
    (drop,) = report.get_config()["sources"]["t"]["dropped"].values()
    assert 50_000 < drop["rows"] <= 100_000
    assert drop["places"] == ["t.csv.gz:50001"] * 2
    assert rows(database)[0][1] == "a" and rows(database)[-1][1] == "b"
    assert len(rows(database)) == 100_000


def test_a_gzip_that_is_cut_off_is_an_error_where_few_rows_may_be_bad(tmp_path):
    whole = gzip.compress(b"user,name\n" + b"1,a\n")
    (tmp_path / "cut.csv.gz").write_bytes(whole[:-4])
    report = Report(max_bad_rows=0.1)
    with (
        tables.Database(tmp_path, report) as database,
        pytest.raises(
            ValueError, match=r"gzip cut off or damaged, here at the latest \(cut\.csv\.gz:"
        ),
    ):
        database.load("t", [tmp_path / "cut.csv.gz"], TYPES)


def test_files_of_another_format(database, tmp_path):
    (tmp_path / "not.csv.gz").write_bytes(b"user,name\n")
    (tmp_path / "not.parquet").write_bytes(b"user,name\n")
    with pytest.raises(ValueError, match=r"not\.csv\.gz must be a CSV file"):
        database.load("b", [tmp_path / "not.csv.gz"], TYPES)
    with pytest.raises(ValueError, match=r"not\.parquet must be a Parquet file"):
        database.load("c", [tmp_path / "not.parquet"], TYPES)


def test_missing_file_says_what_is_there(tmp_path):
    (tmp_path / "other.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"must hold a file 'a\*\.csv'.*other\.csv"):
        tables.find_files(tmp_path, "a*.csv")
