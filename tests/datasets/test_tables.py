import bz2
import functools
import gzip
import os
import signal
import threading

import duckdb
import numpy as np
import pandas as pd
import pyarrow
import pytest

from tfrec_diffusion.datasets import tables
from tfrec_diffusion.datasets.csv_files import Format
from tfrec_diffusion.datasets.report import Report

TYPES = {"user": "BIGINT", "name": "VARCHAR"}


def zstd(content):
    return pyarrow.compress(content, "zstd", asbytes=True)


@pytest.fixture
def report():
    return Report(max_bad_rows=1)


@pytest.fixture
def database(tmp_path, report):
    with tables.Database(tmp_path, report) as database:
        yield database
    assert not list(tmp_path.glob("duckdb_*"))


def rows(database, table="t"):
    # A table with records of several lines has one column more.
    columns = "COLUMNS(lambda name: name <> 'lines of the row')"
    return database.execute(f"SELECT {columns} FROM {table} ORDER BY rowid")


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
        "9::DECIMAL(18, 0) AS f, DATE '1970-01-02' AS h, 1.5::DECIMAL(4, 2) AS g"
    ).write_parquet(str(path))
    integers = dict.fromkeys("abcdefh", "BIGINT")
    database.load("t", [path], {**integers, "g": "FLOAT"})
    assert rows(database) == [(5 * 10**9, 6 * 10**9, 7, 1, 8, 9, 86400 * 10**9, 1.5)]
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


def test_columns_are_found_by_name_in_each_file(database, report, tmp_path):
    (tmp_path / "a.csv").write_text("user,name\n1,a\nx,b\n")
    (tmp_path / "b.csv").write_text("more,name, user \n,c,2\n,d\n,e,-3\n")
    pd.DataFrame({"name": ["f"], "user": [4]}).to_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text("user,name\n5,g\n-6,h\n")
    database.load("t", tables.find_files(tmp_path, "*"), TYPES)
    assert rows(database) == [(1, "a"), (2, "c"), (-3, "e"), (4, "f"), (5, "g"), (-6, "h")]
    database.drop("t", '"user" < 0', "negative")
    assert report.get_config()["sources"]["t"] == {
        "read": 8,
        "kept": 4,
        "dropped": {
            "user is not a number": {"rows": 1, "places": ["a.csv:3"]},
            "too few columns": {"rows": 1, "places": ["b.csv:3"]},
            "negative": {
                "rows": 2,
                "places": ["b.csv:4 {'user': -3, 'name': e}", "d.csv:3 {'user': -6, 'name': h}"],
            },
        },
    }


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("User,name", r"must have a column 'user'\. It has: User, name\. There is 'User'$"),
        (",User,name", r"It has: \(no name\), User, name\. There is 'User'$"),
        ("user;name", r"must have a column 'user'\. It has: user;name\. Is ';' the delimiter\?$"),
        ("user,user,name", r"t\.csv must have one column 'user'\. It has 2$"),
    ],
)
def test_what_a_missing_column_may_be(database, tmp_path, header, message):
    (tmp_path / "t.csv").write_text(f"{header}\n1,a\n")
    with pytest.raises(ValueError, match=message):
        database.load("t", [tmp_path / "t.csv"], TYPES)


@pytest.mark.parametrize(
    "content",
    [
        ",user,name\n0,1,a\n1,2,b\n",  # as pandas writes its index
        "user,name,\n1,a,\n2,b,\n",
        "user,name,\n1,a\n2,b\n",
        "user,name\n1,a,\n2,b,\n",
        "x,user,x,name,X,\n,1,,a,,\n,2,,b,,\n",
        " user , name\n1,a\n2,b\n",
        "rowid,user,filename,name\n8,1,y,a\n8,2,y,b\n",
        '\ufeff"user","name"\n1,a\n"2","b"\n',
        "user,name\r\n1,a\r\n2,b\r\n",
        "user,name\r1,a\r2,b",
        "user,name\n1,a\r\n2,b",
        '"user","na\nme",name\n1,,a\n2,,b\n',
    ],
)
def test_headers_and_lines_as_people_have_them(database, report, tmp_path, content):
    (tmp_path / "t.csv").write_text(content, newline="")
    database.load("t", [tmp_path / "t.csv"], TYPES)
    assert rows(database) == [(1, "a"), (2, "b")]
    assert report.get_config()["sources"]["t"] == {"read": 2, "kept": 2, "dropped": {}}


def test_columns_with_the_names_that_a_database_has(database, tmp_path):
    (tmp_path / "t.csv").write_text("rowid,filename\n7,a\n8,b\n")
    pd.DataFrame({"filename": ["c"], "rowid": [9]}).to_parquet(tmp_path / "t.parquet")
    columns = {"rowid": "BIGINT", "filename": "VARCHAR"}
    database.load("t", tables.find_files(tmp_path, "t.*"), columns)
    assert rows(database) == [(7, "a"), (8, "b"), (9, "c")]
    assert database.execute(
        f"SELECT {tables.column('rowid')}, rowid FROM t WHERE filename = 'b'"
    ) == [(8, 1)]


def test_names_that_differ_only_in_case(database, tmp_path):
    (tmp_path / "t.csv").write_text("user,User\n1,2\n")
    database.load("t", [tmp_path / "t.csv"], {"User": "BIGINT"})
    assert rows(database) == [(2,)]
    with pytest.raises(ValueError, match="must differ not only in case. Received: 'user', 'User'"):
        database.load("u", [tmp_path / "t.csv"], {"user": "BIGINT", "User": "BIGINT"})


# Lines 2, 3-5, 6, 7, 8, 9, 10-11 and 12.
OF_SEVERAL_LINES = """\
user,name
1,a
2,"b

c"
3,"d
4,e

x,f
5,"g
h"
6,i
"""


def test_lines_are_counted(database, report, tmp_path):
    (tmp_path / "t.csv").write_text(OF_SEVERAL_LINES)
    database.load("t", [tmp_path / "t.csv"], TYPES)
    assert rows(database) == [(1, "a"), (2, "b\n\nc"), (4, "e"), (5, "g\nh"), (6, "i")]
    source = report.get_config()["sources"]["t"]
    assert (source["read"], source["kept"]) == (11, 8)
    assert source["dropped"] == {
        "broken quotes": {"rows": 1, "places": ["t.csv:6"]},
        "blank line": {"rows": 1, "places": ["t.csv:8"]},
        "user is not a number": {"rows": 1, "places": ["t.csv:9"]},
    }
    database.drop("t", '"user" = 5', "five")
    source = report.get_config()["sources"]["t"]
    assert (source["read"], source["kept"]) == (11, 6)
    assert source["dropped"]["five"] == {
        "rows": 2, "places": ["t.csv:10 {'user': 5, 'name': g\nh}"]
    }  # fmt: skip
    database.drop("t", '"user" = 6', "six")
    assert report.get_config()["sources"]["t"]["dropped"]["six"]["places"] == [
        "t.csv:12 {'user': 6, 'name': i}"
    ]
    database.drop_repeated("t", "length(name) > 9", "repeated")
    assert report.get_config()["sources"]["t"]["kept"] == 1


def test_a_record_of_several_lines_that_is_left_out_counts_as_many(database, report, tmp_path):
    (tmp_path / "t.csv").write_bytes(b'user,name\nx,"a\nb"\n2,"\xff\nc"\n3,d\n')
    database.load("t", [tmp_path / "t.csv"], TYPES)
    assert rows(database) == [(3, "d")]
    assert report.get_config()["sources"]["t"] == {
        "read": 5,
        "kept": 1,
        "dropped": {
            "user is not a number": {"rows": 2, "places": ["t.csv:2"]},
            "not UTF-8": {"rows": 2, "places": ["t.csv:4"]},
        },
    }


def test_blank_lines_are_no_bad_ones(tmp_path):
    (tmp_path / "t.csv").write_text("user,name\n1,a\n\n\n2,b\n\n")
    report = Report(max_bad_rows=0)
    with tables.Database(tmp_path, report) as database:
        database.load("t", [tmp_path / "t.csv"], TYPES)
        assert rows(database) == [(1, "a"), (2, "b")]
    places = ["t.csv:3", "t.csv:4", "t.csv:6"]
    assert report.get_config()["sources"]["t"] == {
        "read": 5, "kept": 2, "dropped": {"blank line": {"rows": 3, "places": places}}
    }  # fmt: skip


def test_bad_lines_are_a_share_of_lines(tmp_path):
    (tmp_path / "t.csv").write_text('user,name\n1,"a\n\nb"\n2,"c\n')
    for share in (0.25, 0.24):
        report = Report(max_bad_rows=share)
        with tables.Database(tmp_path, report) as database:
            if share == 0.25:
                database.load("t", [tmp_path / "t.csv"], TYPES)
                continue
            with pytest.raises(ValueError, match=r"1 of 4 rows are bad.*quotes \(t\.csv:5\)"):
                database.load("t", [tmp_path / "t.csv"], TYPES)


@pytest.mark.parametrize(
    ("kind", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("zst", zstd)]
)
@pytest.mark.parametrize("stray", ["", '"'])
def test_compressed_files(database, report, tmp_path, kind, compress, stray):
    path = tmp_path / f"t.csv.{kind}"
    path.write_bytes(compress(f"user,name\n1,a\n2,{stray}b\n3,c\n".encode()))
    database.load("t", [path], TYPES)
    assert rows(database) == [(1, "a"), *([] if stray else [(2, "b")]), (3, "c")]
    dropped = report.get_config()["sources"]["t"]["dropped"]
    place = {"rows": 1, "places": [f"t.csv.{kind}:3"]}
    assert dropped == ({"broken quotes": place} if stray else {})


@pytest.mark.parametrize(("kind", "compress"), [("bz2", bz2.compress), ("zst", zstd)])
def test_other_compressed_files_that_are_cut_off(database, report, tmp_path, kind, compress):
    lines = [f"{i},{i * 7919 % 10007}\n" for i in range(200_000)]
    whole = compress("".join(["user,name\n", *lines]).encode())
    path = tmp_path / f"t.csv.{kind}"
    path.write_bytes(whole[: len(whole) // 2])
    database.load("t", [path], TYPES)
    found = rows(database)
    assert 20_000 < len(found) < 150_000
    assert found == [(i, str(i * 7919 % 10007)) for i in range(len(found))]
    (reason,) = (
        reason
        for reason in report.get_config()["sources"]["t"]["dropped"]
        if reason != "too few columns"
    )
    name = {"bz2": "bzip2", "zst": "zstd"}[kind]
    assert reason == f"{name} cut off or damaged, here at the latest"
    path.write_bytes(b"user,name\n1,a\n")
    with pytest.raises(ValueError, match=rf"t\.csv\.{kind} must be a CSV file"):
        database.load("u", [path], TYPES)


def test_delimiter_and_quote(database, tmp_path):
    (tmp_path / "t.csv").write_text("user\tname\n1\t'a\tb'\n2\t\"c\n")
    database.load("t", [tmp_path / "t.csv"], TYPES, format_=Format("\t", "'"))
    assert rows(database) == [(1, "a\tb"), (2, '"c')]
    database.load("u", [tmp_path / "t.csv"], TYPES, format_=Format("\t", ""))
    assert rows(database, "u") == [(2, '"c')]


def test_absolute_paths_and_addresses(tmp_path):
    (tmp_path / "a.csv").touch()
    assert tables.find_files("/elsewhere", f"{tmp_path}/*.csv") == [tmp_path / "a.csv"]
    for root, pattern in (("gs://bucket/raw", "*"), (tmp_path, "s3://bucket/*.csv")):
        with pytest.raises(ValueError, match="must be on a disk of this machine"):
            tables.find_files(root, pattern)


def test_integers_beyond_64_bits(database, report, tmp_path):
    (tmp_path / "t.csv").write_text("user,name\n18446744073709551615,a\n1,b\n")
    frame = pd.DataFrame({"user": np.array([2**64 - 1, 2], np.uint64), "name": ["c", "d"]})
    frame.to_parquet(tmp_path / "u.parquet")
    frame["user"] = [3.5, 3.0]
    frame.to_parquet(tmp_path / "v.parquet")
    database.load("t", tables.find_files(tmp_path, "*"), TYPES)
    assert rows(database) == [(1, "b"), (2, "d"), (3, "d")]
    fault = 'user is an integer beyond 64 bits, which must be read as text (dtype "string")'
    assert report.get_config()["sources"]["t"]["dropped"] == {
        fault: {"rows": 2, "places": ["t.csv:2", "u.parquet:1"]},
        "user is not an integer": {"rows": 1, "places": ["v.parquet:1"]},
    }
    database.load("text", tables.find_files(tmp_path, "[tu].*"), {"user": "VARCHAR"})
    assert [user for (user,) in rows(database, "text")] == [
        *("18446744073709551615", "1"),
        *("18446744073709551615", "2"),
    ]


def test_times_are_either_texts_or_numbers(database, tmp_path):
    (tmp_path / "a.csv").write_text("at\n\n2024-05-01\n")
    (tmp_path / "b.csv").write_text("at\n1714521600\n")
    load = functools.partial(database.load, columns={"at": "BIGINT"}, times={"at": 2})
    assert load("a", [tmp_path / "a.csv"]) == {"at"}
    assert load("b", [tmp_path / "b.csv"]) == set()
    with pytest.raises(ValueError, match=r"times in .*a\.csv and numbers in .*b\.csv"):
        load("c", tables.find_files(tmp_path, "*.csv"))
    ((at,),) = database.execute('SELECT "at" FROM a WHERE "at" IS NOT NULL')
    assert np.datetime64(at, "ns") == np.datetime64("2024-04-30T22:00")


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
