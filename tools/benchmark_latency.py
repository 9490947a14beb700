"""Latency of one request where there is no Python: a Markdown table of the signatures of models.

    python tools/benchmark_latency.py
    python tools/benchmark_latency.py --models=diffumin,din --embedding_dim=20 --length=5000

Untrained models are exported, and the C++ stand-in for TF Serving (serving/run_saved_model.cc) runs
them in a session of the default options. A request has raw ids of items and categories and a
full history; times are those of Session::Run, one request after the other, without the network.
"Times as cheap" is the whole request against `score` with a state of the user that is kept.
Everything is measured in turns, so that what else the machine does meets all of it.
"""

import contextlib
import pathlib
import tempfile

import numpy as np
import random_requests
from absl import app, flags
from serving.mixed_requests import signature_inputs, signature_values
from serving.saved_model_program import SavedModelProgram, compile_program
from timing import print_table

from tfrec_diffusion import models
from tfrec_diffusion.export import export
from tfrec_diffusion.raw_requests import raw_requests
from tfrec_diffusion.schema import Schema

MODELS = flags.DEFINE_list("models", sorted(models.MODELS), "registered models")
LENGTH = flags.DEFINE_integer("length", 1500, "of the history", 1)
CANDIDATES = flags.DEFINE_integer("candidates", 100, "of the request", 1)
EMBEDDING_DIM = flags.DEFINE_integer("embedding_dim", 8, "of item and category each", 1)
REQUESTS = flags.DEFINE_integer("requests", 100, "to each signature", 1)

_WARM_UP = 10
_SIGNATURES = ("serving_default", "examples", "user_state", "score")


def main(_):
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as programs:
        directory = pathlib.Path(directory)
        binary = compile_program(directory)
        calls = {}
        for name in MODELS.value:
            schema = random_requests.schema(LENGTH.value, clusters=name == "twin_v2")
            model = models.create(name, schema=schema, embedding_dim=EMBEDDING_DIM.value)
            version = export(model, directory, directory / name)
            program = programs.enter_context(SavedModelProgram(binary, version))
            inputs = signature_inputs(version)
            request = raw_requests(Schema.load(version), candidates=CANDIDATES.value)
            for signature in _SIGNATURES:
                if signature in inputs:
                    values = signature_values(program, inputs, signature, request)
                    calls[name, signature] = (program, values)
        print_times(milliseconds(calls))


def milliseconds(calls):
    """Times of each call of a dict (program, inputs) by (model, signature), as arrays."""
    times = {key: [] for key in calls}
    for _ in range(_WARM_UP + REQUESTS.value):
        for key, (program, values) in calls.items():
            program.run(key[1], values)
            times[key].append(program.microseconds / 1000)
    return {key: np.array(values[_WARM_UP:]) for key, values in times.items()}


def print_times(times):
    rows = {}
    for name in MODELS.value:
        p50 = {s: np.median(times[name, s]) for s in _SIGNATURES if (name, s) in times}
        cells = [f"{p50[s]:.2f}" if s in p50 else "" for s in _SIGNATURES]
        p99 = np.percentile(times[name, "serving_default"], 99)
        cheap = f"{p50['serving_default'] / p50['score']:.1f}" if "score" in p50 else ""
        rows[name] = [cells[0], f"{p99:.2f}", *cells[1:], cheap]
    columns = ["`serving_default`", "its p99", *(f"`{s}`" for s in _SIGNATURES[1:])]
    print_table(
        f"Median ms of a request: {CANDIDATES.value} candidates, {LENGTH.value} behaviors, "
        f"item and category of dim {EMBEDDING_DIM.value}",
        [*columns, "times as cheap"],
        rows,
    )


if __name__ == "__main__":
    app.run(main)
