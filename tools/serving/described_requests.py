"""Random requests made from a version's `describe.json` and its vocabularies alone."""

import json
import pathlib

import numpy as np

_VALUES = 1000


def newest_version(export_dir):
    """The directory of the version with the highest number."""
    versions = [path for path in pathlib.Path(export_dir).iterdir() if path.name.isdecimal()]
    if not versions:
        raise FileNotFoundError(f"{export_dir} must hold versions, directories named by numbers")
    return max(versions, key=lambda path: int(path.name))


class DescribedRequests:
    """Makes requests of a model's `serving_default`.

    Args:
        version: Directory of an exported version.
        seed: Equal seeds make equal requests.

    Attributes:
        signatures: The described ones, by name.
        key: Name of a candidate feature.
    """

    def __init__(self, version, seed=0):
        description = json.loads((pathlib.Path(version) / "describe.json").read_text())
        self.signatures = description["signatures"]
        self._inputs = self.signatures["serving_default"]["inputs"]
        self.key = next(n for n, x in self._inputs.items() if x["group"] == "candidate")
        self._history_length = description["history_length"]
        self._rng = np.random.default_rng(seed)
        vocabularies = pathlib.Path(version) / "assets"
        self._values = {
            name: self._known(vocabularies / f"{x['table']}.txt", x["dtype"])
            for name, x in self._inputs.items()
        }

    def make(self, candidates, behaviors=None):
        """A dict of a value or an array by feature; `None` behaviors are as many as in training."""
        behaviors = self._history_length if behaviors is None else behaviors
        lengths = {"candidate": candidates, "history": behaviors, "behavior": behaviors}
        return {
            name: self._rng.choice(self._values[name], lengths.get(x["group"]))
            for name, x in self._inputs.items()
        }

    def _known(self, vocabulary, dtype):
        if dtype == "float32":
            return self._rng.uniform(0, 100, _VALUES).astype("f")
        known = vocabulary.read_text().split("\n")[:-1] if vocabulary.exists() else []
        values = known[:_VALUES] or [str(x) for x in self._rng.integers(0, 10**6, _VALUES)]
        return np.array(values, object if dtype == "string" else "int64")
