"""`python -m tfrec_diffusion.export`: a trained model as a SavedModel for TF Serving."""

import json
import os
import pathlib
import shutil

import keras
import tensorflow as tf

from tfrec_diffusion import flags
from tfrec_diffusion.locking import lock
from tfrec_diffusion.raw_requests import as_examples, raw_requests
from tfrec_diffusion.runs import METRICS_FILE, load_model
from tfrec_diffusion.served_model import ServedModel
from tfrec_diffusion.sidecar import write_description, write_warmup

_WARMUP_CANDIDATES = (1, 100)


def export(model, model_dir, export_dir, correct_negative_sampling=False):
    """Writes the next version of a SavedModel: raw features in, click probabilities out.

    Signatures: `serving_default` takes the named tensors of `Schema.serving_signature`: raw ids as
    in the logs, user and context features (batch,), candidates (batch, candidates), histories
    (batch, length), newest last; what is shorter is padded on the right with the missing value
    ("" of strings, -1 of integers, NaN of floats), which also stands for any value not known.
    `examples` takes `examples` (batch,), serialized `tf.train.Example`s of the same raw values.
    Both return `click_probability` (batch, candidates), float32, 0 for a padded candidate.
    Of a history longer than the model was trained with, the newest behaviors count. What the model
    does not use of the behaviors is no input.

    Of a model that `has_user_state` there are two more. `user_state` takes the user, history and
    behavior features and returns the state, tensors by name, which a service may keep as long as
    the user does nothing new; `score` takes the tensors of the state by their names, with the
    context and candidate features, and returns what `serving_default` would. A state of another
    version, or another model's, is an error.

    Beside the SavedModel lie `describe.json`, the requests that TF Serving warms it up with (see
    `sidecar`), and `schema.json`.

    Args:
        model: `RankingModel`.
        model_dir: Where `vocabularies/` lies, and the `metrics.json` of the training.
        export_dir: The version is its next number; it appears under it when it is whole.
        correct_negative_sampling: Whether all signatures give the probability of a click among all
            impressions, with `correct` and the schema's `negative_rate`; else it is that among the
            impressions that the data set kept. Names and ranking are the same either way.

    Returns:
        Path of the version.

    Raises:
        ValueError: If there is nothing to correct. Data prepared before its schema knew the rate
            looks so too, and its probabilities, too high, would be served as corrected.
    """
    negative_rate = model.schema.negative_rate
    if correct_negative_sampling and negative_rate == 1:
        raise ValueError(
            "`correct_negative_sampling` needs a model of data with a `negative_rate` below 1 in "
            f"its schema. Received: negative_rate={negative_rate} (data set {model.schema.name!r})"
        )
    served = ServedModel(model, model_dir, correct_negative_sampling)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.track(served)
    for name, (function, inputs) in served.signatures().items():
        archive.add_endpoint(name, function, input_signature=[inputs])

    metrics = pathlib.Path(model_dir) / METRICS_FILE
    metrics = json.loads(metrics.read_text())["splits"] if metrics.exists() else None
    export_dir = pathlib.Path(export_dir)
    export_dir.mkdir(parents=True, exist_ok=True)
    with lock(export_dir, "exporting to"):
        versions = [int(path.name) for path in export_dir.iterdir() if path.name.isdecimal()]
        version = export_dir / str(max(versions, default=0) + 1)
        aside = export_dir / f"incomplete.{version.name}"
        shutil.rmtree(aside, ignore_errors=True)
        archive.write_out(str(aside), verbose=False)
        served.schema.save(aside)
        write_description(aside, model, served.schema, metrics, correct_negative_sampling)
        write_warmup(aside, warmup_requests(served))
        os.rename(aside, version)
    return version


def warmup_requests(served):
    """Requests to every signature of a `ServedModel`, with full histories.

    Returns:
        List of the name of a signature and its inputs, a dict of arrays.
    """
    signatures = served.signatures()
    requests = []
    for candidates in _WARMUP_CANDIDATES:
        values = raw_requests(served.schema, candidates=candidates)
        values["examples"] = as_examples(values)
        if "user_state" in signatures:
            user_state, of_user = signatures["user_state"]
            values |= user_state({name: tf.constant(values[name]) for name in of_user})
        requests += [
            (name, {x: values[x] for x in ([inputs.name] if name == "examples" else inputs)})
            for name, (_, inputs) in signatures.items()
        ]
    return requests


def main(values):
    model = load_model(values.model_dir)
    if values.mixed_precision:
        trained = model
        model = type(model).from_config({**model.get_config(), "dtype": "mixed_bfloat16"})
        model.set_weights(trained.get_weights())
    print(export(model, values.model_dir, values.export_dir, values.correct_negative_sampling))


if __name__ == "__main__":
    flags.run(main, flags.export)
