"""Experiment files: their flags, settings and commands exist."""

import pathlib
import re
import shlex

import pytest
from absl.flags import FlagValues

from tfrec_diffusion import command, datasets, flags, models
from tfrec_diffusion.datasets.preparation import prepare

REPOSITORY = pathlib.Path(__file__).parent.parent
FILES = [str(p.relative_to(REPOSITORY)) for p in sorted(REPOSITORY.glob("experiments/**/*.flags"))]


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def parse(name, *arguments):
    values = FlagValues()
    getattr(flags, name)(values)
    assert values([name, *arguments]) == [name]
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
    settings = command.settings(values.set, models.get(values.model))
    models.create(values.model, schema=schema, **settings)


@pytest.mark.parametrize("file", sorted({*FILES} - {"experiments/common/training.flags"}))
def test_a_files_own_commands_name_what_there_is(file):
    assert any(name == "train" and f"--flagfile={file}" in rest for name, rest in commands(file))
    for name, arguments in commands(file):
        if "--" in arguments:  # what follows goes to every training of a comparison
            end = arguments.index("--")
            parse("train", *arguments[end + 1 :], "--model_dir=x")
            arguments = arguments[:end]
        values = parse(name, *arguments)
        if name in ("prepare", "train"):
            dataset = datasets.builder_class(values.dataset.partition("/")[0])
            receiver = dataset if name == "prepare" else models.get(values.model)
            command.settings(values.set, receiver)


@pytest.mark.parametrize("dataset", ["alibaba", "amazon_books", "ele_me", "taobao"])
def test_a_file_tells_where_to_get_the_raw_files_as_the_error_does(dataset, tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        prepare(dataset, raw_dir=tmp_path, data_dir=tmp_path / "data")
    source = re.search(r"https?://[\w./]*\w", str(missing.value))[0]
    assert source in pathlib.Path(f"experiments/{dataset}.flags").read_text()


def test_two_files_add_up():
    data, model = "experiments/demo.flags", "experiments/diffumin/variant_w.flags"
    values = parse("train", f"--flagfile={data}", f"--flagfile={model}", "--set=top_p=0.5")
    assert (values.dataset, values.model, values.epochs) == ("synthetic", "diffumin", 3)
    assert values.set == ["embedding_stddev=0.2", "context_guidance=False", "top_p=0.5"]
