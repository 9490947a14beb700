"""Runs a command as every task of a cluster on this machine, as a company's scheduler would."""

import json
import os
import socket
import subprocess
import sys
import time


class Cluster:
    """The tasks, each a process with its `TF_CONFIG`.

    Args:
        directory: Of the logs.
        command: Arguments of Python, the same for all.
        tasks: Number of tasks by job: `worker=2`.
    """

    def __init__(self, directory, command, **tasks):
        self._directory = directory
        self._command = command
        addresses = _addresses(sum(tasks.values()))
        self._cluster = {
            job: [addresses.pop() for _ in range(count)] for job, count in tasks.items()
        }
        self._processes = {}
        for job, count in tasks.items():
            for index in range(count):
                self.start(job, index)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._processes.values():
            process.kill()
            process.wait()

    def start(self, job, index):
        """Starts a task, or starts it again."""
        task = {"cluster": self._cluster, "task": {"type": job, "index": index}}
        with open(self._log(job, index), "a") as log:
            self._processes[job, index] = subprocess.Popen(
                [sys.executable, *map(str, self._command)],
                env={**os.environ, "TF_CONFIG": json.dumps(task), "TF_CPP_MIN_LOG_LEVEL": "2"},
                stdout=log,
                stderr=log,
            )

    def signal(self, job, index, number):
        self._processes[job, index].send_signal(number)

    def kill(self, job, index):
        """Kills a task; nothing waits for it any more."""
        process = self._processes.pop((job, index))
        process.kill()
        process.wait()

    def wait(self, status=0, seconds=500):
        """Waits for all to exit with `status`.

        Raises:
            AssertionError: With what a task has printed, as soon as it exits otherwise.
        """
        end = time.monotonic() + seconds
        running = dict(self._processes)
        while running:
            for task, process in list(running.items()):
                if process.poll() is not None:
                    assert process.returncode == status, self.output(*task)[-3000:]
                    del running[task]
            assert time.monotonic() < end, [self.output(*task)[-1000:] for task in running]
            time.sleep(0.2)

    def output(self, job, index):
        """What a task has printed so far."""
        return self._log(job, index).read_text().replace("\r", "\n")

    def _log(self, job, index):
        return self._directory / f"{job}_{index}.log"


def _addresses(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses
