"""What a GPU makes of training and serving: Markdown tables of one run.

    python tools/benchmark_gpu.py
    python tools/benchmark_gpu.py --models=din --candidates=100 --seconds=2
    python tools/benchmark_gpu.py --device=cpu --length=50 --candidates=1,100

It answers two questions. Is mixed precision worth it? Training with XLA and scores of the graph as
a SavedModel has it, without XLA, each in float32 and in mixed_bfloat16. And what does it cost to
export on a CPU what a GPU serves? The attention of DIN and its kin (`layers/attention.py`) then
goes through the batch in blocks: "exported on a CPU" is traced as if there were no GPU.

Random requests with full histories. All settings of a model and a size run in turns, medians; in
brackets the ratio to float32, whose matrix products a GPU takes as TensorFlow has it by default, in
TF32. The clock stops when the host has the scores, and in training when the device is idle. Memory
is the peak of the first call, which also tunes the kernels.
"""

import functools
import sys
from unittest import mock

import keras
import random_requests
import tensorflow as tf
from absl import app, flags
from timing import medians, print_table, traced

from tfrec_diffusion import models
from tfrec_diffusion.layers.attention import LocalActivationUnit
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam

MODELS = flags.DEFINE_list(
    "models", ["diffumin", "hierdiffuse", "din", "sim_soft", "sdim", "twin"], "registered models"
)
DEVICE = flags.DEFINE_enum("device", "gpu", ["gpu", "cpu"], "what to measure")
LENGTH = flags.DEFINE_integer("length", 1500, "behaviors of each request", 1)
CANDIDATES = flags.DEFINE_list("candidates", ["1", "100", "1000"], "of a served request")
REQUESTS = flags.DEFINE_list("requests", ["1", "32"], "served in a batch")
TRAINING_BATCH = flags.DEFINE_integer("training_batch", 256, "samples a step", 1)

_DTYPES = ("float32", "mixed_bfloat16")
_NO_MEMORY = "out of memory"


def create(name, dtype):
    schema = random_requests.schema(LENGTH.value, clusters=name == "twin_v2")
    return models.create(name, schema=schema, dtype=dtype)


def requests(model, batch, candidates=1):
    """Features and labels, as tensors."""
    made = random_requests.requests(model.schema, batch, candidates)
    return keras.tree.map_structure(tf.constant, made)


# === Training ===


def training(name):
    """dict by dtype of a call that takes a step."""
    calls = {}
    for dtype in _DTYPES:
        model = create(name, dtype)
        model.compile(LazyAdam(), LogLoss(), jit_compile=True)
        model.make_train_function()
        calls[dtype] = functools.partial(step, model, requests(model, TRAINING_BATCH.value))
    return calls


def step(model, batch):
    model.train_function(iter([batch]))
    tf.test.experimental.sync_devices()


# === Serving ===


def graphs(name):
    """dict by variant of a model and its graph, as a SavedModel has it."""
    variants = {}
    for dtype in _DTYPES:
        model = create(name, dtype)
        variants[dtype] = model, graph(model)
        if any(isinstance(layer, LocalActivationUnit) for layer in model._flatten_layers()):
            with mock.patch.object(tf.config, "list_logical_devices", return_value=[]):
                variants[f"{dtype}, exported on a CPU"] = model, graph(model)
    return variants


def graph(model):
    return traced(model, model.input).get_concrete_function()


def serving(variants, batch, candidates):
    """dict by variant of a call that scores."""
    return {
        variant: functools.partial(score, graph, requests(model, batch, candidates)[0])
        for variant, (model, graph) in variants.items()
    }


def score(graph, features):
    return graph(features).numpy()


# === Both ===


def measure(calls):
    """Median milliseconds and GiB at the peak of each call; of what has no room, `_NO_MEMORY`."""
    peaks = {}
    for key, call in calls.items():
        try:
            peaks[key] = peak(call)
        except tf.errors.ResourceExhaustedError:
            peaks[key] = _NO_MEMORY
    ms = medians({key: call for key, call in calls.items() if peaks[key] != _NO_MEMORY})
    return {key: (ms.get(key, _NO_MEMORY), peaks[key]) for key in calls}


def peak(call):
    if DEVICE.value == "cpu":  # TensorFlow does not count there
        call()
        return float("nan")
    tf.config.experimental.reset_memory_stats("GPU:0")
    call()
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**30


def cells(measured, show):
    """Of each variant what it takes, how that compares with float32, and its memory."""
    first, _ = measured["float32"]
    texts = {}
    for variant, (ms, gib) in measured.items():
        ratio = "" if _NO_MEMORY in (ms, first) else f" ({show(ms) / show(first):.2f})"
        texts[variant] = (
            [_NO_MEMORY, ""] if ms == _NO_MEMORY else [f"{show(ms):,.2f}{ratio}", f"{gib:.2f}"]
        )
    return texts


def main(_):
    gpus = tf.config.list_physical_devices("GPU")
    if DEVICE.value == "cpu":
        tf.config.set_visible_devices([], "GPU")
        print("On the CPU")
    elif not gpus:
        sys.exit("TensorFlow sees no GPU. --device=cpu measures on the CPU instead.")
    else:
        print(f"On {tf.config.experimental.get_device_details(gpus[0]).get('device_name')}")
    tf.get_logger().setLevel("ERROR")  # every setting is traced anew, which it warns of
    sizes = [(int(b), int(n)) for b in REQUESTS.value for n in CANDIDATES.value]
    trained, served = {}, {}
    for name in MODELS.value:
        keras.backend.clear_session()
        measured = measure(training(name))
        samples = cells(measured, lambda ms: 1000 * TRAINING_BATCH.value / ms)
        trained |= {f"{name}, {variant}": texts for variant, texts in samples.items()}
        variants = graphs(name)
        of_sizes = [cells(measure(serving(variants, *size)), float) for size in sizes]
        for variant in variants:
            served[f"{name}, {variant}"] = [x for texts in of_sizes for x in texts[variant]]
    print_table(
        f"Training: batch {TRAINING_BATCH.value}, N = 1, length {LENGTH.value}, XLA",
        ["samples/s", "GiB"],
        trained,
    )
    columns = [text for b, n in sizes for text in (f"batch {b}, N = {n}: ms", "GiB")]
    print_table(f"Serving: length {LENGTH.value}, graph", columns, served)


if __name__ == "__main__":
    app.run(main)
