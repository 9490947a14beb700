"""Compares the scores of a server with those of the SavedModel in Python, by every signature.

    python tools/serving/check_serving.py --export_dir=serving/din \
        --address=localhost:8500 --rest_address=localhost:8501

Random requests of several lengths, made from the schema and the vocabularies of the newest version,
are scored over gRPC and over REST. Printed is the largest relative difference of each signature.
The exit status is 1 if one is more than 1e-5.
"""

import numpy as np
import tensorflow as tf
from absl import flags
from version_signatures import signature_inputs

from tfrec_diffusion import command
from tfrec_diffusion.schema import Schema
from tfrec_diffusion.serving import OUTPUT
from tfrec_diffusion.serving.client import GrpcClient, RestClient
from tfrec_diffusion.serving.example_requests import example_requests
from tfrec_diffusion.serving.version import newest_version

TOLERANCE = 1e-5
_SIZES = ((1, 1), (3, 7), (100, None), (500, 2000), (2, 0))  # candidates, behaviors


def define_flags(values):
    flags.DEFINE_string(
        "export_dir", None, "directory of the model's versions", required=True, flag_values=values
    )
    flags.DEFINE_string("model", "ranking", "name of the model at the server", flag_values=values)
    flags.DEFINE_string("address", "localhost:8500", "host:port of gRPC", flag_values=values)
    flags.DEFINE_string("rest_address", "localhost:8501", "host:port of REST", flag_values=values)


def differences(export_dir, model, address, rest_address):
    """The largest relative difference between a server's scores and Python's.

    Args:
        export_dir: str or `pathlib.Path`. Directory of the model's versions, of which the newest is
            compared.
        model: str. Name of the model at the server.
        address: str. `"host:port"` of gRPC.
        rest_address: str. `"host:port"` of REST.

    Returns:
        dict of floats, by protocol and signature.
    """
    version = newest_version(export_dir)
    schema = Schema.load(version)
    made = [example_requests(schema, 1, *size, vocabularies=version / "assets") for size in _SIZES]
    requests = [{name: values[0] for name, values in one.items()} for one in made]
    loaded = tf.saved_model.load(str(version))
    expected = [_scores(loaded.signatures["serving_default"], request) for request in requests]
    settings = {"version": int(version.name), "deadline": 60}
    largest = {}
    for protocol, client in (
        ("gRPC", GrpcClient(address, model, **settings)),
        ("REST", RestClient(rest_address, model, **settings)),
    ):
        answers = {
            "serving_default": [client.score(request) for request in requests],
            "examples": client.score_examples(requests, schema.candidate_key),
        }
        if "user_state" in signature_inputs(version):
            answers["score"] = [client.score(r, client.user_state(r)) for r in requests]
        client.close()
        for signature, scores in answers.items():
            relative = np.abs(np.concatenate(scores) / np.concatenate(expected) - 1)
            largest[f"{protocol} {signature}"] = relative.max()
    return largest


def _scores(function, request):
    specs = function.structured_input_signature[1]
    tensors = {name: tf.constant([request[name]], spec.dtype) for name, spec in specs.items()}
    return function(**tensors)[OUTPUT].numpy()[0]


def main(values):
    largest = differences(values.export_dir, values.model, values.address, values.rest_address)
    for name, difference in largest.items():
        print(f"{name}: {difference:.1e}")
    return 0 if all(difference <= TOLERANCE for difference in largest.values()) else 1


if __name__ == "__main__":
    command.run(main, define_flags)
