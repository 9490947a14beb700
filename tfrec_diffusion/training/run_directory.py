"""What a training run leaves in its directory, and what may go on from there."""

import functools
import json
import os
import pathlib
import shutil
from typing import NamedTuple

import keras
import numpy as np

import tfrec_diffusion.models  # noqa: F401  registers the classes that a model file names
from tfrec_diffusion.calibration import undo_positive_weight
from tfrec_diffusion.files import write_json, written_aside
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.prepared_directory import find_prepared
from tfrec_diffusion.schema import Schema

# What flags were before there were such flags, which older runs do not have.
_BEFORE = {
    "label": "",
    "schedule": "constant",
    "warmup_steps": 0,
    "table_decay": 0.0,
    "positive_weight": 1.0,
    "warm_start": "",
    "warm_start_optimizer": False,
    "best_by": "auc",
    "patience": 0,
}
_FLAGS_FILE = "flags.json"
_METRICS_FILE = "metrics.json"
_MODEL_FILE = "model.keras"
_VALIDATION_FILE = "validation.json"


# A comparison of many tables asks for the same runs thousands of times.
_parsed = functools.cache(json.loads)


class Predictions(NamedTuple):
    """What a model predicted of a split, and what was true.

    Args:
        probabilities: float32 array of shape (impressions,). Click probabilities.
        labels: int8 array of shape (impressions,).
        groups: int64 array of shape (impressions,). Id of each impression's user.
        weights: float32 array of shape (impressions,), or `None` where each counts 1. Defaults to
            `None`.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    weights: np.ndarray | None = None


class RunDirectory:
    """The directory of one training run.

    It holds `flags.json`, what the result depends on; `schema.json` and `vocabularies/`, so that
    the model can be exported when the data set is gone; `checkpoints/` to resume from;
    `validation.json`, the metrics of each epoch; `model.keras` of the epoch that is best by the
    metric of validation that the run goes by (`metrics.best`), or of the last one without a
    validation split; `tensorboard/`; and, when the run has ended, `predictions.<split>.npz` of
    every split but `train`, and `metrics.json`.

    Args:
        path: str or `pathlib.Path`.
    """

    def __init__(self, path):
        # Absolute, because a parameter server has a working directory of its own.
        self.path = pathlib.Path(path).absolute()

    @property
    def checkpoints(self):
        """`pathlib.Path` of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def has_checkpoint(self):
        """bool. Whether there is a checkpoint to resume from."""
        return (self.checkpoints / "checkpoint").exists()

    @property
    def tensorboard(self):
        """`pathlib.Path` of TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def metrics_file(self):
        """`pathlib.Path` of the metrics, which are there when the run has ended."""
        return self.path / _METRICS_FILE

    # What a run was started with

    def claim(self, flags, layout, schema):
        """Makes the directory a run's, or checks that it is; `epochs` may change, to train on.

        Args:
            flags: dict. The flags that the result depends on.
            layout: dict. What else it depends on, such as the number of machines.
            schema: `Schema` of the data.

        Raises:
            ValueError: If it holds a run with other flags or other data.
        """
        if (self.path / _FLAGS_FILE).exists():
            self.check_claim(flags, layout, schema)
        else:
            schema.save(self.path)
            if any(table.kind == "vocabulary" for table in schema.tables):
                vocabularies = pathlib.Path(schema.directory, "vocabularies")
                shutil.copytree(vocabularies, self.path / "vocabularies", dirs_exist_ok=True)
        write_json(self.path / _FLAGS_FILE, {**flags, **layout})

    def check_claim(self, flags, layout, schema):
        """Checks that the run has these flags and data, whatever its `epochs`.

        Args:
            flags: dict. As in `claim`.
            layout: dict. As in `claim`.
            schema: `Schema`. As in `claim`.

        Raises:
            FileNotFoundError: If there is no run here, because the chief has claimed another
                directory.
            ValueError: As `claim`.
        """
        path = self.path / _FLAGS_FILE
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing, which the chief has written: expected a --model_dir that "
                "every machine sees"
            )
        before = self.flags
        changed = [
            f"{'--' if name in flags else ''}{name}={value} (was {before[name]})"
            for name, value in {**flags, **layout}.items()
            if name != "epochs" and before.get(name, value) != value
        ]
        if changed:
            raise ValueError(
                f"{self.path} holds a run with other flags; give another --model_dir or the same "
                f"flags. Received: {', '.join(changed)}"
            )
        check_same_data(self.schema, schema)

    @property
    def flags(self):
        """dict of what the run was started with."""
        return {**_BEFORE, **json.loads((self.path / _FLAGS_FILE).read_text())}

    @property
    def correction(self):
        """`Calibration` that undoes the weight of positives in the loss, or `None`."""
        return undo_positive_weight(self.flags["positive_weight"])

    @property
    def schema(self):
        """`Schema` of the data that the run was trained on, with its vocabularies."""
        return Schema.load(self.path)

    @property
    def claimed_at(self):
        """When the run was last started, in seconds since 1970, or `None`."""
        return _modified(self.path / _FLAGS_FILE)

    # What it has found

    @property
    def validation(self):
        """Validation metrics by epoch: a list of dicts."""
        path = self.path / _VALIDATION_FILE
        return json.loads(path.read_text()) if path.exists() else []

    def write_validation(self, metrics_by_epoch):
        """Writes `validation.json`.

        Args:
            metrics_by_epoch: list of dict.
        """
        write_json(self.path / _VALIDATION_FILE, metrics_by_epoch)

    def predictions_file(self, split):
        """`pathlib.Path` of the predictions of a split.

        Args:
            split: str.
        """
        return self.path / f"predictions.{split}.npz"

    def predictions(self, split):
        """What the model of the best epoch predicts of a split.

        Args:
            split: str.

        Returns:
            `Predictions`, or `None` if they have not been written.
        """
        path = self.predictions_file(split)
        if not path.exists():
            return None
        with np.load(path) as columns:
            return Predictions(**columns)

    def write_predictions(self, split, probabilities, labels, groups, weights=None):
        """Writes the predictions of a split, in its order.

        Args:
            split: str.
            probabilities: float array of shape (impressions,). Click probabilities.
            labels: array of shape (impressions,). 0 or 1.
            groups: int array of shape (impressions,). Id of each impression's user.
            weights: float array of shape (impressions,), or `None`. How much each counts. Defaults
                to `None`.
        """
        weighted = {} if weights is None else {"weights": np.asarray(weights, np.float32)}
        with written_aside(self.predictions_file(split)) as aside:
            np.savez_compressed(
                aside,
                probabilities=np.asarray(probabilities, np.float32),
                labels=np.asarray(labels, np.int8),
                groups=np.asarray(groups, np.int64),
                **weighted,
            )

    @property
    def metrics(self):
        """dict of `metrics.json`, or `None` before the run has ended."""
        return json.loads(self.metrics_file.read_text()) if self.metrics_file.exists() else None

    def metrics_of(self, flags):
        """The metrics of a run that was trained to the end with just these flags.

        Args:
            flags: list of str. Flags of `tfrec_diffusion.train`, in their order.

        Returns:
            dict as `metrics`, which is shared and must not be changed; or `None`.
        """
        if not self.metrics_file.exists():
            return None
        metrics = _parsed(self.metrics_file.read_text())
        return metrics if metrics["command"][1:] == flags else None

    def write_metrics(self, metrics):
        """Writes `metrics.json`, which says that the run has ended.

        Args:
            metrics: dict.
        """
        write_json(self.metrics_file, metrics)

    @property
    def ended_at(self):
        """When the run last ended, in seconds since 1970, or `None`."""
        return _modified(self.metrics_file)

    # Its model

    def save_model(self, model):
        """Writes `model.keras`.

        Args:
            model: `RankingModel`.
        """
        with written_aside(self.path / _MODEL_FILE) as aside:
            model.save(aside)

    @property
    def model_file(self):
        """`pathlib.Path` of the model of the best epoch.

        Raises:
            FileNotFoundError: If there is none.
        """
        path = self.path / _MODEL_FILE
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: expected a --model_dir that `python -m tfrec_diffusion.train` "
                "has finished an epoch in"
            )
        return path

    def load_model(self):
        """The model of the best epoch.

        Returns:
            `RankingModel`, not compiled.

        Raises:
            FileNotFoundError: As `model_file`.
            ValueError: If this version of the package cannot read it.
        """
        path = self.model_file
        try:
            return keras.models.load_model(path, compile=False)
        except (ValueError, TypeError) as error:
            versions = (self.metrics or {}).get("versions", {})
            made_by = versions.get("tfrec_diffusion", "unknown")
            raise ValueError(
                f"{path} cannot be read; it was written by version {made_by} of tfrec_diffusion: "
                f"{error}"
            ) from error

    def check_own_data(self, data, table_dtype="float32"):
        """Checks that what is predicted is a result of the run: of its data, with its tables.

        Args:
            data: `RequestData`, as `load_run` returns it.
            table_dtype: str. Dtype of the tables. Defaults to `"float32"`.

        Raises:
            ValueError: If it is not.
        """
        if table_dtype != "float32":
            raise ValueError(f"{self.path} keeps predictions of --table_dtype=float32 only")
        trained = self.flags["data_dir"]
        parents = pathlib.Path(os.path.abspath(data.directory)).parents
        if data.row_maps or pathlib.Path(trained) not in parents:
            raise ValueError(
                f"{self.path} keeps predictions of the data that it was trained on, in {trained}. "
                f"Received: {data.directory}"
            )

    def load_run(self, data_dir=None):
        """The model of the best epoch, and the data set that it was trained on.

        Args:
            data_dir: str or `None`. Directory of prepared data sets. If `None`, where the model was
                trained from. Defaults to `None`.

        Returns:
            `RankingModel` and `RequestData`.

        Raises:
            FileNotFoundError: If there is no such run, or no such data set.
            ValueError: If the data set means something else than what was trained on; its
                vocabularies may be others.
        """
        model = self.load_model()
        trained = self.flags
        directory = find_prepared(data_dir or trained["data_dir"], trained["dataset"])
        data = RequestData(
            directory, model.schema.history_length, trained["label"], read_as=self.schema
        )
        return model, data


def check_same_data(of_model, of_data):
    """Checks that a data set's requests mean what they meant in training.

    Args:
        of_model: `Schema` as the run's directory has it.
        of_data: `Schema` of the data set.

    Raises:
        ValueError: If the schemas or vocabularies differ.
    """
    one, other = of_model.get_config(), of_data.get_config()
    differing = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    if not differing and of_model.digest() != of_data.digest():
        differing = ["vocabularies"]
    if differing:
        raise ValueError(
            f"{of_model.directory} was trained on other data than {of_data.directory}: "
            f"they differ in {', '.join(differing)}"
        )


def _modified(path):
    return path.stat().st_mtime if path.exists() else None
