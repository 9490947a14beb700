"""What a large table costs its parameter servers: spread over them, against whole on one of them.

    python tools/benchmarks/parameter_server_cost.py
    python tools/benchmarks/parameter_server_cost.py --layouts=spread --workers=1 --rows=16000000 \
        --save

Each layout has a cluster on localhost: servers, workers and a chief, each a process without GPU. A
model of one table and one unit trains with LazyAdam on random ids. The clusters train in turns. The
memory of a process is what is resident after a stage, and the most that ever was; both include
TensorFlow's code, which all processes share.

The traffic of a step is counted: for each distinct id, the id and its row, then the id and its
gradient. The unit, metrics, what gRPC adds and other messages are left out. Beside it stands what
the loopback device received meanwhile, which includes all of that, and the traffic of other
programs.

The benchmark cannot know the speed of a network, that of servers which do not share their cores
with workers, nor how often ids repeat in real logs (`--skew` is a guess).
"""

import contextlib
import math
import os
import pathlib
import re
import statistics
import sys
import tempfile
import time

import keras
import local_cluster
import numpy as np
import tensorflow as tf
from absl import flags
from timing import define_timing, print_table

from tfrec_diffusion import command
from tfrec_diffusion.layers import embedding
from tfrec_diffusion.optimizers import LazyAdam

_LAYOUTS = ("spread", "whole")
_STEPS = 10  # in what a worker does before it asks for more


def define_flags(values):
    flags.DEFINE_integer("rows", 4_000_000, "rows of the table", 2, flag_values=values)
    flags.DEFINE_integer("dim", 16, "width of the table", 1, flag_values=values)
    flags.DEFINE_integer("servers", 2, "parameter servers", 1, flag_values=values)
    flags.DEFINE_integer("workers", 2, "workers", 1, flag_values=values)
    flags.DEFINE_integer("lookups", 10_000, "ids of a step", 1, flag_values=values)
    flags.DEFINE_float(
        "skew", 1, "1: all ids are as frequent; more: low ids are more frequent", 1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_multi_enum(
        "layouts", _LAYOUTS, _LAYOUTS, "what to measure; repeat it", flag_values=values
    )
    flags.DEFINE_boolean("save", False, "also save a .keras file and load it", flag_values=values)
    define_timing(values)


class Chief:
    """The stages of the benchmark, for one layout.

    Args:
        values: `absl.flags.FlagValues`.
        resolver: `tf.distribute.cluster_resolver.ClusterResolver` of this process.
    """

    def __init__(self, values, resolver):
        self._values = values
        self._strategy = tf.distribute.ParameterServerStrategy(resolver)
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(self._strategy)

    def connect(self):
        """Does nothing: a chief that answers is connected."""

    def build(self):
        """Returns the servers of each part of the table, and of its moments."""
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
        """Returns seconds, and the steps of each worker."""
        start = time.perf_counter()
        steps = 0
        while time.perf_counter() < start + self._values.seconds / self._values.turns:
            for _ in range(self._values.workers):
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

    def save(self, path):
        """Returns seconds, and the bytes of the file."""
        start = time.perf_counter()
        self._model.save(path)
        return time.perf_counter() - start, os.path.getsize(path)

    def load(self, path):
        """Returns seconds."""
        start = time.perf_counter()
        self._model.load_weights(path)
        return time.perf_counter() - start


def skewed(uniform, values):
    """Ids, not yet rounded down, of uniformly random numbers in [0, 1)."""
    return 1 + (values.rows - 1) * uniform**values.skew


def counted_bytes(ids, dim):
    """Bytes that go to the servers and come back in a step.

    Args:
        ids: int32 array of shape (lookups,).
        dim: int. Width of the table, which is float32.

    Returns:
        int.
    """
    return 2 * len(np.unique(ids)) * (4 + 4 * dim)


def _server(variable):
    return int(re.search(r"/job:ps/.*task:(\d+)", variable.value.device)[1])


def _mib(size):
    return f"{size / 2**20:,.0f}"


def chief(values):
    """The `Chief` of this process's cluster; any other task of the cluster serves for ever."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type != "chief":
        cluster = resolver.cluster_spec()
        tf.distribute.Server(cluster, resolver.task_type, resolver.task_id, protocol="grpc").join()
    return Chief(values, resolver)


class Measured:
    """The clusters of all layouts, which do each stage in turns, and what was measured of it.

    Args:
        clusters: dict of `local_cluster.Cluster` by layout.

    Attributes:
        memory: dict by layout and stage of what `Cluster.memory` returned after the stage.
        received: dict by layout of lists: bytes of the loopback device during each stage.
    """

    def __init__(self, clusters):
        self._clusters = clusters
        self.memory = {layout: {} for layout in clusters}
        self.received = {layout: [] for layout in clusters}

    def __call__(self, stage, paths=None):
        """Lets all chiefs do a stage.

        Args:
            stage: str. A method of `Chief`.
            paths: dict by layout of the method's argument, or `None` if it takes none. Defaults to
                `None`.

        Returns:
            dict by layout of what the method returned.
        """
        answers = {}
        for layout, cluster in self._clusters.items():
            before = local_cluster.loopback_bytes()
            answers[layout] = cluster.ask(stage, *([paths[layout]] if paths else []))
            self.received[layout].append(local_cluster.loopback_bytes() - before)
            self.memory[layout][stage] = cluster.memory()
        return answers


def print_steps(values, trained, received, places):
    """Prints the times and the traffic of each layout.

    Args:
        values: `absl.flags.FlagValues`.
        trained: list, for each turn a dict by layout of what `Chief.train` returned.
        received: dict by layout of lists: bytes of each turn.
        places: dict by layout of what `Chief.build` returned.
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
    """Prints what `Cluster.memory` returned after each stage."""
    rows = {
        "{} {}".format(*task): [" / ".join(map(_mib, memory[stage][task])) for stage in memory]
        for task in memory["connect"]
    }
    print_table(f"{layout}: MiB resident / at most, after each stage", list(memory), rows)


def main(values):
    if "TF_CONFIG" in os.environ:
        local_cluster.answer(lambda: chief(values))
    tasks = {"chief": 1, "worker": values.workers, "ps": values.servers}
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clusters = {}
        for layout in values.layouts:
            (directory / layout).mkdir()
            process = [sys.executable, *sys.argv, f"--layouts={layout}"]
            clusters[layout] = stack.enter_context(
                local_cluster.Cluster(directory / layout, process, tasks, answering=True)
            )
        measured = Measured(clusters)
        measured("connect")
        places = measured("build")
        measured("train")  # traces
        trained = [measured("train") for _ in range(values.turns)]
        received = {layout: turns[-len(trained) :] for layout, turns in measured.received.items()}
        print_steps(values, trained, received, places)
        if values.save:
            paths = {layout: str(directory / layout / "model.keras") for layout in clusters}
            saved, loaded = measured("save", paths), measured("load", paths)
            rows = {
                layout: [_mib(saved[layout][1]), f"{saved[layout][0]:.1f}", f"{loaded[layout]:.1f}"]
                for layout in clusters
            }
            print_table("The file, with moments", ["MiB", "s to save", "s to load"], rows)
        for layout in clusters:
            print_memory(layout, measured.memory[layout])


if __name__ == "__main__":
    command.run(main, define_flags)
