"""Processes that a command starts: what they write and share, and how they end with it."""

import contextlib
import datetime
import os
import signal
import subprocess
import tempfile
import time

_STDERR = "stderr.log"


def start(command, directory, environment):
    """Starts a process whose stderr goes to a file.

    Args:
        command: list of str.
        directory: `pathlib.Path`. Where its stderr goes, in `stderr.log`; made if it is missing.
        environment: dict. Environment variables of the process.

    Returns:
        `subprocess.Popen`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / _STDERR, "wb") as stderr:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment)


def last_words(directory, number):
    """What a process that `start` has started wrote to its stderr last.

    Args:
        directory: `pathlib.Path`. As in `start`.
        number: int. Lines, at most.

    Returns:
        list of str.
    """
    return (directory / _STDERR).read_text(errors="replace").splitlines()[-number:]


def time_left(begun, before, done, total):
    """How long the rest takes if it goes on as fast as so far.

    Args:
        begun: float. `time.monotonic()` at the beginning.
        before: int. What was done then.
        done: int. What is done now, which is more.
        total: int. What is to be done.

    Returns:
        `datetime.timedelta` of whole seconds.
    """
    seconds = (time.monotonic() - begun) * (total - done) / (done - before)
    return datetime.timedelta(seconds=round(seconds))


@contextlib.contextmanager
def shared_compilations():
    """An environment in which processes share what XLA compiles for CPUs.

    Trainings often differ by what is no part of their programs, and a short one compiles for half
    of its time. The files hold code of this processor, so that they are not kept any longer.

    Yields:
        dict. Environment variables for `start`.
    """
    with tempfile.TemporaryDirectory(prefix="tfrec_diffusion_xla_") as directory:
        flags = (
            os.environ.get("TF_XLA_FLAGS", ""),
            f"--tf_xla_persistent_cache_directory={directory}",
            "--tf_xla_persistent_cache_device_types=CPU",
        )
        yield {**os.environ, "TF_XLA_FLAGS": " ".join(flags).strip()}


@contextlib.contextmanager
def stopped_at_the_end(running):
    """Stops processes at the end of a `with` block, however it ends, and waits for them.

    Args:
        running: Iterable of `subprocess.Popen`. Read at the end.
    """
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


@contextlib.contextmanager
def noted_signals():
    """Has the first SIGINT or SIGTERM in a `with` block noted only, for a loop that looks for it.

    So nothing is left in its middle. A second one raises `KeyboardInterrupt`.

    Yields:
        list of int. Numbers of the signals so far.
    """
    noted = []

    def note(number, frame):
        if noted:
            signal.default_int_handler(number, frame)
        noted.append(number)

    with _handled(note):
        yield noted


@contextlib.contextmanager
def interruptible():
    """Has SIGINT and SIGTERM raise `KeyboardInterrupt` in a `with` block, even if ignored before.

    A shell has SIGINT ignored by what it runs in the background.
    """
    with _handled(signal.default_int_handler):
        yield


@contextlib.contextmanager
def _handled(handler):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
