"""Runs the package's commands in this process, as a user would run them in one of their own."""

import contextlib
import importlib
import io

import pytest

from tfrec_diffusion import command, flags


def run(name, *arguments):
    """Runs `python -m tfrec_diffusion.<name>`; returns its exit status, stdout and stderr."""
    main = importlib.import_module(f"tfrec_diffusion.{name}").main
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        pytest.raises(SystemExit) as stop,
    ):
        arguments = [name, *map(str, arguments)]
        command.run(main, getattr(flags, name), arguments, takes_rest=name == "compare")
    return stop.value.code or 0, stdout.getvalue(), stderr.getvalue()
