"""Imports run one way, no module imports a command, and only some rooms print or know flags."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "tfrec_diffusion"
# Each imports from those before it, and from itself.
ORDER = (
    "names",
    "files",
    "extras",
    "processes",
    "schema",
    "losses",
    "metrics",
    "calibration",
    "optimizers",
    "provenance",
    "layers",
    "diffusion",
    "models",
    "prepared_directory",
    "row_maps",
    "input_pipeline",
    "training",
    "datasets",
    "drafting",
    "prediction",
    "flags",
    "command",
    "serving",
    "inspection",
    "comparison",
    "tuning",
)
COMMANDS = {"prepare", "train", "evaluate", "export", "inspect", "compare", "tune", "predict"}
# A command beside what it starts.
STAND_IN = PACKAGE / "serving" / "stand_in.py"
MODULES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"})

each_module = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tfrec_diffusion":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("tfrec_diffusion."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("tfrec_diffusion."):
                    yield alias.name.split(".")[1]


def called_names(path):
    return {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


@each_module
def test_imports_run_one_way(path):
    allowed = ORDER if room(path) in COMMANDS else ORDER[: ORDER.index(room(path)) + 1]
    for imported in imported_rooms(path):
        assert imported in allowed, f"{path} imports {imported}"


@each_module
def test_only_commands_know_flags_and_only_they_and_what_they_run_print(path):
    if room(path) in COMMANDS or path == STAND_IN:
        return
    if room(path) not in ("flags", "command"):
        assert "absl" not in path.read_text()
    if room(path) not in ("command", "training", "comparison", "tuning"):
        assert "print" not in called_names(path)
    if room(path) in ("layers", "diffusion", "models"):
        assert "open" not in called_names(path) and "pathlib" not in path.read_text()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_commands_are_thin(name):
    assert len((PACKAGE / f"{name}.py").read_text().splitlines()) < 50
