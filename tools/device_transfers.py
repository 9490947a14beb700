"""What a served model's graph would send from a GPU's memory back to the host: a static check.

    python tools/device_transfers.py
    python tools/device_transfers.py --models=din,twin --dtype=mixed_bfloat16

Each such edge makes the host wait for all that the GPU was given before, and the GPU for what the
host gives it next. TensorFlow's wheel tells, with or without a GPU, which of its kernels for one
take or leave a value in the host's memory; nearly all of int32 do. Checked is the graph behind the
lookup of raw ids, whose rows come from the host; what goes there first is no transfer of interest.

Loops and calls are inlined as TensorFlow inlines them. Taken for granted are three habits of the
runtime: a node that has a kernel for a GPU runs there, an identity costs nothing, and what depends
on constants alone is computed once. Not seen are copies inside of kernels, and other rewrites of
Grappler, which knows the hardware; a profile on a GPU has the last word. The kinds:

- values: depend on the request;
- sizes: depend on the shapes of the request alone, a few numbers;
- constant: of the graph.
"""

import collections
import dataclasses
import functools
import re

import keras
import random_requests
import tensorflow as tf
from absl import app, flags
from tensorflow.python.framework import convert_to_constants, kernels
from timing import print_table, traced

from tfrec_diffusion import models
from tfrec_diffusion.schema import Feature, Schema, Table

MODELS = flags.DEFINE_list("models", sorted(models.MODELS), "registered models")
DTYPE = flags.DEFINE_string("dtype", "float32", "dtype policy of the models")

_PACKAGE = "/tfrec_diffusion/"


@dataclasses.dataclass(frozen=True)
class Transfer:
    """An edge of the graph from the device's memory to the host's; `line` is None if not known."""

    source: str  # op
    target: str  # op
    dtype: str
    kind: str
    in_loop: bool
    name: str  # of the target
    line: str | None  # of the package, where the target comes from


def transfers(function):
    """Finds them in a concrete function, whose inputs are on the host.

    Returns:
        List of `Transfer`s, and the names of ops without any kernel, which nothing is known of.
    """
    lines = _lines(function.graph)
    graph = convert_to_constants.convert_variables_to_constants_v2(function).graph
    operations = [op for op in graph.get_operations() if op.type not in ("Identity", "Placeholder")]
    memory = {op: _on_host(op) for op in operations}
    found, kinds = [], _kinds(graph)
    for op in operations:
        if memory[op] is None or kinds[op] == "constant":
            continue
        for tensor, wanted_on_host in zip(op.inputs, memory[op][0], strict=True):
            tensor = _behind_identities(tensor)
            of_source = memory.get(tensor.op)
            if kinds[tensor.op] == "constant" and tensor.dtype == tf.int32:
                continue  # kept on the host, whatever op gave it
            if wanted_on_host and of_source and not of_source[1][tensor.value_index]:
                name = re.split(r"/_\d+/", op.name)[-1]  # without the call it was inlined for
                in_loop = op.type == "LoopCond" or "/while/" in op.name
                names = (tensor.op.type, op.type, tensor.dtype.name, kinds[tensor.op])
                found.append(Transfer(*names, in_loop, op.name, lines.get(name)))
    return found, sorted({op.type for op in operations if memory[op] is None})


def _on_host(op):
    """Whether each input and each output lies in the host's memory; `None` without a kernel."""
    registered = [k for k in _kernels(op.type) if not k.label and _fits(k, op.node_def)]
    for device in ("GPU", "DEFAULT"):  # a kernel for every device is what is taken last
        of_device = [k for k in registered if k.device_type == device]
        if of_device and "CPU" not in op.device:
            on_host = set(max(of_device, key=lambda k: k.priority).host_memory_arg)
            arguments = (op.op_def.input_arg, op.op_def.output_arg)
            return [[x.name in on_host for x in args for _ in _each(x, op)] for args in arguments]
    if registered:
        return [True] * len(op.inputs), [True] * len(op.outputs)
    return None


_kernels = functools.cache(lambda op: kernels.get_registered_kernels_for_op(op).kernel)


def _fits(kernel, node):
    for constraint in kernel.constraint:
        value, allowed = node.attr[constraint.name], constraint.allowed_values.list
        types = value.list.type or [value.type]
        if not (set(types) <= set(allowed.type) if allowed.type else value.s in allowed.s):
            return False
    return True


def _each(argument, op):
    """As many as the tensors that an argument of an op is."""
    if argument.number_attr:
        return range(op.get_attr(argument.number_attr))
    return op.get_attr(argument.type_list_attr) if argument.type_list_attr else range(1)


def _behind_identities(tensor):
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def _kinds(graph):
    """dict of the kind of what each op computes: the first of those of its inputs."""
    order = ("values", "sizes", "constant")
    kinds = {}
    # Ops stand behind their inputs but for the way back in a loop, which starts as its entry.
    waiting = collections.deque(graph.get_operations())
    while waiting:
        op = waiting.popleft()
        of_inputs = {kinds[x.op] for x in op.inputs if x.op in kinds}
        if op.type == "Placeholder":
            kind = "values"
        elif op.type in ("Shape", "ShapeN", "Size"):
            kind = "sizes"
        else:
            kind = min(of_inputs, key=order.index, default="constant")
        if op.type in ("Merge", "Enter") and kind == "constant":
            kind = "sizes"  # a loop's: it runs, whatever it counts
        if kinds.get(op) != kind:
            kinds[op] = kind
            waiting.extend(consumer for x in op.outputs for consumer in x.consumers())
    return kinds


def _lines(graph):
    """dict of the package's line that made an op, by its name in its function's graph."""
    lines = {}
    for op in graph.get_operations():
        frames = [frame for frame in op.traceback or () if _PACKAGE in frame.filename]
        if frames:
            file = frames[-1].filename.split(_PACKAGE)[-1]
            lines[op.name] = f"{file}:{frames[-1].lineno}"
    for function in graph._functions.values():
        lines |= _lines(function.graph)
    return lines


def schema():
    """Random requests with all that a model may use of behaviors."""
    base = random_requests.schema(50, items=100, categories=20, clusters=True)
    gap = Table("gap", "boundaries", "float32", rows=4, boundaries=(30.0,))
    features = (*base.features, Feature("history_gap", "behavior", "gap"))
    return Schema(base.name, features, (*base.tables, gap), base.history_length)


def inference(model):
    """The concrete function of a model behind the lookup, with open shapes."""
    return traced(model, model.input).get_concrete_function()


def main(_):
    columns = ["from", "to", "dtype", "kind", "in a loop", "line", "edges"]
    rows, unknown = {}, set()
    for name in MODELS.value:
        keras.backend.clear_session()
        model = models.create(name, schema=schema(), dtype=DTYPE.value)
        found, undecided = transfers(inference(model))
        unknown |= {f"{name}: {op}" for op in undecided}
        alike = collections.Counter(dataclasses.replace(x, name="") for x in found)
        rows[name] = [*[""] * 6, str(len(found))]
        for i, (x, count) in enumerate(alike.items()):
            cells = (x.source, x.target, x.dtype, x.kind, "yes" if x.in_loop else "")
            rows[f"{name} {i + 1}"] = [*cells, str(x.line), str(count)]
    print_table(f"From the device to the host, {DTYPE.value}", columns, rows)
    print(f"\nOps without a kernel, not decided: {sorted(unknown) or 'none'}")


if __name__ == "__main__":
    app.run(main)
