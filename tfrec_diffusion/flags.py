"""Every absl flag, in one place, and how a command turns them into one clear line when wrong."""

import ast
import inspect
import sys

import tensorflow as tf
from absl import flags

from tfrec_diffusion import datasets, distribution, models
from tfrec_diffusion.datasets import requests

# Arguments that flags of their own give.
_NOT_SET = {"schema", "dtype", "raw_dir", "data_dir"}


def prepare(values):
    """Flags of `python -m tfrec_diffusion.prepare`."""
    _dataset(values)
    flags.DEFINE_string(
        "raw_dir", None, "directory of the raw files, as published", flag_values=values
    )
    flags.DEFINE_multi_string(
        "set", [], "name=value: an option of the data set; repeat it", flag_values=values
    )
    flags.DEFINE_boolean(
        "overwrite", False, "prepare again what is prepared already", flag_values=values
    )
    default = requests.Preparation()
    flags.DEFINE_enum(
        "group_by", default.group_by, requests.GROUPINGS,
        "request: one record for impressions that differ in their candidates only",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "max_bad_rows", default.max_bad_rows, "share of a raw file's rows that may be bad",
        0.0, 1.0, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "workers", default.workers, "processes of this machine that encode", 1, flag_values=values
    )
    flags.DEFINE_multi_string(
        "beam_options", [], "an option of Apache Beam, which then encodes and writes; repeat it",
        flag_values=values,
    )  # fmt: skip


def train(values):
    """Flags of `python -m tfrec_diffusion.train`."""
    _dataset(values)
    _model_dir(values)
    flags.DEFINE_string("model", "din", f"one of {sorted(models.MODELS)}", flag_values=values)
    flags.DEFINE_multi_string(
        "set", [], "name=value: a constructor argument of the model; repeat it", flag_values=values
    )
    _batch_size(values)
    flags.DEFINE_integer("epochs", 1, "passes over the training split", 1, flag_values=values)
    flags.DEFINE_float("learning_rate", 1e-3, "of Adam", 0.0, flag_values=values)
    flags.DEFINE_integer(
        "history_length", None, "newest behaviors to keep; default: as prepared", 1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("seed", 0, "of weights, order and noise", 0, flag_values=values)
    flags.DEFINE_boolean(
        "mixed_precision", False, "compute in bfloat16, keep weights in float32", flag_values=values
    )
    flags.DEFINE_boolean(
        "jit_compile", True,
        "compile the forward and backward pass with XLA; never with parameter servers",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "strategy", "one", distribution.STRATEGIES,
        "one device, all GPUs of this machine, or the machines of TF_CONFIG: workers that take "
        "every step together, or parameter servers with workers that take their own",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "steps_per_execution", None,
        "steps between two looks at progress, signals and checkpoints; default: 1, with "
        "multi_worker 10, with parameter_server 64 and records shuffled within as many batches", 1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "global_clipnorm", None, "the most that the norm of all gradients together may be",
        sys.float_info.min, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "checkpoint_every", 1000, "steps between checkpoints to resume from", 1, flag_values=values
    )


def evaluate(values):
    """Flags of `python -m tfrec_diffusion.evaluate`."""
    _model_dir(values)
    flags.DEFINE_string("split", "test", "a split of the data set", flag_values=values)
    flags.DEFINE_string(
        "data_dir", None, "of prepared data sets; default: where the model was trained from",
        flag_values=values,
    )  # fmt: skip
    _batch_size(values)


def export(values):
    """Flags of `python -m tfrec_diffusion.export`."""
    _model_dir(values)
    flags.DEFINE_string(
        "export_dir", None, "where TF Serving looks: the export is its next numbered directory",
        required=True, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "correct_negative_sampling", False, "serve the click probability among all impressions, "
        "not among those that the data set's `negative_rate` kept", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "mixed_precision", False, "compute in bfloat16 whatever the training did, for a GPU",
        flag_values=values,
    )  # fmt: skip


def _dataset(values):
    names = f"one of {datasets.names()}; once prepared, logs/<name of the spec file>"
    flags.DEFINE_string("dataset", None, names, required=True, flag_values=values)
    flags.DEFINE_string("data_dir", "data", "directory of prepared data sets", flag_values=values)


def _model_dir(values):
    flags.DEFINE_string(
        "model_dir", None, "directory of one trained model", required=True, flag_values=values
    )


def _batch_size(values):
    flags.DEFINE_integer(
        "batch_size", 256, "requests a step, over all devices", 1, flag_values=values
    )


def run(main, define, argv=None):
    """Parses a command's flags, calls `main(values)` and exits.

    Wrong flags, and `ValueError`s, `OSError`s and TensorFlow's own errors (wrong or damaged input),
    end in one line on stderr and exit status 2, unless `--traceback` asks for more.

    Args:
        main: Called with the parsed `absl.flags.FlagValues`; may return an exit status.
        define: One of this module's functions, which defines the command's flags.
        argv: Default `sys.argv`.
    """
    values = flags.FlagValues()
    define(values)
    flags.DEFINE_boolean("traceback", False, "show where an error came from", flag_values=values)
    try:
        rest = _parse(values, argv or sys.argv)
        if rest:
            raise flags.Error(f"expected flags (--name=value) only. Received: {' '.join(rest)}")
        sys.exit(main(values))
    except KeyboardInterrupt:
        sys.exit(130)
    except (flags.Error, ValueError, OSError, tf.errors.OpError) as error:
        if values.is_parsed() and values.traceback:
            raise
        sys.exit(_fail(error))


def _parse(values, argv):
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(values.get_help())
        sys.exit(0)
    return values(argv)[1:]


def _fail(error):
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return 2


def settings(assignments, function):
    """Turns `["name=value", ...]` into keyword arguments of `function`.

    Args:
        assignments: What `--set` was given. A value is read as a Python literal
            (`0.5`, `80,40`, `True`, `None`), else as a string.
        function: A class or function; its keyword arguments with defaults are the valid names.

    Raises:
        ValueError: On a name that `function` does not have; it lists those it has.
    """
    valid = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name not in _NOT_SET
    }
    chosen = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator or name not in valid:
            listing = ", ".join(f"{n}={default!r}" for n, default in valid.items())
            raise ValueError(
                f"--set takes name=value with one of: {listing}. Received: --set={assignment}"
            )
        try:
            chosen[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):
            chosen[name] = value
    return chosen
