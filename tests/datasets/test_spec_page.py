"""`experiments/LOGS.md`, which documents the spec file of `logs`, says what the code does."""

import dataclasses
import json
import pathlib
import re

import pytest

from tfrec_diffusion.datasets import logs_spec
from tfrec_diffusion.datasets.preparation import Preparation, prepare
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.prepared_directory import PreparedDirectory

PAGE = (pathlib.Path(__file__).parents[2] / "experiments" / "LOGS.md").read_text()
SECTIONS = {
    "The whole": logs_spec.Spec,
    "`impressions` and `behaviors`": logs_spec.Events,
    "A side table in `join`": logs_spec.Join,
    "A label in `labels`": logs_spec.Label,
    "`splits`": logs_spec.Splits,
    "A table in `tables`": logs_spec.Table,
    "A feature in `features`": logs_spec.Feature,
}


@pytest.mark.parametrize(
    ("title", "kind"), SECTIONS.items(), ids=[k.__name__ for k in SECTIONS.values()]
)
def test_every_key_is_there_with_its_default(title, kind):
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? ?\|", section.replace(r"\|", "¦"), re.MULTILINE)
    keys = {key: default.replace("¦", "|") for key, default in rows}
    expected = {}
    for field in dataclasses.fields(kind):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        expected[field.name] = "" if default is dataclasses.MISSING else json.dumps(default)
    assert keys == expected


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The page's example, prepared."""
    raw_dir = tmp_path_factory.mktemp("shop")
    tables = re.findall(r"```csv\n(.*?)```", PAGE, re.DOTALL)
    for name, content in zip(("impressions", "behaviors", "items"), tables, strict=True):
        (raw_dir / f"{name}.csv").write_text(content)
    (spec,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    (raw_dir / "shop.json").write_text(spec)
    return prepare(
        "logs",
        raw_dir=raw_dir,
        data_dir=raw_dir / "data",
        spec=str(raw_dir / "shop.json"),
        preparation=Preparation(group_by="request"),
    )


def test_the_example_loses_nothing(directory):
    report = PreparedDirectory(directory).report
    dropped = {name: source["dropped"] for name, source in report["sources"].items()}
    assert dropped.pop("behaviors")["action not kept"]["rows"] == 1
    assert not any(dropped.values()) and "warnings" not in report
    assert not [note for note in report if "taken for missing" in note or "left out" in note]


def test_the_example_is_what_the_page_says(directory):
    data = RequestData(directory, label="bought")
    assert [data.num_requests(split) for split in ("train", "validation", "test")] == [2, 1, 1]
    features, labels, weights = next(data.batches("train").as_numpy_iterator())
    ann, bob = sorted(range(2), key=lambda i: weights[i].sum(), reverse=True)
    # Page p1 is one request with two candidates; bob's history has his view, not his like.
    assert labels[[ann, bob]].tolist() == [[0, 0], [1, 0]]
    assert weights[[ann, bob]].tolist() == [[1, 1], [0.5, 0]]
    assert (features["history_item"][[ann, bob]] > 0).sum(axis=1).tolist() == [2, 1]
    assert features["tags"].shape == (2, 2, 5) and features["history_image"].shape == (2, 100, 3)
