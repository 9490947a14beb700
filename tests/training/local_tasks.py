"""Runs a command as every task of a cluster on this machine, as a company's scheduler would."""

import sys
import time

import local_cluster


class Cluster(local_cluster.Cluster):
    """A cluster whose tasks exit by themselves.

    Args:
        directory: `pathlib.Path`. Where each task has its log.
        command: Arguments of Python, the same for all.
        **tasks: Number of tasks by job: `worker=2`.
    """

    def __init__(self, directory, command, **tasks):
        super().__init__(directory, [sys.executable, *command], tasks)

    def wait(self, status=0, seconds=500):
        """Waits for all to exit with `status`.

        Raises:
            AssertionError: With what a task has printed, as soon as it exits otherwise.
        """
        end = time.monotonic() + seconds
        running = self.processes
        while running:
            for task, process in list(running.items()):
                if process.poll() is not None:
                    assert process.returncode == status, self.output(*task)[-3000:]
                    del running[task]
            assert time.monotonic() < end, [self.output(*task)[-1000:] for task in running]
            time.sleep(0.2)
