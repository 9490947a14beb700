"""Whether a server's scores are those of the SavedModel in Python, by every signature.

    python tools/check_serving.py --export_dir=serving/din \
        --address=localhost:8500 --rest_address=localhost:8501

Scores random requests of several lengths, made from the newest version's schema and vocabularies,
over gRPC and over REST; prints the largest relative difference of each signature, and ends with
exit status 1 if one is more than 1e-5.
"""

import numpy as np
import tensorflow as tf
from absl import flags
from serving import command
from serving.client import OUTPUT, GrpcClient, RestClient
from serving.mixed_requests import newest_version, signature_inputs

from tfrec_diffusion.raw_requests import raw_requests
from tfrec_diffusion.schema import Schema

TOLERANCE = 1e-5
_SIZES = ((1, 1), (3, 7), (100, None), (500, 2000), (2, 0))  # candidates, behaviors


def differences(export_dir, model, address, rest_address):
    """The largest relative difference between a server's scores and Python's.

    Args:
        export_dir: Directory of the model's versions; the newest is compared.
        model: Its name at the server.
        address, rest_address: `"host:port"` of gRPC and REST.

    Returns:
        dict by protocol and signature.
    """
    version = newest_version(export_dir)
    schema = Schema.load(version)
    made = [raw_requests(schema, 1, *size, vocabularies=version / "assets") for size in _SIZES]
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
    flags.DEFINE_string("export_dir", None, "directory of the model's versions")
    flags.DEFINE_string("model", "ranking", "its name at the server")
    flags.DEFINE_string("address", "localhost:8500", "host:port of gRPC")
    flags.DEFINE_string("rest_address", "localhost:8501", "host:port of REST")
    flags.mark_flag_as_required("export_dir")
    command.run(main)
