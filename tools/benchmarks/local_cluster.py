"""Clusters of processes on this machine, for the benchmarks that measure one, and for tests.

A process that calls `answer` answers, line by line, what `Cluster.ask` asks it.
"""

import contextlib
import json
import os
import pathlib
import queue
import re
import socket
import subprocess
import sys
import threading


def environments(tasks):
    """The environment variable `TF_CONFIG` of every task of a cluster.

    Args:
        tasks: dict. Number of tasks by job, such as `{"worker": 2}`.

    Returns:
        dict by job and index of dicts with the key `"TF_CONFIG"`.
    """
    ports = iter(_free_ports(sum(tasks.values())))
    cluster = {job: [f"localhost:{next(ports)}" for _ in range(n)] for job, n in tasks.items()}
    return {
        (job, index): {
            "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})
        }
        for job, count in tasks.items()
        for index in range(count)
    }


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for unbound in sockets:
            unbound.bind(("localhost", 0))
        return [bound.getsockname()[1] for bound in sockets]


class Cluster:
    """The processes of a cluster, without GPU; they are killed at the end of its `with` block.

    Args:
        directory: `pathlib.Path`. Where each process has its log.
        command: list. What every process runs.
        tasks: dict or `None`. Number of tasks by job, such as `{"worker": 2}`. If `None`, one
            process that belongs to no cluster.
        answering: bool. Whether the processes call `answer`. The log of a process then has what it
            writes to stderr, else all that it writes. Defaults to `False`.
        cores: list of int or `None`. The core of each process. If `None`, all may use every core.
            Defaults to `None`.
        environment: dict or `None`. Environment variables of all processes, beside those of this
            process. Defaults to `None`.
    """

    def __init__(self, directory, command, tasks, *, answering=False, cores=None, environment=None):
        self._directory = directory
        self._command = [str(part) for part in command]
        self._environments = environments(tasks) if tasks else {("one", 0): {"TF_CONFIG": ""}}
        self._answering = answering
        self._cores = dict(zip(self._environments, cores, strict=True)) if cores else {}
        self._environment = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
        self._environment |= environment or {}
        self._processes = {}
        for task in self._environments:
            self.start(*task)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.communicate()

    def start(self, job, index):
        """Starts a task, or starts it again.

        Args:
            job: str. Job of the task.
            index: int. Number of the task, from 0.
        """
        task = (job, index)
        pinned = ["taskset", "--cpu-list", str(self._cores[task])] if self._cores else []
        pipe = subprocess.PIPE if self._answering else None
        with open(self._log(task), "a") as log:
            self._processes[task] = subprocess.Popen(
                [*pinned, *self._command],
                env={**os.environ, **self._environment, **self._environments[task]},
                stdin=pipe,
                stdout=pipe or log,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for this process, which ends them
            )

    def kill(self, job, index):
        """Kills a task.

        Args:
            job: str. Job of the task.
            index: int. Number of the task.
        """
        process = self._processes.pop((job, index))
        process.kill()
        process.communicate()

    def signal(self, job, index, number):
        """Sends a signal to a task.

        Args:
            job: str. Job of the task.
            index: int. Number of the task.
            number: int. The signal.
        """
        self._processes[job, index].send_signal(number)

    @property
    def processes(self):
        """dict by job and index of the `subprocess.Popen`s of the tasks that were not killed."""
        return dict(self._processes)

    def output(self, job, index):
        """str. What the log of a task has.

        Args:
            job: str. Job of the task.
            index: int. Number of the task.
        """
        return self._log((job, index)).read_text().replace("\r", "\n")

    def _log(self, task):
        return self._directory / "{}_{}.log".format(*task)

    def ask(self, method, *arguments):
        """Asks the processes that train: all, or only the chief if there are parameter servers.

        Args:
            method: str. The method that `answer` calls in each of them.
            *arguments: Its arguments, as JSON can hold them.

        Returns:
            What the first of them answers, when all have answered.

        Raises:
            ChildProcessError: If one ended instead.
        """
        tasks = list(self._processes)
        if any(job == "ps" for job, _ in tasks):
            tasks = [("chief", 0)]
        for task in tasks:
            with contextlib.suppress(BrokenPipeError):
                print(
                    json.dumps([method, *arguments]), file=self._processes[task].stdin, flush=True
                )
        answers = [self._processes[task].stdout.readline() for task in tasks]
        if not all(answers):
            ended = tasks[answers.index("")]
            log = self._log(ended)
            raise ChildProcessError(f"a process ended, {log.name}: {self.output(*ended)[-1000:]}")
        return json.loads(answers[0])

    def memory(self):
        """The resident memory of the processes.

        Returns:
            dict by job and index of two numbers of bytes: what is resident, and the most that ever
            was.
        """
        return {task: _memory(process.pid) for task, process in self._processes.items()}


def _memory(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return [1024 * int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "VmHWM")]


def answer(make):
    """Answers questions for the rest of this process, which ends when the asking process does.

    Args:
        make: callable. Makes the object whose methods are called. It may instead serve a cluster
            and never return.
    """
    asked = queue.SimpleQueue()
    threading.Thread(target=_read, args=[asked], daemon=True).start()
    answering = make()
    while True:
        method, *arguments = json.loads(asked.get())
        with contextlib.redirect_stdout(sys.stderr):  # progress bars
            result = getattr(answering, method)(*arguments)
        print(json.dumps(result), flush=True)


def _read(asked):
    for line in sys.stdin:
        asked.put(line)
    os._exit(1)  # the asking process is gone; this one may be waiting for others


def loopback_bytes():
    """int. What the loopback device has received since the machine started."""
    return int(re.search(r"lo:\s*(\d+)", pathlib.Path("/proc/net/dev").read_text())[1])
