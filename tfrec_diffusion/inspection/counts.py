"""What is counted of a split, in one pass over its records."""

import collections
import os

import numpy as np
import tensorflow_datasets as tfds

from tfrec_diffusion.schema import OUT_OF_VOCABULARY, PADDING

_BATCH = 512
_LEAST_WAITING = 1 << 20


class Distinct:
    """The number of distinct integers that were added, in memory of the distinct ones."""

    def __init__(self):
        self._known = np.zeros(0, np.int64)
        self._waiting, self._length = [], 0

    def add(self, values):
        """Adds integers.

        Args:
            values: integers of any shape.
        """
        self._waiting.append(np.unique(values))
        self._length += len(self._waiting[-1])
        # Waiting for as many as are known keeps the sorting linear in all, but for a logarithm.
        if self._length > max(_LEAST_WAITING, len(self._known)):
            self._merge()

    def _merge(self):
        self._known = np.unique(np.concatenate([self._known, *self._waiting]))
        self._waiting, self._length = [], 0

    def count(self):
        """int. How many distinct integers there are."""
        self._merge()
        return len(self._known)


class Counts:
    """What is counted of a split.

    Args:
        schema: `Schema`. The features of a request.
        size: int. Bytes of the split's files.

    Attributes:
        requests: (longest history + 1,). Requests by the length of their history.
        candidates: (longest history + 1,). Their candidates.
        clicks: (longest history + 1,). Their clicks.
        sizes: (most candidates + 1,). Requests by their number of candidates.
        places: dict by feature. Places for a value in real candidates and behaviors.
        missing: dict by feature. Places without a value.
        unknown: dict by feature. Places with a value out of vocabulary.
        shown: dict by context feature and candidate key of (rows of the table,). Candidates.
        clicked: As `shown`. Clicks.
        behaviors: (rows of the history key's table,). Behaviors.
        users: `Distinct` group ids.
        size: int. As in the arguments.
    """

    def __init__(self, schema, size):
        lengths = schema.history_length + 1
        self.requests, self.candidates = np.zeros(lengths, np.int64), np.zeros(lengths, np.int64)
        self.clicks = np.zeros(lengths)
        self.sizes = np.zeros(1, np.int64)
        self.places, self.missing, self.unknown = (collections.Counter() for _ in range(3))
        rows = {feature.name: schema.table(feature.table).rows for feature in schema.features}
        context = [f.name for f in schema.group("context") if schema.is_scalar(f)]
        by_row = (schema.candidate_key, *context)
        self.shown = {name: np.zeros(rows[name], np.int64) for name in by_row}
        self.clicked = {name: np.zeros(rows[name]) for name in by_row}
        self.behaviors = np.zeros(rows[schema.history_key], np.int64)
        self.users = Distinct()
        self.size = size
        self._schema = schema

    def add(self, features, label, weight, group_id):
        """Counts a batch.

        Args:
            features: dict by name of arrays, as `Schema.keras_inputs`.
            label: float array of shape (batch, candidates).
            weight: float array of shape (batch, candidates). 0 where a candidate is padding.
            group_id: int array of shape (batch,).
        """
        schema = self._schema
        real, past = weight > 0, features[schema.history_key] != PADDING
        candidates, clicks, length = real.sum(1), (label * real).sum(1), past.sum(1)
        np.add.at(self.requests, length, 1)
        np.add.at(self.candidates, length, candidates)
        np.add.at(self.clicks, length, clicks)
        sizes = np.bincount(candidates, minlength=len(self.sizes))
        sizes[: len(self.sizes)] += self.sizes
        self.sizes = sizes
        for feature in schema.features:
            rows = features[feature.name]
            if feature.group == "candidate":
                rows = rows[real]
            elif feature.group in ("history", "behavior"):
                rows = rows[past]
            if schema.table(feature.table).is_numeric:
                # A vector counts once, and is missing if any of its numbers is.
                missing = np.isnan(rows).reshape(len(rows), -1).any(axis=1)
                self.places[feature.name] += len(rows)
                self.missing[feature.name] += np.count_nonzero(missing)
                continue
            if feature.values > 1:
                # Padding behind an entry's values is no place; an entry without any is one.
                empty = np.count_nonzero(~rows.any(axis=-1))
                rows = np.append(rows[rows != PADDING], np.full(empty, PADDING))
            self.places[feature.name] += rows.size
            self.missing[feature.name] += np.count_nonzero(rows == PADDING)
            self.unknown[feature.name] += np.count_nonzero(rows == OUT_OF_VOCABULARY)
            if feature.name in self.shown and feature.group == "context":
                np.add.at(self.shown[feature.name], rows, candidates)
                np.add.at(self.clicked[feature.name], rows, clicks)
        key = schema.candidate_key
        np.add.at(self.shown[key], features[key][real], 1)
        np.add.at(self.clicked[key], features[key][real], label[real])
        np.add.at(self.behaviors, features[schema.history_key][past], 1)
        self.users.add(group_id)


def count(data, split):
    """Reads a split once, with a progress bar.

    Args:
        data: `RequestData`.
        split: str. One of `data.splits`.

    Returns:
        `Counts`.
    """
    counts = Counts(data.schema, sum(os.path.getsize(shard.path) for shard in data.shards(split)))
    batches = data.batches(split, _BATCH, with_group_id=True).as_numpy_iterator()
    bar = {"desc": f"Reading {split}", "unit": " batches", "leave": False, "mininterval": 1.0}
    with data.naming_damage(split):
        for batch in tfds.core.utils.tqdm(batches, total=data.num_batches(split, _BATCH), **bar):
            counts.add(*batch)
    return counts
