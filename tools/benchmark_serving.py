"""Latency of a served model under open-loop load, and what a cached user state saves.

    python tools/benchmark_serving.py --export_dir=serving/din --seconds=30
    python tools/benchmark_serving.py --export_dir=serving/din --address=localhost:8500

The first line starts the stand-in for TF Serving (tools/serving/stand_in.py) in a process of its
own, on cores that it shares with this one; the second asks a server that runs already. Requests
have random values, full histories and `--candidates` candidates, made from the newest version's
schema and vocabularies.

Load is open-loop: requests are due at the times of a Poisson process (`--arrivals=even`: at equal
distances, which leaves the server's own unevenness), whether or not those before them are answered,
and latency counts from when a request was due, so that a queue shows. First a few workers that each
wait for their answers find the rate at which the server is full; then it is asked for fractions of
that rate. "p99 / p50" at 0.50 is the number to read.
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
from serving import command
from serving.client import GrpcClient
from serving.mixed_requests import newest_version, signature_inputs
from timing import SECONDS, medians, print_table

from tfrec_diffusion.raw_requests import raw_requests
from tfrec_diffusion.schema import Schema


def due_times(arrivals, rate, seconds, rng):
    """When requests are due, seconds from the start: of a "poisson" process, or "even"."""
    count = max(int(rate * seconds), 1)
    gaps = rng.exponential(1 / rate, count) if arrivals == "poisson" else np.full(count, 1 / rate)
    return np.cumsum(gaps)


def open_loop(send, due):
    """Sends requests when they are due, whether or not those before them are answered.

    Args:
        send: `send(i)` gives the future of the i-th answer.
        due: Of `due_times`.

    Returns:
        Seconds from when each request was due to its answer, NaN where there was an error; and how
        many a second were answered.
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
    """Answers/s while `workers` each send a request when the one before it is answered."""
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
    """A row of the table of loads."""
    answered = latencies[~np.isnan(latencies)]
    p50, p95, p99 = 1000 * np.percentile(answered, [50, 95, 99]) if len(answered) else [np.nan] * 3
    times = [f"{value:.1f}" for value in (rate_done, p50, p95, p99)]
    return [*times, f"{p99 / p50:.2f}", str(len(latencies) - len(answered))]


@contextlib.contextmanager
def server(values):
    """The address of the server: that of the flag, or of a stand-in that lives as long."""
    if values.address:
        yield values.address
        return
    tools = pathlib.Path(__file__).parent
    model = f"--model={values.model}={pathlib.Path(values.export_dir).absolute()}"
    stand_in = [sys.executable, "-m", "serving.stand_in", model, "--port=0", "--rest_port=0"]
    with subprocess.Popen(stand_in, cwd=tools, stdout=subprocess.PIPE, text=True) as process:
        try:
            started = re.match(r"gRPC ([^,]+)", process.stdout.readline())
            if started is None:
                raise ChildProcessError("the stand-in did not start; what it printed says why")
            yield started.group(1)
        finally:
            process.terminate()


def main(values):
    version = newest_version(values.export_dir)
    made = raw_requests(
        Schema.load(version), values.requests, values.candidates, seed=values.seed,
        vocabularies=version / "assets",
    )  # fmt: skip
    requests = [dict(zip(made, values, strict=True)) for values in zip(*made.values(), strict=True)]
    rng = np.random.default_rng(values.seed)
    with server(values) as address:
        client = GrpcClient(address, values.model, deadline=values.deadline)
        messages = [client.message("serving_default", request) for request in requests]

        def send(i):
            return client.send(messages[i % len(messages)])

        for i in range(len(messages)):
            send(i).result()
        full = saturating_rate(send, values.workers, SECONDS.value)
        print(f"{full:.1f} requests/s with {values.workers} that wait for their answers")
        rows = {}
        for rate in values.rate or [fraction * full for fraction in values.fraction]:
            due = due_times(values.arrivals, rate, SECONDS.value, rng)
            rows[f"{rate:.1f}"] = load_cells(*open_loop(send, due))
        print_table(
            f"Open loop, {values.candidates} candidates; requests/s and ms from when it was due",
            ["rate done", "p50", "p95", "p99", "p99 / p50", "errors"],
            rows,
        )
        if "user_state" in signature_inputs(version):
            print_shares(client, requests[0])


def print_shares(client, request):
    """Compares a whole request, its user state and its scores from a state, one at a time."""
    state = client.user_state(request)
    messages = {
        "whole request": client.message("serving_default", request),
        "user_state": client.message("user_state", request),
        "score of a kept state": client.message("score", request, state),
    }
    times = medians(
        {name: lambda m=message: client.send(m).result() for name, message in messages.items()}
    )
    whole = times["whole request"]
    print_table(
        "One at a time, in turns",
        ["median ms", "times as cheap"],
        {name: [f"{time:.2f}", f"{whole / time:.2f}"] for name, time in times.items()},
    )


if __name__ == "__main__":
    flags.DEFINE_string("export_dir", None, "directory of the model's versions")
    flags.DEFINE_string("address", None, "host:port of gRPC; none starts the stand-in")
    flags.DEFINE_string("model", "ranking", "its name at the server")
    flags.DEFINE_integer("candidates", 100, "of each request", 1)
    flags.DEFINE_integer("requests", 32, "different requests, sent again and again", 1)
    flags.DEFINE_integer("workers", 4, "that find the saturating rate", 1)
    flags.DEFINE_multi_float("fraction", [0.25, 0.5, 0.75], "of the saturating rate")
    flags.DEFINE_multi_float("rate", [], "requests/s, in place of --fraction")
    flags.DEFINE_enum("arrivals", "poisson", ["poisson", "even"], "when requests are due")
    flags.DEFINE_float("deadline", 10, "seconds; a request that takes longer is an error")
    flags.DEFINE_integer("seed", 0, "of requests and of the times when they are due")
    flags.mark_flag_as_required("export_dir")
    command.run(main)
