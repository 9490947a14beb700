"""Latency of a served model under open-loop load, and what a cached user state saves.

    python tools/benchmarks/server_load.py --export_dir=serving/din --seconds=30
    python tools/benchmarks/server_load.py --export_dir=serving/din --address=localhost:8500

The first command starts the stand-in for TF Serving in a process of its own, on cores that it
shares with this process. The second asks a server that runs already. Requests have random values,
full histories and `--candidates` candidates; they are made from the schema and the vocabularies of
the newest version.

The load is open-loop: requests are due at the times of a Poisson process, whether or not those
before them are answered, and latency counts from when a request was due, so that a queue shows.
`--arrivals=even` makes requests due at equal distances, which leaves the unevenness of the server
itself. First a few workers that each wait for their answers find the rate at which the server is
full; then the server is asked at fractions of that rate. "p99 / p50" at 0.50 is the number to read.
"""

import concurrent.futures
import contextlib
import functools
import pathlib
import re
import subprocess
import sys
import threading
import time

import numpy as np
from absl import flags
from timing import define_timing, medians, print_table

from tfrec_diffusion import command
from tfrec_diffusion.schema import Schema
from tfrec_diffusion.serving.client import GrpcClient
from tfrec_diffusion.serving.example_requests import example_requests
from tfrec_diffusion.serving.version import newest_version

sys.path.append(str(pathlib.Path(__file__).parents[1] / "serving"))
from version_signatures import signature_inputs


def define_flags(values):
    flags.DEFINE_string(
        "export_dir", None, "directory of the model's versions", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "address", None, "host:port of gRPC; default: the stand-in is started", flag_values=values
    )
    flags.DEFINE_string("model", "ranking", "name of the model at the server", flag_values=values)
    flags.DEFINE_integer("candidates", 100, "candidates of each request", 1, flag_values=values)
    flags.DEFINE_integer(
        "requests", 32, "different requests, sent again and again", 1, flag_values=values
    )
    flags.DEFINE_integer(
        "workers", 4, "workers that find the saturating rate", 1, flag_values=values
    )
    flags.DEFINE_multi_float(
        "fraction", [0.25, 0.5, 0.75], "of the saturating rate; repeat it", flag_values=values
    )
    flags.DEFINE_multi_float(
        "rate", [], "requests/s, in place of --fraction; repeat it", flag_values=values
    )
    flags.DEFINE_enum(
        "arrivals", "poisson", ["poisson", "even"], "when requests are due", flag_values=values
    )
    flags.DEFINE_float(
        "deadline", 10, "seconds; a request that takes longer is an error", flag_values=values
    )
    flags.DEFINE_integer(
        "seed", 0, "seed of requests, and of the times when they are due", flag_values=values
    )
    define_timing(values)


def due_times(arrivals, rate, seconds, rng):
    """When requests are due.

    Args:
        arrivals: str. `"poisson"`: at the times of a Poisson process; `"even"`: at equal distances.
        rate: float. Requests per second.
        seconds: float. For how long.
        rng: `np.random.Generator`. Not used for `"even"`.

    Returns:
        float array of seconds from the start.
    """
    count = max(int(rate * seconds), 1)
    gaps = rng.exponential(1 / rate, count) if arrivals == "poisson" else np.full(count, 1 / rate)
    return np.cumsum(gaps)


def open_loop(send, due):
    """Sends requests when they are due, whether or not those before them are answered.

    Args:
        send: callable. `send(i)` returns the future of the i-th answer.
        due: float array of shape (requests,). What `due_times` returned.

    Returns:
        float array of shape (requests,), the seconds from when each request was due to its answer,
        NaN where there was an error; and the number of answers per second.
    """
    latencies, over = np.full(len(due), np.nan), threading.Semaphore(0)
    start = time.perf_counter()

    def finish(i, future):
        if future.exception() is None:
            latencies[i] = time.perf_counter() - start - due[i]
        over.release()

    for i in range(len(due)):
        time.sleep(max(start + due[i] - time.perf_counter(), 0))
        send(i).add_done_callback(functools.partial(finish, i))
    for _ in due:
        over.acquire()
    answered = np.count_nonzero(~np.isnan(latencies))
    return latencies, answered / (time.perf_counter() - start)


def saturating_rate(send, workers, seconds):
    """Answers per second while each worker sends a request when its last one is answered."""
    start = time.perf_counter()

    def work(worker):
        answers = 0
        while time.perf_counter() < start + seconds:
            send(worker + answers).result()
            answers += 1
        return answers

    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        answers = sum(threads.map(work, range(workers)))
    return answers / (time.perf_counter() - start)


def load_cells(latencies, rate_done):
    """A row of the table of loads, from what `open_loop` returned."""
    answered = latencies[~np.isnan(latencies)]
    p50, p95, p99 = 1000 * np.percentile(answered, [50, 95, 99]) if len(answered) else [np.nan] * 3
    times = [f"{value:.1f}" for value in (rate_done, p50, p95, p99)]
    return [*times, f"{p99 / p50:.2f}", str(len(latencies) - len(answered))]


@contextlib.contextmanager
def server(values):
    """Yields the address of the server: that of the flag, or of a stand-in that it starts."""
    if values.address:
        yield values.address
        return
    stand_in = [
        *(sys.executable, "-m", "tfrec_diffusion.serving.stand_in", "--port=0", "--rest_port=0"),
        f"--model={values.model}={pathlib.Path(values.export_dir).absolute()}",
    ]
    with subprocess.Popen(stand_in, stdout=subprocess.PIPE, text=True) as process:
        try:
            started = re.match(r"gRPC ([^,]+)", process.stdout.readline())
            if started is None:
                raise ChildProcessError("the stand-in did not start; what it printed says why")
            yield started.group(1)
        finally:
            process.terminate()


def main(values):
    version = newest_version(values.export_dir)
    made = example_requests(
        Schema.load(version), values.requests, values.candidates, seed=values.seed,
        vocabularies=version / "assets",
    )  # fmt: skip
    requests = [dict(zip(made, row, strict=True)) for row in zip(*made.values(), strict=True)]
    rng = np.random.default_rng(values.seed)
    with server(values) as address:
        client = GrpcClient(address, values.model, deadline=values.deadline)
        messages = [client.message("serving_default", request) for request in requests]

        def send(i):
            return client.send(messages[i % len(messages)])

        for i in range(len(messages)):
            send(i).result()
        full = saturating_rate(send, values.workers, values.seconds)
        print(f"{full:.1f} requests/s with {values.workers} workers that wait for their answers")
        rows = {}
        for rate in values.rate or [fraction * full for fraction in values.fraction]:
            due = due_times(values.arrivals, rate, values.seconds, rng)
            rows[f"{rate:.1f}"] = load_cells(*open_loop(send, due))
        print_table(
            f"Open loop, {values.candidates} candidates: requests/s, and ms from when a request "
            "was due",
            ["rate done", "p50", "p95", "p99", "p99 / p50", "errors"],
            rows,
        )
        if "user_state" in signature_inputs(version):
            print_shares(client, requests[0], values)


def print_shares(client, request, values):
    """Compares a whole request, its user state and its scores from a state, one at a time."""
    state = client.user_state(request)
    messages = {
        "whole request": client.message("serving_default", request),
        "user_state": client.message("user_state", request),
        "score of a kept state": client.message("score", request, state),
    }
    times = medians(
        {name: lambda m=message: client.send(m).result() for name, message in messages.items()},
        values,
    )
    whole = times["whole request"]
    print_table(
        "One request at a time, in turns",
        ["median ms", "times as cheap"],
        {name: [f"{time:.2f}", f"{whole / time:.2f}"] for name, time in times.items()},
    )


if __name__ == "__main__":
    command.run(main, define_flags)
