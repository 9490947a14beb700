"""Timing that the benchmarks of models share: in turns, with XLA and as a plain graph."""

import statistics
import time

import keras
import tensorflow as tf
from absl import flags

SECONDS = flags.DEFINE_float("seconds", 5, "to measure each number for")
TURNS = flags.DEFINE_integer("turns", 10, "turns")
MODES = ("XLA", "graph")  # Keras's predict, and how a SavedModel is served


def medians(calls):
    """Median milliseconds of each call of a dict, taken in turns: other load meets all of them."""
    times = {key: [] for key in calls}
    for call in calls.values():
        call()  # traces and compiles
    for _ in range(TURNS.value):
        for key, call in calls.items():
            call()
            end = time.perf_counter() + SECONDS.value / TURNS.value
            while not times[key] or time.perf_counter() < end:
                start = time.perf_counter()
                call()  # on a CPU it returns when it is done
                times[key].append(1000 * (time.perf_counter() - start))
    return {key: statistics.median(values) for key, values in times.items()}


def print_table(title, columns, rows):
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def inference(model, features, mode):
    """A call that scores `features`."""
    if mode == "graph":
        return in_mode(model, model.input, features, mode)
    model.compile(jit_compile=True)
    model.make_predict_function(force=True)
    predict = model.predict_function
    return lambda: predict([(features,)])


def in_mode(function, inputs, values, mode):
    """A call of a function of `values`, traced for the shapes of the Keras tensors `inputs`."""
    compiled = traced(function, inputs, jit_compile=mode == "XLA")
    return lambda: compiled(values)


def traced(function, inputs, jit_compile=False):
    """A `tf.function` for the shapes, open or not, of the Keras tensors `inputs`."""
    spec = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), inputs)
    return tf.function(lambda x: function(x), input_signature=[spec], jit_compile=jit_compile)
