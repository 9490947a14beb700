"""How a tool ends: its exit status, and what it prints on stderr."""

import types

import pytest
import run_tool
from absl import flags

from tfrec_diffusion.serving.client import InvalidRequest


def tool(main):
    """A tool with a flag `--port`."""

    def define_flags(values):
        flags.DEFINE_integer("port", None, "port of gRPC", required=True, flag_values=values)

    return types.SimpleNamespace(__name__="tool", main=main, define_flags=define_flags)


@pytest.mark.parametrize("status", [None, 1])
def test_what_main_returns_is_the_status(status):
    seen = []
    ended = run_tool.ended(tool(lambda values: seen.append(values.port) or status), "--port=7")
    assert ended == (status or 0, "", "") and seen == [7]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InvalidRequest("no item"), "error: no item"),
        (ValueError("two\nlines"), "error: two lines"),
        (FileNotFoundError(2, "No such file", "x"), "error: [Errno 2] No such file: 'x'"),
    ],
)
def test_an_error_is_one_line(error, line):
    def main(_):
        raise error

    assert run_tool.ended(tool(main), "--port=7") == (2, "", f"{line}\n")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [([], "--port"), (["--port=x"], "--port=x"), (["--prt=7"], "'prt'"),
     (["--port=7", "x", "y"], "Received: x y")],
)  # fmt: skip
def test_wrong_flags(arguments, part):
    status, _, message = run_tool.ended(tool(lambda _: pytest.fail("called")), *arguments)
    assert status == 2
    assert message.startswith("error: ") and message.count("\n") == 1 and part in message


def test_control_c():
    def main(_):
        raise KeyboardInterrupt

    assert run_tool.ended(tool(main), "--port=7") == (130, "", "")
