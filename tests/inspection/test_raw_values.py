import numpy as np
import pytest

from tfrec_diffusion.inspection.first_requests import shortened
from tfrec_diffusion.inspection.raw_values import decode, number


def test_boundaries_are_intervals(data):
    assert data.schema.table("gap").boundaries == (30.0,)
    assert decode(data.schema, "gap", {0, 1, 2, 3}) == {
        0: "<missing>",
        1: "<unknown>",
        2: "(-inf, 30)",
        3: "[30, inf)",
    }


def test_a_hash_has_buckets(schema):
    texts = decode(schema, "user", {0, 2, 49})
    assert (texts[0], texts[2], texts[49]) == ("<missing>", "<bucket 0>", "<bucket 47>")


def test_a_vocabulary_has_its_lines(data):
    lines = (data.directory / "vocabularies" / "item_id.txt").read_text().splitlines()
    assert decode(data.schema, "item_id", {0, 2, 5}) == {
        **{0: "<missing>", 1: "<unknown>"},
        **{2: lines[0], 5: lines[3]},
    }


def test_a_vocabulary_that_is_too_short(data):
    last = data.schema.table("item_id").rows
    with pytest.raises(ValueError, match=rf"item_id.txt must have {last - 2} lines: no row"):
        decode(data.schema, "item_id", {2, last})


def test_numbers_and_vectors():
    assert number(np.float32(1.25)) == "1.25"
    assert number(np.array([1, 2.5, 3, 4], "f")) == "[1, 2.5, 3, ...]"
    assert number(np.array([1, np.nan], "f")) == number(np.float32("nan")) == "<missing>"


def test_long_lists_lose_their_middle():
    items = [f"item{i}" for i in range(1, 11)]
    lines = shortened({"item": items})
    assert [line.split() for line in lines] == [
        ["#", "item"],
        *(["1", "item1"], ["2", "item2"]),
        ["..", "(2", "more)"],
        *([str(i), f"item{i}"] for i in range(5, 11)),
    ]
    lines = shortened({"item": items[:9]})  # one is not worth dots
    assert len(lines) == 10 and lines[3].split() == ["3", "item3"]
    assert shortened({"item": []}) == []
