import dataclasses

import numpy as np
import pytest
from small_models import write_vocabularies

from tfrec_diffusion.schema import Schema
from tfrec_diffusion.training.run_directory import RunDirectory, check_same_data


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


def test_a_run_goes_on_with_as_many_machines_as_it_had(schema, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    for directory in (data, run):
        directory.mkdir()
    schema.save(data)
    write_vocabularies(data)
    schema = Schema.load(data)
    directory = RunDirectory(run)
    directory.claim({"seed": 0}, {"workers": 2}, schema)
    directory.claim({"seed": 0}, {"workers": 2}, schema)
    with pytest.raises(ValueError, match=r"Received: workers=3 \(was 2\)"):
        directory.claim({"seed": 0}, {"workers": 3}, schema)
    with pytest.raises(ValueError, match=r"Received: --seed=1 \(was 0\)"):
        directory.claim({"seed": 1}, {"workers": 2}, schema)


def test_an_older_run_had_none_of_the_newer_flags(schema, tmp_path):
    schema = dataclasses.replace(schema, directory=str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    write_vocabularies(tmp_path / "data")
    (tmp_path / "run").mkdir()
    directory = RunDirectory(tmp_path / "run")
    directory.claim({"seed": 0}, {}, schema)
    directory.claim({"seed": 0, "positive_weight": 1.0, "warm_start": ""}, {}, schema)
    (tmp_path / "run" / "flags.json").write_text('{"seed": 0}')
    with pytest.raises(ValueError, match=r"Received: --positive_weight=5.0 \(was 1.0\)"):
        directory.claim({"seed": 0, "positive_weight": 5.0}, {}, schema)
    assert directory.correction is None


@pytest.mark.parametrize("changes", [{"weighted": True}, {"labels": ["bought"]}])
def test_weights_and_labels_make_other_data(changes, prepared):
    run, data = prepared("run"), prepared("data", **changes)
    (name,) = changes
    for pair in ((run, data), (data, run)):
        with pytest.raises(ValueError, match=f"they differ in {name}"):
            check_same_data(*pair)


def test_a_model_that_cannot_be_read_says_which_version_wrote_it(tmp_path):
    directory = RunDirectory(tmp_path)
    (tmp_path / "model.keras").write_text("no model")
    with pytest.raises(ValueError, match=r"written by version unknown of tfrec_diffusion"):
        directory.load_model()
    directory.write_metrics({"versions": {"tfrec_diffusion": "0.0.7"}})
    with pytest.raises(ValueError, match=r"written by version 0\.0\.7 of tfrec_diffusion"):
        directory.load_model()


def test_predictions_come_back_as_they_were(tmp_path):
    directory = RunDirectory(tmp_path)
    assert directory.predictions("test") is None
    probabilities = np.array([0.1, 1 / 3, 0.9], np.float32)
    directory.write_predictions("test", probabilities, np.array([0.0, 1.0, 1.0]), [7, 2**40, 7])
    found = directory.predictions("test")
    np.testing.assert_array_equal(found.probabilities, probabilities)
    assert (found.labels.tolist(), found.groups.tolist()) == ([0, 1, 1], [7, 2**40, 7])
    assert [column.dtype.name for column in found[:3]] == ["float32", "int8", "int64"]
    assert found.weights is None
    directory.write_predictions("test", probabilities, [0, 1, 1], [7, 8, 9], [0.5, 1, 2])
    assert directory.predictions("test").weights.tolist() == [0.5, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.test.npz"]
    assert directory.predictions("validation") is None


def test_predictions_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path)
    directory.write_predictions("test", [0.5], [1], [7])

    def fail(path, **_):
        path.write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="full"):
        directory.write_predictions("test", [0.6], [1], [7])
    assert directory.predictions("test").probabilities.tolist() == [0.5]
