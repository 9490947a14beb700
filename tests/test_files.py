"""Nothing half written, whatever ends the writing."""

import json
import math

import pytest

from tfrec_diffusion.files import lock, replaceable, write_json, written_aside


def test_a_file_is_old_or_new(tmp_path):
    path = tmp_path / "model"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_aside(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with written_aside(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model", "new")]


def test_a_directory_starts_without_what_a_killed_process_left(tmp_path):
    (tmp_path / "incomplete.1" / "assets").mkdir(parents=True)
    with written_aside(tmp_path / "1") as aside:
        aside.mkdir()
    assert list(tmp_path.iterdir()) == [tmp_path / "1"] and not list((tmp_path / "1").iterdir())


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "metrics.json", {"auc": math.nan, "step": 3})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"auc": None, "step": 3}


def test_a_directory_that_was_not_replaced_returns(tmp_path):
    old = tmp_path / "1.0.0"
    old.mkdir()
    (old / "records").touch()
    for whole in (False, True):
        (tmp_path / "incomplete.1").mkdir()
        (tmp_path / "incomplete.report.json").touch()
        with replaceable(old, "preparing") as aside:
            assert [path.name for path in tmp_path.iterdir()] == ["1.0.0"]
            old.rename(aside)
            if whole:
                old.mkdir()
        assert [path.name for path in tmp_path.iterdir()] == ["1.0.0"]
        assert (old / "records").exists() != whole


def test_a_directory_is_one_processs(tmp_path):
    with (
        lock(tmp_path, "training in"),
        pytest.raises(BlockingIOError, match=f"another process is training in {tmp_path}"),
        lock(tmp_path, "training in"),
    ):
        pass
