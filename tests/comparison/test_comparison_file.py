import copy
import json

import pytest

from tfrec_diffusion.comparison import comparison_file

COMPARISON = {
    "rows": {
        "Short": {"run": "din max_length=7"},
        "Mean": {"run": "avg_pooling"},
        "Slow": {"run": "diffumin", "data_sets": ["Small"]},
    },
    "data_sets": {"Small": {"flags": ""}, "Large": {"flags": ""}},
    "tables": {
        "Table 1": {"rows": ["Short", "Mean", "Slow"], "data_sets": ["Small", "Large"]},
        "Table 2": {"rows": ["Slow", "Mean"], "data_sets": ["Small"], "base": "Mean"},
    },
    "claims": [
        {"claim": "C", "row": "Mean", "against": "Short", "data_sets": ["Small", "Large"]},
        {
            "claim": "More on large ones",
            "row": "Mean",
            "against": "Short",
            "data_sets": ["Large"],
            "minus": {"data_set": "Small"},
            "expected": "below",
            "margin": 0.001,
        },
    ],
}


@pytest.fixture
def read(tmp_path):
    def read(comparison=COMPARISON):
        (tmp_path / "comparison.json").write_text(json.dumps(comparison))
        return comparison_file.read(tmp_path / "comparison.json")

    return read


def test_tables(read):
    file = read()
    assert list(file.tables) == ["Table 1", "Table 2"]
    assert [file.base(name) for name in file.tables] == ["Short", "Mean"]
    assert file.cells("Table 1") == [
        *(("Small", "Short"), ("Small", "Mean"), ("Small", "Slow")),
        *(("Large", "Short"), ("Large", "Mean")),
    ]
    assert file.cells("Table 2") == [("Small", "Slow"), ("Small", "Mean")]


def test_without_tables_there_is_one_of_all_rows(read):
    file = read({name: COMPARISON[name] for name in ("rows", "data_sets")})
    assert list(file.tables) == [""] and file.base("") == "Short"
    assert len(file.cells("")) == 5 and file.tables[""]["figure"] == {"kind": "bars"}
    assert file.claims == [] == file.learning_rates


def test_contrasts_of_a_claim():
    plain, with_minus = COMPARISON["claims"]
    on = {"row": "Mean", "against": "Short", "split": "test"}
    assert list(comparison_file.contrasts(plain)) == [
        ({**on, "data_set": "Small"}, None),
        ({**on, "data_set": "Large"}, None),
    ]
    assert list(comparison_file.contrasts(with_minus)) == [
        ({**on, "data_set": "Large"}, {**on, "data_set": "Small"})
    ]
    of_split = {**plain, "split": "late", "minus": {"split": "early", "row": "Slow"}}
    (of_small, minus), _ = comparison_file.contrasts(of_split)
    assert (of_small["split"], minus["split"], minus["row"]) == ("late", "early", "Slow")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("tables", "Table 1", "rows"), ["Short", "Max"], "`rows` of * must be among *['Max']"),
        (("tables", "Table 1", "data_sets"), ["Huge"], "`data_sets` of * must be among *['Huge']"),
        (("tables", "Table 1", "base"), "Max", "`base` of * must be among *['Max']"),
        (("tables", "Table 1", "base"), "Slow", "Table 1 has no Slow on Large to compare with"),
        (("tables", "Table 1", "title"), "x", "may have ['base', *'title']"),
        (("tables", "Table 1"), {"rows": ["Mean"]}, "must have ['rows', 'data_sets']"),
        (("tables", "Table 1", "figure"), {"kind": "pie"}, "`kind` of the figure of *['pie']"),
        (("tables", "Table 1", "figure"), {"kind": "bars", "colour": 1}, "`figure` of *['colour',"),
        (
            ("tables", "Table 1", "figure"),
            {"kind": "line", "points": {"Short": 1, "Slow": 2}},
            "`rows` of *Table 1 must be among ['Short', 'Slow']. Received: ['Mean']",
        ),
        (
            ("tables", "Table 1", "figure"),
            {"kind": "data_sets", "points": {"Small": 1}},
            "`data_sets` of *Table 1 must be among ['Small']. Received: ['Large']",
        ),
        (("rows", "Slow", "data_sets"), ["Tiny"], "`data_sets` of Slow must be among *['Tiny']"),
        (("claims", 0, "expected"), "more", "`expected` of * must be among *['more']"),
        (("claims", 0, "expected"), "equal within", "claim C needs a `margin` above 0"),
        (("claims", 0, "row"), "Slow", "claim C needs a table with Slow on Large"),
        (("claims", 0, "minus"), {"data_set": "Huge"}, "claim C needs a table with Mean on Huge"),
        (("claims", 0, "minus"), {"table": "x"}, "`minus` of *claim C must have [] and may"),
        (("claims", 0, "verdict"), "holds", "claim C must have ['claim', *'verdict']"),
    ],
)
def test_what_means_nothing_is_refused(read, tmp_path, place, value, message):
    comparison = copy.deepcopy(COMPARISON)
    *way, last = place
    changed = comparison
    for key in way:
        changed = changed[key]
    changed[last] = value
    with pytest.raises(ValueError) as refused:
        read(comparison)
    text = str(refused.value)
    assert f"{tmp_path}/comparison.json" in text and text.count("\n") == 0
    for part in message.split("*"):
        assert part in text
        text = text.split(part, 1)[1]
