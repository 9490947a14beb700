"""Runs the package's commands and tools in this process, as a user would run them in theirs."""

import contextlib
import importlib
import io

import pytest

from tfrec_diffusion import command, flags


def run(name, *arguments):
    """Runs `python -m tfrec_diffusion.<name>`; returns its exit status, stdout and stderr."""
    main = importlib.import_module(f"tfrec_diffusion.{name}").main
    arguments = [name, *map(str, arguments)]
    return ended(main, getattr(flags, name), arguments, takes_rest=name in ("compare", "tune"))


def ended(main, define_flags, argv, **more):
    """As `run`, of any `main` that `command.run` can run."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        pytest.raises(SystemExit) as stop,
    ):
        command.run(main, define_flags, argv, **more)
    return stop.value.code or 0, stdout.getvalue(), stderr.getvalue()
