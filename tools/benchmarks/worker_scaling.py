"""Training by one process and by two, and what that means for 8 GPUs and for 32 hosts.

    python tools/benchmarks/worker_scaling.py
    python tools/benchmarks/worker_scaling.py --models=din --steps_per_execution=1
    python tools/benchmarks/worker_scaling.py --models=din --gpu_step_ms=4 --gpu_lookup_ns=2

The second command asks all workers after every step whether one of them was told to stop.

Measured are the samples/s of the package's own `strategies.create(strategy).fit`, on localhost,
without GPU. Each process is pinned to one of two cores: one process has one core, two have two. The
chief of the parameter servers and the one server have no core of their own: the first worker shares
its core with the chief, the second with the server. One thread computes within an operation, and
operations run on two. All processes live through the whole run and train in turns. Random requests
lie in memory (`input_speed.py` measures reading them); their ids are uniform, while real ids repeat
more often.

Counted are the bytes of a step's gradients. Beside them stands what the loopback device received,
which includes all other messages, and the traffic of other programs.

Projected is a step of many GPUs, by the formula that is printed with its assumptions.
"""

import contextlib
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import NamedTuple

import keras
import local_cluster
import numpy as np
import tensorflow as tf
from absl import flags
from random_data import random_batch, random_schema
from timing import define_timing, print_table

from tfrec_diffusion import command, models
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam
from tfrec_diffusion.training import cluster, strategies
from tfrec_diffusion.training.callbacks import Checkpoints

_BATCHES = 8
_STEPS_PER_EPOCH = 10**6
_NEVER = 10**9  # is a step a multiple of this
_GPUS = 8  # of a host


class Setting(NamedTuple):
    """A strategy and its processes.

    Args:
        strategy: str. As the train command's flag.
        tasks: dict or `None`. Number of processes by job. If `None`, one process without a cluster.
        cores: tuple of int. Core of each process, 0 or 1.
        jit_compile: bool. As the train command's flag. Defaults to `True`.
    """

    strategy: str
    tasks: dict | None
    cores: tuple
    jit_compile: bool = True

    @property
    def workers(self):
        return self.tasks["worker"] if self.tasks else 1


SETTINGS = {
    "one": Setting("one", None, (0,)),
    "multi_worker, 2": Setting("multi_worker", {"worker": 2}, (0, 1)),
    "one, without XLA": Setting("one", None, (0,), jit_compile=False),
    "parameter_server, 2 + 1": Setting(
        "parameter_server", {"chief": 1, "worker": 2, "ps": 1}, (0, 0, 1, 1)
    ),
}


def define_flags(values):
    flags.DEFINE_list("models", ["din", "diffumin"], "models", flag_values=values)
    flags.DEFINE_integer("length", 50, "behaviors of each request", 1, flag_values=values)
    flags.DEFINE_integer("rows", 500_000, "rows of the item table", 2, flag_values=values)
    flags.DEFINE_integer(
        "batch_size", 256, "requests of a step of one process", 1, flag_values=values
    )
    flags.DEFINE_integer(
        "steps_per_execution", 8, "as the train command's flag, the same for all settings", 1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "network_gbit", 100, "assumed between two hosts, in each direction", 1, flag_values=values
    )
    flags.DEFINE_float(
        "nvlink_gbyte", 450, "assumed of a GPU in its host, in each direction", 1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "gpu_step_ms", None, "assumed of a step of one GPU; default: measured on this CPU",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "gpu_lookup_ns", None,
        "assumed of the update of tables, for each lookup; default: measured on this CPU",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "setting", None, list(SETTINGS), "what the benchmark starts its processes with",
        flag_values=values,
    )  # fmt: skip
    define_timing(values, seconds=12, turns=3)


# === A process of a setting ===


class RequestsInMemory:
    """The same random requests over and over, with the methods that `Machines.fit` calls.

    Args:
        schema: `Schema`.
        batch_size: int. Requests of a batch.
    """

    def __init__(self, schema, batch_size):
        features, labels = random_batch(schema, _BATCHES * batch_size)
        self._batches = keras.tree.map_structure(
            lambda x: x.reshape(_BATCHES, batch_size, -1),
            (features, labels, np.ones_like(labels)),
        )

    def num_batches(self, split, batch_size):
        return _STEPS_PER_EPOCH

    def batches(self, split, batch_size, *, first_batch, input_context=None, **order):
        # At no step two workers have the same.
        worker = input_context.input_pipeline_id if input_context else 0
        return self.read().skip(worker).take(_STEPS_PER_EPOCH - first_batch)

    def order(self, split, seed, epoch):
        return tf.constant(seed)

    def read(self, *order, **shuffle):
        return tf.data.Dataset.from_tensor_slices(self._batches).repeat()


class Trainer:
    """What a process that trains does when it is asked.

    Args:
        values: `absl.flags.FlagValues`.
        setting: `Setting`.
    """

    def __init__(self, values, setting):
        self._values = values
        self._setting = setting
        self._machines = strategies.create(setting.strategy)

    def build(self, name):
        """Makes the model that the other methods train."""
        values, machines = self._values, self._machines
        schema = random_schema(values.length, items=values.rows, clusters=name == "twin_v2")
        self._data = RequestsInMemory(schema, values.batch_size)
        with machines.strategy.scope():
            self._model = models.create(name, schema=schema)
            self._model.compile(
                LazyAdam(),
                LogLoss(),
                weighted_metrics=[keras.metrics.AUC(name="auc")],
                steps_per_execution=values.steps_per_execution,
                jit_compile=self._setting.jit_compile and machines.jit_compile,
            )
            self._model.optimizer.build(self._model.trainable_variables)

    def train(self, steps):
        """Takes steps; returns seconds and samples."""
        machines = self._machines
        batch_size = self._values.batch_size * machines.strategy.num_replicas_in_sync
        first = _STEPS_PER_EPOCH - steps
        start = time.perf_counter()
        with Checkpoints(lambda: None, _NEVER, machines.agree) as checkpoints:
            machines.fit(self._model, self._data, batch_size, 0, 0, first, [checkpoints])
        return time.perf_counter() - start, steps * batch_size

    def least_steps(self):
        """Returns the fewest steps that give every worker of a cluster the same number."""
        return self._model.steps_per_execution * self._setting.workers

    def traffic(self):
        """Returns the fields of the `Traffic` of a step."""
        x, y, weight = next(iter(self._data.read()))
        with tf.GradientTape() as tape:
            y_pred = self._model(x, training=True)
            loss = self._model.compute_loss(x, y, y_pred, weight, training=True)
        return count(tape.gradient(loss, self._model.trainable_weights))

    def seconds_per_lookup(self, lookups):
        """Returns by how much each lookup in the item table prolongs the update of a step."""
        item = self._model.schema.table("item")
        table = keras.Variable(np.zeros((item.rows, item.dim), np.float32))
        optimizer = LazyAdam()
        optimizer.build([table])

        @tf.function(reduce_retracing=True)
        def update(rows, values):
            optimizer.apply_gradients([(tf.IndexedSlices(values, rows, table.shape), table)])

        counts = (lookups, 8 * lookups)
        gradients = [
            (tf.random.uniform([n], 1, item.rows, tf.int32), tf.random.normal([n, item.dim]))
            for n in counts
        ]
        times = ([], [])
        for _ in range(12):
            for gradient, taken in zip(gradients, times, strict=True):
                start = time.perf_counter()
                update(*gradient)
                taken.append(time.perf_counter() - start)
        few, many = (statistics.median(taken[2:]) for taken in times)
        return (many - few) / (counts[1] - counts[0])


class Traffic(NamedTuple):
    """The gradients of a replica's step.

    Args:
        dense: int. Bytes of the gradients of everything but tables.
        slices: int. Bytes of the gradients of tables: id and row of each lookup.
        distinct: int. As `slices`, but of each distinct row once.
        lookups: int. Number of lookups.
    """

    dense: int
    slices: int
    distinct: int
    lookups: int


def count(gradients):
    """The `Traffic` of a list of gradients: dense tensors and `tf.IndexedSlices`."""
    dense = slices = distinct = lookups = 0
    for gradient in gradients:
        if not isinstance(gradient, tf.IndexedSlices):
            dense += gradient.shape.num_elements() * gradient.dtype.size
            continue
        ids, dim = gradient.indices.numpy(), gradient.values.shape[1]
        row = dim * gradient.values.dtype.size + gradient.indices.dtype.size
        slices += row * len(ids)
        distinct += row * len(np.unique(ids))
        lookups += len(ids)
    return Traffic(dense, slices, distinct, lookups)


def trainer(values):
    """The `Trainer` of this process; a task that a chief leads serves for ever."""
    setting = SETTINGS[values.setting]
    if cluster.is_served(setting.strategy):
        cluster.serve(lambda: False)
    return Trainer(values, setting)


# === Measured ===


def start(name, cores, directory):
    """The `local_cluster.Cluster` of a setting.

    Args:
        name: str. Key of `SETTINGS`.
        cores: list of int. The two cores that the numbers of the setting mean.
        directory: `pathlib.Path`. Where the logs go; it is made.
    """
    directory.mkdir()
    return local_cluster.Cluster(
        directory,
        [sys.executable, *sys.argv, f"--setting={name}"],
        SETTINGS[name].tasks,
        answering=True,
        cores=[cores[i] for i in SETTINGS[name].cores],
        # With one, TensorFlow's default on one core, two workers wait for ever.
        environment={"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "2"},
    )


class Trained(NamedTuple):
    """Medians of a setting.

    Args:
        rate: float. Samples per second.
        received: float. Bytes of the loopback device for each sample.
    """

    rate: float
    received: float


def measure(clusters, values):
    """Lets all settings train in turns.

    Args:
        clusters: dict of `local_cluster.Cluster` by setting.
        values: `absl.flags.FlagValues`.

    Returns:
        dict of `Trained` by setting.
    """
    turn_seconds = values.seconds / values.turns
    steps = {name: _warm_up(processes, turn_seconds) for name, processes in clusters.items()}
    turns = {name: [] for name in clusters}
    for _ in range(values.turns):
        for name, processes in clusters.items():
            before = local_cluster.loopback_bytes()
            seconds, samples = processes.ask("train", steps[name])
            received = local_cluster.loopback_bytes() - before
            turns[name].append((samples / seconds, received / samples))
    return {name: Trained(*np.median(taken, axis=0)) for name, taken in turns.items()}


def _warm_up(processes, turn_seconds):
    """Traces and compiles; returns the steps of a turn."""
    least = processes.ask("least_steps")
    processes.ask("train", least)
    seconds, _ = processes.ask("train", least)
    return least * max(1, round(turn_seconds / seconds))


def all_reduce_bytes(traffic, replicas):
    """What each replica of a ring sends in a step, and receives as well.

    Dense gradients are summed on their way. Slices are gathered as they are: LazyAdam sums the
    lookups of a row afterwards.

    Args:
        traffic: `Traffic` of a replica.
        replicas: int. Number of replicas.

    Returns:
        Bytes for dense gradients, and for slices.
    """
    return 2 * (replicas - 1) / replicas * traffic.dense, (replicas - 1) * traffic.slices


def server_bytes(traffic):
    """Bytes between a worker and all parameter servers in a step.

    Weights come and gradients go, both with the ids of their rows.
    """
    return 2 * (traffic.dense + traffic.distinct)


def print_measured(model, batch_size, trained, traffic, lookup_ns):
    counted = {
        "multi_worker, 2": sum(all_reduce_bytes(traffic, 2)),
        "parameter_server, 2 + 1": server_bytes(traffic),
    }
    rows, ms = {}, {}
    for name, (rate, received) in trained.items():
        ms[name] = 1e3 * SETTINGS[name].workers * batch_size / rate
        rows[name] = [
            f"{rate:,.0f}",
            f"{rate / trained['one'].rate:.2f}",
            f"{ms[name]:.1f}",
            f"{counted.get(name, 0) / 1e6:.2f}",
            f"{received * batch_size / 1e6:.2f}",
        ]
    print_table(
        f"{model}, measured: batches of {batch_size} for each process that trains; one has one "
        "core, two have two",
        ["samples/s", "ratio", "ms a step", "MB counted a step", "MB of loopback"],
        rows,
    )
    print(
        f"\nA step of two workers takes {ms['multi_worker, 2'] - ms['one']:.1f} ms more than that "
        f"of one, {traffic.lookups * lookup_ns / 1e6:.1f} ms of it to update rows of the other's "
        "batch: the rest is communication, and waiting for it."
    )


# === Projected ===


class Step(NamedTuple):
    """Milliseconds of a replica's step.

    Args:
        own: float. What the step takes without other replicas.
        dense: float. Communication of dense gradients.
        slices: float. Communication of the gradients of tables.
        update: float. Update of tables with the gradients of the other replicas.
    """

    own: float
    dense: float
    slices: float
    update: float

    @property
    def communication(self):
        return self.dense + self.slices


def project(own_ms, traffic, lookup_ns, replicas, link_gbyte):
    """The `Step` of each of many replicas.

    Args:
        own_ms: float. Milliseconds of a step of a replica alone.
        traffic: `Traffic` of a replica.
        lookup_ns: float. Nanoseconds that the update of tables takes for each lookup.
        replicas: int. Number of replicas.
        link_gbyte: float. Gigabytes per second in each direction of the slowest link.
    """
    dense, slices = (sent / 1e6 / link_gbyte for sent in all_reduce_bytes(traffic, replicas))
    update = (replicas - 1) * traffic.lookups * lookup_ns / 1e6
    return Step(own_ms, dense, slices, update)


def print_projected(model, values, one, traffic, lookup_ns):
    own_ms = values.gpu_step_ms or 1e3 * values.batch_size / one.rate
    lookup_ns = values.gpu_lookup_ns or lookup_ns
    links = {1: values.nvlink_gbyte, 32: values.network_gbit / 8}
    rows = {}
    for hosts, link in links.items():
        replicas = hosts * _GPUS
        step = project(own_ms, traffic, lookup_ns, replicas, link)
        rate = replicas * values.batch_size / sum(step) * 1e3
        rows[f"{replicas} GPUs, {hosts} host{'s' * (hosts > 1)}"] = [
            f"{step.dense:.3f}",
            f"{step.slices:.3f}",
            f"{step.communication:.3f}",
            "tables" if step.slices > step.dense else "dense",
            f"{step.update:.1f}",
            f"{sum(step):.1f}",
            f"{step.communication / sum(step):.1%}",
            f"{rate:,.0f}",
            f"{own_ms / sum(step):.1%}",
        ]
    print_table(
        f"{model}, projected for multi_worker",
        [
            *("dense ms", "tables ms", "both ms", "most is", "update ms", "step ms"),
            *("communication", "samples/s", "of linear"),
        ],
        rows,
    )
    print(
        f"""
Step = own + 2 (R - 1) / R dense / link + (R - 1) tables / link + (R - 1) lookups t, R replicas.
Counted: dense {traffic.dense:,} bytes, tables {traffic.slices:,} bytes of {traffic.lookups:,} \
lookups ({traffic.distinct:,} bytes of distinct rows).
Own {own_ms:.1f} ms, {_source(values.gpu_step_ms)}; t {lookup_ns:.0f} ns, \
{_source(values.gpu_lookup_ns)}.
Assumed: link {values.nvlink_gbyte:g} GB/s within a host, {values.network_gbit:g} Gbit/s between \
hosts, which a flat ring crosses once each way; nothing at the same time; and no latency, which on
localhost is nearly all of what communication takes.
Where own takes less than "both ms", a replica waits for links longer than it works.""",
        flush=True,
    )


def _source(assumed):
    return "assumed" if assumed else "measured on one core of this machine"


def main(values):
    if values.setting:
        local_cluster.answer(lambda: trainer(values))
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ValueError(f"two cores are needed. Received: {cores}")
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clusters = {
            name: stack.enter_context(start(name, cores, directory / str(i)))
            for i, name in enumerate(SETTINGS)
        }
        for model in values.models:
            for processes in clusters.values():
                processes.ask("build", model)
            trained = measure(clusters, values)
            one = clusters["one"]
            traffic = Traffic(*one.ask("traffic"))
            lookup_ns = 1e9 * one.ask("seconds_per_lookup", traffic.lookups)
            print_measured(model, values.batch_size, trained, traffic, lookup_ns)
            print_projected(model, values, trained["one"], traffic, lookup_ns)


if __name__ == "__main__":
    command.run(main, define_flags)
