"""One process at a time in a directory."""

import contextlib
import fcntl
import os


@contextlib.contextmanager
def lock(directory, doing):
    """Holds a directory for a `with` block; the system lets go of it if the process dies.

    Args:
        directory: An existing directory.
        doing: What the error says another process is doing, before the directory's name.

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
