"""The arithmetic of the scaling benchmark, by hand."""

import pathlib
import sys

import pytest
import tensorflow as tf

sys.path.append(str(pathlib.Path(__file__).parent.parent / "tools"))
import benchmark_scaling
from benchmark_scaling import Traffic


def test_counts_what_gradients_hold():
    dense = tf.zeros((3, 2))
    table = tf.IndexedSlices(tf.zeros((3, 4)), tf.constant([5, 5, 1]), (10, 4))
    # A row is four float32 and an int32: 20 bytes.
    assert benchmark_scaling.count([dense, table]) == Traffic(
        dense=24, slices=60, distinct=40, lookups=3
    )


TRAFFIC = Traffic(dense=8_000_000, slices=2_000_000, distinct=1_000_000, lookups=1000)


@pytest.mark.parametrize(
    ("replicas", "dense", "slices"),
    [(1, 0, 0), (2, 8_000_000, 2_000_000), (8, 14_000_000, 14_000_000)],
)
def test_slices_grow_with_the_replicas_dense_gradients_do_not(replicas, dense, slices):
    assert benchmark_scaling.all_reduce_bytes(TRAFFIC, replicas) == (dense, slices)


def test_servers_send_and_receive_distinct_rows():
    assert benchmark_scaling.server_bytes(TRAFFIC) == 18_000_000


def test_projects_a_step():
    step = benchmark_scaling.project(
        own_ms=5.0, traffic=TRAFFIC, lookup_ns=100.0, replicas=8, link_gbyte=7.0
    )
    # 14 MB at 7 GB/s, twice; the rows of 7 others, 1000 lookups of 100 ns each.
    assert step == pytest.approx((5.0, 2.0, 2.0, 0.7))
    assert step.communication == pytest.approx(4.0)
