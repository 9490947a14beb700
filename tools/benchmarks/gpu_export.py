"""Writes steps of training and of inference to a file, for a GPU machine without TensorFlow.

    python tools/benchmarks/gpu_export.py --path=.gpu/steps.zip
    python tools/benchmarks/gpu_run.py --path=.gpu/steps.zip --out=results  # there, with JAX alone

A step is the HLO module that TensorFlow makes of it, before XLA optimizes it for a device, with the
arrays that it takes and a sample of what it gives on this CPU. Steps that the file has already are
kept, so that a command that was stopped goes on where it was. (It must be started twice for all
steps: after some 80, LLVM has no memory left for code.)

- Inference is of one request, traced as if there were a GPU (`layers/attention.py`).
- A training step has the loss, its gradients and the update by `LazyAdam`. `fit` leaves the update
  outside of XLA, because the number of rows in a batch would be a dynamic shape. Here every lookup
  has a place in the update, and all but the last of a row are written outside of the table, where
  XLA drops them: the same numbers in static shapes.

Requests are random, with full histories of items and categories of dim d / 2 each. Embeddings are
drawn wider than for training, so that scores differ as those of a trained model do.
"""

import hashlib
import io
import json
import math
import pathlib
import re
import time
import zipfile
from typing import NamedTuple
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from random_data import random_schema, random_tensors
from tensorflow.compiler.xla.service import hlo_pb2

from tfrec_diffusion import command, models, optimizers
from tfrec_diffusion.losses import LogLoss

_MODELS = {
    "din": ("din", {}),
    "twin": ("twin", {}),
    "diffumin_no_generator": ("diffumin", {"generator": None}),
    "diffumin": ("diffumin", {}),
    "diffumin_20_steps": ("diffumin", {"sampler": "ddpm", "sampling_steps": 20}),
    "hierdiffuse": ("hierdiffuse", {}),
}
_SAMPLE = 256  # numbers of each output that are compared
# Requests and candidates of each, by the kind of step.
_SIZES = {
    "training": (256, 1),
    "N = 100": (1, 100),
    "N = 1": (1, 1),
    "32 requests, N = 100": (32, 100),
}


class Step(NamedTuple):
    """What is compiled: a kind of step, at a history length, in a dtype of its products."""

    kind: str
    length: int
    dtype: str


# The most important first. "tf32" is what TensorFlow makes of float32 on a GPU unless told not to.
_STEPS = (
    Step("N = 100", 1000, "tf32"),
    Step("training", 1000, "tf32"),
    Step("N = 1", 1000, "tf32"),
    Step("N = 100", 1000, "bfloat16"),
    Step("training", 1000, "bfloat16"),
    Step("N = 100", 5000, "tf32"),
    Step("training", 5000, "tf32"),
    Step("N = 100", 50, "tf32"),
    Step("training", 50, "tf32"),
    Step("32 requests, N = 100", 1000, "tf32"),
    Step("N = 100", 1000, "float32"),
    Step("training", 1000, "float32"),
    Step("N = 100", 5000, "bfloat16"),
    Step("training", 5000, "bfloat16"),
    Step("N = 1", 50, "tf32"),
    Step("N = 1", 5000, "tf32"),
)


def define_flags(values):
    flags.DEFINE_string("path", ".gpu/steps.zip", "the file to add to", flag_values=values)
    flags.DEFINE_list("models", list(_MODELS), "models", flag_values=values)
    flags.DEFINE_integer("steps", len(_STEPS), "how many of the steps", 1, flag_values=values)
    flags.DEFINE_integer("dim", 40, "d, the width of a behavior", 2, flag_values=values)
    flags.DEFINE_integer("items", 5_000, "rows of the item table", 10, flag_values=values)


def compiled(name, step, values):
    """Lowers a step of a model, and runs it once on the CPU.

    Args:
        name: str. Key of `_MODELS`.
        step: `Step`.
        values: `absl.flags.FlagValues`.

    Returns:
        The HLO module as bytes; the list of arrays that it takes; the list of arrays that it gives,
        of which the first is the probabilities or the loss, the others are variables; and a dict of
        what `gpu_run.py` needs to know of it.
    """
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_tensor_float_32_execution(step.dtype != "float32")
    schema = random_schema(step.length, items=values.items, categories=values.items // 10)
    model_name, settings = _MODELS[name]
    model = models.create(
        model_name,
        schema=schema,
        embedding_dim=values.dim // 2,
        embedding_stddev=0.5,
        dtype="mixed_bfloat16" if step.dtype == "bfloat16" else "float32",
        **settings,
    )
    trains = step.kind == "training"
    requests, candidates = _SIZES[step.kind]
    features, labels = random_tensors(schema, requests, candidates)
    inputs = (features, labels) if trains else (features,)
    function = _training(model) if trains else _inference(model)

    handles = function.get_concrete_function(*inputs).captured_inputs
    variables = list(model.variables)
    if trains:
        variables += [*model.optimizer.variables, *model.metrics_variables]
    variables = {id(variable.value.handle): variable for variable in variables}
    captured = [variables[id(handle)] for handle in handles]
    arrays = [np.asarray(x) for x in (*tf.nest.flatten(inputs), *captured)]
    lower = function.experimental_get_compiler_ir(*inputs)
    text = lower(stage="hlo")
    outputs = [function(*inputs).numpy()]
    # The module says in its first line which output is the new value of which parameter.
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}, may-alias\)", text.partition("\n")[0])
    assert [int(output) for output, _ in aliases] == list(range(1, len(aliases) + 1))
    updated = [int(parameter) for _, parameter in aliases]
    outputs += [captured[i - len(arrays)].numpy() for i in updated]
    facts = {
        "requests": requests,
        "updated": updated,
        "names": ["result", *(captured[i - len(arrays)].path for i in updated)],
        "product_flops": product_flops(text),
        "custom_calls": sorted(set(re.findall(r'custom_call_target="([^"]+)"', text))),
    }
    return _without_copies(lower(stage="hlo_serialized")), arrays, outputs, facts


def _without_copies(module):
    """The HLO module without what StableHLO lacks, which is all that JAX hands to a GPU."""
    module = hlo_pb2.HloModuleProto.FromString(module)
    for computation in module.computations:
        for instruction in computation.instructions:
            if instruction.opcode == "copy":
                instruction.opcode = "opt-barrier"
    return module.SerializeToString()


def _inference(model):
    return tf.function(lambda features: model(features, training=False), jit_compile=True)


def _training(model):
    model.compile(optimizers.LazyAdam(), LogLoss(), jit_compile=True)
    model.optimizer.build(model.trainable_variables)
    model.make_train_function(force=True)
    model._maybe_symbolic_build()
    return tf.function(
        lambda x, y: model.train_step((x, y, tf.ones_like(y)))["loss"], jit_compile=True
    )


def _sum_duplicates(indices, values, table_rows):
    """As that of `optimizers`, with a place for each lookup."""
    sums, is_last = optimizers._sum_at_last(indices, values, table_rows)
    return tf.where(is_last, indices, tf.cast(table_rows, indices.dtype)), sums


def _devices(device_type=None, list_devices=tf.config.list_logical_devices):
    """As `tf.config.list_logical_devices`, as if there were a GPU."""
    return ["GPU:0"] if device_type == "GPU" else list_devices(device_type)


def product_flops(text):
    """Counts the floating-point operations of all matrix products of an HLO module.

    Unlike XLA's own analysis, it counts the body of a loop as often as the loop runs.

    Args:
        text: str. The module, before it is optimized.

    Returns:
        int.
    """
    bodies = {}
    for line in text.splitlines():
        if line.endswith("{") and (head := re.match(r"(ENTRY )?(%\S+) \(", line)):
            lines = bodies["entry" if head[1] else head[2]] = []
        elif line.startswith("  "):
            lines.append(line)

    def to(line, key="to_apply"):
        return re.search(rf"\b{key}=(%[^\s,}}]+)", line)[1]

    def bounds(name):
        """What a condition, and those it calls, compare a counter with."""
        lines = bodies[name]
        constants = dict(re.findall(r"(%\S+) = s32\[\] constant\((\d+)\)", "\n".join(lines)))
        limits = re.findall(r"compare\([^)]*(%[^\s)]+)\), direction=LT", "\n".join(lines))
        found = [int(constants[limit]) for limit in limits if limit in constants]
        return found + [x for line in lines if " call(" in line for x in bounds(to(line))]

    def count(name):
        total, times = 0, None
        for line in bodies[name]:
            if " dot(" in line:
                shapes = [_dimensions(shape) for shape in re.findall(r"\[([\d,]*)\]", line)[:2]]
                axes = _dimensions(re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)[1])
                total += 2 * math.prod(shapes[0]) * math.prod(shapes[1][axis] for axis in axes)
            elif " while(" in line:
                # The gradient of a loop has no constant: it runs as often as the loop before it.
                times = min(bounds(to(line, "condition")), default=times)
                total += times * count(to(line, "body"))
            elif " call(" in line:
                total += count(to(line))
        return total

    return count("entry")


def _dimensions(text):
    return [int(x) for x in text.split(",") if x]


def write(archive, key, step_arrays):
    """Adds a step to the file.

    Args:
        archive: `zipfile.ZipFile`.
        key: str. Name of the step in the file.
        step_arrays: What `compiled` returned.
    """
    module, arrays, outputs, facts = step_arrays
    facts["parameters"] = [_write_array(archive, array) for array in arrays]
    strides = [max(1, output.size // _SAMPLE) for output in outputs]
    samples = [x.ravel()[::stride] for x, stride in zip(outputs, strides, strict=True)]
    facts["outputs"] = [
        {"name": name, "stride": stride, "sample": _write_array(archive, values)}
        for name, stride, values in zip(facts.pop("names"), strides, samples, strict=True)
    ]
    archive.writestr(f"{key}.hlo", module)
    archive.writestr(f"{key}.json", json.dumps(facts))


def _write_array(archive, array):
    """Adds an array, unless the file has an equal one; returns its name."""
    with io.BytesIO() as file:
        np.save(file, array)
        content = file.getvalue()
    name = f"{hashlib.sha1(content).hexdigest()}.npy"
    if name not in archive.NameToInfo:
        archive.writestr(name, content)
    return name


def main(values):
    path = pathlib.Path(values.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tf.get_logger().setLevel("ERROR")  # every step is traced anew, which it warns of
    for number, step in enumerate(_STEPS[: values.steps]):
        for place, name in enumerate(_MODELS):
            key = f"{number:02}_{place}"
            with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as archive:
                if name not in values.models or f"{key}.json" in archive.NameToInfo:
                    continue
                start = time.perf_counter()
                keras.backend.clear_session()
                with (
                    mock.patch.object(optimizers, "_sum_duplicates", _sum_duplicates),
                    mock.patch.object(tf.config, "list_logical_devices", _devices),
                ):
                    *written, facts = compiled(name, step, values)
                write(archive, key, (*written, {"model": name, **step._asdict(), **facts}))
            seconds, size = time.perf_counter() - start, path.stat().st_size / 2**20
            calls = ", ".join(facts["custom_calls"]) or "no"
            print(
                f"{key} {name}, {step.kind}, {step.length}, {step.dtype}: {seconds:.0f} s, "
                f"{facts['product_flops'] / 1e9:.3f} GFLOP, {calls} custom calls; {size:.1f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    command.run(main, define_flags)
