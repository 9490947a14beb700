"""Checks and times on a GPU the steps that `gpu_export.py` wrote, with JAX and without TensorFlow.

    python tools/benchmarks/gpu_run.py --path=.gpu/steps.zip --out=results --time_limit_s=420

It was run with JAX 0.11.2; the functions that compile a module and run it are not public in JAX.

Each step is compiled by XLA for the first device of JAX. Its first result is compared with that of
the CPU it was exported on. Then it is timed: "alone" with a wait after each call, and "in a row"
with one wait for many calls, which hides most of what the host does. A training step takes the
weights that the step before it gave. `results.jsonl` and `results.md` grow with every step, so that
nothing is lost when the command is stopped.

- TFLOP/s: of the matrix products alone, which were counted in the exported module, a loop as often
  as it runs. The share is of what the card's data sheet promises for the dtype; in bfloat16, a
  model has parts that stay in float32.
- GB/s: of what the kernels read and write by XLA's cost analysis of the compiled step. It leaves
  caches aside, and counts the body of a loop once. The share is of the card's memory bandwidth.
- Difference: the largest of a probability, or that of the loss; and of training the relative one of
  the gradients, ||x - reference|| / ||reference||, over all variables together. "(!)" is more than
  rounding explains.
- Kernels: fusions, calls of libraries and copies in the compiled module, the body of a loop once.

Rates are of calls in a row.
"""

import collections
import concurrent.futures
import io
import json
import math
import pathlib
import re
import statistics
import time
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax._src.compiler import get_compile_options
from jax.extend import backend, mlir

_PATH = flags.DEFINE_string("path", ".gpu/steps.zip", "what gpu_export.py wrote")
_OUT = flags.DEFINE_string("out", "gpu_results", "folder of the results")
_TIME_LIMIT_S = flags.DEFINE_float("time_limit_s", 420, "after which no further step is started")
_SECONDS = flags.DEFINE_float("seconds", 0.5, "how long each number is measured, about")
_STEPS = flags.DEFINE_integer("steps", None, "how many steps of the file; all if not given")
_AT_ONCE = flags.DEFINE_integer("at_once", 6, "how many steps are compiled at the same time", 1)
_CEILINGS_SIZE = flags.DEFINE_integer(
    "ceilings_size", 8192, "rows of the matrices whose product and copy are timed first; 0: none"
)

# By data sheet: dense TFLOP/s by dtype of the products, and TB/s.
_TFLOPS = {"float32": 67, "tf32": 495, "bfloat16": 989}
_BANDWIDTHS = {"H100": 3.35, "H200": 4.8}
# What the first results may differ by from those of the CPU.
_TOLERANCES = {
    "float32": {"difference": 1e-4, "of_gradients": 1e-2, "of_variables": 1e-2},
    "tf32": {"difference": 1e-2, "of_gradients": 5e-2, "of_variables": 1e-2},
    "bfloat16": {"difference": 5e-2, "of_gradients": 2e-1, "of_variables": 1e-2},
}
_OF_OPTIMIZER = ("_momentum", "_velocity", "iteration", "seed_generator_state")
_COLUMNS = (
    "| model | step | length | dtype | alone, ms | in a row, ms | requests/s | TFLOP/s | share "
    "| GB/s | share | kernels | difference | of gradients | compiled, s |"
)


class Step:
    """A step of the file, compiled for the device.

    Args:
        archive: `zipfile.ZipFile`.
        key: str. Name of the step in the file.
    """

    def __init__(self, archive, key):
        self.facts = json.loads(archive.read(f"{key}.json"))
        self._expected = [_array(archive, x["sample"]) for x in self.facts["outputs"]]
        device = jax.devices()[0]
        self._arguments = [
            jax.device_put(_array(archive, name), device) for name in self.facts["parameters"]
        ]
        start = time.perf_counter()
        client = backend.get_backend()
        self._executable = client.compile_and_load(
            mlir.hlo_to_stablehlo(archive.read(f"{key}.hlo")),
            [device],
            get_compile_options(num_replicas=1, num_partitions=1, backend=client),
        )
        self.facts["compile_s"] = time.perf_counter() - start

    def __call__(self):
        """Starts the step; returns its outputs, which are there once they are waited for."""
        results = self._executable.execute_sharded(self._arguments)
        outputs = [shards[0] for shards in results.disassemble_into_single_device_arrays()]
        for parameter, value in zip(self.facts["updated"], outputs[1:], strict=True):
            self._arguments[parameter] = value
        return outputs

    def differences(self, outputs):
        """How the outputs of the first call differ from the expected ones.

        Returns:
            dict of float: "difference", the largest of the result; and of training also
            "of_gradients" and "of_variables", over all of them together.
        """
        (_, result, expected), *updated = [
            (about["name"], np.asarray(output).ravel()[:: about["stride"]], expected)
            for about, output, expected in zip(
                self.facts["outputs"], outputs, self._expected, strict=True
            )
        ]
        found = {"difference": float(np.abs(result - expected).max())}
        if updated:
            # First moments start at 0, and are a tenth of the gradient after a step.
            moments = [pair for name, *pair in updated if name.endswith("_momentum")]
            others = [pair for name, *pair in updated if not name.endswith(_OF_OPTIMIZER)]
            found |= {"of_gradients": _relative(moments), "of_variables": _relative(others)}
        return found

    def costs(self):
        """XLA's counts of the compiled step, in which the body of a loop is there once.

        Returns:
            dict: "bytes", read and written by kernels; "kernels", fusions, calls of libraries and
            copies; "command_buffers", in which kernels are launched together; "triton", fusions
            that Triton compiles; and "calls", how often each library function is called.
        """
        text = self._executable.hlo_modules()[0].to_string()
        return {
            "bytes": self._executable.cost_analysis()["bytes accessed"],
            "kernels": sum(text.count(f" {x}(") for x in ("fusion", "custom-call", "copy")),
            "command_buffers": text.count("to_apply=%command_buffer"),
            "triton": text.count('"kind":"__triton'),
            "calls": collections.Counter(re.findall(r'custom_call_target="([^"]+)"', text)),
        }


def _relative(pairs):
    """||x - reference|| / ||reference|| of pairs of arrays, all together."""
    x, reference = map(np.concatenate, zip(*pairs, strict=True))
    return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))


def _array(archive, name):
    return np.load(io.BytesIO(archive.read(name)))


def median_ms(call, seconds):
    """Times a call on the device.

    Args:
        call: callable that returns arrays.
        seconds: float. How long, about, for each of the two results.

    Returns:
        float, ms of a call that is waited for; and float, ms of a call among many in a row.
    """
    for _ in range(3):
        jax.block_until_ready(call())
    alone = []
    end = time.perf_counter() + seconds
    while len(alone) < 5 or (time.perf_counter() < end and len(alone) < 500):
        start = time.perf_counter()
        jax.block_until_ready(call())
        alone.append(time.perf_counter() - start)
    in_a_row, rounds = [], 5
    count = max(2, min(100, int(seconds / rounds / statistics.median(alone))))
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            last = call()
        jax.block_until_ready(last)
        in_a_row.append((time.perf_counter() - start) / count)
    return 1000 * statistics.median(alone), 1000 * statistics.median(in_a_row)


def ceilings(size, seconds):
    """Yields lines on what products and copies of square matrices reach on the device."""
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (jax.random.normal(key, (size, size), jnp.float32) for key in keys)
    exact = np.asarray(a[:64], np.float64) @ np.asarray(b[:, :64], np.float64)
    for name, dtype, precision in (
        ("float32, precision default", jnp.float32, "default"),
        ("float32, precision highest", jnp.float32, "highest"),
        ("bfloat16", jnp.bfloat16, "default"),
    ):
        x, y = a.astype(dtype), b.astype(dtype)
        product = jax.jit(lambda x, y, p=precision: jnp.matmul(x, y, precision=p))
        _, ms = median_ms(lambda f=product, x=x, y=y: f(x, y), seconds)
        error = np.asarray(product(x, y)[:64, :64], np.float64) - exact
        relative = np.linalg.norm(error) / np.linalg.norm(exact)
        yield f"product, {name}: {2 * size**3 / ms / 1e9:.1f} TFLOP/s, error {relative:.1e}"
    wide = jnp.tile(a, (1, 8))
    copy = jax.jit(lambda x: -x)
    _, ms = median_ms(lambda: copy(wide), seconds)
    yield f"copy: {2 * wide.nbytes / ms / 1e6:,.0f} GB/s"


def measured(step, seconds, bandwidth):
    """Checks and times a compiled step.

    Args:
        step: `Step`.
        seconds: float. As in `median_ms`.
        bandwidth: float. TB/s of the card; NaN if it is not known.

    Returns:
        dict of what is known of the step, with the numbers of the table.
    """
    found = step.differences(step())
    alone, in_a_row = median_ms(step, seconds)
    try:
        costs = step.costs()
    except jax.errors.JaxRuntimeError as error:  # not all backends know
        print(f"no costs: {error}", flush=True)
        costs = {}
    facts = {k: v for k, v in step.facts.items() if k not in ("parameters", "outputs", "updated")}
    gb = costs.get("bytes", math.nan) / in_a_row / 1e6
    tflops = facts["product_flops"] / in_a_row / 1e9
    return {
        **facts,
        **found,
        **costs,
        "alone_ms": alone,
        "in_a_row_ms": in_a_row,
        "requests_per_s": 1000 * facts["requests"] / in_a_row,
        "tflops": tflops,
        "tflops_share": tflops / _TFLOPS[facts["dtype"]],
        "gb_per_s": gb,
        "gb_share": gb / 1000 / bandwidth,
        "as_expected": all(x <= _TOLERANCES[facts["dtype"]][name] for name, x in found.items()),
    }


def row(facts):
    """The row of a measured step in the Markdown table."""
    cells = (
        facts["model"],
        facts["kind"],
        f"{facts['length']}",
        facts["dtype"],
        f"{facts['alone_ms']:.3f}",
        f"{facts['in_a_row_ms']:.3f}",
        f"{facts['requests_per_s']:,.0f}",
        f"{facts['tflops']:.3f}",
        f"{facts['tflops_share']:.2%}",
        f"{facts['gb_per_s']:,.0f}",
        f"{facts['gb_share']:.1%}",
        f"{facts.get('kernels', '')}",
        f"{facts['difference']:.1e}" + ("" if facts["as_expected"] else " (!)"),
        f"{facts['of_gradients']:.1e}" if "of_gradients" in facts else "",
        f"{facts['compile_s']:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def ratios(all_facts):
    """Yields rows of a Markdown table: how DiffuMIN's times compare with no generator."""
    by_step = {}
    for facts in all_facts:
        step = (facts["kind"], facts["length"], facts["dtype"])
        by_step.setdefault(step, {})[facts["model"]] = facts
    for step, by_model in by_step.items():
        base = by_model.get("diffumin_no_generator")
        for name in ("diffumin", "diffumin_20_steps"):
            if base and name in by_model:
                cells = [f"{by_model[name][x] / base[x]:.2f}" for x in ("alone_ms", "in_a_row_ms")]
                yield f"| {' | '.join(map(str, (name, *step, *cells)))} |"


def main(_):
    start = time.perf_counter()
    jax.config.update("jax_enable_x64", True)  # seeds and counters are int64
    kind = jax.devices()[0].device_kind
    bandwidth = next((x for name, x in _BANDWIDTHS.items() if name in kind), math.nan)
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    with (
        zipfile.ZipFile(_PATH.value) as archive,
        open(out / "results.md", "w") as table,
        open(out / "results.jsonl", "w") as results,
        concurrent.futures.ThreadPoolExecutor(_AT_ONCE.value) as pool,
    ):

        def tell(line):
            for file in (table, None):
                print(line, file=file, flush=True)

        tell(f"{kind}, jax {jax.__version__}, {time.strftime('%d %B %Y')}\n")
        if _CEILINGS_SIZE.value:
            for line in ceilings(_CEILINGS_SIZE.value, _SECONDS.value):
                tell(f"- {line}")
        tell(f"\n{_COLUMNS}\n|{'---|' * 4}{'---:|' * (_COLUMNS.count('|') - 5)}")
        keys = sorted(name[:-5] for name in archive.namelist() if name.endswith(".json"))
        keys, done = keys[: _STEPS.value], []
        while keys and time.perf_counter() - start < _TIME_LIMIT_S.value:
            group, keys = keys[: _AT_ONCE.value], keys[_AT_ONCE.value :]
            compiled = {key: pool.submit(Step, archive, key) for key in group}
            concurrent.futures.wait(compiled.values())  # what is timed has the machine to itself
            for key, step in compiled.items():
                try:
                    facts = measured(step.result(), _SECONDS.value, bandwidth)
                except jax.errors.JaxRuntimeError as error:
                    tell(f"| {key} failed: {str(error)[:500]!r} |")
                    continue
                results.write(json.dumps({"device": kind, **facts}) + "\n")
                results.flush()
                tell(row(facts))
                done.append(facts)
            del compiled, step
        tell("\n| times to no generator | step | length | dtype | alone | in a row |")
        tell(f"|{'---|' * 4}{'---:|' * 2}")
        for line in ratios(done):
            tell(line)
        print(f"\n{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    app.run(main)
