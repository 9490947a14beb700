"""`--help` of every tool lists its flags."""

import importlib
import pathlib
import re

import pytest
import run_tool
from absl import flags

TOOLS = {
    path.stem: path
    for path in (run_tool.REPOSITORY / "tools").rglob("*.py")
    if "command.run(" in path.read_text()
}


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_lists_the_flags_of_the_tool(name):
    if name == "plot_interests":
        pytest.importorskip("sklearn")
    if name.startswith("plot_"):
        pytest.importorskip("matplotlib")
    tool = importlib.import_module(name)
    assert pathlib.Path(tool.__file__) == TOOLS[name], "another module has the name"
    values = flags.FlagValues()
    tool.define_flags(values)
    status, printed, _ = run_tool.ended(tool, "--help")
    assert status == 0
    assert all(re.search(rf"^  --(\[no\])?{flag}:", printed, re.MULTILINE) for flag in values)


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_the_commands_of_a_docstring_name_the_file(name):
    text = TOOLS[name].read_text()
    path = TOOLS[name].relative_to(run_tool.REPOSITORY)
    assert f"    python {path}" in text.split('"""')[1]
