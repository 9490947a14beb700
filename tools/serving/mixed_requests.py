"""Random raw requests with values unknown and missing, scored by any signature of a version."""

import json
import pathlib

import numpy as np

from tfrec_diffusion.raw_requests import as_examples, raw_requests
from tfrec_diffusion.served_model import OUTPUT

_UNKNOWN = {"int64": 2**62, "string": "never seen", "float32": np.inf}


def mixed_requests(schema, batch, candidates, length, seed, vocabularies=None):
    """As `raw_requests`, but rows end where they may, and a tenth of the values means nothing.

    Args:
        schema: `Schema`.
        batch: Number of requests.
        candidates, length: Of the longest row that there may be.
        seed: Of the choice.
        vocabularies: As of `raw_requests`.

    Returns:
        dict of arrays as `Schema.serving_signature`.
    """
    rng = np.random.default_rng(seed)

    def rows(longest):
        return np.arange(longest) < rng.integers(0, longest + 1, (batch, 1))

    real = {"candidate": rows(candidates), "history": rows(length)}
    real["behavior"] = real["history"]
    requests = raw_requests(schema, batch, candidates, length, seed, vocabularies)
    for feature in schema.features:
        values, table = requests[feature.name], schema.table(feature.table)
        chance = rng.random(values.shape)
        values[chance < 0.05] = _UNKNOWN[table.dtype]
        values[(chance > 0.95) | ~real.get(feature.group, np.ones(batch, bool))] = table.missing
    return requests


def newest_version(export_dir):
    """The directory of the version with the highest number."""
    versions = [path for path in pathlib.Path(export_dir).iterdir() if path.name.isdecimal()]
    if not versions:
        raise FileNotFoundError(f"{export_dir} must hold versions, directories named by numbers")
    return max(versions, key=lambda path: int(path.name))


def signature_inputs(version):
    """Names of the inputs of each signature of a version, from its `describe.json`."""
    description = json.loads((pathlib.Path(version) / "describe.json").read_text())
    return {name: list(tensors["inputs"]) for name, tensors in description["signatures"].items()}


def scoring(inputs):
    """The signatures that return click probabilities."""
    return sorted(inputs.keys() - {"user_state"})


def signature_values(program, inputs, signature, requests):
    """What a signature takes, dict of arrays by name.

    Args:
        program: Anything with the `run` of `SavedModelProgram`; `"user_state"` makes the state
            that `"score"` takes.
        inputs: As `signature_inputs`.
        signature: Name.
        requests: dict of arrays as `mixed_requests`.
    """
    if signature == "examples":
        return {"examples": as_examples(requests)}
    values = requests
    if signature == "score":
        of_user = signature_values(program, inputs, "user_state", requests)
        values = {**requests, **program.run("user_state", of_user)}
    return {name: values[name] for name in inputs[signature]}


def score(program, inputs, signature, requests):
    """Click probabilities, (batch, candidates), by one of the `scoring` signatures."""
    values = signature_values(program, inputs, signature, requests)
    return program.run(signature, values)[OUTPUT]
