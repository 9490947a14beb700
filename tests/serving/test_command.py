"""How a tool ends: its exit status, and what it prints on stderr."""

import pytest
from absl import flags
from serving import command
from serving.client import InvalidRequest


@pytest.fixture
def run(monkeypatch):
    """`run(main, *arguments)`: the exit status of a tool with a flag `--port`."""
    values = flags.FlagValues()
    flags.DEFINE_integer("port", None, "of gRPC", flag_values=values, required=True)
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(command.app, "define_help_flags", lambda: None)  # once a process

    def run(main, *arguments):
        monkeypatch.setattr("sys.argv", ["tool", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.run(main)
        return ended.value.code

    return run


@pytest.mark.parametrize("status", [None, 1])
def test_what_main_returns_is_the_status(run, status, capsys):
    seen = []
    assert run(lambda values: seen.append(values.port) or status, "--port=7") is status
    assert seen == [7] and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InvalidRequest("no item"), "error: no item"),
        (ValueError("two\nlines"), "error: two lines"),
        (FileNotFoundError(2, "No such file", "x"), "error: [Errno 2] No such file: 'x'"),
    ],
)
def test_an_error_is_one_line(run, error, line, capsys):
    def main(_):
        raise error

    assert run(main, "--port=7") == 2
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [([], "--port"), (["--port=x"], "--port=x"), (["--prt=7"], "'prt'"),
     (["--port=7", "x", "y"], "Received: x y")],
)  # fmt: skip
def test_wrong_flags(run, arguments, part, capsys):
    assert run(lambda _: pytest.fail("called"), *arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and part in message


def test_control_c(run, capsys):
    def main(_):
        raise KeyboardInterrupt

    assert run(main, "--port=7") == 130
    assert not capsys.readouterr().err


def test_a_mistake_of_the_tool_itself_shows_where(run, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tool", "--port=7"])
    with pytest.raises(ZeroDivisionError):
        command.run(lambda _: 1 / 0)
