"""Starts a run: its machines, data, model and directory put together."""

import contextlib
import inspect
import json
import os
import sys

import keras

from tfrec_diffusion import models
from tfrec_diffusion.files import lock
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.losses import LogLoss
from tfrec_diffusion.optimizers import LazyAdam, Schedule
from tfrec_diffusion.prepared_directory import PreparedDirectory
from tfrec_diffusion.training import cluster, restarts, strategies
from tfrec_diffusion.training.run import Run
from tfrec_diffusion.training.run_directory import RunDirectory
from tfrec_diffusion.training.warm_start import WarmStart

_RESULT_FLAGS = (
    "dataset",
    "data_dir",
    "label",
    "model",
    "set",
    "batch_size",
    "epochs",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "table_learning_rate_factor",
    "table_decay",
    "positive_weight",
    "history_length",
    "seed",
    "mixed_precision",
    "jit_compile",
    "strategy",
    "steps_per_execution",
    "global_clipnorm",
    "warm_start",
    "warm_start_optimizer",
    "best_by",
    "patience",
)


# What a run that started with another's optimizer keeps of it.
_STEPS_BEFORE = "optimizer steps before"


def train(options, model_arguments, find_data):
    """Starts a run or resumes one; in a worker or parameter server, serves the run's chief.

    Args:
        options: The parsed flags of `flags.train`, or an object with the same attributes.
        model_arguments: dict. Constructor arguments of the model.
        find_data: callable. Returns the directory of the prepared data set; the chief calls it
            before all others.

    Returns:
        int or `None`. The exit status.

    Raises:
        ValueError: If an option cannot be used, or the directory holds another run.
        OSError: If the data are missing, or another process trains in the directory.
    """
    directory = RunDirectory(options.model_dir)
    if cluster.is_served(options.strategy):
        return restarts.serve(directory)
    try:
        return _train(options, model_arguments, find_data, directory)
    except restarts.LOST as error:
        if options.strategy in ("one", "mirrored"):
            raise
        restarts.start_again(error, directory)


def _train(options, model_arguments, find_data, directory):
    machines = strategies.create(options.strategy)
    if_all_may(machines, lambda: machines.is_chief and find_data())
    data = RequestData(find_data(), options.history_length, options.label)
    newer = PreparedDirectory(data.directory).newer_raw_files()
    if newer and machines.is_chief:
        print(f"warning: {newer}", file=sys.stderr)
    flags = {name: getattr(options, name) for name in _RESULT_FLAGS}
    flags["data_dir"] = os.path.abspath(options.data_dir)
    model = _compiled_model(options, model_arguments, data, machines)
    layout = {**machines.layout, **_arguments(model)}
    if options.schedule != "constant":  # a run cannot get more epochs than its schedule has
        layout["epochs of the schedule"] = options.epochs
    if options.warm_start:
        flags["warm_start"] = os.path.abspath(options.warm_start)
        if_all_may(
            machines,
            lambda: layout.update(_start_warm(options, model, data, machines, directory)),
        )
    claim = (flags, layout, data.schema)
    with contextlib.ExitStack() as claimed:

        def claim_for_all():
            directory.path.mkdir(parents=True, exist_ok=True)
            claimed.enter_context(lock(directory.path, "training in"))
            directory.claim(*claim)

        if_all_may(machines, lambda: machines.is_chief and claim_for_all())
        if_all_may(machines, lambda: machines.is_chief or directory.check_claim(*claim))
        run = Run(
            directory, data, model, machines,
            options.batch_size, options.seed, options.checkpoint_every, options.best_by,
            options.patience,
        )  # fmt: skip
        return run.train(options.epochs)


def _arguments(model):
    """All constructor arguments of a model, as JSON has them, also those that are its defaults.

    Another version of the package may have other defaults. `curriculum_steps` depend on the epochs,
    of which a run may get more.
    """
    others = ("schema", "name", "dtype", "curriculum_steps")
    config = {name: value for name, value in model.get_config().items() if name not in others}
    return {f"argument {n}": v for n, v in json.loads(json.dumps(config)).items()}


def _compiled_model(options, arguments, data, machines):
    if "curriculum_steps" in inspect.signature(models.get(options.model)).parameters:
        steps = options.epochs * data.num_batches("train", options.batch_size)
        arguments = {"curriculum_steps": steps, **arguments}
    dtype = "mixed_bfloat16" if options.mixed_precision else "float32"
    keras.utils.set_random_seed(options.seed)
    with machines.strategy.scope():
        model = models.create(options.model, schema=data.schema, dtype=dtype, **arguments)
        model.compile(
            LazyAdam(
                _learning_rate(options, data),
                global_clipnorm=options.global_clipnorm,
                table_factor=options.table_learning_rate_factor,
                table_decay=options.table_decay,
            ),
            LogLoss(options.positive_weight),
            weighted_metrics=[keras.metrics.AUC(name="auc")],
            steps_per_execution=options.steps_per_execution or machines.steps_per_execution,
            jit_compile=options.jit_compile and machines.jit_compile,
        )
    return model


def _learning_rate(options, data):
    if options.schedule == "constant" and not options.warmup_steps:
        return options.learning_rate
    steps = options.epochs * data.num_batches("train", options.batch_size)
    return Schedule(options.learning_rate, options.schedule, steps, options.warmup_steps)


def _start_warm(options, model, data, machines, directory):
    """Gives a model the weights of another run; returns what the result then depends on."""
    if options.warm_start_optimizer and options.strategy == "parameter_server":
        raise ValueError(
            "--warm_start_optimizer needs another --strategy than parameter_server, whose tables "
            "lie in parts"
        )
    if directory.has_checkpoint:  # the other run may be gone by now
        steps = directory.flags.get(_STEPS_BEFORE, 0)
        model.optimizer.steps_before = steps
        return {_STEPS_BEFORE: steps}
    warm_start = WarmStart(options.warm_start, data.schema)
    with machines.strategy.scope():
        warm_start.apply(model)
        if options.warm_start_optimizer:
            warm_start.apply_optimizer(model)
    if machines.is_chief:
        new = ", ".join(f"{name} {count:,}" for name, count in warm_start.new_rows.items() if count)
        print(f"starts with the weights of {options.warm_start}; new values: {new or 'none'}")
    return {_STEPS_BEFORE: model.optimizer.steps_before}


def if_all_may(machines, action):
    """Does something that a process may refuse; then all end, as none may wait for another.

    Args:
        machines: `Machines` of the run.
        action: callable.

    Raises:
        ValueError, OSError: What `action` raised here.
        ValueError: If it was refused in another process.
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
