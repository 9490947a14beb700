"""A training run: where it stands, how it goes on, what it ends with."""

import math
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from tfrec_diffusion.input_pipeline import replica_batch_size
from tfrec_diffusion.metrics import best
from tfrec_diffusion.provenance import provenance
from tfrec_diffusion.training.callbacks import (
    Checkpoints,
    Diverged,
    Interrupted,
    Scalars,
    steps_taken,
)
from tfrec_diffusion.training.evaluation import describe, evaluate


class Run:
    """A training run in its directory: where it stands, and how it goes on.

    Only the chief writes there; all processes of a run must see it.

    Args:
        directory: `RunDirectory`.
        data: `RequestData`.
        model: A compiled `RankingModel`.
        machines: `Machines` that the model lies on.
        batch_size: int. Requests a step.
        seed: int. Seed of the order.
        checkpoint_every: int. Steps between checkpoints.
        best_by: str. Metric of validation by which the best epoch is chosen, one of
            "auc", "gauc" and "log_loss". Defaults to `"auc"`.
        patience: int. Epochs without a better one after which training ends; 0 is never. Defaults
            to `0`.

    Raises:
        ValueError: If the replicas cannot share `batch_size` out evenly, or another process of the
            run sees another directory there.
    """

    def __init__(
        self,
        directory,
        data,
        model,
        machines,
        batch_size,
        seed,
        checkpoint_every,
        best_by="auc",
        patience=0,
    ):
        replica_batch_size(batch_size, machines.strategy.num_replicas_in_sync)
        self.directory = directory
        self.data = data
        self.model = model
        self.machines = machines
        self.batch_size = batch_size
        self.seed = seed
        self.checkpoint_every = checkpoint_every
        self.best_by = best_by
        self.patience = patience
        self.steps_per_epoch = data.num_batches("train", batch_size)
        self._seconds = tf.Variable(0.0, dtype=tf.float64)
        self._told_of_one_class = False
        with machines.strategy.scope():
            model.optimizer.build(model.trainable_variables)
        # TensorFlow follows a Keras 3 model to its trainable weights only: no moving averages, no
        # states of random generators.
        state = [*model.variables, *model.optimizer.variables]
        checkpoint = tf.train.Checkpoint(
            state=[variable.value for variable in state], seconds=self._seconds
        )
        self._manager = tf.train.CheckpointManager(
            checkpoint, str(directory.checkpoints), max_to_keep=2
        )
        if self._manager.latest_checkpoint:
            checkpoint.restore(self._manager.latest_checkpoint).assert_consumed()
        # Looked up before any process goes on to write.
        self._validated = len(directory.validation)
        seen = machines.gather(np.array([[self.step, self._validated]]))
        if (seen != seen[0]).any():
            raise ValueError(
                "`model_dir` must be one directory that every machine sees. Received: "
                f"{directory.path}, with steps and epochs done {seen.tolist()}, by worker"
            )
        self._scalars = Scalars(directory.tensorboard) if machines.is_chief else None

    @property
    def step(self):
        """Steps done so far, over all epochs."""
        return steps_taken(self.model)

    @property
    def requests(self):
        """Requests trained on so far, over all epochs."""
        epochs, steps = divmod(self.step, self.steps_per_epoch)
        return epochs * self.data.num_requests("train") + steps * self.batch_size

    @property
    def training_seconds(self):
        """Seconds spent in training steps so far, over all interruptions."""
        return float(self._seconds)

    def train(self, epochs):
        """Trains to the end of epoch `epochs`, from where the run stands, and reports.

        Args:
            epochs: int. Number of epochs of the whole run.

        Returns:
            int. The exit status, which is that of a signal if one came.

        Raises:
            Diverged: As `fit`.
        """
        if len(self.directory.validation) >= epochs and self.machines.is_chief:
            print(f"{self.directory.path} is trained already; evaluating it")
        try:
            self.fit(epochs)
        except Interrupted as stop:
            print(
                f"\n{stop}: stopped at step {self.step} of {epochs * self.steps_per_epoch}; "
                "the same command goes on from here"
            )
            return 128 + stop.signal_number
        self.report()
        return 0

    def fit(self, epochs):
        """Trains to the end of epoch `epochs`, from where the run stands.

        Args:
            epochs: int. Number of epochs of the whole run.

        Raises:
            Interrupted: On SIGINT or SIGTERM, when a checkpoint is written.
            Diverged: If the loss or what the model predicts is no longer a finite number.
        """
        for epoch in range(epochs):
            if self.step < (epoch + 1) * self.steps_per_epoch:
                self._fit_epoch(epoch, epochs)
                self._save()
                self._validate(epoch)
            elif epoch >= self._validated:
                self._validate(epoch)
            if self.machines.agree(int(self._has_lost_patience(epoch))):
                return

    def _has_lost_patience(self, epoch):
        history = self.directory.validation[: epoch + 1]
        if not self.patience or not self.machines.is_chief or not all(history):
            return False
        chosen = best(history, self.best_by)
        if epoch - chosen < self.patience:
            return False
        print(
            f"no better {self.best_by} of validation since epoch {chosen + 1}: training ends after "
            f"epoch {epoch + 1}"
        )
        return True

    def _save(self):
        self.machines.synchronize(self.model)
        if self.machines.is_chief:
            self._manager.save(checkpoint_number=self.step)

    def _fit_epoch(self, epoch, epochs):
        first_batch = self.step - epoch * self.steps_per_epoch
        if first_batch and self.machines.is_chief:
            print(f"resuming epoch {epoch + 1} of {epochs} at step {first_batch}")
        with Checkpoints(self._save, self.checkpoint_every, self.machines.agree) as checkpoints:
            callbacks = [_Clock(self._seconds), checkpoints]
            if self._scalars:
                callbacks.append(self._scalars)
            with self.data.naming_damage("train"):
                self.machines.fit(
                    self.model, self.data, self.batch_size, self.seed, epoch, first_batch, callbacks
                )

    def _evaluate(self, split, keep):
        correction = self.directory.correction
        return evaluate(
            self.model, self.data, split, self.batch_size, self.machines, keep, correction
        )

    def _validate(self, epoch):
        validated = "validation" in self.data.splits
        result = self._evaluate("validation", self._check_finite) if validated else {}
        if not self.machines.is_chief:
            return
        history = [*self.directory.validation[:epoch], result]
        chosen = epoch  # without a validation split, the last one
        if validated:
            self._tell(result)
            chosen = best(history, self.best_by)
        if chosen == epoch:
            self.directory.save_model(self.model)
        self.directory.write_validation(history)

    def _tell(self, result):
        print(describe("validation", result))
        self._scalars.write({f"validation/{k}": result[k] for k in ("auc", "gauc")}, self.step)
        if math.isnan(result["auc"]) and self.best_by != "log_loss" and not self._told_of_one_class:
            print(
                "validation has labels of one class only, for which no AUC is defined: the best "
                "epoch is chosen by log loss"
            )
            self._told_of_one_class = True

    def _check_finite(self, split, probabilities, *_):
        nan = np.count_nonzero(np.isnan(probabilities))
        if nan:
            raise Diverged(
                f"after step {self.step} the model predicts NaN for {nan:,} of "
                f"{len(probabilities):,} impressions of {split}",
                self.model,
            )

    def report(self):
        """Evaluates the best epoch on every split but train.

        Writes the predictions, then the metrics, which say that the run has ended.
        """
        steps, requests = self.step, self.requests
        # All wait for the chief, which may be writing the model.
        self.machines.gather(np.zeros(1))
        self.model.load_weights(self.directory.model_file)
        keep = self.directory.write_predictions if self.machines.is_chief else None
        splits = {
            split: self._evaluate(split, keep) for split in self.data.splits if split != "train"
        }
        if not self.machines.is_chief:
            return
        reachable = {split: self.data.best_reachable(split) for split in splits}
        oracles = {split: self.data.oracles(split) for split in splits}
        for split, result in splits.items():
            print(describe(split, result, reachable[split], oracles[split]))
        seconds = self.training_seconds
        self.directory.write_metrics(
            {
                "splits": splits,
                "best_reachable": reachable,
                "oracles": oracles,
                "validation_by_epoch": self.directory.validation,
                "steps": steps,
                "training_seconds": seconds,
                "training_requests_per_second": requests / seconds,
                "flags": self.directory.flags,
                **provenance(),
                "command": sys.argv,
            }
        )
        print(f"{self.directory.metrics_file}: {seconds:.0f} s of training, {steps} steps")


class _Clock(keras.callbacks.Callback):
    """Adds the seconds of each step to a variable."""

    def __init__(self, seconds):
        super().__init__()
        self._seconds = seconds

    def on_train_begin(self, logs=None):
        self._last = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        self._seconds.assign_add(now - self._last)
        self._last = now
