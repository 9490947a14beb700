"""Two workers with half of each batch equal one device with the whole."""

import itertools
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import two_workers
from local_tasks import Cluster
from two_workers import BATCH_SIZE, TRAINED

from tfrec_diffusion.datasets.preparation import prepare
from tfrec_diffusion.diffusion import fusion, interest_generator
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.layers import noise
from tfrec_diffusion.layers.contrast import ContrastiveCalibrator

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    # 50 whole steps and one of which each worker has a part.
    return prepare(
        "synthetic",
        data_dir=tmp_path_factory.mktemp("data"),
        users=190, items=200, categories=20, history_length=10,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(directory, tmp_path_factory):
    out = tmp_path_factory.mktemp("weights")
    command = [pathlib.Path(two_workers.__file__), directory, out]
    with Cluster(out, command, worker=2) as cluster:
        cluster.wait()
    return out


class _Seed:
    def __init__(self, value):
        self._value = value

    def next(self):
        return self._value


def of_both_replicas(draw):
    """Draws for the rows of each replica what it draws by itself."""

    def drawn(shape, *arguments):
        *arguments, seed_generator = arguments
        shape, seed = list(shape), seed_generator.next()
        sizes = [tf.get_static_value(size) for size in shape]
        # Of requests, or of requests times candidates; sampling steps may come before.
        rows = next(i for i, size in enumerate(sizes) if size in (BATCH_SIZE, None))
        shape[rows] //= 2
        seeds = [_Seed(seed + tf.constant([replica, 0], seed.dtype)) for replica in (0, 1)]
        return tf.concat([draw(shape, *arguments, seed) for seed in seeds], axis=rows)

    return drawn


def within_replicas(loss):
    """The contrast of each half with itself, weighted by its real candidates."""

    def mean(layer, *arguments):
        halves = [
            [argument[half] for argument in arguments if argument is not None]
            for half in (slice(BATCH_SIZE // 2), slice(BATCH_SIZE // 2, None))
        ]
        losses = tf.stack([loss(layer, *half) for half in halves])
        weights = tf.stack([tf.reduce_sum(tf.cast(half[2], "float32")) for half in halves])
        return tf.reduce_sum(losses * weights) / tf.reduce_sum(weights)

    return mean


def both_parts(data):
    """The batches of both workers side by side."""
    parts = [
        data.batches(
            "train",
            BATCH_SIZE,
            shuffle_seed=0,
            input_context=tf.distribute.InputContext(2, worker, 2),
        )
        for worker in (0, 1)
    ]
    return tf.data.Dataset.zip(*parts).map(
        lambda *halves: tf.nest.map_structure(lambda *x: tf.concat(x, axis=0), *halves)
    )


@pytest.fixture
def graphs_optimized():
    """As they are outside of tests."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


# One test: several would be shared out, and the workers trained twice.
def test_two_workers_equal_one_device(directory, trained, graphs_optimized, monkeypatch):
    draws = ("normal", "randint", "uniform")
    for module, draw in itertools.product((fusion, interest_generator), draws):
        if hasattr(module, draw):
            monkeypatch.setattr(module, draw, of_both_replicas(getattr(noise, draw)))
    monkeypatch.setattr(ContrastiveCalibrator, "loss", within_replicas(ContrastiveCalibrator.loss))
    data = RequestData(directory)
    assert data.num_batches("train", BATCH_SIZE) > 50
    for name, optimizer in TRAINED:
        model = two_workers.compiled(name, optimizer, data.schema)
        before = model.get_weights()
        model.fit(both_parts(data), verbose=0, shuffle=False)

        of_workers = list(np.load(trained / f"{name} {optimizer}.npz").values())
        pairs = zip(model.weights, of_workers, model.get_weights(), strict=True)
        for weight, ours, expected in pairs:
            message = f"{name}, {optimizer}: {weight.path}"
            # A step of Adam is 1e-4, also for a gradient that is little more than rounding.
            np.testing.assert_allclose(ours, expected, atol=3e-5, rtol=0, err_msg=message)
        assert np.abs(of_workers[0] - before[0]).max() > 1e-3
