"""Imports run one way, and layers and models know no flags, files or prints."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "tfrec_diffusion"
ORDER = (
    "schema",
    "locking",
    "metrics",
    "losses",
    "optimizers",
    "layers",
    "diffusion",
    "models",
    "input_pipeline",
    "runs",
    "datasets",
    "callbacks",
    "distribution",
    "flags",
    "prepare",
    "evaluate",
    "raw_requests",
    "served_model",
    "sidecar",
    "export",
    "train",
)
COMMANDS = ("flags", "prepare", "evaluate", "export", "train")
MODULES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"})


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tfrec_diffusion":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("tfrec_diffusion."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    for imported in imported_rooms(path):
        assert ORDER.index(imported) <= ORDER.index(room(path)), f"{path} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_commands_print_or_know_flags(path):
    if room(path) in COMMANDS:
        return
    source = path.read_text()
    names = {node.func.id for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
    assert "print" not in names
    assert "absl" not in source
    if room(path) in ("layers", "models"):
        assert "open" not in names and "pathlib" not in source
