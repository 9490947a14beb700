"""Workers that each take steps of their own, on weights that parameter servers hold."""

import collections

import keras
import numpy as np
import tensorflow as tf

from tfrec_diffusion.training.callbacks import steps_taken
from tfrec_diffusion.training.epochs import chunks, fit_epoch
from tfrec_diffusion.training.machines import Machines

# Chunks of an epoch that wait for each worker, so that none waits for the slowest.
_AHEAD = 4


class ParameterServers(Machines):
    """Workers that take steps of their own, each a whole batch, on weights that servers hold.

    The chief hands out chunks of the epoch to whichever worker is free. The chunk of a worker that
    dies goes to another one: steps of it that were taken already are taken again. All share moving
    averages and seeds without a lock. A worker is one device.

    Args:
        strategy: `tf.distribute.ParameterServerStrategy`.
        resolver: `tf.distribute.cluster_resolver.ClusterResolver` that the strategy was made with.
    """

    steps_per_execution = 64
    jit_compile = False  # XLA cannot read another machine's variables

    def __init__(self, strategy, resolver):
        super().__init__(strategy)
        self._coordinator = _Coordinator(strategy)
        cluster = resolver.cluster_spec()
        self._workers = cluster.num_tasks("worker")
        self.layout = {"parameter servers": cluster.num_tasks("ps")}  # each has its part of tables
        self._scheduled = None

    def fit(self, model, data, batch_size, seed, epoch, first_batch, callbacks):
        """See `Machines.fit`."""
        order = data.order("train", seed, epoch)
        train = self._once(_make_train, model, data, batch_size)
        last = data.num_batches("train", batch_size)
        steps = self._executions(model, train, order, first_batch, last)
        fit_epoch(model, epoch, last - first_batch, callbacks, steps, verbose=1)

    def _executions(self, model, train, order, first_batch, last):
        before = steps_taken(model) - first_batch
        pending = collections.deque()
        done = 0
        for first, count in chunks(first_batch, last, model.steps_per_execution):
            pending.append((count, self._schedule(train, order, first, count)))
            self._scheduled = before + first + count
            if len(pending) > _AHEAD * self._workers:
                count, result = pending.popleft()
                self._fetch(result)
                done += count
                yield done, model.get_metrics_result()
        self.synchronize(model)
        yield last - first_batch, model.get_metrics_result()

    def predict(self, model, data, split, batch_size):
        """See `Machines.predict`."""
        order = data.order(split)
        predict = self._once(_make_predict, model, data, batch_size)
        last = data.num_batches(split, batch_size)
        results = [
            self._schedule(predict, order, *chunk)
            for chunk in chunks(0, last, self.steps_per_execution)
        ]
        progress = keras.utils.Progbar(len(results))
        rows = []
        for result in results:
            rows.append(self._fetch(result))
            progress.add(1)
        return tuple(np.concatenate(column) for column in zip(*rows, strict=True))

    def _schedule(self, function, order, first, count):
        # Tensors, because a function is traced anew for each number.
        arguments = (order, tf.constant(first, tf.int64), tf.constant(count))
        return self._coordinator.schedule(function, arguments)

    def _fetch(self, result):
        try:
            return result.fetch()
        except tf.errors.CancelledError:
            self._coordinator.join()  # tells why
            raise

    def synchronize(self, model):
        """See `Machines.synchronize`."""
        self._coordinator.join()
        if self._scheduled is not None:
            # Keras counts by reading and writing: when two workers do, a step is lost.
            model.optimizer.iterations.assign(self._scheduled)


class _Coordinator(tf.distribute.coordinator.ClusterCoordinator):
    """A coordinator whose threads end with the process, as daemons do.

    TensorFlow's destructor would stop them first, and wait for ever for the lock of one that waits
    for a lost worker: a run that had ended would not exit.
    """

    def __del__(self):
        pass


def _make_train(strategy, model, data, batch_size):
    model.make_train_function()
    window = model.steps_per_execution * batch_size

    @tf.function(reduce_retracing=True)
    def train(order, first, count):
        records = data.read(order, batch_size, first, shuffle_window=window)
        batches = iter(records.prefetch(tf.data.AUTOTUNE))
        for _ in tf.range(count):
            strategy.run(model.train_step, (next(batches),))

    return train


def _make_predict(strategy, model, data, batch_size):
    del strategy  # each worker predicts by itself

    @tf.function(reduce_retracing=True)
    def predict(order, first, count):
        batches = iter(data.read(order, batch_size, first, with_group_id=True))
        columns = [
            tf.TensorArray(dtype, count, infer_shape=False, element_shape=(None,))
            for dtype in (tf.float32, tf.float32, tf.int64, tf.float32)
        ]
        for i in tf.range(count):
            features, label, weight, group_id = next(batches)
            real = weight > 0
            groups = tf.broadcast_to(group_id[:, None], tf.shape(real))
            rows = (model(features, training=False), label, groups, weight)
            columns = [
                column.write(i, tf.boolean_mask(row, real))
                for column, row in zip(columns, rows, strict=True)
            ]
        return [column.concat() for column in columns]

    return predict
