import dataclasses

import pytest

from tfrec_diffusion.runs import check_same_data


@pytest.fixture
def prepared(schema, tmp_path):
    """`prepared(name, **changes)`: a changed schema with vocabularies in a directory of its own."""

    def prepare(name, **changes):
        (tmp_path / name / "vocabularies").mkdir(parents=True)
        for table in ("item", "category", "hour"):
            (tmp_path / name / "vocabularies" / f"{table}.txt").write_text("1\n2\n")
        return dataclasses.replace(schema, directory=str(tmp_path / name), **changes)

    return prepare


def test_the_same_data_may_lie_elsewhere(prepared):
    check_same_data(prepared("run"), prepared("data"))


@pytest.mark.parametrize("changes", [{"negative_rate": 0.1}, {"history_length": 3}])
def test_what_differs_is_named(changes, prepared):
    run, data = prepared("run"), prepared("data", **changes)
    (name,) = changes
    with pytest.raises(ValueError, match=f"run was trained on other .*data: they differ in {name}"):
        check_same_data(run, data)


def test_other_vocabularies_are_other_data(prepared, tmp_path):
    run, data = prepared("run"), prepared("data")
    (tmp_path / "data" / "vocabularies" / "item.txt").write_text("2\n1\n")
    with pytest.raises(ValueError, match="they differ in vocabularies$"):
        check_same_data(run, data)
