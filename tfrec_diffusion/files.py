"""What every writer of files shares: nothing half written, and one process at a time."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil

INCOMPLETE = "incomplete."  # what begins so is not whole yet, or was left by a killed process


@contextlib.contextmanager
def written_aside(path):
    """Has a file or a directory written beside its place, which it takes when it is whole.

    It takes its place at the end of the `with` block. After an error `path` stays as it was.

    Args:
        path: str or `pathlib.Path`. An existing file is replaced, an existing directory is not.

    Yields:
        `pathlib.Path` to write to.

    Raises:
        OSError: If `path` is a directory that is not empty.
    """
    path = pathlib.Path(path)
    aside = path.with_name(f"{INCOMPLETE}{path.name}")
    if aside.is_dir():
        shutil.rmtree(aside)
    yield aside
    os.replace(aside, path)


def write_json(path, value):
    """Writes JSON so that `path` is old or new, never half of it.

    Args:
        path: str or `pathlib.Path`.
        value: What JSON can hold. NaN becomes null, as JSON has none.
    """
    value = json.loads(json.dumps(value), parse_constant=lambda _: None)
    with written_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=1) + "\n")


@contextlib.contextmanager
def lock(directory, doing):
    """Holds a directory for a `with` block; the system lets go of it if the process dies.

    Args:
        directory: str or `pathlib.Path`. An existing directory.
        doing: str. What the error says another process is doing, before the directory's name.

    Raises:
        BlockingIOError: If another process holds it.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process is {doing} {directory}") from None
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def replaceable(directory, doing):
    """Holds a directory that may be replaced, also while it is not there, for a `with` block.

    Whatever ends the block, even a kill (then the next holder sees to it), the old directory
    returns if there is no new one, and goes if there is. What killed processes left incomplete
    beside it is removed.

    Args:
        directory: `pathlib.Path`.
        doing: str. As in `lock`.

    Yields:
        `pathlib.Path` to move the old directory to.

    Raises:
        BlockingIOError: If another process holds it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = directory.with_name(f"replaced_{directory.name}")
    with lock(directory.parent, doing):
        # The lock says that no living process writes them.
        for left in directory.parent.glob(f"{INCOMPLETE}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        _settle(directory, aside)
        try:
            yield aside
        finally:
            _settle(directory, aside)


def _settle(directory, aside):
    if directory.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.exists():
        aside.rename(directory)
