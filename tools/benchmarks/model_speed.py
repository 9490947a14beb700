"""Speed and memory of models in training and inference, on random requests.

    python tools/benchmarks/model_speed.py
    python tools/benchmarks/model_speed.py --models=din --lengths=50 --table_rows=50000,5000000
    python tools/benchmarks/model_speed.py --device=gpu --lengths=1500 --inference=graph \
        --models=diffumin,hierdiffuse,din,sim_soft,sdim,twin --dtypes=float32,mixed_bfloat16 \
        --inference_batches=1,32 --candidates=1,100,1000 --exported_on_cpu

The first command measures every model with histories of 50 and of 1000 behaviors: item and category
of dim 8, one candidate, batches of 256, everything else by default. The second compares a small
item table with a large one. The third asks what a GPU makes of the models: whether mixed precision
pays in training and in serving, and what it costs to export on a CPU what a GPU serves.

Every row is a step of training, or the inference of a batch. The ratio compares its time with that
of the same step in the first row of the model. All rows of a length are measured in turns, so that
other load of the machine meets all of them; times are medians. On a GPU, the memory is what the
first call needed beyond what lay there before; this call also tunes the kernels. Data lie in memory
(`input_speed.py` measures reading them).

"exported on a CPU" is a graph that was traced as if there were no GPU: the attention of DIN and
models like it (`layers/attention.py`) then computes the batch in blocks.
"""

from typing import NamedTuple
from unittest import mock

import keras
import tensorflow as tf
from absl import flags
from random_data import random_schema, random_tensors
from timing import MODES, define_timing, inference, medians, print_table, training

from tfrec_diffusion import command, models, names
from tfrec_diffusion.layers.attention import LocalActivationUnit
from tfrec_diffusion.optimizers import LazyAdam

_OPTIMIZERS = {"lazy_adam": LazyAdam, "adam": keras.optimizers.Adam}
_BATCHES = 8  # different ones, one after the other
_ON_CPU = "exported on a CPU"


def define_flags(values):
    flags.DEFINE_list("models", sorted(names.MODELS), "models", flag_values=values)
    flags.DEFINE_list("lengths", ["50", "1000"], "history lengths", flag_values=values)
    flags.DEFINE_list("table_rows", ["50000"], "rows of the item table", flag_values=values)
    flags.DEFINE_list("dtypes", ["float32"], "dtype policies of the models", flag_values=values)
    flags.DEFINE_integer("batch_size", 256, "samples of a training step", 1, flag_values=values)
    flags.DEFINE_list(
        "inference_batches", ["256"], "requests of a batch in inference", flag_values=values
    )
    flags.DEFINE_list("candidates", ["1"], "candidates of a request in inference",
                      flag_values=values)  # fmt: skip
    flags.DEFINE_integer(
        "training_candidates", 1, "candidates of a sample in training", 1, flag_values=values
    )
    flags.DEFINE_enum(
        "inference", "XLA", MODES, "XLA: as Keras predicts; graph: as a SavedModel is served",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "jit_compile", True, "as the train command's flag, for training", flag_values=values
    )
    flags.DEFINE_enum(
        "optimizer", "lazy_adam", list(_OPTIMIZERS), "the package's or Keras's", flag_values=values
    )
    flags.DEFINE_enum(
        "device", "any", ["any", "gpu", "cpu"], "any: the first that TensorFlow sees",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "exported_on_cpu", False, "also measure graphs that were traced as if there were no GPU",
        flag_values=values,
    )  # fmt: skip
    define_timing(values, seconds=8, turns=5)


class Row(NamedTuple):
    """What a row of the table measures: a step of a model in one of its settings."""

    model: str
    setting: str
    step: str
    batch_size: int


def calls(name, length, values):
    """Makes a model in each of its settings.

    Yields:
        `Row` and a callable, which is to be called at once: to train, a model is compiled anew.
    """
    for rows in map(int, values.table_rows):
        schema = random_schema(length, items=rows, clusters=name == "twin_v2")
        for dtype in values.dtypes:
            model = models.create(name, schema=schema, dtype=dtype)
            setting = _joined(
                f"{rows:,} rows" * (len(values.table_rows) > 1), dtype * (len(values.dtypes) > 1)
            )
            yield from _inference_calls(name, setting, model, values)
            batches = _batches(schema, values.batch_size, values.training_candidates)
            optimizer = _OPTIMIZERS[values.optimizer]()
            step = training(model, batches, optimizer, values.jit_compile)
            step_name = f"training, batch {values.batch_size}, N = {values.training_candidates}"
            yield Row(name, setting, step_name, values.batch_size), step


def _inference_calls(name, setting, model, values):
    for batch_size in map(int, values.inference_batches):
        for candidates in map(int, values.candidates):
            features = [x for x, _ in _batches(model.schema, batch_size, candidates)]
            step = f"inference, batch {batch_size}, N = {candidates}"
            yield Row(name, setting, step, batch_size), inference(model, features, values.inference)
            if values.exported_on_cpu and _attends_in_blocks(model):
                with mock.patch.object(tf.config, "list_logical_devices", return_value=[]):
                    call = inference(model, features, "graph")
                    call()  # traces
                yield Row(name, _joined(setting, _ON_CPU), step, batch_size), call


def _attends_in_blocks(model):
    return any(isinstance(layer, LocalActivationUnit) for layer in model._flatten_layers())


def _batches(schema, batch_size, candidates):
    features, labels = random_tensors(schema, _BATCHES * batch_size, candidates)
    data = tf.data.Dataset.from_tensor_slices((features, labels))
    return list(data.batch(batch_size))


def _joined(*parts):
    return ", ".join(filter(None, parts))


def measure(name_calls, values):
    """Measures calls in turns.

    Args:
        name_calls: Iterable of `Row` and callable.
        values: `absl.flags.FlagValues`.

    Returns:
        dict by `Row` of milliseconds, or `None` if the memory was too small, and GiB, or `None` on
        a CPU.
    """
    peaks, fitting = {}, {}
    for row, call in name_calls:
        peaks[row] = None
        try:
            peaks[row] = _peak_gib(call)
        except tf.errors.ResourceExhaustedError:
            continue
        fitting[row] = call
    ms = medians(fitting, values)
    return {row: (ms.get(row), gib) for row, gib in peaks.items()}


def _peak_gib(call):
    if not tf.config.list_logical_devices("GPU"):
        call()
        return None
    before = tf.config.experimental.get_memory_info("GPU:0")["current"]
    tf.config.experimental.reset_memory_stats("GPU:0")
    call()
    return (tf.config.experimental.get_memory_info("GPU:0")["peak"] - before) / 2**30


def print_measured(measured, title):
    """Prints the table of what `measure` returned."""
    first, rows = {}, {}
    for row, (ms, gib) in measured.items():
        first.setdefault((row.model, row.step), ms)
        cells = ["out of memory", "", ""]
        if ms is not None:
            base = first[row.model, row.step]
            ratio = f"{ms / base:.2f}" if base else ""
            cells = [f"{ms:,.2f}", f"{1000 * row.batch_size / ms:,.0f}", ratio]
        name = _joined(row.model, row.setting, row.step)
        rows[name] = [*cells, "" if gib is None else f"{gib:.2f}"]
    print_table(title, ["ms", "requests/s", "ratio", "GiB"], rows)


def use_device(device):
    """Makes TensorFlow use the device of the flag, before anything else does.

    Raises:
        ValueError: If it is a GPU and there is none.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise ValueError("TensorFlow sees no GPU. --device=cpu measures on the CPU instead.")
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif gpus:
        print(f"On {tf.config.experimental.get_device_details(gpus[0]).get('device_name')}")


def main(values):
    use_device(values.device)
    tf.get_logger().setLevel("ERROR")  # every setting is traced anew, which it warns of
    for length in map(int, values.lengths):
        all_calls = (call for name in values.models for call in calls(name, length, values))
        print_measured(measure(all_calls, values), f"History length {length}")


if __name__ == "__main__":
    command.run(main, define_flags)
