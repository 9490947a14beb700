"""What a served model's graph would send from a GPU's memory back to the host: a static check.

    python tools/benchmarks/device_transfers.py
    python tools/benchmarks/device_transfers.py --models=din,twin --dtype=mixed_bfloat16

Each such edge of the graph makes the host wait for all that the GPU was given before, and then the
GPU wait for what the host gives it next. TensorFlow's wheel knows, with or without a GPU, which of
its kernels for one take or leave a value in the host's memory; nearly all of int32 do. The check
looks at the graph behind the lookup of raw ids, whose rows come from the host, so that what goes to
the host first is no transfer of interest.

Loops and calls are inlined as TensorFlow inlines them. Three habits of the runtime are taken for
granted: a node that has a kernel for a GPU runs there, an identity costs nothing, and what depends
on constants alone is computed once. The check does not see copies inside of kernels, nor other
rewrites of Grappler, which knows the hardware; a profile on a GPU has the last word. An edge is of
one of three kinds:

- values: depends on the request;
- sizes: depends on the shapes of the request alone, a few numbers;
- constant: depends on nothing.
"""

import collections
import dataclasses
import functools
import re

import keras
import tensorflow as tf
from absl import flags
from random_data import random_schema
from tensorflow.python.framework import convert_to_constants, kernels
from timing import print_table, traced

from tfrec_diffusion import command, models, names
from tfrec_diffusion.schema import Feature, Schema, Table

_PACKAGE = "/tfrec_diffusion/"
_COMMAND = "/tfrec_diffusion/command.py"  # runs this tool


def define_flags(values):
    flags.DEFINE_list("models", sorted(names.MODELS), "models", flag_values=values)
    flags.DEFINE_string("dtype", "float32", "dtype policy of the models", flag_values=values)


@dataclasses.dataclass(frozen=True)
class Transfer:
    """An edge of the graph from the device's memory to the host's.

    Args:
        source: str. Type of the op that computes the value.
        target: str. Type of the op that takes it.
        dtype: str. Dtype of the value.
        kind: str. `"values"`, `"sizes"` or `"constant"`.
        in_loop: bool. Whether the target is in a loop.
        name: str. Name of the target.
        line: str or `None`. Line of the package that made the target. If `None`, it is not known.
    """

    source: str
    target: str
    dtype: str
    kind: str
    in_loop: bool
    name: str
    line: str | None


def transfers(function):
    """Finds the transfers of a function.

    Args:
        function: `tf.types.experimental.ConcreteFunction`. Its inputs are on the host.

    Returns:
        list of `Transfer`s, and a list of the types of ops without any kernel, of which nothing is
        known.
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
                edge = (tensor.op.type, op.type, tensor.dtype.name, kinds[tensor.op])
                found.append(Transfer(*edge, in_loop, op.name, lines.get(name)))
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
    """An iterable as long as the number of tensors that an argument of an op stands for."""
    if argument.number_attr:
        return range(op.get_attr(argument.number_attr))
    return op.get_attr(argument.type_list_attr) if argument.type_list_attr else range(1)


def _behind_identities(tensor):
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def _kinds(graph):
    """dict by op of the kind of what it computes: the first in `order` of those of its inputs."""
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
    """dict of the package's line that made an op, by the op's name in its function's graph."""
    lines = {}
    for op in graph.get_operations():
        files = [(frame.filename, frame) for frame in op.traceback or ()]
        frames = [
            frame for name, frame in files if _PACKAGE in name and not name.endswith(_COMMAND)
        ]
        if frames:
            file = frames[-1].filename.split(_PACKAGE)[-1]
            lines[op.name] = f"{file}:{frames[-1].lineno}"
    for function in graph._functions.values():
        lines |= _lines(function.graph)
    return lines


def schema():
    """A schema with all that a model may use of behaviors."""
    base = random_schema(50, items=100, categories=20, clusters=True)
    gap = Table("gap", "boundaries", "float32", rows=4, boundaries=(30.0,))
    features = (*base.features, Feature("history_gap", "behavior", "gap"))
    return Schema(base.name, features, (*base.tables, gap), base.history_length)


def inference(model):
    """The concrete function of a model behind the lookup, with open shapes."""
    return traced(model, model.input).get_concrete_function()


def main(values):
    columns = ["from", "to", "dtype", "kind", "in a loop", "line", "edges"]
    rows, unknown = {}, set()
    for name in values.models:
        keras.backend.clear_session()
        model = models.create(name, schema=schema(), dtype=values.dtype)
        found, undecided = transfers(inference(model))
        unknown |= {f"{name}: {op}" for op in undecided}
        alike = collections.Counter(dataclasses.replace(x, name="") for x in found)
        rows[name] = [*[""] * 6, str(len(found))]
        for i, (x, count) in enumerate(alike.items()):
            cells = (x.source, x.target, x.dtype, x.kind, "yes" if x.in_loop else "")
            rows[f"{name} {i + 1}"] = [*cells, str(x.line), str(count)]
    print_table(f"From the device to the host, {values.dtype}", columns, rows)
    print(f"\nOps without a kernel, not decided: {sorted(unknown) or 'none'}")


if __name__ == "__main__":
    command.run(main, define_flags)
