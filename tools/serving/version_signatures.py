"""Calls any signature of an exported version with requests, whatever it takes."""

import json
import pathlib

from tfrec_diffusion.serving import OUTPUT
from tfrec_diffusion.serving.example_requests import as_examples
from tfrec_diffusion.serving.version import DESCRIPTION_FILE


def signature_inputs(version):
    """The names of the inputs of each signature of a version, from its `describe.json`.

    Args:
        version: str or `pathlib.Path`. Directory of the version.

    Returns:
        dict of lists of str, by the name of the signature.
    """
    description = json.loads(pathlib.Path(version, DESCRIPTION_FILE).read_text())
    return {name: list(tensors["inputs"]) for name, tensors in description["signatures"].items()}


def scoring(inputs):
    """The names of the signatures that return click probabilities, sorted.

    Args:
        inputs: dict. What `signature_inputs` returned.

    Returns:
        list of str.
    """
    return sorted(inputs.keys() - {"user_state"})


def signature_values(program, inputs, signature, requests):
    """The inputs of a signature for requests.

    Args:
        program: `SavedModelProgram`, or anything with its `run`. Its `"user_state"` computes the
            state that `"score"` takes.
        inputs: dict. What `signature_inputs` returned.
        signature: str. Name of the signature.
        requests: dict of arrays as `Schema.serving_signature`.

    Returns:
        dict of arrays by name.
    """
    if signature == "examples":
        return {"examples": as_examples(requests)}
    values = requests
    if signature == "score":
        of_user = signature_values(program, inputs, "user_state", requests)
        values = {**requests, **program.run("user_state", of_user)}
    return {name: values[name] for name in inputs[signature]}


def score(program, inputs, signature, requests):
    """Click probabilities by one of the `scoring` signatures.

    Args:
        program: As in `signature_values`.
        inputs: dict. As in `signature_values`.
        signature: str. As in `signature_values`.
        requests: dict of arrays. As in `signature_values`.

    Returns:
        float32 array of shape (batch, candidates).
    """
    values = signature_values(program, inputs, signature, requests)
    return program.run(signature, values)[OUTPUT]
