"""Example requests as rough as real ones: rows end early, values are unknown or missing."""

import numpy as np

from tfrec_diffusion.serving.example_requests import example_requests

_UNKNOWN = {"int64": 2**62, "string": "never seen", "float32": np.inf}


def incomplete_requests(schema, batch, candidates, length, seed, vocabularies=None):
    """As `example_requests`, but rows end anywhere, and a tenth of the values means nothing.

    Args:
        schema: `Schema`.
        batch: int. Number of requests.
        candidates: int. Candidates of the longest row that there may be.
        length: int. Behaviors of the longest row that there may be.
        seed: int. Seed of all random choices.
        vocabularies: str, `pathlib.Path` or `None`. As in `example_requests`. Defaults to `None`.

    Returns:
        dict of arrays as `Schema.serving_signature`.
    """
    rng = np.random.default_rng(seed)

    def rows(longest):
        return np.arange(longest) < rng.integers(0, longest + 1, (batch, 1))

    real = {"candidate": rows(candidates), "history": rows(length)}
    real["behavior"] = real["history"]
    requests = example_requests(schema, batch, candidates, length, seed, vocabularies)
    for feature in schema.features:
        values, table = requests[feature.name], schema.table(feature.table)
        chance = rng.random(values.shape)
        values[chance < 0.05] = _UNKNOWN[table.dtype]
        values[(chance > 0.95) | ~real.get(feature.group, np.ones(batch, bool))] = table.missing
    return requests
