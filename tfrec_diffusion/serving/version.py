"""A version of a model as TF Serving loads it: a SavedModel, and what lies beside it."""

import dataclasses
import math
import pathlib

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from tfrec_diffusion.files import lock, write_json, written_aside
from tfrec_diffusion.provenance import provenance
from tfrec_diffusion.serving import WARM_UP_FILE, numbered_versions
from tfrec_diffusion.serving.example_requests import as_examples, example_requests
from tfrec_diffusion.serving.served_model import ServedModel

DESCRIPTION_FILE = "describe.json"
_WARM_UP_CANDIDATES = (1, 100)


def write_version(
    model,
    vocabulary_directory,
    export_dir,
    metrics=None,
    correct_negative_sampling=False,
    calibration=None,
    calibration_metrics=None,
    number=None,
):
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
    the user does nothing new, or for minutes if the model sees ages of behaviors; `score` takes the
    tensors of the state by their names, with the context and candidate features, and returns what
    `serving_default` would. A state of another version, or another model's, is an error.

    Beside the SavedModel lie `describe.json`, what a client or somebody who finds the version needs
    to know, the requests that TF Serving warms it up with, and `schema.json`.

    Args:
        model: `RankingModel`.
        vocabulary_directory: str or `pathlib.Path`. Where `vocabularies/` lies.
        export_dir: str or `pathlib.Path`. The version is its next number; it appears under it when
            it is whole.
        metrics: dict or `None`. Metrics of the training by split, for `describe.json`. Defaults to
            `None`.
        correct_negative_sampling: bool. Whether all signatures give the probability of a click
            among all impressions, with `served_model.correct` and the schema's `negative_rate`;
            else it is that among the impressions that the data set kept. Names and ranking are the
            same either way. Defaults to `False`.
        calibration: `Calibration` or `None`. What all signatures make of the model's probability,
            before they correct it. Names and ranking stay the same. If `None`, nothing. Defaults to
            `None`.
        calibration_metrics: dict or `None`. What it does by split, for `describe.json`. Defaults to
            `None`.
        number: int or `None`. Number of the version, such as a date. If `None`, the next one.
            Defaults to `None`.

    Returns:
        `pathlib.Path` of the version.

    Raises:
        BlockingIOError: If another process is exporting there.
        ValueError: If there is nothing to correct. Data prepared before its schema knew the rate
            looks so too, and its probabilities, too high, would be served as corrected.
    """
    negative_rate = model.schema.negative_rate
    if correct_negative_sampling and negative_rate == 1:
        raise ValueError(
            "`correct_negative_sampling` needs a model of data with a `negative_rate` below 1 in "
            f"its schema. Received: negative_rate={negative_rate} (data set {model.schema.name!r})"
        )
    served = ServedModel(model, vocabulary_directory, correct_negative_sampling, calibration)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.track(served)
    for name, (function, inputs) in served.signatures().items():
        archive.add_endpoint(name, function, input_signature=[inputs])

    export_dir = pathlib.Path(export_dir)
    export_dir.mkdir(parents=True, exist_ok=True)
    with lock(export_dir, "exporting to"):
        numbers = [int(path.name) for path in export_dir.iterdir() if path.name.isdecimal()]
        version = export_dir / str(number or max(numbers, default=0) + 1)
        if version.exists():
            raise FileExistsError(f"{version} is there already")
        with written_aside(version) as aside:
            archive.write_out(str(aside), verbose=False)
            served.schema.save(aside)
            changes = {
                "corrected_for_negative_sampling": correct_negative_sampling,
                "calibration": calibration
                and {**dataclasses.asdict(calibration), "splits": calibration_metrics},
            }
            _write_description(aside, model, served.schema, metrics, changes)
            _write_warm_up(aside, warm_up_requests(served))
    return version


def with_dtype(model, dtype):
    """A model of the same weights that computes by another dtype policy.

    Args:
        model: `RankingModel`.
        dtype: str. As `"mixed_bfloat16"`.

    Returns:
        `RankingModel`.
    """
    other = type(model).from_config({**model.get_config(), "dtype": dtype})
    other.set_weights(model.get_weights())
    return other


def newest_version(export_dir):
    """The directory of the version with the highest number.

    Args:
        export_dir: str or `pathlib.Path`. Directory of versions.

    Returns:
        `pathlib.Path`.

    Raises:
        FileNotFoundError: If there is none.
    """
    versions = numbered_versions(export_dir)
    return versions[max(versions)]


def warm_up_requests(served):
    """Requests to every signature of a `ServedModel`, with full histories.

    Args:
        served: `ServedModel`.

    Returns:
        list of the name of a signature and its inputs, a dict of arrays.
    """
    signatures = served.signatures()
    requests = []
    for candidates in _WARM_UP_CANDIDATES:
        values = example_requests(served.schema, candidates=candidates)
        values["examples"] = as_examples(values)
        if "user_state" in signatures:
            user_state, of_user = signatures["user_state"]
            values |= user_state({name: tf.constant(values[name]) for name in of_user})
        requests += [
            (name, {x: values[x] for x in ([inputs.name] if name == "examples" else inputs)})
            for name, (_, inputs) in signatures.items()
        ]
    return requests


def _write_description(directory, model, schema, metrics, changes):
    """Writes `describe.json`: what a client, or somebody who finds the version, needs to know.

    Args:
        directory: Of the SavedModel, whose signatures are described as they were written.
        model: `RankingModel`.
        schema: `Schema` of the raw features that the signatures take.
        metrics: Of the training, by split; `None` if they are not known.
        changes: What is made of the model's probabilities, by name.
    """
    proto = saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes())
    features = {feature.name: feature for feature in schema.features}

    def tensor(name, info):
        described = {
            "dtype": tf.as_dtype(info.dtype).name,
            "shape": [None if axis.size < 0 else axis.size for axis in info.tensor_shape.dim],
        }
        if name in features:
            table = schema.table(features[name].table)
            nan = isinstance(table.missing, float) and math.isnan(table.missing)
            described |= {
                "group": features[name].group,
                "table": table.name,
                "missing": "NaN" if nan else table.missing,
            }
        return described

    def tensors(infos):
        return {name: tensor(name, infos[name]) for name in sorted(infos)}

    config = {**model.get_config(), "dtype": model.get_layer("click.tower").dtype_policy.name}
    del config["schema"]
    description = {
        "model": type(model).__name__,
        "arguments": dict(sorted(config.items())),
        "data_set": schema.name,
        "history_length": schema.history_length,
        "candidate_key": schema.candidate_key,
        "history_key": schema.history_key,
        "negative_rate": schema.negative_rate,
        **changes,
        "signatures": {
            name: {"inputs": tensors(signature.inputs), "outputs": tensors(signature.outputs)}
            for name, signature in sorted(proto.meta_graphs[0].signature_def.items())
            if not name.startswith("__")
        },
        "tables": {t.name: {"kind": t.kind, "rows": t.rows, "dim": t.dim} for t in schema.tables},
        "table_dtype": model.table_dtype,
        "metrics": metrics,
        **provenance(),
    }
    write_json(directory / DESCRIPTION_FILE, description)


def _write_warm_up(directory, requests):
    """Writes the requests that TF Serving sends to a version before its clients may.

    Args:
        directory: Of the SavedModel.
        requests: List of the name of a signature and its inputs, a dict of arrays.
    """
    path = directory / WARM_UP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(value)))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
