"""The load generator, and the benchmark against the stand-in, as a user runs it."""

import pathlib
import re
import subprocess
import sys
from concurrent.futures import Future

import benchmark_serving
import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]


def answered(error=None):
    future = Future()
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
    return future


def due(rate, seconds):
    return benchmark_serving.due_times("poisson", rate, seconds, np.random.default_rng(0))


def test_requests_are_due_at_random_times_or_at_equal_distances():
    gaps = np.diff(due(1000, 100))
    assert len(gaps) == 99_999
    assert gaps.mean() == pytest.approx(0.001, rel=0.02) == gaps.std()
    even = benchmark_serving.due_times("even", 1000, 0.003, None)
    np.testing.assert_allclose(even, [0.001, 0.002, 0.003])


def test_requests_are_sent_in_their_order_and_not_before_they_are_due():
    sent, times = [], due(2000, 0.1)
    latencies, rate = benchmark_serving.open_loop(lambda i: sent.append(i) or answered(), times)
    assert sent == list(range(200))
    assert len(latencies) == 200 and np.all(latencies >= 0)
    assert rate <= 200 / times[-1]


def test_latency_counts_from_when_a_request_was_due():
    """Of a server that answers nothing until the last request came."""
    waiting = []

    def send(i):
        waiting.append(Future())
        if i == 99:
            for future in waiting:
                future.set_result(None)
        return waiting[-1]

    times = due(1000, 0.1)
    latencies, _ = benchmark_serving.open_loop(send, times)
    assert np.all(latencies >= times[-1] - times)


def test_a_sender_that_is_late_does_not_hide_it():
    """The first request holds the sender up; those after it were due all the while."""
    held = []

    def send(i):
        if i == 0:
            held.append(benchmark_serving.time.perf_counter())
            benchmark_serving.time.sleep(0.1)
        return answered()

    times = due(1000, 0.05)
    latencies, _ = benchmark_serving.open_loop(send, times)
    assert np.all(latencies >= 0.1 - (times - times[0]))


def test_errors_are_counted_and_have_no_latency():
    latencies, rate = benchmark_serving.open_loop(
        lambda i: answered(OSError() if i % 4 == 0 else None), due(4000, 0.01)
    )
    assert np.isnan(latencies).tolist() == [i % 4 == 0 for i in range(40)]
    cells = benchmark_serving.load_cells(np.array([0.001, 0.003, np.nan]), rate)
    assert cells == [f"{rate:.1f}", "2.0", "2.9", "3.0", "1.49", "1"]
    nothing = benchmark_serving.load_cells(np.array([np.nan]), 0.0)
    assert nothing == ["0.0", "nan", "nan", "nan", "nan", "1"]


def test_the_saturating_rate_waits_for_answers():
    sent = []

    def send(i):
        sent.append(i)
        return answered()

    rate = benchmark_serving.saturating_rate(send, workers=2, seconds=0.05)
    assert 0 < rate <= len(sent) / 0.05


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_benchmark_prints_its_tables(exported):
    done = run(
        *("tools/benchmark_serving.py", f"--export_dir={exported}", "--candidates=3"),
        *("--seconds=0.2", "--turns=1", "--requests=2", "--fraction=0.1", "--fraction=0.2"),
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| ([\w. ]+) \| (.+) \|$", done.stdout, re.MULTILINE)
    loads, shares = rows[:2], dict(rows[2:])
    saturating = float(re.match(r"([\d.]+) requests/s with 4 ", done.stdout).group(1))
    assert [float(rate) for rate, _ in loads] == pytest.approx(
        [0.1 * saturating, 0.2 * saturating], abs=0.11
    )
    assert all(cells.endswith("| 0") for _, cells in loads), "no errors"
    assert list(shares) == ["whole request", "user_state", "score of a kept state"]
    assert shares["whole request"].endswith("| 1.00")
