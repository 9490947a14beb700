"""Where a run trains by Keras's own `fit`: on this machine, with one device or several."""

import keras
import numpy as np
import tensorflow as tf


class Machines:
    """Where a run trains: here this machine, each of its devices with a part of every batch.

    Args:
        strategy: `tf.distribute.Strategy`.

    Attributes:
        is_chief: bool. Whether this process writes what a run leaves.
        layout: dict. What must stay as it is for a run to go on.
        steps_per_execution: int. What a run has where it is not told.
        jit_compile: bool. Whether XLA can compile the steps.
    """

    is_chief = True
    steps_per_execution = 1
    jit_compile = True

    def __init__(self, strategy):
        self.strategy = strategy
        self.layout = {}
        self._made = {}

    def fit(self, model, data, batch_size, seed, epoch, first_batch, callbacks):
        """Trains through the rest of an epoch.

        Args:
            model: Compiled `RankingModel`, made in the scope of the strategy.
            data: `RequestData`.
            batch_size: int. Requests of a step, over all devices.
            seed: int. Of the order.
            epoch: int. Number of the epoch, from 0.
            first_batch: int. Number of the batch to begin with.
            callbacks: list of `keras.callbacks.Callback`.
        """
        batches = data.batches(
            "train", batch_size, shuffle_seed=seed, epoch=epoch, first_batch=first_batch
        )
        model.fit(
            batches, initial_epoch=epoch, epochs=epoch + 1, shuffle=False, callbacks=callbacks
        )

    def predict(self, model, data, split, batch_size):
        """Predicts a split, each impression once; shows a progress bar.

        Args:
            model: `RankingModel`.
            data: `RequestData`.
            split: str. One of `data.splits`.
            batch_size: int. Requests in a batch.

        Returns:
            Click probabilities float32, labels float32, group ids int64 and weights float32, each
            (impressions,).
        """
        strategy = self.strategy
        batches = strategy.distribute_datasets_from_function(
            lambda context: data.batches(
                split, batch_size, with_group_id=True, input_context=context
            )
        )
        predict = self._once(_make_predict, model)
        progress = keras.utils.Progbar(
            data.num_batches(split, batch_size), verbose=int(self.is_chief)
        )
        rows = []
        for features, label, weight, group_id in batches:
            parts = (predict(features), label, weight, group_id)
            rows += map(_real_rows, *map(strategy.experimental_local_results, parts))
            progress.add(1)
        return tuple(self.gather(np.concatenate(column)) for column in zip(*rows, strict=True))

    def gather(self, array):
        """The arrays of all workers behind each other, on every worker.

        Args:
            array: numpy array of shape (rows, ...); each worker's has rows of its own number.

        Returns:
            numpy array of shape (rows of all, ...).
        """
        return array

    def agree(self, number):
        """The greatest of the workers' numbers.

        Args:
            number: int.

        Returns:
            int, the same on every worker.
        """
        return int(self.gather(np.array([number])).max())

    def synchronize(self, model):
        """Makes the model the same everywhere, to be saved or to predict.

        Replicas have moving averages of their own rows: all become their mean.

        Args:
            model: `RankingModel`.
        """
        if self.strategy.num_replicas_in_sync > 1:
            self._once(_make_average, model)()

    def _once(self, make, *arguments):
        """`make(strategy, *arguments)`, a function that keeps its traces from epoch to epoch."""
        key = (make, *arguments)
        if key not in self._made:
            self._made[key] = make(self.strategy, *arguments)
        return self._made[key]


def _make_predict(strategy, model):
    if strategy.num_replicas_in_sync == 1:
        return model.inference_function

    @tf.function(reduce_retracing=True)
    def predict(features):
        # A `tf.function` by itself would run for all replicas on the first one's device.
        return strategy.run(lambda features: model.inference_function(features), (features,))

    return predict


def _make_average(strategy, model):
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


def _real_rows(probabilities, labels, weights, group_ids):
    """What a batch has of impressions that are not padding."""
    weights = weights.numpy()
    real = weights > 0
    groups = np.repeat(group_ids.numpy(), real.sum(axis=1))
    return probabilities.numpy()[real], labels.numpy()[real], groups, weights[real]
