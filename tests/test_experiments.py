"""Experiment files: their flags, settings and commands exist."""

import pathlib
import re
import shlex

import pytest
from absl.flags import FlagValues

from tfrec_diffusion import flags, models

REPOSITORY = pathlib.Path(__file__).parent.parent
FILES = [str(p.relative_to(REPOSITORY)) for p in sorted(REPOSITORY.glob("experiments/**/*.flags"))]


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def parse(command, *arguments):
    values = FlagValues()
    getattr(flags, command)(values)
    assert values([command, *arguments]) == [command]
    return values


def commands(file):
    """The package's commands in a file's opening comment: (name, arguments)."""
    comment = re.sub(r"^# *", "", pathlib.Path(file).read_text(), flags=re.M)
    for name, arguments in re.findall(
        r"python -m tfrec_diffusion\.(\w+) (.*)", comment.replace("\\\n", "")
    ):
        yield name, shlex.split(arguments)


@pytest.mark.parametrize("file", FILES)
def test_a_file_sets_what_there_is(file, schema, capsys):
    values = parse("train", "--dataset=synthetic", "--model_dir=x", f"--flagfile={file}")
    assert capsys.readouterr().err == ""  # absl's warning of a file that includes itself
    settings = flags.settings(values.set, models.get(values.model))
    models.create(values.model, schema=schema, **settings)


@pytest.mark.parametrize("file", sorted({*FILES} - {"experiments/common/training.flags"}))
def test_a_files_own_command_parses(file):
    assert any(name == "train" and f"--flagfile={file}" in rest for name, rest in commands(file))
    for name, arguments in commands(file):
        parse(name, *arguments)


def test_two_files_add_up():
    data, model = "experiments/demo.flags", "experiments/diffumin/variant_z.flags"
    values = parse("train", f"--flagfile={data}", f"--flagfile={model}", "--set=top_p=0.5")
    assert (values.dataset, values.model, values.epochs) == ("synthetic", "diffumin", 3)
    assert values.set == ["embedding_stddev=0.2", "start=gaussian", "top_p=0.5"]
