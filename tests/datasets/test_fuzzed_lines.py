"""Ten thousand broken and odd lines through `logs`, beside Python's own reading of them."""

import collections
import csv
import io
import json
import random
import re

import pytest
from small_specs import SPEC, changed

from tfrec_diffusion.datasets import sql_values
from tfrec_diffusion.datasets.preparation import Preparation, prepare
from tfrec_diffusion.prepared_directory import PreparedDirectory

LINES = 10_000
COLUMNS = ("user", "ts", "item", "shop", "click")
SPEC = changed(
    SPEC,
    splits={"train_until": "1970-01-01T01:00:00", "validation_until": "1970-01-01T01:40:00"},
    features__history_shop=None,
)
# Every value that is odd somewhere, beside the usual one.
ODD = {
    "user": ("", "NULL", "é", "日本", " ann", "ann ", '"a,b"', '"a""b"', "\0", "\\N", '""'),
    "ts": ("", "-1", "1e2", "12.5", "99999999999999999999", "abc", '"7"', " 8 ", "8.0", "inf"),
    "item": ("", "-1", "12.7", "1e3", "0x1F", "1_0", "9223372036854775808", "12.0", '"5"', "+5"),
    "shop": (
        *(
            '"s\nt"',
            '"s\r\nt"',
            '"\n\n"',
            '5" x',
            '"open',
            'a"b"c',
            '"x"y',
            '"""',
            '"a" ',
            ' "b, c"',
        ),
        *("x,y", "", "None", "N/A", "null", "N A", "\t", ";", "'", "#", "\\", '"'),
    ),
    "click": ("", "2", "true", "False", "0.5", "1.0", "yes", '"1"', "1,", ",", "1,2"),
}


def fuzzed_line(rng):
    values = {
        "user": f"u{rng.randrange(50)}",
        "ts": str(rng.randrange(1500)),
        "item": str(rng.randrange(100)),
        "shop": f"s{rng.randrange(10)}",
        "click": str(rng.randrange(2)),
    }
    for name, odd in ODD.items():
        if rng.random() < 0.1:
            values[name] = rng.choice(odd)
    fields = list(values.values())
    if rng.random() < 0.05:
        fields = fields[: rng.randrange(6)]
    line = ",".join(fields).encode()
    if rng.random() < 0.02:
        middle = rng.randrange(len(line) + 1)
        line = line[:middle] + bytes([rng.randrange(128, 256)]) + line[middle:]
    if rng.random() < 0.001:
        line += b"x" * rng.choice([1000, 100_000, 2_000_001])
    return line + rng.choice([b"\n"] * 9 + [b"\r\n"])


def good_records(lines):
    """Reads lines as Python's `csv` does; yields the records with five fields and their lengths.

    A record of several lines must not look like that many records with a stray quote each. Blanks
    around a quoted field are none of its own.
    """
    i = 0
    while i < len(lines):
        length, fields = 1, None
        for count in range(1, 101):
            text = "\n".join(lines[i : i + count])
            if i + count > len(lines) or len(text.encode("utf-8", "surrogateescape")) > 2_000_000:
                break
            text = re.sub(r'(^|,) +"', r'\1"', text)
            text = re.sub(r'" +(,|$)', r'"\1', text)
            try:
                ((*fields,),) = csv.reader(io.StringIO(text, newline=""), strict=True)
                length = count
                break
            except csv.Error as error:
                if "unexpected end" not in str(error):
                    break
            except ValueError:  # a blank line
                break
        if fields and len(fields) == len(COLUMNS) + 1 and not fields[-1]:
            fields.pop()
        commas = {line.count(",") for line in lines[i : i + length]}
        if not fields or len(fields) != len(COLUMNS) or (length > 1 and commas == {4}):
            length = 1
        elif not re.search("[\udc80-\udcff]", "".join(fields)):
            yield dict(zip(COLUMNS, fields, strict=True)), length
        i += length


def usable(row):
    """What `logs` makes of a record, or `None`."""
    user, ts, item, shop, click = (None if row[n] in sql_values.NULLS else row[n] for n in COLUMNS)
    integer = re.compile(r"\s*[+-]?[0-9]+(\.0*)?\s*")
    if not all(integer.fullmatch(value or "") for value in (ts, item)) or not user:
        return None
    ts, item = int(float(ts)), int(float(item))
    label = {"true": 1, "false": 0}.get((click or "").strip().lower(), click)
    try:
        label = float(label)
    except (TypeError, ValueError):
        return None
    if ts not in range(2**33) or item == -1 or item >= 2**63 or label not in (0, 1):
        return None
    # A vocabulary has no values with a line break.
    shop = "?" if shop and "\n" in shop else shop or None
    return user, item, shop, label


@pytest.mark.parametrize("seed", [0, 1])
def test_fuzzed_lines(tmp_path, read_requests, seed):
    rng = random.Random(seed)
    content = b"".join(fuzzed_line(rng) for _ in range(LINES))
    # All of them are for training, so that all their values have rows.
    content += b"u1,5000,1,s1,0\nu1,7000,1,s1,1"
    (tmp_path / "impressions.csv").write_bytes(",".join(COLUMNS).encode() + b"\n" + content)
    (tmp_path / "behaviors.csv").write_text("user,ts,item\nu1,0,1\n")
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    directory = prepare(
        "logs",
        raw_dir=tmp_path,
        data_dir=tmp_path / "data",
        spec=str(tmp_path / "spec.json"),
        preparation=Preparation(max_bad_rows=1),
    )

    lines = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").decode("utf-8", "surrogateescape")
    lines = lines.split("\n")
    limit = csv.field_size_limit(10**8)
    read = [(usable(row), length) for row, length in good_records(lines)]
    csv.field_size_limit(limit)
    source = PreparedDirectory(directory).report["sources"]["impressions"]
    assert source["read"] == len(lines) > LINES
    assert source["kept"] == sum(length for row, length in read if row) > LINES / 2
    assert source["read"] - source["kept"] == sum(
        drop["rows"] for drop in source["dropped"].values()
    )
    assert collections.Counter(row for row, _ in read if row) == collections.Counter(
        (r["user"], r["item"][0], r["shop"][0], r["label"][0])
        for split in ("train", "validation", "test")
        for r in read_requests(directory, split)
    )
