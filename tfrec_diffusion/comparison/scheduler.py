"""Runs what a comparison needs, several processes at a time, and stops them on Ctrl-C."""

import shlex
import time

from tfrec_diffusion import processes
from tfrec_diffusion.comparison.entry import by_data_set

_LAST_WORDS = 5  # lines of stderr that are shown of a task that failed
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
    with (
        processes.shared_compilations() as environment,
        processes.stopped_at_the_end(running),
    ):
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
                left = processes.time_left(begun, before, done, total)
                print(f"{done} of {total} runs; {left} to go, as fast as so far", flush=True)


def _start(entries, jobs, running, environment):
    """Starts what can run and fits into `jobs`; whether anything is running.

    `running` is a dict of process to its entry and task, to which those started are added.
    """
    for entry, task in _ready(entries):
        if len(running) == jobs:
            break
        if task.directory not in [other.directory for _, other in running.values()]:
            print(f"{task.directory} ...", flush=True)
            process = processes.start(task.command, task.directory, environment)
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
    words = processes.last_words(task.directory, _LAST_WORDS)
    return "\n  ".join(["FAILED", shlex.join(task.command), *words])
