"""Raw values to rows of embedding tables, exactly as the exported model's lookups do it.

Row 0 is a missing value, row 1 one that is out of vocabulary, real values start at row 2.
"""

import pathlib

import numpy as np
import pandas as pd
import tensorflow as tf

from tfrec_diffusion import schema


class Vocabulary:
    """The values seen often enough in training, in a fixed order.

    Args:
        name: Of the table.
        dtype: Of the raw values, `"int64"` or `"string"`.
        values: Distinct raw values; value i (from 0) has row 2 + i.
        tiers: Of `schema.Table`.
    """

    def __init__(self, name, dtype, values, tiers=()):
        self.name = name
        self.dtype = dtype
        self.values = _as_array(values, dtype)
        self.tiers = tiers
        self._index = pd.Index(self.values)

    @classmethod
    def from_counts(cls, name, dtype, values, counts, *, min_count=1, tiers=1, seen=None):
        """The values counted at least `min_count` times: most frequent first, ties ascending.

        Missing values, and texts with a line break (they cannot stand in a vocabulary file, so
        serving finds them out of vocabulary as well), are left out.

        Args:
            values: Distinct raw values, (n,).
            counts: How often each was seen in training, (n,) integers.
            tiers: Tiers of popularity; each holds about the same share of what training sees.
            seen: How often training saw any value; default: those of `counts`.
        """
        seen = np.sum(counts) if seen is None else seen
        values, counts = _as_array(values, dtype), np.asarray(counts, np.int64)
        keep = (counts >= min_count) & ~_is_missing(values, dtype)
        if dtype == "string":
            keep &= ~has_line_break(values)
        values, counts = values[keep], counts[keep]
        ascending = np.argsort(values, kind="stable")
        order = ascending[np.argsort(-counts[ascending], kind="stable")]
        # Values that get no row of their own are of the last tier.
        starts = np.searchsorted(np.cumsum(counts[order]), seen * np.arange(1, tiers) / tiers)
        return cls(name, dtype, values[order], tuple((schema.FIRST_INDEX + 1 + starts).tolist()))

    def encode(self, values):
        """Rows of raw values: array of any shape -> int32 array of that shape."""
        values = _as_array(values, self.dtype)
        flat = values.ravel()
        # An unknown value's position is -1, which lands on row 1, out of vocabulary.
        rows = self._index.get_indexer(flat).astype(np.int32) + schema.FIRST_INDEX
        rows[_is_missing(flat, self.dtype)] = schema.PADDING
        return rows.reshape(values.shape)

    def table(self, dim=8):
        """The `schema.Table` of this vocabulary."""
        rows = schema.FIRST_INDEX + len(self.values)
        return schema.Table(self.name, "vocabulary", self.dtype, rows, dim, tiers=self.tiers)

    def save(self, directory):
        """Writes `directory`/vocabularies/<name>.txt, one value a line."""
        path = pathlib.Path(schema.vocabulary_path(directory, self.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{value}\n" for value in self.values)


class HashBuckets:
    """Rows by a hash of the value as text, for id spaces too large to list.

    Args:
        name: Of the table.
        dtype: Of the raw values, `"int64"` or `"string"`.
        buckets: Number of rows that values share.
    """

    def __init__(self, name, dtype, buckets):
        if buckets < 1:
            raise ValueError(f"`buckets` must be positive. Received: {buckets} ({name!r})")
        self.name = name
        self.dtype = dtype
        self.buckets = buckets

    def encode(self, values):
        """Rows of raw values: array of any shape -> int32 array of that shape."""
        values = _as_array(values, self.dtype)
        codes, distinct = pd.factorize(values.ravel())
        text = [str(value) for value in distinct]
        hashed = tf.strings.to_hash_bucket_fast(tf.constant(text, tf.string), self.buckets)
        rows = hashed.numpy().astype(np.int32) + schema.FIRST_INDEX
        rows[_is_missing(distinct, self.dtype)] = schema.PADDING
        return rows[codes].reshape(values.shape)

    def table(self, dim=8):
        """The `schema.Table` of these buckets."""
        return schema.Table(self.name, "hash", self.dtype, schema.FIRST_INDEX + self.buckets, dim)

    def save(self, directory):
        """Writes nothing: the schema says it all."""


class Boundaries:
    """Rows by the interval that a number falls in: 2 + how many boundaries are <= the number.

    Args:
        name: Of the table.
        boundaries: Increasing numbers, rounded to float32, in which serving compares.
    """

    dtype = "float32"

    def __init__(self, name, boundaries):
        self.name = name
        self.boundaries = np.asarray(boundaries, np.float32)
        if not np.all(np.isfinite(self.boundaries)) or np.any(np.diff(self.boundaries) <= 0):
            raise ValueError(
                f"`boundaries` must be increasing numbers. Received: {list(boundaries)} ({name!r})"
            )

    @classmethod
    def from_counts(cls, name, values, counts, *, buckets):
        """Intervals of about equally many training values, at most `buckets` of them.

        Args:
            values: Distinct raw values, (n,); NaN is missing.
            counts: How often each was seen in training, (n,) integers.
        """
        if buckets < 2:
            raise ValueError(f"`buckets` must be at least 2. Received: {buckets} ({name!r})")
        values, counts = np.asarray(values, np.float32), np.asarray(counts, np.int64)
        values, counts = values[np.isfinite(values)], counts[np.isfinite(values)]
        if not len(values):
            return cls(name, ())
        order = np.argsort(values, kind="stable")
        values, seen = values[order], np.cumsum(counts[order])
        ranks = np.arange(1, buckets) * int(seen[-1]) // buckets
        boundaries = np.unique(values[np.searchsorted(seen, ranks, side="right")])
        return cls(name, boundaries[boundaries > values[0]])

    def encode(self, values):
        """Rows of numbers: array of any shape -> int32 array of that shape."""
        values = np.asarray(values, np.float32)
        rows = np.searchsorted(self.boundaries, values, side="right") + schema.FIRST_INDEX
        return np.where(np.isnan(values), schema.PADDING, rows).astype(np.int32)

    def table(self, dim=8):
        """The `schema.Table` of these intervals."""
        rows = schema.FIRST_INDEX + len(self.boundaries) + 1
        return schema.Table(
            self.name, "boundaries", self.dtype, rows, dim, tuple(self.boundaries.tolist())
        )

    def save(self, directory):
        """Writes nothing: the schema says it all."""


def has_line_break(values):
    """Which texts cannot be one line of a file: (n,) array of str -> (n,) bool array."""
    # `splitlines` knows every character that some reader takes for the end of a line.
    return np.fromiter(("".join(v.splitlines()) != v for v in values), bool, len(values))


def _as_array(values, dtype):
    return np.asarray(values, np.int64 if dtype == "int64" else object)


def _is_missing(values, dtype):
    return np.asarray(values == (-1 if dtype == "int64" else ""), bool)
