"""The tables of a trained model, by which new logs are encoded."""

from typing import NamedTuple

import numpy as np

from tfrec_diffusion.datasets import vocabularies
from tfrec_diffusion.schema import FIRST_INDEX, Schema, differing_features


class Growth(NamedTuple):
    """Which new values get rows.

    Args:
        grow: bool. Whether new values that occur often enough do.
        forget: int or `None`. Days after which a value that did not occur may lose its row to a new
            one. If `None`, none does.
    """

    grow: bool = False
    forget: int | None = None


class KnownTables:
    """The tables of a trained model.

    Args:
        directory: str or `pathlib.Path`. Directory of the model's run.
        growth: `Growth`.

    Attributes:
        schema: `Schema` of the model.

    Raises:
        FileNotFoundError: If there is no such run.
    """

    def __init__(self, directory, growth):
        self.schema = Schema.load(directory)
        self._directory = directory
        self._growth = growth

    def check(self, spec):
        """Checks that a spec means what the model was trained on.

        Args:
            spec: `logs_spec.Spec`.

        Raises:
            ValueError: If it does not.
        """
        differing = differing_features(self.schema.features, spec.schema_features)
        known = {table.name: table for table in self.schema.tables}
        for name, table in spec.tables.items():
            if of_model := known.get(name):
                buckets = of_model.rows - FIRST_INDEX if table.kind == "hash" else table.buckets
                ours = (table.kind, table.dtype, table.width, table.buckets)
                theirs = (of_model.kind, of_model.dtype, of_model.width, buckets)
                boundaries = tuple(np.float32(table.boundaries).tolist())
                if ours != theirs or boundaries not in ((), of_model.boundaries):
                    differing.append(f"table {name!r}")
        if differing:
            raise ValueError(
                f"the spec must have the features and tables that {self._directory} was trained "
                f"with. They differ in {', '.join(differing)}"
            )

    def table(self, name, counts, min_count, until):
        """The rows of a table's values.

        Args:
            name: str. Name of a table.
            counts: callable. Returns the `tables.Counts` of what training has seen since, with the
                days of values in `last`, in days since 1970.
            min_count: int. How often training must see a new value.
            until: int. First day after training, in days since 1970.

        Returns:
            Tuple of an object of `vocabularies` and a dict of counts for the report, empty if there
            is nothing new.
        """
        table = self.schema.table(name)
        if table.kind == "hash":
            return vocabularies.HashBuckets(name, table.dtype, table.rows - FIRST_INDEX), {}
        if table.kind == "boundaries":
            return vocabularies.Boundaries(name, table.boundaries), {}
        if table.is_numeric:
            return vocabularies.Numbers(name, table.mean, table.deviation, table.width), {}
        known = vocabularies.Vocabulary.load(self.schema, name)
        seen = counts()
        forget_before = None if self._growth.forget is None else until - self._growth.forget
        grown, new, taken = known.grown(
            seen.values, seen.counts, seen.last, min_count=min_count, forget_before=forget_before
        )
        if self._growth.grow:
            report = {"new": new, "in rows of forgotten values": taken, "all": len(grown.values)}
            return grown, report if new else {}
        known.last_seen = grown.last_seen[: len(known.values)]
        return known, {"without a row": new} if new else {}
