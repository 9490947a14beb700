"""Runs what a comparison needs, several processes at a time, and stops them on Ctrl-C."""

import contextlib
import datetime
import os
import shlex
import signal
import subprocess
import tempfile
import time

from tfrec_diffusion.comparison.entry import by_data_set

_STDERR = "stderr.log"
_LAST_WORDS = 5  # lines of it that are shown of a task that failed
_POLL_SECONDS = 0.1


def work(entries, jobs, report):
    """Runs all that there is to run and is not finished, and says how far it is.

    An entry with a task that fails is left, the others go on. When this is interrupted, so are the
    tasks: trainings write a checkpoint first.

    Args:
        entries: list of `Entry`, data set by data set.
        jobs: int. Tasks at a time.
        report: callable. Called at the beginning and after each task.
    """
    running = {}
    begun, before = time.monotonic(), count(entries)
    report()
    with _shared_compilations() as environment, _stopped_at_the_end(running):
        while _start(entries, jobs, running, environment):
            while all(process.poll() is None for process in running):
                time.sleep(_POLL_SECONDS)
            for process in [process for process in running if process.poll() is not None]:
                entry, task = running.pop(process)
                entry.failed = entry.failed or not task.is_finished
                print(_outcome(task), flush=True)
            report()
            done, total = count(entries), sum(entry.num_runs for entry in entries)
            if done > before:
                seconds = (time.monotonic() - begun) * (total - done) / (done - before)
                left = datetime.timedelta(seconds=round(seconds))
                print(f"{done} of {total} runs; {left} to go, as fast as so far", flush=True)


@contextlib.contextmanager
def _shared_compilations():
    """An environment in which processes share what XLA compiles for CPUs.

    The trainings of a row differ by their seeds, and a short one compiles for half of its time. The
    files hold code of this processor, so that they are not kept any longer.
    """
    with tempfile.TemporaryDirectory(prefix="tfrec_diffusion_xla_") as directory:
        flags = (
            os.environ.get("TF_XLA_FLAGS", ""),
            f"--tf_xla_persistent_cache_directory={directory}",
            "--tf_xla_persistent_cache_device_types=CPU",
        )
        yield {**os.environ, "TF_XLA_FLAGS": " ".join(flags).strip()}


@contextlib.contextmanager
def _stopped_at_the_end(running):
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _start(entries, jobs, running, environment):
    """Starts what can run and fits into `jobs`; whether anything is running.

    `running` is a dict of process to its entry and task, to which those started are added.
    """
    for entry, task in _ready(entries):
        if len(running) == jobs:
            break
        if task.directory not in [other.directory for _, other in running.values()]:
            print(f"{task.directory} ...", flush=True)
            task.directory.mkdir(parents=True, exist_ok=True)
            with open(task.directory / _STDERR, "wb") as stderr:
                process = subprocess.Popen(
                    task.command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment
                )
            running[process] = entry, task
    return bool(running)


def _ready(entries):
    """Entries and tasks that can run: data set by data set, all rows with seed 0, then 1 and on."""
    for of_data_set in by_data_set(entries):
        for seed in range(max(entry.num_seeds for entry in of_data_set)):
            for entry in of_data_set:
                if not entry.failed:
                    tasks = entry.tasks(seed)
                    yield from ((entry, task) for task in tasks if not task.is_finished)


def count(entries):
    """Number of finished runs.

    Args:
        entries: list of `Entry`.

    Returns:
        int.
    """
    return sum(len(entry.finished()) for entry in entries)


def _outcome(task):
    if task.is_finished:
        return f"{task.directory}: {task.result}"
    words = (task.directory / _STDERR).read_text(errors="replace").splitlines()
    return "\n  ".join(["FAILED", shlex.join(task.command), *words[-_LAST_WORDS:]])


@contextlib.contextmanager
def interruptible():
    """Has SIGINT and SIGTERM raise `KeyboardInterrupt` in a `with` block, even if ignored before.

    A shell has SIGINT ignored by what it runs in the background.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
