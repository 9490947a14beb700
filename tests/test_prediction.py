"""Scores of a log that nobody has labeled: `predict`."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from commands import run
from days import SPEC, arguments, write_day

from tfrec_diffusion import prediction
from tfrec_diffusion.datasets.preparation import Preparation
from tfrec_diffusion.datasets.tables import Database
from tfrec_diffusion.prediction import predict
from tfrec_diffusion.training.run_directory import RunDirectory


@pytest.fixture(scope="module")
def monday(tmp_path_factory):
    """Directory of the raw files, and the run of a model that was trained on them."""
    directory = tmp_path_factory.mktemp("monday")
    write_day(directory / "raw", 0)
    code, _, stderr = run(*arguments(directory / "raw", directory / "run"))
    assert code == 0, stderr
    return directory / "raw", RunDirectory(directory / "run")


@pytest.fixture
def unlabeled(monday, tmp_path):
    """The same log without labels."""
    raw_dir, run_directory = monday
    directory = tmp_path / "raw"
    directory.mkdir()
    shutil.copy(raw_dir / "behaviors.csv", directory)
    shutil.copy(raw_dir / "shop.json", directory)
    log = pd.read_csv(raw_dir / "impressions.csv").drop(columns="click")
    log.to_csv(directory / "impressions.csv", index=False)

    def scored(output, **arguments):
        predict(
            run_directory,
            directory / "shop.json",
            raw_dir=directory,
            output=tmp_path / output,
            **{"preparation": Preparation(), "batch_size": 32, **arguments},
        )
        return tmp_path / output

    return scored


def read(output):
    return pd.concat(map(pd.read_parquet, sorted(output.glob("*.parquet"))), ignore_index=True)


def test_scores_are_those_of_evaluation(monday, unlabeled):
    raw_dir, run_directory = monday
    rows = read(unlabeled("scores"))
    log = pd.read_csv(raw_dir / "impressions.csv")
    assert list(rows) == ["user", "time", "item", "score"]
    assert len(rows) == len(log)
    both = rows.merge(log, on=["user", "time", "item"])
    assert len(both) == len(log)
    of_test = both[both["time"] >= 1714521600 + 3 * 86400]
    expected = run_directory.predictions("test")
    found = of_test.sort_values("score")[["score", "click"]].to_numpy()
    order = np.argsort(expected.probabilities)
    np.testing.assert_allclose(found[:, 0], expected.probabilities[order], rtol=1e-5)
    np.testing.assert_array_equal(found[:, 1], expected.labels[order])


@pytest.mark.parametrize(
    "preparation",
    [Preparation(group_by="request"), Preparation(workers=2)],
    ids=["by request", "two processes"],
)
def test_scores_do_not_depend_on_how_a_log_is_encoded(unlabeled, monkeypatch, preparation):
    monkeypatch.setattr(Database, "part_rows", 100)
    one, other = read(unlabeled("one")), read(unlabeled("other", preparation=preparation))
    pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=1e-5)


def test_users_without_impressions_have_parts_of_their_own(unlabeled, monkeypatch, tmp_path):
    expected = read(unlabeled("expected"))
    monkeypatch.setattr(Database, "part_rows", 100)
    with (tmp_path / "raw" / "behaviors.csv").open("a") as log:
        log.writelines(f"z{i},i1,1714521600\n" for i in range(300))
    pd.testing.assert_frame_equal(read(unlabeled("scores")), expected, check_exact=False, rtol=1e-5)


def test_what_is_interrupted_goes_on(unlabeled, monkeypatch, tmp_path):
    monkeypatch.setattr(Database, "part_rows", 100)
    whole = unlabeled("whole")
    assert len(list(whole.glob("*.parquet"))) > 3
    score = prediction._Scorer.__call__
    scored = []

    def interrupted(self, serialized):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(len(serialized))
        return score(self, serialized)

    with monkeypatch.context() as patched:
        patched.setattr(prediction._Scorer, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            unlabeled("scores")
    assert not (tmp_path / "scores").exists()
    # The log is not read again, and the two parts that are there are not scored again.
    monkeypatch.setattr(Database, "__enter__", None)
    scored.clear()
    monkeypatch.setattr(
        prediction._Scorer, "__call__", lambda self, part: scored.append(1) or score(self, part)
    )
    resumed = unlabeled("scores")
    assert len(scored) == len(list(whole.glob("*.parquet"))) - 2
    pd.testing.assert_frame_equal(read(resumed), read(whole))
    assert [path.name for path in resumed.iterdir() if path.suffix != ".parquet"] == ["scores.json"]


def test_another_log_does_not_go_on(unlabeled, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        patched.setattr(prediction._Scorer, "__call__", lambda self, part: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            unlabeled("scores")
    with (tmp_path / "raw" / "impressions.csv").open("a") as log:
        log.write("u1,i1,1714521600,1\n")
    with pytest.raises(ValueError, match="begun with another files: remove it, or give another"):
        unlabeled("scores")


def test_the_command(monday, tmp_path):
    raw_dir, run_directory = monday
    arguments = [
        "predict", f"--model_dir={run_directory.path}", f"--spec={raw_dir / 'shop.json'}",
        f"--raw_dir={raw_dir}", f"--output={tmp_path / 'scores'}", "--format=csv",
    ]  # fmt: skip
    code, stdout, stderr = run(*arguments)
    assert code == 0, stderr
    assert "300 kept" in stdout and "does not know" not in stdout
    rows = pd.read_csv(tmp_path / "scores" / "part-00000.csv")
    assert list(rows) == ["user", "time", "item", "score"] and len(rows) == 300
    description = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert description["model"] == str(run_directory.path)
    code, _, stderr = run(*arguments)
    assert code == 2 and "is there already" in stderr


def test_a_spec_with_other_features(monday, tmp_path):
    raw_dir, run_directory = monday
    features = {name: of for name, of in SPEC["features"].items() if name != "price"}
    tables = {name: of for name, of in SPEC["tables"].items() if name != "price"}
    (tmp_path / "shop.json").write_text(
        json.dumps({**SPEC, "features": features, "tables": tables})
    )
    with pytest.raises(ValueError, match="differ in feature 'price'"):
        predict(
            run_directory,
            tmp_path / "shop.json",
            raw_dir=raw_dir,
            output=tmp_path / "scores",
            preparation=Preparation(),
        )
