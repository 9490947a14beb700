"""The load generator, and the benchmark against the stand-in, as a user runs it."""

import re
from concurrent.futures import Future

import numpy as np
import pytest
import run_tool
import server_load


def answered(error=None):
    future = Future()
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
    return future


def due(rate, seconds):
    return server_load.due_times("poisson", rate, seconds, np.random.default_rng(0))


def test_requests_are_due_at_random_times_or_at_equal_distances():
    gaps = np.diff(due(1000, 100))
    assert len(gaps) == 99_999
    assert gaps.mean() == pytest.approx(0.001, rel=0.02) == gaps.std()
    even = server_load.due_times("even", 1000, 0.003, None)
    np.testing.assert_allclose(even, [0.001, 0.002, 0.003])


def test_requests_are_sent_in_their_order_and_not_before_they_are_due():
    sent, times = [], due(2000, 0.1)
    latencies, rate = server_load.open_loop(lambda i: sent.append(i) or answered(), times)
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
    latencies, _ = server_load.open_loop(send, times)
    assert np.all(latencies >= times[-1] - times)


def test_a_sender_that_is_late_does_not_hide_it():
    """The first request holds the sender up; those after it were due all the while."""
    held = []

    def send(i):
        if i == 0:
            held.append(server_load.time.perf_counter())
            server_load.time.sleep(0.1)
        return answered()

    times = due(1000, 0.05)
    latencies, _ = server_load.open_loop(send, times)
    assert np.all(latencies >= 0.1 - (times - times[0]))


def test_errors_are_counted_and_have_no_latency():
    latencies, rate = server_load.open_loop(
        lambda i: answered(OSError() if i % 4 == 0 else None), due(4000, 0.01)
    )
    assert np.isnan(latencies).tolist() == [i % 4 == 0 for i in range(40)]
    cells = server_load.load_cells(np.array([0.001, 0.003, np.nan]), rate)
    assert cells == [f"{rate:.1f}", "2.0", "2.9", "3.0", "1.49", "1"]
    nothing = server_load.load_cells(np.array([np.nan]), 0.0)
    assert nothing == ["0.0", "nan", "nan", "nan", "nan", "1"]


def test_the_saturating_rate_waits_for_answers():
    sent = []

    def send(i):
        sent.append(i)
        return answered()

    rate = server_load.saturating_rate(send, workers=2, seconds=0.05)
    assert 0 < rate <= len(sent) / 0.05


@pytest.mark.slow
def test_the_benchmark_prints_its_tables(exported):
    printed = run_tool.run_as_user(
        *("tools/benchmarks/server_load.py", f"--export_dir={exported}", "--candidates=3"),
        *("--seconds=0.2", "--turns=1", "--requests=2", "--fraction=0.1", "--fraction=0.2"),
    )
    loads, shares = run_tool.tables(printed)
    saturating = float(re.match(r"([\d.]+) requests/s with 4 ", printed).group(1))
    assert list(map(float, loads)) == pytest.approx([0.1 * saturating, 0.2 * saturating], abs=0.11)
    assert all(cells[-1] == "0" for cells in loads.values()), "no errors"
    assert list(shares) == ["whole request", "user_state", "score of a kept state"]
    assert shares["whole request"][-1] == "1.00"
