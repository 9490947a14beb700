"""The machines of a training run, by `--strategy`: how they train, score and agree.

`one` and `mirrored` train with Keras's own `fit`. Keras 3 has none for the other two: there the
loop at the end of this file calls the same model, losses, metrics and callbacks. The machines of a
cluster come from `TF_CONFIG`, as TensorFlow documents it.
"""

import collections
import functools
import json
import os
import time

import keras
import numpy as np
import tensorflow as tf

STRATEGIES = ("one", "mirrored", "multi_worker", "parameter_server")

# Chunks of an epoch that wait for each worker, so that none waits for the slowest.
_AHEAD = 4


def create(name):
    """The machines of a strategy, as this process sees them.

    Args:
        name: One of `STRATEGIES`.

    Returns:
        `Machines`, `MultiWorker` or `ParameterServers`.

    Raises:
        ValueError: If `TF_CONFIG` does not describe such a cluster.
    """
    if name == "one":
        return Machines(tf.distribute.get_strategy())
    if name == "mirrored":
        return Machines(tf.distribute.MirroredStrategy())
    if name == "multi_worker":
        _cluster(name, {"worker"}, {"chief"})
        return MultiWorker(tf.distribute.MultiWorkerMirroredStrategy())
    _cluster(name, {"chief", "worker", "ps"})
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    return ParameterServers(tf.distribute.ParameterServerStrategy(resolver), resolver)


def is_served(name):
    """Whether this process is a worker or a parameter server, which does what a chief tells it."""
    return name == "parameter_server" and _cluster(name, {"chief", "worker", "ps"}) != "chief"


def serve(is_over):
    """Does what the chief says until `is_over()`."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    server = tf.distribute.Server(
        resolver.cluster_spec(), resolver.task_type, resolver.task_id, protocol="grpc"
    )
    while not is_over():
        time.sleep(1)
    del server


def _cluster(strategy, required, optional=frozenset()):
    """Checks `TF_CONFIG`; returns the type of this process's task."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        complete = required <= cluster.keys() <= required | optional
        complete = complete and 0 <= task["index"] < len(cluster[task["type"]])
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise ValueError(
            f"--strategy={strategy} needs the environment variable TF_CONFIG with a cluster of "
            f"{sorted(required)} and this process's task, as {json.dumps(_example(required))}. "
            f"Received: TF_CONFIG={text!r}"
        )
    return task["type"]


def _example(jobs):
    cluster = {job: [f"{job}0.example.com:2222"] for job in sorted(jobs)}
    return {"cluster": cluster, "task": {"type": "worker", "index": 0}}


class Machines:
    """Where a run trains: here this machine, each of its devices with a part of every batch.

    Args:
        strategy: `tf.distribute.Strategy`.

    Attributes:
        is_chief: Whether this process writes what a run leaves.
        layout: dict of what must stay as it is for a run to go on.
        steps_per_execution: What a run has where it is not told.
        jit_compile: Whether XLA can compile the steps.
    """

    is_chief = True
    steps_per_execution = 1
    jit_compile = True

    def __init__(self, strategy):
        self.strategy = strategy
        self.layout = {}

    def fit(self, model, data, batch_size, seed, epoch, first_batch, callbacks):
        """Trains through the rest of an epoch, from batch `first_batch` on."""
        batches = data.batches(
            "train", batch_size, shuffle_seed=seed, epoch=epoch, first_batch=first_batch
        )
        model.fit(
            batches, initial_epoch=epoch, epochs=epoch + 1, shuffle=False, callbacks=callbacks
        )

    def score(self, model, data, split, batch_size):
        """Scores a split, each row once; shows a progress bar.

        Returns:
            Scores float32, labels float32 and group ids int64, each (impressions,).
        """
        strategy = self.strategy
        batches = strategy.distribute_datasets_from_function(
            lambda context: data.batches(
                split, batch_size, with_group_id=True, input_context=context
            )
        )

        @tf.function(reduce_retracing=True)
        def score(features):
            # A `tf.function` by itself would run for all replicas on the first one's device.
            return strategy.run(lambda features: model.score(features), (features,))

        progress = keras.utils.Progbar(
            data.num_batches(split, batch_size), verbose=int(self.is_chief)
        )
        rows = []
        for features, label, weight, group_id in batches:
            parts = (score(features), label, weight, group_id)
            rows += map(_real_rows, *map(strategy.experimental_local_results, parts))
            progress.add(1)
        return tuple(self.gather(np.concatenate(column)) for column in zip(*rows, strict=True))

    def gather(self, array):
        """The arrays of all workers behind each other, on every worker."""
        return array

    def agree(self, number):
        """The greatest of the workers' numbers."""
        return int(self.gather(np.array([number])).max())

    def synchronize(self, model):
        """Makes the model the same everywhere, to be saved or to score.

        Replicas have moving averages of their own rows: all become their mean.
        """
        if self.strategy.num_replicas_in_sync > 1:
            _average(self.strategy, model)()


class MultiWorker(Machines):
    """Workers that take every step together, each with its part of the records and the batch."""

    steps_per_execution = 10  # to agree on signals and checkpoints takes a round trip

    def __init__(self, strategy):
        super().__init__(strategy)
        resolver = strategy.cluster_resolver
        cluster = resolver.cluster_spec()
        self._workers = sum(cluster.num_tasks(job) for job in cluster.jobs)
        self.layout = {"workers": self._workers}  # each has its part of the records
        first = "chief" if "chief" in cluster.jobs else "worker"
        self.is_chief = (resolver.task_type, resolver.task_id) == (first, 0)

    def fit(self, model, data, batch_size, seed, epoch, first_batch, callbacks):
        batches = self.strategy.distribute_datasets_from_function(
            lambda context: data.batches(
                "train",
                batch_size,
                shuffle_seed=seed,
                epoch=epoch,
                first_batch=first_batch,
                input_context=context,
            )
        )
        steps = data.num_batches("train", batch_size) - first_batch
        executions = self._executions(model, iter(batches), steps)
        _fit(model, epoch, steps, callbacks, executions, verbose=int(self.is_chief))

    def _executions(self, model, batches, steps):
        take_steps = _take_steps(self.strategy, model)
        for done in range(0, steps, model.steps_per_execution):
            count = min(model.steps_per_execution, steps - done)
            logs = take_steps(batches, tf.constant(count))
            # Those of one part of the data: to add up all would cost more than they tell.
            local = self.strategy.experimental_local_results
            yield done + count, {name: local(value)[0] for name, value in logs.items()}

    def gather(self, array):
        # A worker's first replica speaks for it.
        replicas = self.strategy.num_replicas_in_sync // self._workers
        values = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                array if context.replica_id_in_sync_group % replicas == 0 else array[:0]
            )
        )
        return _gather(self.strategy)(values).numpy()


class ParameterServers(Machines):
    """Workers that take steps of their own, each a whole batch, on weights that servers hold.

    The chief hands out chunks of the epoch to whichever worker is free. The chunk of a worker that
    dies goes to another one: steps of it that were taken already are taken again. All share moving
    averages and seeds without a lock. A worker is one device.
    """

    steps_per_execution = 64
    jit_compile = False  # XLA cannot read another machine's variables

    def __init__(self, strategy, resolver):
        super().__init__(strategy)
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        cluster = resolver.cluster_spec()
        self._workers = cluster.num_tasks("worker")
        self.layout = {"parameter servers": cluster.num_tasks("ps")}  # each has its part of tables
        self._scheduled = None

    def fit(self, model, data, batch_size, seed, epoch, first_batch, callbacks):
        order = data.order("train", seed, epoch)
        train = _train_chunk(self.strategy, model, data, batch_size)
        last = data.num_batches("train", batch_size)
        steps = self._executions(model, train, order, first_batch, last)
        _fit(model, epoch, last - first_batch, callbacks, steps, verbose=1)

    def _executions(self, model, train, order, first_batch, last):
        before = int(model.optimizer.iterations.numpy()) - first_batch
        pending = collections.deque()
        done = 0
        for first, count in _chunks(first_batch, last, model.steps_per_execution):
            pending.append((count, self._schedule(train, order, first, count)))
            self._scheduled = before + first + count
            if len(pending) > _AHEAD * self._workers:
                count, result = pending.popleft()
                self._fetch(result)
                done += count
                yield done, model.get_metrics_result()
        self.synchronize(model)
        yield last - first_batch, model.get_metrics_result()

    def score(self, model, data, split, batch_size):
        order = data.order(split)
        score = _score_chunk(model, data, batch_size)
        chunks = _chunks(0, data.num_batches(split, batch_size), self.steps_per_execution)
        results = [self._schedule(score, order, *chunk) for chunk in chunks]
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
        self._coordinator.join()
        if self._scheduled is not None:
            # Keras counts by reading and writing: when two workers do, a step is lost.
            model.optimizer.iterations.assign(self._scheduled)


def _fit(model, epoch, steps, callbacks, executions, verbose):
    """What Keras's `fit` does for one epoch.

    Args:
        model: Compiled `RankingModel`.
        epoch: From 0.
        steps: Of this call.
        callbacks: List of `keras.callbacks.Callback`.
        executions: Generator that takes the steps and yields, now and then, the number done
            and the metrics.
        verbose: 1 shows a progress bar.
    """
    callbacks = keras.callbacks.CallbackList(
        callbacks, add_progbar=True, model=model, verbose=verbose, epochs=epoch + 1, steps=steps
    )
    model.reset_metrics()
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(epoch)
    for done, logs in executions:
        callbacks.on_train_batch_end(done - 1, logs)
    logs = model.get_metrics_result()
    callbacks.on_epoch_end(epoch, logs)
    callbacks.on_train_end(logs)


@functools.cache
def _take_steps(strategy, model):
    model.make_train_function()

    @tf.function(reduce_retracing=True)
    def take_step(batch):
        return strategy.run(model.train_step, (batch,))

    @tf.function(reduce_retracing=True)
    def take_steps(batches, count):
        for _ in tf.range(count - 1):
            take_step(next(batches))
        return take_step(next(batches))

    return take_steps


@functools.cache
def _train_chunk(strategy, model, data, batch_size):
    model.make_train_function()
    window = model.steps_per_execution * batch_size

    @tf.function(reduce_retracing=True)
    def train(order, first, count):
        records = data.read(order, batch_size, first, shuffle_window=window)
        batches = iter(records.prefetch(tf.data.AUTOTUNE))
        for _ in tf.range(count):
            strategy.run(model.train_step, (next(batches),))

    return train


@functools.cache
def _score_chunk(model, data, batch_size):
    @tf.function(reduce_retracing=True)
    def score(order, first, count):
        batches = iter(data.read(order, batch_size, first, with_group_id=True))
        columns = [
            tf.TensorArray(dtype, count, infer_shape=False, element_shape=(None,))
            for dtype in (tf.float32, tf.float32, tf.int64)
        ]
        for i in tf.range(count):
            features, label, weight, group_id = next(batches)
            real = weight > 0
            groups = tf.broadcast_to(group_id[:, None], tf.shape(real))
            rows = (model(features, training=False), label, groups)
            columns = [
                column.write(i, tf.boolean_mask(row, real))
                for column, row in zip(columns, rows, strict=True)
            ]
        return [column.concat() for column in columns]

    return score


def _chunks(first, last, size):
    """(first batch, number of batches) of each chunk."""
    for begin in range(first, last, size):
        yield begin, min(size, last - begin)


@functools.cache
def _average(strategy, model):
    averages = [w.value for w in model.non_trainable_weights if w.dtype == "float32"]

    @tf.function
    def average():
        def of_replica():
            values = [variable.read_value() for variable in averages]
            means = tf.distribute.get_replica_context().all_reduce("mean", values)
            for variable, mean in zip(averages, means, strict=True):
                variable.assign(mean)

        if averages:
            strategy.run(of_replica)

    return average


@functools.cache
def _gather(strategy):
    # Outside a graph this takes 40 times as long.
    return tf.function(lambda values: strategy.gather(values, axis=0), reduce_retracing=True)


def _real_rows(scores, labels, weights, group_ids):
    """The impressions of a batch that are not padding: their scores, labels and groups."""
    real = weights.numpy() > 0
    groups = np.repeat(group_ids.numpy(), real.sum(axis=1))
    return scores.numpy()[real], labels.numpy()[real], groups
