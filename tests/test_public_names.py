"""What a notebook imports."""

import pathlib
import re
import subprocess
import sys

import pytest
from small_models import SMALL

import tfrec_diffusion
from tfrec_diffusion import models, names
from tfrec_diffusion.datasets.preparation import prepare

REPOSITORY = pathlib.Path(__file__).parent.parent


def test_the_package_is_imported_at_once_and_its_names_when_they_are_asked_for():
    program = """
import sys
import tfrec_diffusion
assert "tensorflow" not in sys.modules
assert {"models", "layers", "RequestData"} <= set(dir(tfrec_diffusion))
from tfrec_diffusion import RequestData, LazyAdam, LogLoss, models, layers, diffusion
layers.OrthogonalChannels, diffusion.DiffusionGenerator, models.DIN
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ["layers", "diffusion", "models"])
def test_every_name_that_a_room_exports_is_there(room):
    room = getattr(tfrec_diffusion, room)
    for name in room.__all__:
        assert getattr(room, name) is not None


def test_there_is_nothing_else():
    with pytest.raises(AttributeError, match="has no attribute 'Model'"):
        tfrec_diffusion.Model  # noqa: B018


def test_every_model_has_a_name(schema):
    assert models.MODELS.keys() == names.MODELS.keys() >= SMALL.keys()
    with pytest.raises(ValueError, match="`model` must be one of .*'din'.*Received: 'dinn'"):
        models.create("dinn", schema=schema)


def test_the_readmes_notebook_works_as_it_stands(tmp_path):
    _, section = (REPOSITORY / "README.md").read_text().split("## In a notebook\n")
    (example,) = re.findall(r"```python\n(.*?)```", section, re.S)
    options = {"users": 60, "items": 50, "categories": 5, "history_length": 10}
    prepare("synthetic", data_dir=tmp_path / "data", **options)
    example += "\nassert type(model) is models.DIN\n"
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "din.keras").exists()
