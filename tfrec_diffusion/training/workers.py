"""Several machines that take every step together."""

import tensorflow as tf

from tfrec_diffusion.training.epochs import chunks, fit_epoch
from tfrec_diffusion.training.machines import Machines


class MultiWorker(Machines):
    """Workers that take every step together, each with its part of the records and the batch.

    Args:
        strategy: `tf.distribute.MultiWorkerMirroredStrategy`.
    """

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
        """See `Machines.fit`."""
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
        fit_epoch(model, epoch, steps, callbacks, executions, verbose=int(self.is_chief))

    def _executions(self, model, batches, steps):
        take_steps = self._once(_make_take_steps, model)
        for done, count in chunks(0, steps, model.steps_per_execution):
            logs = take_steps(batches, tf.constant(count))
            # Those of one part of the data: to add up all would cost more than they tell.
            local = self.strategy.experimental_local_results
            yield done + count, {name: local(value)[0] for name, value in logs.items()}

    def gather(self, array):
        """See `Machines.gather`."""
        # A worker's first replica speaks for it.
        replicas = self.strategy.num_replicas_in_sync // self._workers
        values = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                array if context.replica_id_in_sync_group % replicas == 0 else array[:0]
            )
        )
        return self._once(_make_gather)(values).numpy()


def _make_take_steps(strategy, model):
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


def _make_gather(strategy):
    # Outside a graph this takes 40 times as long.
    return tf.function(lambda values: strategy.gather(values, axis=0), reduce_retracing=True)
