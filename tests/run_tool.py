"""Runs a tool of tools/, in this process or as a user runs it."""

import pathlib
import subprocess
import sys

import commands

REPOSITORY = pathlib.Path(__file__).parents[1]


def run(tool, *arguments):
    """Runs a tool in this process.

    Args:
        tool: Module of the tool.
        *arguments: What the user writes behind it.

    Returns:
        What it printed.
    """
    status, stdout, stderr = ended(tool, *arguments)
    assert not status, stderr
    return stdout


def ended(tool, *arguments):
    """As `run`, but returns the exit status, and what it printed on stdout and on stderr."""
    return commands.ended(tool.main, tool.define_flags, [tool.__name__, *arguments])


def run_as_user(path, *arguments):
    """Runs a tool in a process of its own, from the repository's root; returns what it printed."""
    done = subprocess.run(
        [sys.executable, path, *arguments], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tables(markdown):
    """The Markdown tables in a text.

    Returns:
        List of dicts: cells of a row by the name of the row, without the head.
    """
    found = [[]]
    for line in markdown.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [{name: cells for name, *cells in table[2:]} for table in found if table]
