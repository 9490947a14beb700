"""Latency of the signatures of exported models where there is no Python.

    python tools/benchmarks/signature_latency.py
    python tools/benchmarks/signature_latency.py --models=diffumin,din --embedding_dim=20 \
        --length=5000

Untrained models are exported. A C++ program, a stand-in for TF Serving
(tools/serving/run_saved_model.cc), runs them in a session of the default options. A request has raw
ids of items and categories and a full history. Times are those of Session::Run, one request after
the other, without a network. "Times as cheap" is the time of a whole request divided by that of
`score` with a user state that was kept. All signatures of all models are called in turns, so that
other load of the machine meets all of them.
"""

import contextlib
import pathlib
import sys
import tempfile

import numpy as np
from absl import flags
from random_data import random_schema
from timing import print_table

from tfrec_diffusion import command, models, names
from tfrec_diffusion.schema import Schema
from tfrec_diffusion.serving.example_requests import example_requests
from tfrec_diffusion.serving.version import write_version

sys.path.append(str(pathlib.Path(__file__).parents[1] / "serving"))
from saved_model_program import SavedModelProgram, compile_program
from version_signatures import signature_inputs, signature_values

_WARM_UP = 10
_SIGNATURES = ("serving_default", "examples", "user_state", "score")


def define_flags(values):
    flags.DEFINE_list("models", sorted(names.MODELS), "models", flag_values=values)
    flags.DEFINE_integer("length", 1500, "behaviors of the request", 1, flag_values=values)
    flags.DEFINE_integer("candidates", 100, "candidates of the request", 1, flag_values=values)
    flags.DEFINE_integer(
        "embedding_dim", 8, "width of item and category each", 1, flag_values=values
    )
    flags.DEFINE_integer("requests", 100, "requests to each signature", 1, flag_values=values)


def main(values):
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as programs:
        directory = pathlib.Path(directory)
        binary = compile_program(directory)
        calls = {}
        for name in values.models:
            schema = random_schema(values.length, clusters=name == "twin_v2")
            model = models.create(name, schema=schema, embedding_dim=values.embedding_dim)
            version = write_version(model, directory, directory / name)
            program = programs.enter_context(SavedModelProgram(binary, version))
            inputs = signature_inputs(version)
            request = example_requests(Schema.load(version), candidates=values.candidates)
            for signature in _SIGNATURES:
                if signature in inputs:
                    given = signature_values(program, inputs, signature, request)
                    calls[name, signature] = (program, given)
        print_times(milliseconds(calls, values.requests), values)


def milliseconds(calls, requests):
    """Measures calls in turns.

    Args:
        calls: dict by model and signature of a `SavedModelProgram` and the inputs.
        requests: int. Number of measured requests of each.

    Returns:
        dict by model and signature of arrays of shape (requests,).
    """
    times = {key: [] for key in calls}
    for _ in range(_WARM_UP + requests):
        for key, (program, inputs) in calls.items():
            program.run(key[1], inputs)
            times[key].append(program.microseconds / 1000)
    return {key: np.array(taken[_WARM_UP:]) for key, taken in times.items()}


def print_times(times, values):
    """Prints the table of what `milliseconds` returned."""
    rows = {}
    for name in values.models:
        p50 = {s: np.median(times[name, s]) for s in _SIGNATURES if (name, s) in times}
        cells = [f"{p50[s]:.2f}" if s in p50 else "" for s in _SIGNATURES]
        p99 = np.percentile(times[name, "serving_default"], 99)
        cheap = f"{p50['serving_default'] / p50['score']:.1f}" if "score" in p50 else ""
        rows[name] = [cells[0], f"{p99:.2f}", *cells[1:], cheap]
    columns = ["`serving_default`", "its p99", *(f"`{s}`" for s in _SIGNATURES[1:])]
    print_table(
        f"Median ms of a request: {values.candidates} candidates, {values.length} behaviors, "
        f"item and category of dim {values.embedding_dim}",
        [*columns, "times as cheap"],
        rows,
    )


if __name__ == "__main__":
    command.run(main, define_flags)
