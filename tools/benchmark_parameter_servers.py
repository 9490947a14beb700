"""A table spread over parameter servers against one that lies on one of them, in one run.

    python tools/benchmark_parameter_servers.py
    python tools/benchmark_parameter_servers.py --layouts=spread --workers=1 --rows=16000000 --save

Each layout has a cluster on localhost: servers, workers and a chief, a process each, without GPU.
A model of one table and one unit trains with LazyAdam on random ids; the clusters train in turns.
Memory of a process is what is resident after a stage and the most that ever was; both include
TensorFlow's code, which all processes share.

A step's traffic is counted: for each distinct id the id and its row, then the id and its gradient.
The unit, metrics, what gRPC adds and other messages are left out. Beside it stands what the
loopback device received meanwhile, which has all of that, and other programs' traffic too.

What it cannot know: the speed of a network; that of servers which do not share their cores with
workers; how often ids repeat in real logs (`--skew` is a guess at that).
"""

import contextlib
import json
import math
import os
import pathlib
import queue
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from serving import command
from timing import SECONDS, TURNS, print_table

from tfrec_diffusion.layers import embedding
from tfrec_diffusion.optimizers import LazyAdam

_STEPS = 10  # in what a worker does before it asks for more


class Cluster:
    """Processes on localhost that end with this object's context, or with this process.

    Args:
        layout: Of the table.
        values: Flags.
        directory: Empty, for logs and the saved model.
    """

    def __init__(self, layout, values, directory):
        self._layout = layout
        self._directory = directory
        tasks = {"chief": 1, "worker": values.workers, "ps": values.servers}
        ports = iter(_free_ports(sum(tasks.values())))
        self._addresses = {
            job: [f"localhost:{next(ports)}" for _ in range(count)] for job, count in tasks.items()
        }
        self._processes = {}

    def __enter__(self):
        for job, addresses in self._addresses.items():
            for index in range(len(addresses)):
                self._processes[f"{job} {index}"] = self._start(job, index)
        return self

    def _start(self, job, index):
        cluster = {"cluster": self._addresses, "task": {"type": job, "index": index}}
        without_gpu = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
        with (self._directory / f"{job} {index}.log").open("w") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, pathlib.Path(__file__).absolute()),
                    *(*sys.argv[1:], f"--layouts={self._layout}"),
                ],
                env={**os.environ, **without_gpu, "TF_CONFIG": json.dumps(cluster)},
                cwd=self._directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for this process, which ends them
            )

    def __exit__(self, *_):
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.communicate()

    def ask(self, stage):
        """What a method of `Chief` returns.

        Raises:
            ChildProcessError: If the chief ended instead.
        """
        chief = self._processes["chief 0"]
        with contextlib.suppress(BrokenPipeError):
            print(stage, file=chief.stdin, flush=True)
        answer = chief.stdout.readline()
        if not answer:
            log = (self._directory / "chief 0.log").read_text()
            raise ChildProcessError(f"the chief ended: {log[-1000:]}")
        return json.loads(answer)

    def memory(self):
        """Resident bytes of each process and the most that ever were."""
        return {name: _memory(process.pid) for name, process in self._processes.items()}


class Chief:
    """The stages of the benchmark, for one layout."""

    def __init__(self, values, resolver):
        self._values = values
        self._workers = values.workers
        self._strategy = tf.distribute.ParameterServerStrategy(resolver)
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(self._strategy)

    def connect(self):
        """Nothing: whoever answers is connected."""

    def build(self):
        """Returns the servers of each part and of its moments."""
        if self._values.layouts[-1] == "whole":
            embedding._SPREAD_FROM_BYTES = math.inf
        with self._strategy.scope():
            ids = keras.Input((1,), dtype="int32")
            table = embedding.TableEmbedding(self._values.rows, self._values.dim)
            output = keras.layers.Dense(1)(keras.layers.Flatten()(table(ids)))
            self._model = keras.Model(ids, output)
            self._model.compile(LazyAdam(), "mse", jit_compile=False)
            optimizer = self._model.optimizer
            optimizer.build(self._model.trainable_variables)
        return [
            [_server(part), _server(optimizer._momentums[i]), _server(optimizer._velocities[i])]
            for i, part in enumerate(table.parts)
        ]

    def train(self):
        """Returns seconds and the steps of each worker."""
        start = time.perf_counter()
        steps = 0
        while time.perf_counter() < start + SECONDS.value / TURNS.value:
            for _ in range(self._workers):
                self._coordinator.schedule(self._steps)
            self._coordinator.join()
            steps += _STEPS
        return time.perf_counter() - start, steps

    @tf.function
    def _steps(self):
        shape = (self._values.lookups, 1)
        for _ in tf.range(_STEPS):
            ids = skewed(tf.random.uniform(shape, dtype=tf.float64), self._values)
            ids = tf.cast(ids, tf.int32)
            self._strategy.run(self._model.train_step, args=((ids, tf.ones(shape)),))

    def save(self):
        """Returns seconds and the bytes of the file."""
        start = time.perf_counter()
        self._model.save("model.keras")
        return time.perf_counter() - start, os.path.getsize("model.keras")

    def load(self):
        """Returns seconds."""
        start = time.perf_counter()
        self._model.load_weights("model.keras")
        return time.perf_counter() - start


def skewed(uniform, values):
    """Ids, not yet rounded down, of uniformly random numbers in [0, 1)."""
    return 1 + (values.rows - 1) * uniform**values.skew


def counted_bytes(ids, dim):
    """Bytes that go to the servers and come back in a step.

    Args:
        ids: int32 (lookups,).
        dim: Width of the table, which is float32.
    """
    return 2 * len(np.unique(ids)) * (4 + 4 * dim)


def _server(variable):
    return int(re.search(r"/job:ps/.*task:(\d+)", variable.value.device)[1])


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for unbound in sockets:
            unbound.bind(("localhost", 0))
        return [bound.getsockname()[1] for bound in sockets]


def _memory(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return [1024 * int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "VmHWM")]


def _loopback_bytes():
    return int(re.search(r"lo:\s*(\d+)", pathlib.Path("/proc/net/dev").read_text())[1])


def _mib(size):
    return f"{size / 2**20:,.0f}"


def run_task(values):
    """What a process of a cluster does: it serves, or as the chief answers line by line."""
    stages = queue.SimpleQueue()
    threading.Thread(target=_read_stages, args=[stages], daemon=True).start()
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type != "chief":
        cluster = resolver.cluster_spec()
        tf.distribute.Server(cluster, resolver.task_type, resolver.task_id, protocol="grpc").join()
    chief = Chief(values, resolver)
    while True:
        print(json.dumps(getattr(chief, stages.get())()), flush=True)


def _read_stages(stages):
    for line in sys.stdin:
        stages.put(line.strip())
    os._exit(1)  # the tool is gone, however it ended; the chief may be waiting for the others


class Measured:
    """The clusters of all layouts, which do each stage in turns, and what was measured of it."""

    def __init__(self, clusters):
        self._clusters = clusters
        self.memory = {layout: {} for layout in clusters}
        self.received = {layout: [] for layout in clusters}

    def __call__(self, stage):
        """The answers of all chiefs. Keeps memory, and what the loopback device received."""
        answers = {}
        for layout, cluster in self._clusters.items():
            before = _loopback_bytes()
            answers[layout] = cluster.ask(stage)
            self.received[layout].append(_loopback_bytes() - before)
            self.memory[layout][stage] = cluster.memory()
        return answers


def print_steps(values, trained, received, places):
    """Times and traffic of each layout.

    Args:
        values: Flags.
        trained: For each turn a dict of what `Chief.train` returns.
        received: Bytes of each turn, of each layout.
        places: Dict of what `Chief.build` returns.
    """
    ids = skewed(np.random.default_rng(0).random(values.lookups), values).astype("int32")
    times, rows = {}, {}
    for layout in values.layouts:
        times[layout] = statistics.median(
            1000 * turn[layout][0] / turn[layout][1] for turn in trained
        )
        steps = [turn[layout][1] * values.workers for turn in trained]
        measured = statistics.median(np.divide(received[layout], steps))
        rows[layout] = [
            f"{times[layout]:.1f}",
            f"{times[layout] / times[values.layouts[0]]:.2f}",
            f"{counted_bytes(ids, values.dim) / 1e6:.2f}",
            f"{measured / 1e6:.2f}",
            "; ".join(str(place)[1:-1] for place in places[layout]),
        ]
    table = 4 * values.rows * values.dim
    print_table(
        f"A step of {values.lookups:,} lookups of {len(np.unique(ids)):,} rows; "
        f"the table has {_mib(table)} MiB, its moments {_mib(2 * table)} MiB",
        ["ms", "ratio", "MB counted", "MB of loopback", "servers of part, moments"],
        rows,
    )


def print_memory(layout, memory):
    """What `Cluster.memory` returned after each stage."""
    rows = {
        process: [" / ".join(map(_mib, memory[stage][process])) for stage in memory]
        for process in memory["connect"]
    }
    print_table(f"{layout}: MiB resident / at most, after each stage", list(memory), rows)


def main(values):
    if "TF_CONFIG" in os.environ:
        run_task(values)
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clusters = {}
        for layout in values.layouts:
            (directory / layout).mkdir()
            clusters[layout] = stack.enter_context(Cluster(layout, values, directory / layout))
        measured = Measured(clusters)
        measured("connect")
        places = measured("build")
        measured("train")  # traces
        trained = [measured("train") for _ in range(TURNS.value)]
        received = {layout: turns[-len(trained) :] for layout, turns in measured.received.items()}
        print_steps(values, trained, received, places)
        if values.save:
            saved, loaded = measured("save"), measured("load")
            rows = {
                layout: [_mib(saved[layout][1]), f"{saved[layout][0]:.1f}", f"{loaded[layout]:.1f}"]
                for layout in clusters
            }
            print_table("The file, with moments", ["MiB", "s to save", "s to load"], rows)
        for layout in clusters:
            print_memory(layout, measured.memory[layout])


if __name__ == "__main__":
    flags.DEFINE_integer("rows", 4_000_000, "of the table", 2)
    flags.DEFINE_integer("dim", 16, "width of the table", 1)
    flags.DEFINE_integer("servers", 2, "parameter servers", 1)
    flags.DEFINE_integer("workers", 2, "that train", 1)
    flags.DEFINE_integer("lookups", 10_000, "ids of a step", 1)
    flags.DEFINE_float("skew", 1, "of ids: 1, all are as frequent; more, low ids are frequent", 1)
    layouts = ["spread", "whole"]
    flags.DEFINE_multi_enum("layouts", layouts, layouts, "what to measure")
    flags.DEFINE_bool("save", False, "also saves a .keras file, and loads it")
    command.run(main)
