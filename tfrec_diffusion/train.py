"""`python -m tfrec_diffusion.train`: trains a model, resumes what was interrupted, measures it."""

import contextlib
import inspect
import json
import math
import os
import pathlib
import platform
import shutil
import sys
import time

import keras
import numpy as np
import tensorflow as tf

import tfrec_diffusion
from tfrec_diffusion import distribution, flags, models, prepare
from tfrec_diffusion.callbacks import Checkpoints, Interrupted, Scalars
from tfrec_diffusion.evaluate import describe, evaluate
from tfrec_diffusion.input_pipeline import RequestData, find_prepared
from tfrec_diffusion.locking import lock
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam
from tfrec_diffusion.runs import (
    FLAGS_FILE,
    METRICS_FILE,
    MODEL_FILE,
    check_same_data,
    model_file,
)
from tfrec_diffusion.schema import Schema

_RUN_FLAGS = (
    "dataset",
    "data_dir",
    "model",
    "set",
    "batch_size",
    "epochs",
    "learning_rate",
    "history_length",
    "seed",
    "mixed_precision",
    "jit_compile",
    "strategy",
    "steps_per_execution",
    "global_clipnorm",
)


_RESTART_DELAY_SECONDS = 5
_RESTARTS = "TFREC_DIFFUSION_RESTARTS"  # environment: how many without progress, and since when
_MAX_RESTARTS = 10
_SECONDS_FOR_A_CHIEF = 600
# What TensorFlow raises when another process of a run is gone, or back with nothing.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.FailedPreconditionError,
)


class Run:
    """A training run in its directory: where it stands, and how it goes on.

    `model_dir` holds `flags.json`, `schema.json` and `vocabularies/` (so that the model can be
    exported when the data set is gone), `checkpoints/` to resume from, `model.keras` of the epoch
    with the best validation AUC, `validation.json` with each epoch's metrics, `tensorboard/`, and
    at the end `metrics.json`.

    Only the chief writes there; all processes of a run must see it.

    Args:
        model_dir: Directory.
        data: `RequestData`.
        model: A compiled `RankingModel`.
        machines: Those that the model lies on (`distribution.create`).
        batch_size: Requests a step.
        seed: Of the order.
        checkpoint_every: Steps between checkpoints.

    Raises:
        ValueError: If the replicas cannot share `batch_size` out evenly, or another process of the
            run sees another directory there.
    """

    def __init__(self, model_dir, data, model, machines, batch_size, seed, checkpoint_every):
        replicas = machines.strategy.num_replicas_in_sync
        if batch_size % replicas:
            raise ValueError(
                f"`batch_size` must be a multiple of the number of replicas, {replicas}. "
                f"Received: batch_size={batch_size}"
            )
        # A parameter server has a working directory of its own.
        self.directory = pathlib.Path(model_dir).absolute()
        self.data = data
        self.model = model
        self.machines = machines
        self.batch_size = batch_size
        self.seed = seed
        self.checkpoint_every = checkpoint_every
        self.steps_per_epoch = data.num_batches("train", batch_size)
        self._seconds = tf.Variable(0.0, dtype=tf.float64)
        with machines.strategy.scope():
            model.optimizer.build(model.trainable_variables)
        # TensorFlow follows a Keras 3 model to its trainable weights only: no moving averages, no
        # states of random generators.
        state = [*model.variables, *model.optimizer.variables]
        checkpoint = tf.train.Checkpoint(
            state=[variable.value for variable in state], seconds=self._seconds
        )
        self._manager = tf.train.CheckpointManager(
            checkpoint, str(self.directory / "checkpoints"), max_to_keep=2
        )
        if self._manager.latest_checkpoint:
            checkpoint.restore(self._manager.latest_checkpoint).assert_consumed()
        # Looked up before any process goes on to write.
        self._validated = len(self.validation)
        seen = machines.gather(np.array([[self.step, self._validated]]))
        if (seen != seen[0]).any():
            raise ValueError(
                "`model_dir` must be one directory that every machine sees. Received: "
                f"{model_dir}, with steps and epochs done {seen.tolist()}, by worker"
            )
        self._scalars = Scalars(self.directory / "tensorboard") if machines.is_chief else None

    @property
    def step(self):
        """Steps done so far, over all epochs."""
        return int(self.model.optimizer.iterations.numpy())

    @property
    def requests(self):
        """Requests trained on so far, over all epochs."""
        epochs, steps = divmod(self.step, self.steps_per_epoch)
        return epochs * self.data.num_requests("train") + steps * self.batch_size

    @property
    def validation(self):
        """Validation metrics by epoch: a list of dicts."""
        path = self.directory / "validation.json"
        return json.loads(path.read_text()) if path.exists() else []

    @property
    def training_seconds(self):
        """Seconds spent in training steps so far, over all interruptions."""
        return float(self._seconds)

    def fit(self, epochs):
        """Trains to the end of epoch `epochs`, from where the run stands.

        Raises:
            Interrupted: On SIGINT or SIGTERM, when a checkpoint is written.
        """
        for epoch in range(epochs):
            if self.step < (epoch + 1) * self.steps_per_epoch:
                self._fit_epoch(epoch, epochs)
                self._save()
            elif epoch < self._validated:
                continue
            self._validate(epoch)

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
            self.machines.fit(
                self.model, self.data, self.batch_size, self.seed, epoch, first_batch, callbacks
            )

    def _validate(self, epoch):
        result = evaluate(self.model, self.data, "validation", self.batch_size, self.machines)
        if not self.machines.is_chief:
            return
        print(describe("validation", result))
        self._scalars.write({f"validation/{k}": result[k] for k in ("auc", "gauc")}, self.step)
        history = [*self.validation[:epoch], result]
        best = max(range(epoch + 1), key=lambda past: _defined(history[past]["auc"]))
        if best == epoch:
            aside = self.directory / f"incomplete.{MODEL_FILE}"
            self.model.save(aside)
            os.replace(aside, self.directory / MODEL_FILE)
        write_json(self.directory / "validation.json", history)

    def load_best(self):
        """Makes the model that of the best epoch; `step` and `requests` are then those of it.

        Raises:
            FileNotFoundError: As `load_model`.
        """
        # All wait for the chief, which may be writing it.
        self.machines.gather(np.zeros(1))
        self.model.load_weights(model_file(self.directory))


def _defined(auc):
    """An AUC to compare by: that of a split with one class (NaN, null in files) is the worst."""
    return -1.0 if auc is None or math.isnan(auc) else auc


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


def write_json(path, value):
    """Writes JSON so that `path` is old or new, never half of it; NaN is null, as JSON has none."""
    aside = path.with_name(f"incomplete.{path.name}")
    value = json.loads(json.dumps(value), parse_constant=lambda _: None)
    aside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(aside, path)


def claim(model_dir, run_flags, schema):
    """Makes `model_dir` this run's, or checks that it is; `epochs` may change, to train on.

    Args:
        model_dir: Existing directory.
        run_flags: dict of what the result depends on: flags, and numbers of machines.
        schema: `Schema` of the data.

    Raises:
        ValueError: If it holds a run with other flags or other data.
    """
    directory = pathlib.Path(model_dir)
    if (directory / FLAGS_FILE).exists():
        check_claim(model_dir, run_flags, schema)
    else:
        schema.save(directory)
        vocabularies = pathlib.Path(schema.directory, "vocabularies")
        shutil.copytree(vocabularies, directory / "vocabularies", dirs_exist_ok=True)
    write_json(directory / FLAGS_FILE, run_flags)


def check_claim(model_dir, run_flags, schema):
    """Checks that a run in `model_dir` has these flags and data, whatever its `epochs`.

    Raises:
        FileNotFoundError: If there is no run: the chief of this one has claimed another directory.
        ValueError: As `claim`.
    """
    path = pathlib.Path(model_dir, FLAGS_FILE)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing, which the chief has written: expected a --model_dir that every "
            "machine sees"
        )
    before = json.loads(path.read_text())
    changed = [
        f"{'--' if name in _RUN_FLAGS else ''}{name}={value} (was {before[name]})"
        for name, value in run_flags.items()
        if name != "epochs" and before.get(name, value) != value
    ]
    if changed:
        raise ValueError(
            f"{model_dir} holds a run with other flags; give another --model_dir or the same "
            f"flags. Received: {', '.join(changed)}"
        )
    check_same_data(Schema.load(model_dir), schema)


def if_all_may(machines, action):
    """Does something that a process may refuse; then all end, as none may wait for another.

    Raises:
        ValueError, OSError: What `action` raises, or that another process's did.
    """
    refusal = None
    try:
        action()
    except (ValueError, OSError) as error:
        refusal = error
    refused = machines.agree(int(refusal is not None))
    if refusal:
        raise refusal
    if refused:
        raise ValueError("another machine of the run has refused to start: its output says why")


def find_data(dataset, data_dir):
    """Directory of the data set; the synthetic one is made if it is not there yet."""
    try:
        return find_prepared(data_dir, dataset)
    except FileNotFoundError:
        if dataset != "synthetic":
            raise
        return prepare.prepare(dataset, raw_dir=None, data_dir=data_dir)


def main(values):
    if distribution.is_served(values.strategy):
        return serve(values.model_dir)
    try:
        return train(values)
    except _LOST as error:
        if values.strategy in ("one", "mirrored"):
            raise
        start_again(error, values.model_dir)


def serve(model_dir):
    """Works for the chief of a run until it has written the run's metrics.

    Where they are there already, it waits ten minutes for a chief that trains on.
    """
    claimed, metrics = (pathlib.Path(model_dir, name) for name in (FLAGS_FILE, METRICS_FILE))
    started = time.time()

    def is_over():
        if not metrics.exists() or metrics.stat().st_mtime < claimed.stat().st_mtime:
            return False
        return metrics.stat().st_mtime > started or time.time() > started + _SECONDS_FOR_A_CHIEF

    print(f"ready; ends when the chief has written {metrics}", flush=True)
    distribution.serve(is_over)


def start_again(error, model_dir):
    """Starts this process anew, to go on from the last checkpoint when all machines are there.

    Raises:
        tf.errors.OpError: `error`, after as many times without a new checkpoint.
    """
    checkpoint = str(tf.train.latest_checkpoint(pathlib.Path(model_dir, "checkpoints")))
    restarts, since = json.loads(os.environ.get(_RESTARTS, '[0, ""]'))
    restarts = restarts + 1 if since == checkpoint else 1
    if restarts > _MAX_RESTARTS:
        raise error
    print(
        f"\nlost a machine of the run ({type(error).__name__}): starting again, to go on from the "
        "last checkpoint when all are there",
        file=sys.stderr,
    )
    time.sleep(_RESTART_DELAY_SECONDS)
    os.environ[_RESTARTS] = json.dumps([restarts, checkpoint])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def train(values):
    """Trains, resumes or evaluates a run; the exit status."""
    machines = distribution.create(values.strategy)
    run_flags = {name: getattr(values, name) for name in _RUN_FLAGS}
    run_flags["data_dir"] = os.path.abspath(values.data_dir)
    run_flags |= machines.layout
    settings = flags.settings(values.set, models.get(values.model))
    # The chief alone makes what is not there.
    if_all_may(machines, lambda: machines.is_chief and find_data(values.dataset, values.data_dir))
    data = RequestData(find_data(values.dataset, values.data_dir), values.history_length)
    if "curriculum_steps" in inspect.signature(models.get(values.model)).parameters:
        steps = values.epochs * data.num_batches("train", values.batch_size)
        settings.setdefault("curriculum_steps", steps)
    dtype = "mixed_bfloat16" if values.mixed_precision else "float32"
    keras.utils.set_random_seed(values.seed)
    with machines.strategy.scope():
        model = models.create(values.model, schema=data.schema, dtype=dtype, **settings)
        model.compile(
            LazyAdam(values.learning_rate, global_clipnorm=values.global_clipnorm),
            LogLoss(),
            weighted_metrics=[keras.metrics.AUC(name="auc")],
            steps_per_execution=values.steps_per_execution or machines.steps_per_execution,
            jit_compile=values.jit_compile and machines.jit_compile,
        )
    with contextlib.ExitStack() as claimed:

        def claim_for_all():
            os.makedirs(values.model_dir, exist_ok=True)
            claimed.enter_context(lock(values.model_dir, "training in"))
            claim(values.model_dir, run_flags, data.schema)

        if_all_may(machines, claim_for_all if machines.is_chief else lambda: None)
        if_all_may(machines, lambda: check_claim(values.model_dir, run_flags, data.schema))
        run = Run(
            values.model_dir, data, model, machines,
            values.batch_size, values.seed, values.checkpoint_every,
        )  # fmt: skip
        return finish(run, values.epochs, run_flags)


def finish(run, epochs, run_flags):
    """Trains to the end and reports; the exit status, which is that of a signal if one came."""
    if len(run.validation) >= epochs and run.machines.is_chief:
        print(f"{run.directory} is trained already; evaluating it")
    try:
        run.fit(epochs)
    except Interrupted as stop:
        print(
            f"\n{stop}: stopped at step {run.step} of {epochs * run.steps_per_epoch}; "
            "the same command goes on from here"
        )
        return 128 + stop.signal_number
    report(run, run_flags)
    return 0


def report(run, run_flags):
    """Evaluates the best epoch on every split but train; prints and writes `metrics.json`."""
    steps, requests = run.step, run.requests
    run.load_best()
    splits = {}
    for split in run.data.splits:
        if split != "train":
            splits[split] = evaluate(run.model, run.data, split, run.batch_size, run.machines)
    if not run.machines.is_chief:
        return
    for split, result in splits.items():
        print(describe(split, result, run.data.best_reachable(split)))
    seconds = run.training_seconds
    write_json(
        run.directory / METRICS_FILE,
        {
            "splits": splits,
            "best_reachable": {s: run.data.best_reachable(s) for s in splits},
            "validation_by_epoch": run.validation,
            "steps": steps,
            "training_seconds": seconds,
            "training_requests_per_second": requests / seconds,
            "flags": run_flags,
            "versions": {
                "tfrec_diffusion": tfrec_diffusion.__version__,
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "python": platform.python_version(),
            },
            "command": sys.argv,
        },
    )
    print(f"{run.directory / METRICS_FILE}: {seconds:.0f} s of training, {steps} steps")


if __name__ == "__main__":
    flags.run(main, flags.train)
