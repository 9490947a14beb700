import numpy as np
import pytest

from tfrec_diffusion.datasets import csv_files

HEADER = b"a,b,c,d\n"


@pytest.fixture
def check(tmp_path):
    """`check(content)`: what was found in a file, and what DuckDB is to read."""

    def of(content, columns=4, format_=csv_files.COMMAS, has_header=True):
        path, copy = tmp_path / "t.csv", tmp_path / "copy.csv"
        path.write_bytes(content)
        copy.unlink(missing_ok=True)
        found = csv_files.checked(path, format_, columns, copy, has_header=has_header)
        assert found.path == (copy if copy.exists() else path)
        return found, found.path.read_bytes()

    return of


@pytest.fixture(params=[None, 40])
def _blocks(request, monkeypatch):
    """Files are read as a whole, or in pieces of 40 bytes."""
    if request.param:
        monkeypatch.setattr(csv_files, "_BLOCK", request.param)


def broken(found):
    return {reason: numbers.tolist() for reason, numbers in found.broken.items()}


@pytest.mark.parametrize(
    "content",
    [
        HEADER + b"1,2,3,4\n" * 100,
        HEADER + b'1,"2,2","3 ""3""",4\n' * 100 + b'"","""",1,2',
        b"a,b,c,d\r\n" + b'1,"2,2",3,"4"\r\n' * 100,
        HEADER + b'1,"2\n2","3\n\n3",4\n' * 100,
    ],
)
@pytest.mark.usefixtures("_blocks")
def test_what_duckdb_reads_right_is_not_copied(check, content):
    found, read = check(content)
    assert read == content
    assert broken(found) == {}


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        # As Python's `csv` has it, a quote within a field is a quote.
        (b'1,5" x,3,4', (b"1", b'5" x', b"3", b"4")),
        (b'1,a"b"c,3,"4"', (b"1", b'a"b"c', b"3", b"4")),
        (b'"1" , "2, 2",3,"4""" ', (b"1", b"2, 2", b"3", b'4"')),
        (b'1,5",3,4,', (b"1", b'5"', b"3", b"4")),
        (b'1,5",3', (b"1", b'5"', b"3")),
    ],
)
@pytest.mark.usefixtures("_blocks")
def test_odd_quotes_are_written_anew(check, line, fields):
    found, read = check(HEADER + b"0,0,0,0\n" + line + b"\n9,9,9,9")
    quoted = b",".join(b'"' + field.replace(b'"', b'""') + b'"' for field in fields)
    assert read == HEADER + b"0,0,0,0\n" + quoted + b"\n9,9,9,9\n"
    assert broken(found) == {}
    assert found.line(np.arange(1, 5)).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "line", [b'1,"2,3,4', b'1,"2"2,3,4', b'"1"",2,3,4', b'1,2,3,"', b'"a" "b",2,3,4', b'1,2,"3, "4']
)
@pytest.mark.usefixtures("_blocks")
def test_a_stray_quote_costs_one_line(check, line):
    found, read = check(HEADER + b"0,0,0,0\n" + line + b"\n" + b"9,9,9,9\n" * 200)
    assert read == HEADER + b"0,0,0,0\n" + b"9,9,9,9\n" * 200
    assert broken(found) == {"broken quotes": [3]}
    assert found.line(np.array([1, 2, 3, 4, 202])).tolist() == [1, 2, 4, 5, 203]


@pytest.mark.usefixtures("_blocks")
def test_stray_quotes_that_would_close_each_other(check):
    # Together they would be a record of four fields.
    found, read = check(HEADER + b'1,"x,3,4\n5,6,7,8\n9,x",3,4\n')
    assert broken(found) == {"broken quotes": [2]}
    assert read == HEADER + b'5,6,7,8\n"9","x""","3","4"\n'
    # Here the second line is no record of its own.
    found, read = check(HEADER + b'1,"x,3,4\n5,6,7\n9,x",3,4\n')
    assert broken(found) == {}
    assert found.long_lines.tolist() == [3]


@pytest.mark.usefixtures("_blocks")
def test_records_of_several_lines_have_their_numbers(check):
    content = HEADER + b'1,"2\n\n2",3,4\n\n1,2,3,4\n"1,2,3,4\n5,6,7,"8\n"\n9,9,9,9\n'
    found, read = check(content)
    assert read == HEADER + b'"1","2\n\n2","3","4"\n\n1,2,3,4\n"5","6","7","8\n"\n9,9,9,9\n'
    # Records: header, 2-4, blank 5, 6, (7 is broken), 8-9, 10.
    assert found.line(np.arange(1, 7)).tolist() == [1, 2, 5, 6, 8, 10]
    assert found.blank_records.tolist() == [3]
    assert found.long_records.tolist() == [2, 5]
    assert found.long_lines.tolist() == [3, 2]
    assert broken(found) == {"broken quotes": [7]}


@pytest.mark.usefixtures("_blocks")
def test_records_have_a_limit_of_lines(check):
    most = csv_files.MAX_RECORD_LINES
    text = b'1,"' + b"x\n" * (most - 1) + b'",3,4\n'
    found, _ = check(HEADER + text)
    assert found.long_lines.tolist() == [most]
    found, read = check(HEADER + text.replace(b'"x', b'"x\nx'))
    # The last line has a quote within a field that is not closed.
    assert broken(found) == {"broken quotes": [2, most + 2]}
    assert read.count(b"\n") == most


def test_long_lines(check, monkeypatch):
    monkeypatch.setattr(csv_files, "_BLOCK", 64)
    monkeypatch.setattr(csv_files, "MAX_LINE", 100)
    for length, number in ((92, {}), (93, {"line too long": [3]}), (1000, {"line too long": [3]})):
        line = b"1,2,3," + b"4" * (length + 2) + b"\n"
        found, read = check(HEADER + b"0,0,0,0\n" + line + b"9,9,9,9\n")
        assert broken(found) == number
        assert read == HEADER + b"0,0,0,0\n" + (b"" if number else line) + b"9,9,9,9\n"


@pytest.mark.parametrize(
    "ends", [(b"\n", b"\r\n"), (b"\r\n", b"\n"), (b"\r", b"\r"), (b"\n", b"\r")]
)
@pytest.mark.usefixtures("_blocks")
def test_lines_that_end_differently(check, ends):
    lines = [b"a,b,c,d", *(b"%d,2,3,4" % i for i in range(50)), b'x,"y\n",3,4', b"1,2,3,4"]
    found, read = check(b"".join(line + ends[i > 20] for i, line in enumerate(lines)))
    assert read.replace(b'"x","y\n","3","4"', lines[-2]) == b"\n".join(lines) + b"\n"
    assert broken(found) == {}
    assert found.line(np.arange(51, 55)).tolist() == [51, 52, 54, 55]


def test_no_quotes(check):
    content = b'1,"2,3,4\n5,6\n'
    found, read = check(content, format_=csv_files.Format(quote=""), has_header=False)
    assert read == content
    assert broken(found) == {} and found.header_lines == 0


def test_other_delimiters_and_quotes(check):
    content = b"a|b\n'x|y'|2\n'3|4\n5|'6"
    found, read = check(content, columns=2, format_=csv_files.Format("|", "'"))
    assert read == b"a|b\n'x|y'|2\n"
    assert broken(found) == {"broken quotes": [3, 4]}


def test_a_header_of_several_lines_and_a_broken_one(check):
    found, _ = check(b'a,"b\nb",c,d\n1,2,3,4\n')
    assert found.header_lines == 2
    assert found.line(np.array([2])).tolist() == [3]
    with pytest.raises(
        ValueError, match=r"t\.csv: the first line must be a header. It has: broken"
    ):
        check(b'a,"b,c,d\n1,2,3,4\n')


def test_first_value(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'a,b\n1,\n2, NA \n\xff\n3," x"\n4,y\n')
    arguments = {"skip": 1, "ignored": ("NA",)}
    value = csv_files.first_value(tmp_path / "t.csv", csv_files.COMMAS, 1, **arguments)
    assert value == "x"
    assert csv_files.first_value(tmp_path / "t.csv", csv_files.COMMAS, 2, **arguments) == ""
