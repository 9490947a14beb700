"""Training by one process and by two, and what their bytes and times mean for 8 GPUs and 32 hosts.

    python tools/benchmark_scaling.py
    python tools/benchmark_scaling.py --models=din --steps_per_execution=1
    python tools/benchmark_scaling.py --models=din --gpu_step_ms=4 --gpu_lookup_ns=2

The second asks all workers after each step whether one of them was told to stop.

Measured: samples/s of the package's own `distribution.create(strategy).fit`, on localhost, without
GPU. Each process is pinned to one of two cores: one process has one, two have two. The chief of the
parameter servers and one server have none of their own: the first worker shares its core with the
chief, the second with the server. Within an operation one thread computes; operations run on two.
All processes live through the whole run and train in turns. Random requests lie in memory
(tools/benchmark_input.py measures reading them); ids are uniform, real ones repeat more often.

Counted: bytes of a step's gradients. Beside them stands what the loopback device received, which
has all other messages too, and other programs' traffic.

Projected: a step of many GPUs, by the formula that is printed with its assumptions.
"""

import contextlib
import json
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
from typing import NamedTuple

import keras
import numpy as np
import random_requests
import tensorflow as tf
from absl import flags
from serving import command
from timing import SECONDS, TURNS, print_table

from tfrec_diffusion import distribution, models
from tfrec_diffusion.callbacks import Checkpoints
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam

_BATCHES = 8
_STEPS_PER_EPOCH = 10**6
_NEVER = 10**9  # is a step a multiple of this
_GPUS = 8  # of a host


class Setting(NamedTuple):
    """A strategy, its processes by job (`None`: no cluster), and the core of each of them."""

    strategy: str
    jobs: dict | None
    cores: tuple
    jit_compile: bool = True

    @property
    def workers(self):
        return self.jobs["worker"] if self.jobs else 1


SETTINGS = {
    "one": Setting("one", None, (0,)),
    "multi_worker, 2": Setting("multi_worker", {"worker": 2}, (0, 1)),
    "one, without XLA": Setting("one", None, (0,), jit_compile=False),
    "parameter_server, 2 + 1": Setting(
        "parameter_server", {"chief": 1, "worker": 2, "ps": 1}, (0, 0, 1, 1)
    ),
}


# === A process of a setting ===


class Requests:
    """Random requests in memory, over and over: of `RequestData` what `Machines.fit` calls."""

    def __init__(self, schema, batch_size):
        features, labels = random_requests.requests(schema, _BATCHES * batch_size)
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
    """What a process that leads or takes part does when it is asked."""

    def __init__(self, values, setting):
        self._values = values
        self._setting = setting
        self._machines = distribution.create(setting.strategy)

    def build(self, name):
        """Makes the model that the other methods are about."""
        values, machines = self._values, self._machines
        schema = random_requests.schema(
            values.length, items=values.rows, clusters=name == "twin_v2"
        )
        self._data = Requests(schema, values.batch_size)
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
        """Returns seconds and samples."""
        machines = self._machines
        batch_size = self._values.batch_size * machines.strategy.num_replicas_in_sync
        first = _STEPS_PER_EPOCH - steps
        start = time.perf_counter()
        with Checkpoints(lambda: None, _NEVER, machines.agree) as checkpoints:
            machines.fit(self._model, self._data, batch_size, 0, 0, first, [checkpoints])
        return time.perf_counter() - start, steps * batch_size

    def least_steps(self):
        """Returns the fewest of which every worker of a cluster has as many."""
        return self._model.steps_per_execution * self._setting.workers

    def traffic(self):
        """Returns the fields of `Traffic`."""
        x, y, weight = next(iter(self._data.read()))
        with tf.GradientTape() as tape:
            y_pred = self._model(x, training=True)
            loss = self._model.compute_loss(x, y, y_pred, weight, training=True)
        return count(tape.gradient(loss, self._model.trainable_weights))

    def seconds_per_lookup(self, lookups):
        """What a step's update takes longer with each lookup in the item table."""
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
    """What the gradients of a replica's step are.

    Args:
        dense: Bytes of those that are no table's.
        slices: Bytes of the tables': id and row of each lookup.
        distinct: As `slices`, of distinct rows.
        lookups: Number.
    """

    dense: int
    slices: int
    distinct: int
    lookups: int


def count(gradients):
    """The `Traffic` of a list of dense gradients and `tf.IndexedSlices`."""
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


def run_task(values):
    """Serves, or does what comes in at stdin, a method of `Trainer` and its arguments a line."""
    asked = queue.SimpleQueue()
    threading.Thread(target=_read, args=[asked], daemon=True).start()
    setting = SETTINGS[values.setting]
    if distribution.is_served(setting.strategy):
        distribution.serve(lambda: False)
    trainer = Trainer(values, setting)
    while True:
        method, *arguments = json.loads(asked.get())
        with contextlib.redirect_stdout(sys.stderr):  # progress bars
            answer = getattr(trainer, method)(*arguments)
        print(json.dumps(answer), flush=True)


def _read(asked):
    for line in sys.stdin:
        asked.put(line)
    os._exit(1)  # the tool is gone, however it ended; a collective may be waiting for others


# === The tool ===


class Cluster:
    """The processes of a setting; they end with this object's context, or with this process.

    Args:
        name: Of the setting.
        cores: Two, that the setting's numbers mean.
        directory: For logs.
    """

    def __init__(self, name, cores, directory):
        self._setting = SETTINGS[name]
        self._command = [sys.executable, *sys.argv, f"--setting={name}"]
        self._cores = [cores[i] for i in self._setting.cores]
        self._logs = directory / name
        self._processes = []

    def __enter__(self):
        jobs = self._setting.jobs or {"": 1}
        ports = iter(_free_ports(sum(jobs.values())))
        addresses = {job: [f"localhost:{next(ports)}" for _ in range(n)] for job, n in jobs.items()}
        tasks = [(job, index) for job, n in jobs.items() for index in range(n)]
        for (job, index), core in zip(tasks, self._cores, strict=True):
            config = {"cluster": addresses, "task": {"type": job, "index": index}}
            with self._log(len(self._processes)).open("w") as log:
                process = subprocess.Popen(
                    ["taskset", "--cpu-list", str(core), *self._command],
                    env={
                        **os.environ,
                        "CUDA_VISIBLE_DEVICES": "",
                        "TF_NUM_INTRAOP_THREADS": "1",
                        # With one, TensorFlow's default on one core, two workers wait for ever.
                        "TF_NUM_INTEROP_THREADS": "2",
                        "TF_CONFIG": json.dumps(config) if self._setting.jobs else "",
                    },
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for this process, which ends them
                )
            self._processes.append(process)
        return self

    def _log(self, number):
        return self._logs.with_name(f"{self._logs.name}.{number}.log")

    def __exit__(self, *_):
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()

    def ask(self, *question):
        """What the first process answers, when all that train have answered.

        Raises:
            ChildProcessError: If one ended instead.
        """
        served = self._setting.strategy == "parameter_server"
        asked = self._processes[:1] if served else self._processes
        for process in asked:
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(question), file=process.stdin, flush=True)
        answers = [process.stdout.readline() for process in asked]
        if not all(answers):
            log = self._log(answers.index("")).read_text()
            raise ChildProcessError(f"a process of {self._logs.name} ended: {log[-1000:]}")
        return json.loads(answers[0])


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for unbound in sockets:
            unbound.bind(("localhost", 0))
        return [bound.getsockname()[1] for bound in sockets]


# === Measured ===


class Trained(NamedTuple):
    """Medians of a setting: samples a second, and bytes of the loopback device by sample."""

    rate: float
    received: float


def measure(clusters):
    """dict by name of the setting of `Trained`: all settings train in turns."""
    steps = {name: _warm_up(cluster) for name, cluster in clusters.items()}
    turns = {name: [] for name in clusters}
    for _ in range(TURNS.value):
        for name, cluster in clusters.items():
            before = _loopback_bytes()
            seconds, samples = cluster.ask("train", steps[name])
            received = _loopback_bytes() - before
            turns[name].append((samples / seconds, received / samples))
    return {name: Trained(*np.median(taken, axis=0)) for name, taken in turns.items()}


def _warm_up(cluster):
    """Traces and compiles; returns the steps of a turn."""
    least = cluster.ask("least_steps")
    cluster.ask("train", least)
    seconds, _ = cluster.ask("train", least)
    return least * max(1, round(SECONDS.value / TURNS.value / seconds))


def _loopback_bytes():
    return int(re.search(r"lo:\s*(\d+)", pathlib.Path("/proc/net/dev").read_text())[1])


def all_reduce_bytes(traffic, replicas):
    """What each replica of a ring sends in a step, and receives: for dense gradients, for slices.

    Dense gradients are summed on their way. Slices are gathered, as they are: LazyAdam sums the
    lookups of a row afterwards.
    """
    return 2 * (replicas - 1) / replicas * traffic.dense, (replicas - 1) * traffic.slices


def server_bytes(traffic):
    """What goes between a worker and all parameter servers in a step.

    Weights come and gradients go; ids of rows go with both.
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
    """Milliseconds of a replica's step."""

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
        own_ms: Of a replica alone.
        traffic: `Traffic`.
        lookup_ns: What the update of tables takes for each lookup.
        replicas: Number.
        link_gbyte: Gigabytes a second in each direction of the slowest link.
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
        run_task(values)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ValueError(f"two cores are needed. Received: {cores}")
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clusters = {name: stack.enter_context(Cluster(name, cores, directory)) for name in SETTINGS}
        for model in values.models:
            for cluster in clusters.values():
                cluster.ask("build", model)
            trained = measure(clusters)
            one = clusters["one"]
            traffic = Traffic(*one.ask("traffic"))
            lookup_ns = 1e9 * one.ask("seconds_per_lookup", traffic.lookups)
            print_measured(model, values.batch_size, trained, traffic, lookup_ns)
            print_projected(model, values, trained["one"], traffic, lookup_ns)


if __name__ == "__main__":
    flags.DEFINE_list("models", ["din", "diffumin"], "registered models")
    flags.DEFINE_integer("length", 50, "behaviors of each request", 1)
    flags.DEFINE_integer("rows", 500_000, "of the item table", 2)
    flags.DEFINE_integer("batch_size", 256, "requests a step of one process", 1)
    flags.DEFINE_integer(
        "steps_per_execution", 8, "as the train command's flag, for all settings alike", 1
    )
    flags.DEFINE_float("network_gbit", 100, "assumed between two hosts, each way", 1)
    flags.DEFINE_float("nvlink_gbyte", 450, "assumed of a GPU in its host, each way", 1)
    flags.DEFINE_float("gpu_step_ms", None, "assumed of a GPU alone; default: the measured CPU's")
    flags.DEFINE_float(
        "gpu_lookup_ns", None, "assumed of the tables' update; default: the measured CPU's"
    )
    flags.DEFINE_enum("setting", None, list(SETTINGS), "what the tool starts its processes with")
    flags.FLAGS.set_default("seconds", 12)
    flags.FLAGS.set_default("turns", 3)
    command.run(main)
