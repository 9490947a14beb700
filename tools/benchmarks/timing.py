"""How the benchmarks measure: calls in turns, with XLA or as a plain graph, and Markdown tables."""

import itertools
import statistics
import time

import keras
import tensorflow as tf
from absl import flags

from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam

MODES = ("XLA", "graph")  # as Keras predicts, and as a SavedModel is served


def define_timing(values, seconds=5, turns=10):
    """Defines `--seconds` and `--turns`.

    Args:
        values: `absl.flags.FlagValues`. Where they are defined.
        seconds: float. Default of `--seconds`. Defaults to `5`.
        turns: int. Default of `--turns`. Defaults to `10`.
    """
    flags.DEFINE_float(
        "seconds", seconds, "how long each number is measured, in all turns together", 0,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("turns", turns, "turns that the time is split into", 1, flag_values=values)


def medians(calls, values):
    """Measures calls in turns, so that other load of the machine meets all of them.

    Args:
        calls: dict of callables by any key. On a CPU they return when they are done.
        values: `absl.flags.FlagValues` with the flags of `define_timing`.

    Returns:
        dict by key of float: the median of the milliseconds of a call.
    """
    times = {key: [] for key in calls}
    for call in calls.values():
        call()  # traces and compiles
    for _ in range(values.turns):
        for key, call in calls.items():
            call()
            end = time.perf_counter() + values.seconds / values.turns
            while not times[key] or time.perf_counter() < end:
                start = time.perf_counter()
                call()
                times[key].append(1000 * (time.perf_counter() - start))
    return {key: statistics.median(taken) for key, taken in times.items()}


def print_table(title, columns, rows):
    """Prints a Markdown table.

    Args:
        title: str. What the table shows.
        columns: list of str. Names of all columns but the first, which has none.
        rows: dict. Cells of a row, list of str, by its name.
    """
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def inference(model, features, mode):
    """A call that predicts, and returns when the host has the probabilities.

    Args:
        model: `RankingModel`.
        features: dict of tensors, as the model takes them; or a list of such dicts, which the
            calls take one after the other.
        mode: str. One of `MODES`.

    Returns:
        callable without arguments.
    """
    batches = itertools.cycle(features if isinstance(features, list) else [features])
    compiled = traced(model, model.input, jit_compile=mode != "graph")
    return lambda: compiled(next(batches)).numpy()


def training(model, batches, optimizer=None, jit_compile=True):
    """A call that takes a step of training, and returns when the device is done.

    Args:
        model: `RankingModel`. It is compiled anew.
        batches: list of (features, labels), which the calls take one after the other.
        optimizer: `keras.Optimizer` or `None`. If `None`, `LazyAdam`. Defaults to `None`.
        jit_compile: bool. As the argument of `compile`. Defaults to `True`.

    Returns:
        callable without arguments.
    """
    auc = keras.metrics.AUC(name="auc")
    model.compile(
        optimizer or LazyAdam(), LogLoss(), weighted_metrics=[auc], jit_compile=jit_compile
    )
    model.make_train_function(force=True)
    batches = itertools.cycle((x, labels, tf.ones_like(labels)) for x, labels in batches)

    def step():
        model.train_function(iter([next(batches)]))
        tf.test.experimental.sync_devices()

    return step


def in_mode(function, inputs, values, mode):
    """A call of a function.

    Args:
        function: callable of one structure of tensors.
        inputs: Structure of Keras tensors, for whose shapes the function is traced.
        values: Structure of tensors, what the function is called with.
        mode: str. One of `MODES`.

    Returns:
        callable without arguments.
    """
    compiled = traced(function, inputs, jit_compile=mode == "XLA")
    return lambda: compiled(values)


def traced(function, inputs, jit_compile=False):
    """A `tf.function` for the shapes, open or not, of Keras tensors.

    Args:
        function: callable of one structure of tensors.
        inputs: Structure of Keras tensors.
        jit_compile: bool. Whether XLA compiles it. Defaults to `False`.

    Returns:
        `tf.function`.
    """
    spec = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), inputs)
    return tf.function(lambda x: function(x), input_signature=[spec], jit_compile=jit_compile)
