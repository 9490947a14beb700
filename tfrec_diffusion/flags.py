"""The flags of the commands, in one place, known without importing TensorFlow.

Tools define those that they share with a command by the same functions.
"""

import sys

from absl import flags

from tfrec_diffusion import names


def prepare(values):
    """Flags of `python -m tfrec_diffusion.prepare`."""
    flags.DEFINE_enum(
        "dataset", None, sorted(names.DATASETS), "the data set to prepare", required=True,
        flag_values=values,
    )  # fmt: skip
    _data_dir(values)
    flags.DEFINE_string(
        "raw_dir", None, "directory of the raw files, as published", flag_values=values
    )
    flags.DEFINE_multi_string(
        "set", [], "name=value: an option of the data set; repeat it", flag_values=values
    )
    flags.DEFINE_boolean(
        "overwrite", False, "prepare again what is prepared already", flag_values=values
    )
    _encoding(values)
    flags.DEFINE_string(
        "like", None, "directory of a trained model, by whose vocabularies, boundaries and means "
        "the data set `logs` is encoded", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "grow", False, "with --like: values that the model does not know get rows if they occur "
        "often enough", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "forget", None, "with --grow: days after which a value that did not occur may lose its row "
        "to a new one; default: never", 1, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_multi_string(
        "beam_options", [], "an option of Apache Beam, which then encodes and writes; repeat it",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "draft_spec", None, "write a first spec file of the tables of --raw_dir there, and prepare "
        "nothing", flag_values=values,
    )  # fmt: skip
    flags.register_multi_flags_validator(
        ["draft_spec", "dataset", "raw_dir"],
        lambda given: given["draft_spec"] is None
        or (given["draft_spec"] and given["dataset"] == "logs" and given["raw_dir"]),
        "--draft_spec needs a path, --dataset=logs and --raw_dir", flag_values=values,
    )  # fmt: skip


def train(values):
    """Flags of `python -m tfrec_diffusion.train`."""
    _prepared(values)
    _label(values)
    _model_dir(values)
    flags.DEFINE_enum(
        "model", "din", sorted(names.MODELS), "the model to train", flag_values=values
    )
    model_settings(values)
    batch_size(values)
    flags.DEFINE_integer("epochs", 1, "passes over the training split", 1, flag_values=values)
    flags.DEFINE_float("learning_rate", 1e-3, "of Adam", 0.0, flag_values=values)
    flags.DEFINE_enum(
        "schedule", "constant", names.SCHEDULES,
        "whether the learning rate stays, or falls to 0 over all epochs", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "warmup_steps", 0, "first steps, in which the learning rate rises", 0, flag_values=values
    )
    flags.DEFINE_enum(
        "best_by", "auc", ("auc", "gauc", "log_loss"),
        "the metric of validation by which the best epoch is kept", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "patience", 0, "epochs without a better one after which training ends; 0: never", 0,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "table_decay", 0.0, "how much of themselves, times the learning rate, the embedding rows "
        "of a batch lose in a step", 0.0, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "positive_weight", 1.0, "how many times the loss of a click counts; probabilities are "
        "corrected for it, in evaluation and in exports", sys.float_info.min, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "table_learning_rate_factor", 1.0, "learning rate of embedding tables as a multiple of "
        "--learning_rate", 0.0, flag_values=values,
    )  # fmt: skip
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
        "strategy", "one", names.STRATEGIES,
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
    flags.DEFINE_string(
        "warm_start", "", "directory of a trained run of the same model, whose weights to start "
        "with; its vocabularies may be others", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "warm_start_optimizer", False, "start with that run's moments of Adam as well",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "checkpoint_every", 1000, "steps between checkpoints to resume from", 1, flag_values=values
    )


def evaluate(values):
    """Flags of `python -m tfrec_diffusion.evaluate`."""
    trained_model(values)
    _table_dtype(values)
    batch_size(values)
    flags.DEFINE_boolean(
        "write_predictions", False, "write them into --model_dir, where compare looks for them; "
        "only needed after older trainings, which did not", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "picture", None, "reliability diagram to write; its points: .csv beside it",
        flag_values=values,
    )  # fmt: skip


def predict(values):
    """Flags of `python -m tfrec_diffusion.predict`."""
    _model_dir(values)
    flags.DEFINE_string(
        "spec", None, "spec file of the log, as of the data set `logs`; what it says of splits and "
        "labels does not matter", required=True, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("raw_dir", None, "directory of the log", required=True, flag_values=values)
    flags.DEFINE_string("output", None, "directory to write", required=True, flag_values=values)
    flags.DEFINE_enum("format", "parquet", ("parquet", "csv"), "of the files", flag_values=values)
    _encoding(values)
    batch_size(values)


def export(values):
    """Flags of `python -m tfrec_diffusion.export`."""
    _model_dir(values)
    flags.DEFINE_string(
        "export_dir", None, "where TF Serving looks: the export is its next numbered directory",
        required=True, flag_values=values,
    )  # fmt: skip
    _table_dtype(values)
    flags.DEFINE_integer(
        "version", None, "number of that directory, such as a date; default: the next one", 1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "correct_negative_sampling", False, "serve the click probability among all impressions, "
        "not among those that the data set's `negative_rate` kept", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "calibrate", None, names.CALIBRATIONS, "serve probabilities scaled so that those of "
        "validation fit its labels best: sigmoid(a logit(p)), or platt: sigmoid(a logit(p) + b)",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "mixed_precision", False, "compute in bfloat16 whatever the training did, for a GPU",
        flag_values=values,
    )  # fmt: skip


def inspect(values):
    """Flags of `python -m tfrec_diffusion.inspect`."""
    _prepared(values)
    _label(values)
    flags.DEFINE_string("split", None, "a split; default: all", flag_values=values)
    flags.DEFINE_integer("requests", 3, "to show of the first split", 0, flag_values=values)
    flags.DEFINE_string(
        "picture", "inspect.png", "file to write; its data: .csv beside it", flag_values=values
    )


def compare(values):
    """Flags of `python -m tfrec_diffusion.compare`; what follows `--` are flags of `train`."""
    flags.DEFINE_string(
        "model_dir", None, "directory of the runs", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "comparison", None, "JSON file of rows, data sets, what to tune, tables and claims; see "
        "experiments/comparison.json and paper_tables.json", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_multi_string(
        "run", None, "instead of --comparison, a row: a model, its arguments (name=value) and "
        "flags of train; repeat it", flag_values=values,
    )  # fmt: skip
    flags.mark_flags_as_mutual_exclusive(["comparison", "run"], required=True, flag_values=values)
    flags.DEFINE_list("rows", None, "names in --comparison; default: all", flag_values=values)
    flags.DEFINE_list("datasets", None, "names in --comparison; default: all", flag_values=values)
    flags.register_multi_flags_validator(
        ["comparison", "rows", "datasets"],
        lambda given: given["comparison"] or not (given["rows"] or given["datasets"]),
        "--rows and --datasets choose from a --comparison", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list(
        "learning_rates", None, "to choose from by the validation AUC of seed 0; default: those of "
        "--comparison, and with --run none: each row's flags say", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("seeds", 3, "number of seeds, from 0", 2, flag_values=values)
    flags.DEFINE_integer("jobs", 1, "trainings at a time", 1, flag_values=values)
    flags.DEFINE_list(
        "splits", ["test"], "splits in the tables that do not say, or all", flag_values=values
    )
    flags.DEFINE_string(
        "output", None, "Markdown file to write; default: compare.md in --model_dir",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "picture", None, "file to write; default: .png beside --output; those of named tables lie "
        "in a directory called after it", flag_values=values,
    )  # fmt: skip


def tune(values):
    """Flags of `python -m tfrec_diffusion.tune`; what follows `--` are flags of `train`."""
    flags.DEFINE_string(
        "search", None, "JSON file of what to search and among which values; see "
        "experiments/planted_search.json", required=True, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "tune_dir", None, "directory of the trials and results", required=True, flag_values=values
    )
    flags.DEFINE_integer(
        "trials", None, "number of trials, with those of earlier commands; default: 30, or all of "
        "a grid", 1, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("jobs", 1, "trials at a time", 1, flag_values=values)
    flags.DEFINE_float(
        "timeout", None, "seconds until the command stops; the same command goes on then; default: "
        "no limit", sys.float_info.min, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "retry_failed", False, "try trials that failed in earlier commands again",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("seed", 0, "of what is proposed", 0, flag_values=values)


def _prepared(values):
    plain = sorted(names.DATASETS.keys() - {"logs", "clustered"})
    flags.DEFINE_string(
        "dataset", None, f"a prepared data set: one of {plain}, logs/<name of the spec file> or "
        "clustered/<name of the data set that was clustered>", required=True, flag_values=values,
    )  # fmt: skip
    _data_dir(values)


def _table_dtype(values):
    flags.DEFINE_enum(
        "table_dtype", "float32", names.TABLE_DTYPES,
        "of embedding tables at inference: two or four times smaller ones, rounded",
        flag_values=values,
    )  # fmt: skip


def _encoding(values):
    flags.DEFINE_enum(
        "group_by", "impression", names.GROUPINGS,
        "request: one record for impressions that differ in their candidates only",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "max_bad_rows", 0.01, "share of a raw file's rows that may be bad",
        0.0, 1.0, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "workers", 1, "processes of this machine that encode", 1, flag_values=values
    )


def _label(values):
    flags.DEFINE_string(
        "label", "", "which of the data set's labels; default: the first one, which has no name",
        flag_values=values,
    )  # fmt: skip


def _data_dir(values):
    flags.DEFINE_string("data_dir", "data", "directory of prepared data sets", flag_values=values)


def _model_dir(values, model="model"):
    flags.DEFINE_string(
        "model_dir", None, f"directory of one trained {model}", required=True, flag_values=values
    )


# What commands share, and tools with them


def trained_model(values, model="model"):
    """Flags of what looks at a trained model: its directory, and a split of the data.

    Args:
        values: `absl.flags.FlagValues` to define them in.
        model: str. What the help calls it. Defaults to `"model"`.
    """
    _model_dir(values, model)
    flags.DEFINE_string(
        "data_dir", None, "of prepared data sets; default: where the model was trained from",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("split", "test", "a split of the data set", flag_values=values)


def model_settings(values):
    """The flag `--set`.

    Args:
        values: `absl.flags.FlagValues` to define it in.
    """
    flags.DEFINE_multi_string(
        "set", [], "name=value: a constructor argument of the model; repeat it", flag_values=values
    )


def batch_size(values):
    """The flag `--batch_size`.

    Args:
        values: `absl.flags.FlagValues` to define it in.
    """
    flags.DEFINE_integer(
        "batch_size", 256, "requests a step, over all devices", 1, flag_values=values
    )
