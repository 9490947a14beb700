"""What lies beside a SavedModel: its description, and the requests that warm a server up."""

import json
import math
import pathlib
import subprocess

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

import tfrec_diffusion

DESCRIPTION_FILE = "describe.json"
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"  # where TF Serving looks


def write_description(directory, model, schema, metrics, corrected):
    """Writes `describe.json`: what a client, or somebody who finds the version, needs to know.

    Args:
        directory: Of the SavedModel, whose signatures are described as they were written.
        model: `RankingModel`.
        schema: `Schema` of the raw features that the signatures take.
        metrics: Of the training, by split; `None` if they are not known.
        corrected: Whether probabilities are corrected for sampled negatives.
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
        "corrected_for_negative_sampling": corrected,
        "signatures": {
            name: {"inputs": tensors(signature.inputs), "outputs": tensors(signature.outputs)}
            for name, signature in sorted(proto.meta_graphs[0].signature_def.items())
            if not name.startswith("__")
        },
        "tables": {t.name: {"kind": t.kind, "rows": t.rows, "dim": t.dim} for t in schema.tables},
        "metrics": metrics,
        "git_revision": git_revision(),
        "versions": {
            "tfrec_diffusion": tfrec_diffusion.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
    }
    (directory / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1) + "\n")


def git_revision():
    """Commit of this code, with "-dirty" where it was changed; `None` where git does not know."""
    source = pathlib.Path(__file__)
    git = ["git", "-C", str(source.parent)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", source.name], capture_output=True, check=True
        )
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, check=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def write_warmup(directory, requests):
    """Writes the requests that TF Serving sends to a version before its clients may.

    Args:
        directory: Of the SavedModel.
        requests: List of the name of a signature and its inputs, a dict of arrays.
    """
    path = directory / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(value)))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
