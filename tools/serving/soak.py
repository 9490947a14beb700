"""Sends random requests for a long time: does memory grow, does any score change?

    python tools/serving/soak.py --export_dir=serving/din

The newest version runs in a C++ program without Python (run_saved_model.cc), a stand-in for TF
Serving. The signature, the values and the sizes of each request are random; every tenth request is
broken and must get an error. Some requests are remembered, and must get bitwise the same scores
whenever they come again.

The memory during the last fifth of the requests is compared with that during the second fifth. In
the first fifth the allocator warms up, and oneDNN, which keeps what it makes for each new shape,
fills its cache. That takes thousands of requests of random sizes: far fewer requests than the
default show growth even where none will last.

The exit status is 1 if memory grew, a score changed or a broken request got scores.
"""

import functools
import tempfile
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags
from incomplete_requests import incomplete_requests
from saved_model_program import SavedModelProgram, compile_program
from version_signatures import score, scoring, signature_inputs

from tfrec_diffusion import command
from tfrec_diffusion.schema import Schema
from tfrec_diffusion.serving.version import newest_version

_REMEMBERED = 32


def define_flags(values):
    flags.DEFINE_string(
        "export_dir", None, "directory of the model's versions", required=True, flag_values=values
    )
    flags.DEFINE_integer("requests", 20_000, "number of requests", 10, flag_values=values)
    flags.DEFINE_integer("candidates", 200, "most candidates of a request", 1, flag_values=values)
    flags.DEFINE_integer("batch_size", 4, "most users of a request", 1, flag_values=values)
    flags.DEFINE_float(
        "allowed_mb", 32, "growth of memory that is no failure", 0, flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "seed of the requests", flag_values=values)


class Report(NamedTuple):
    """What became of the requests.

    Args:
        resident_bytes: float array of shape (requests,). Memory of the program after each request.
        changed: int. How many remembered requests got other scores when they came again.
        unnoticed: int. How many broken requests got scores.
    """

    resident_bytes: np.ndarray
    changed: int
    unnoticed: int

    @property
    def growth(self):
        """float. Bytes that memory grew by, from the second fifth of the requests to the last."""
        fifths = np.array_split(self.resident_bytes, 5)
        return float(np.median(fifths[4]) - np.median(fifths[1]))

    @property
    def slope(self):
        """float. Bytes per request, by least squares over all but the first fifth."""
        settled = self.resident_bytes[len(self.resident_bytes) // 5 :]
        return float(np.polyfit(np.arange(len(settled)), settled, 1)[0])

    def passed(self, allowed_mb):
        """Whether nothing is wrong, if memory may grow by `allowed_mb` megabytes."""
        return self.growth <= allowed_mb * 1e6 and not self.changed and not self.unnoticed


class Sizes(NamedTuple):
    """The largest that a random request may be.

    Args:
        batch: int. Users.
        candidates: int. Candidates.
        length: int. Behaviors.
    """

    batch: int
    candidates: int
    length: int


def soak(program, inputs, make, sizes, count, seed=0):
    """Sends random requests, one after the other.

    Args:
        program: `SavedModelProgram`.
        inputs: dict. What `signature_inputs` returned.
        make: callable. `make(batch, candidates, length, seed)` returns requests.
        sizes: `Sizes`.
        count: int. Number of requests.
        seed: int. Seed of the requests. Defaults to `0`.

    Returns:
        `Report`.
    """
    rng = np.random.default_rng(seed)
    signatures = scoring(inputs)
    scores_of = {}
    resident_bytes, changed, unnoticed = [], 0, 0
    for number in range(count):
        kind = rng.random()
        again = kind < 0.2 and scores_of
        made_from = int(rng.choice(list(scores_of))) if again else number
        signature, request = _request(make, signatures, sizes, (seed, made_from))
        if kind > 0.9:
            unnoticed += not _refused(program, inputs, request)
        else:
            scores = score(program, inputs, signature, request)
            if again:
                changed += not np.array_equal(scores, scores_of[made_from])
            elif len(scores_of) < _REMEMBERED:
                scores_of[number] = scores
        resident_bytes.append(program.resident_bytes)
        if (number + 1) % max(count // 20, 1) == 0:
            print(f"{number + 1:7d} requests: {program.resident_bytes / 1e6:8.1f} MB", flush=True)
    return Report(np.array(resident_bytes, float), changed, unnoticed)


def _request(make, signatures, sizes, seed):
    rng = np.random.default_rng(seed)
    batch, candidates = (rng.integers(1, most + 1) for most in (sizes.batch, sizes.candidates))
    length = rng.integers(0, sizes.length + 1)
    made = make(batch, candidates, length, rng.integers(2**31))
    return rng.choice(signatures), made


def _refused(program, inputs, request):
    """Whether a request with twice as many users of one feature gets an error."""
    values = {name: request[name] for name in inputs["serving_default"]}
    name = max(values)
    values[name] = np.concatenate([values[name]] * 2)
    try:
        program.run("serving_default", values)
    except tf.errors.InvalidArgumentError:
        return True
    return False


def main(values):
    version = newest_version(values.export_dir)
    schema = Schema.load(version)
    make = functools.partial(incomplete_requests, schema, vocabularies=version / "assets")
    sizes = Sizes(values.batch_size, values.candidates, 2 * schema.history_length)
    inputs = signature_inputs(version)
    with (
        tempfile.TemporaryDirectory() as directory,
        SavedModelProgram(compile_program(directory), version) as program,
    ):
        report = soak(program, inputs, make, sizes, values.requests, values.seed)
    first, last = report.resident_bytes[[0, -1]] / 1e6
    print(f"memory: {first:.1f} MB at the start, {last:.1f} MB at the end")
    print(f"growth: {report.growth / 1e6:+.1f} MB, {report.slope / 1e3:+.3f} kB a request")
    print(f"scores that changed: {report.changed}; broken requests with scores: {report.unnoticed}")
    return 0 if report.passed(values.allowed_mb) else 1


if __name__ == "__main__":
    command.run(main, define_flags)
