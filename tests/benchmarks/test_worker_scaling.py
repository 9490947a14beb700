"""The benchmark of one process and two: its arithmetic by hand, and what a process does."""

import pytest
import run_tool
import tensorflow as tf
import worker_scaling
from absl import flags
from worker_scaling import Traffic


def test_counts_what_gradients_hold():
    dense = tf.zeros((3, 2))
    table = tf.IndexedSlices(tf.zeros((3, 4)), tf.constant([5, 5, 1]), (10, 4))
    # A row is four float32 and an int32: 20 bytes.
    assert worker_scaling.count([dense, table]) == Traffic(
        dense=24, slices=60, distinct=40, lookups=3
    )


TRAFFIC = Traffic(dense=8_000_000, slices=2_000_000, distinct=1_000_000, lookups=1000)


@pytest.mark.parametrize(
    ("replicas", "dense", "slices"),
    [(1, 0, 0), (2, 8_000_000, 2_000_000), (8, 14_000_000, 14_000_000)],
)
def test_slices_grow_with_the_replicas_dense_gradients_do_not(replicas, dense, slices):
    assert worker_scaling.all_reduce_bytes(TRAFFIC, replicas) == (dense, slices)


def test_servers_send_and_receive_distinct_rows():
    assert worker_scaling.server_bytes(TRAFFIC) == 18_000_000


def test_projects_a_step():
    step = worker_scaling.project(
        own_ms=5.0, traffic=TRAFFIC, lookup_ns=100.0, replicas=8, link_gbyte=7.0
    )
    # 14 MB at 7 GB/s, twice; the rows of 7 others, 1000 lookups of 100 ns each.
    assert step == pytest.approx((5.0, 2.0, 2.0, 0.7))
    assert step.communication == pytest.approx(4.0)


def flag_values(*arguments):
    values = flags.FlagValues()
    worker_scaling.define_flags(values)
    values(["worker_scaling", *arguments])
    return values


def test_prints_what_was_measured_and_projected(capsys):
    values = flag_values("--batch_size=10", "--gpu_step_ms=5", "--nvlink_gbyte=7")
    trained = {
        name: worker_scaling.Trained(rate=1000.0 * setting.workers, received=100.0)
        for name, setting in worker_scaling.SETTINGS.items()
    }
    trained["multi_worker, 2"] = worker_scaling.Trained(rate=500.0, received=1e6)
    worker_scaling.print_measured("din", 10, trained, TRAFFIC, lookup_ns=100.0)
    worker_scaling.print_projected("din", values, trained["one"], TRAFFIC, lookup_ns=100.0)
    measured, projected = run_tool.tables(capsys.readouterr().out)
    assert measured["one"] == ["1,000", "1.00", "10.0", "0.00", "0.00"]
    assert measured["multi_worker, 2"] == ["500", "0.50", "40.0", "10.00", "10.00"]
    assert measured["parameter_server, 2 + 1"] == ["2,000", "2.00", "10.0", "18.00", "0.00"]
    assert list(projected) == ["8 GPUs, 1 host", "256 GPUs, 32 hosts"]
    # The step of the test above.
    assert projected["8 GPUs, 1 host"][:6] == ["2.000", "2.000", "4.000", "dense", "0.7", "9.7"]


@pytest.mark.slow
def test_a_process_trains_and_counts():
    """With a cluster it does the same; this takes a minute less."""
    values = flag_values("--length=4", "--rows=100", "--batch_size=8", "--steps_per_execution=2")
    trainer = worker_scaling.Trainer(values, worker_scaling.SETTINGS["one"])
    trainer.build("avg_pooling")
    steps = trainer.least_steps()
    seconds, samples = trainer.train(steps)
    assert steps == 2 and samples == 16 and seconds > 0
    traffic = Traffic(*trainer.traffic())
    # Item and category of a candidate and four behaviors, each of dim 8 with an int32 id.
    assert traffic.lookups == 2 * 5 * 8 and traffic.slices == traffic.lookups * 36
    assert abs(trainer.seconds_per_lookup(traffic.lookups)) < 1
