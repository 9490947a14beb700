"""`python -m tfrec_diffusion.evaluate`: exact metrics of a trained model on one split."""

import json
import pathlib
import time

import keras
import numpy as np

import tfrec_diffusion.models  # noqa: F401  registers the classes that a model file names
from tfrec_diffusion import flags, metrics
from tfrec_diffusion.input_pipeline import RequestData, find_prepared
from tfrec_diffusion.schema import Schema

MODEL_FILE = "model.keras"
FLAGS_FILE = "flags.json"


def evaluate(model, data, split, batch_size):
    """Scores a split and compares with its labels; shows a progress bar.

    Args:
        model: `RankingModel`.
        data: `RequestData`.
        split: One of `data.splits`.
        batch_size: Requests in a batch.

    Returns:
        dict of `auc`, `gauc` (by user, weighted by impressions), `log_loss`, `impressions`,
        `click_rate`, `seconds`, `samples_per_second`.
    """
    start = time.perf_counter()
    progress = keras.utils.Progbar(data.num_batches(split, batch_size))
    scores, labels, groups = [], [], []
    for features, label, weight, group_id in data.batches(split, batch_size, with_group_id=True):
        real = weight.numpy() > 0
        scores.append(model.predict_on_batch(features)[real])
        labels.append(label.numpy()[real])
        groups.append(np.repeat(group_id.numpy(), real.sum(axis=1)))
        progress.add(1)
    seconds = time.perf_counter() - start
    scores, labels, groups = (np.concatenate(parts) for parts in (scores, labels, groups))
    return {
        "auc": metrics.auc(labels, scores),
        "gauc": metrics.gauc(labels, scores, groups),
        "log_loss": metrics.log_loss(labels, scores),
        "impressions": len(labels),
        "click_rate": float(labels.mean()),
        "seconds": seconds,
        "samples_per_second": len(labels) / seconds,
    }


def describe(split, result, reachable=None):
    """One line on an `evaluate` result, beside the best that the data allow where that is known."""
    line = "  ".join(f"{name} {result[name]:.4f}" for name in ("auc", "gauc", "log_loss"))
    line = f"{split}: {line}  ({result['impressions']} impressions)"
    if reachable:
        line += f"  best reachable: auc {reachable['auc']:.4f}  gauc {reachable['gauc']:.4f}"
    return line


def load_model(model_dir):
    """The best checkpoint of a training run.

    Raises:
        FileNotFoundError: If `model_dir` holds none.
    """
    path = pathlib.Path(model_dir) / MODEL_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: expected a --model_dir that `python -m tfrec_diffusion.train` "
            "has finished an epoch in"
        )
    return keras.models.load_model(path, compile=False)


def load_run(model_dir, data_dir=None):
    """The best checkpoint of a training run, and the data set that it was trained on.

    Args:
        model_dir: Of `python -m tfrec_diffusion.train`.
        data_dir: Of prepared data sets; `None`: where the model was trained from.

    Returns:
        `RankingModel` and `RequestData`.

    Raises:
        FileNotFoundError: If there is no such run, or no such data set.
        ValueError: If the data set means something else than what was trained on.
    """
    model = load_model(model_dir)
    trained = json.loads((pathlib.Path(model_dir) / FLAGS_FILE).read_text())
    directory = find_prepared(data_dir or trained["data_dir"], trained["dataset"])
    data = RequestData(directory, model.schema.history_length)
    check_same_data(Schema.load(model_dir), data.schema)
    return model, data


def check_same_data(of_model, of_data):
    """Checks that a data set's requests mean what they meant in training.

    Args:
        of_model: `Schema` as the model directory has it.
        of_data: `Schema` of the data set.

    Raises:
        ValueError: If the schemas or vocabularies differ.
    """
    if of_model != of_data or of_model.digest() != of_data.digest():
        raise ValueError(
            f"{of_model.directory} was trained on other data: its schema or vocabularies differ "
            f"from those in {of_data.directory}"
        )


def main(values):
    model, data = load_run(values.model_dir, values.data_dir)
    result = evaluate(model, data, values.split, values.batch_size)
    print(describe(values.split, result, data.best_reachable(values.split)))


if __name__ == "__main__":
    flags.run(main, flags.evaluate)
