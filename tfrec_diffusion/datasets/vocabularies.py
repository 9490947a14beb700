"""Maps raw values to rows of embedding tables, exactly as the lookups of an exported model do.

Row 0 is for a missing value, row 1 for a value out of vocabulary, and real values start at row 2.
"""

import pathlib

import numpy as np
import pandas as pd
import tensorflow as tf

from tfrec_diffusion import schema

_LAST_SEEN = ".last_seen.npy"


class Vocabulary:
    """Gives each listed value a row of its own.

    Args:
        name: str. Name of the table.
        dtype: str. Type of the raw values, `"int64"` or `"string"`.
        values: array of shape (n,). Distinct raw values; value i (from 0) has row 2 + i.
        tiers: tuple of ints. As in `schema.Table`. Defaults to `()`.
        last_seen: int array of shape (n,), or `None`. Day on which training has last seen each
            value, in days since 1970. If `None`, it is not known. Defaults to `None`.
    """

    def __init__(self, name, dtype, values, tiers=(), last_seen=None):
        self.name = name
        self.dtype = dtype
        self.values = _as_array(values, dtype)
        self.tiers = tiers
        self.last_seen = last_seen
        self._index = pd.Index(self.values)

    @classmethod
    def load(cls, schema, name):
        """Reads one that `save` has written.

        Args:
            schema: `schema.Schema`, with its vocabularies.
            name: str. Name of the table.

        Returns:
            `Vocabulary`.
        """
        table = schema.table(name)
        values = schema.vocabulary_values(name)
        last_seen = pathlib.Path(schema.vocabulary_path(table)).with_suffix(_LAST_SEEN)
        return cls(
            name,
            table.dtype,
            [int(value) for value in values] if table.dtype == "int64" else values,
            table.tiers,
            np.load(last_seen) if last_seen.exists() else None,
        )

    @classmethod
    def from_counts(
        cls, name, dtype, values, counts, *, min_count=1, tiers=1, seen=None, last_seen=None
    ):
        """Lists the values that training has seen often enough.

        The most frequent come first, and equally frequent ones in ascending order.

        Missing values are left out, and so are texts with a line break: a vocabulary file cannot
        hold them, so that they are out of vocabulary at serving as well.

        Args:
            name: str. Name of the table.
            dtype: str. Type of the raw values, `"int64"` or `"string"`.
            values: array of shape (n,). Distinct raw values.
            counts: int array of shape (n,). How often training has seen each.
            min_count: int. How often training must have seen a value. Defaults to `1`.
            tiers: int. Number of tiers of popularity. Each holds about the same share of all that
                training has seen. Defaults to `1`.
            seen: int or `None`. How often training has seen any value. If `None`, the sum of
                `counts`. Defaults to `None`.
            last_seen: int array of shape (n,), or `None`. As in `Vocabulary`. Defaults to `None`.

        Returns:
            `Vocabulary`.
        """
        days = np.zeros(len(values), np.int32) if last_seen is None else np.asarray(last_seen)
        seen = np.sum(counts) if seen is None else seen
        values, counts = _as_array(values, dtype), np.asarray(counts, np.int64)
        keep = (counts >= min_count) & ~_is_missing(values, dtype)
        if dtype == "string":
            keep &= ~has_line_break(values)
        values, counts, days = values[keep], counts[keep], days[keep]
        ascending = np.argsort(values, kind="stable")
        order = ascending[np.argsort(-counts[ascending], kind="stable")]
        # Values that get no row of their own are of the last tier.
        starts = np.searchsorted(np.cumsum(counts[order]), seen * np.arange(1, tiers) / tiers)
        tiers = tuple((schema.FIRST_INDEX + 1 + starts).tolist())
        return cls(name, dtype, values[order], tiers, None if last_seen is None else days[order])

    def grown(self, values, counts, last_seen, *, min_count=1, forget_before=None):
        """With what training has seen since; values that are there keep their rows.

        New values come after the old ones, or in the place of those that are forgotten, all in the
        last tier of popularity, where values are forgotten only.

        Args:
            values: array of shape (n,). Distinct raw values that training has seen since.
            counts: int array of shape (n,). How often.
            last_seen: int array of shape (n,). On which day last, in days since 1970. If it is not
                known when the vocabulary's own values were seen, they count as seen on the last of
                these days.
            min_count: int. How often a new value must have been seen. Defaults to `1`.
            forget_before: int or `None`. First day to remember: the row of a value that was last
                seen before may be taken by a new one. The longest forgotten go first. If `None`,
                none is forgotten. Defaults to `None`.

        Returns:
            Tuple of a `Vocabulary`, the number of new values, and how many of them took a row.

        Raises:
            ValueError: If `forget_before` is given, and it is not known when values were seen.
        """
        if forget_before is not None and self.last_seen is None:
            raise ValueError(
                f"it must be known when the values of {self.name!r} were last seen, which older "
                "versions have not written: train a model on data of this version first"
            )
        days = pd.Series(np.asarray(last_seen, np.int32), index=_as_array(values, self.dtype))
        before = self.last_seen
        if before is None:
            before = days.max() if len(days) else 0
        seen = np.maximum(before, days.reindex(self.values, fill_value=0).to_numpy())
        fresh = self.from_counts(self.name, self.dtype, values, counts, min_count=min_count).values
        new = fresh[self._index.get_indexer(fresh) < 0]
        oldest = np.argsort(seen, kind="stable")
        oldest = oldest[oldest + schema.FIRST_INDEX >= max(self.tiers, default=0)]
        forgotten = oldest[seen[oldest] < (forget_before or 0)][: len(new)]
        listed = np.concatenate([self.values, new[len(forgotten) :]])
        seen = np.concatenate([seen, days[new[len(forgotten) :]].to_numpy()]).astype(np.int32)
        listed[forgotten] = new[: len(forgotten)]
        seen[forgotten] = days[new[: len(forgotten)]].to_numpy()
        return type(self)(self.name, self.dtype, listed, self.tiers, seen), len(new), len(forgotten)

    def encode(self, values):
        """Maps raw values to rows.

        Args:
            values: array of any shape. Raw values.

        Returns:
            int32 array of the same shape.
        """
        values = _as_array(values, self.dtype)
        flat = values.ravel()
        # An unknown value's position is -1, which lands on row 1, out of vocabulary.
        rows = self._index.get_indexer(flat).astype(np.int32) + schema.FIRST_INDEX
        rows[_is_missing(flat, self.dtype)] = schema.PADDING
        return rows.reshape(values.shape)

    def table(self, dim=8):
        """Describes this vocabulary in a schema.

        Args:
            dim: int. Width of an embedding. Defaults to `8`.

        Returns:
            `schema.Table`.
        """
        rows = schema.FIRST_INDEX + len(self.values)
        return schema.Table(self.name, "vocabulary", self.dtype, rows, dim, tiers=self.tiers)

    def save(self, directory):
        """Writes `vocabularies/<name>.txt`, with one value per line.

        What is known of when values were last seen lies beside it.

        Args:
            directory: str or `pathlib.Path`. Directory of the prepared data set.
        """
        path = pathlib.Path(schema.vocabulary_path(directory, self.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{value}\n" for value in self.values)
        if self.last_seen is not None:
            np.save(path.with_suffix(_LAST_SEEN), np.asarray(self.last_seen, np.int32))


class HashBuckets:
    """Gives each value a row by the hash of its text, for ids that are too many to list.

    Args:
        name: str. Name of the table.
        dtype: str. Type of the raw values, `"int64"` or `"string"`.
        buckets: int. Number of rows that the values share.

    Raises:
        ValueError: If `buckets` is not positive.
    """

    def __init__(self, name, dtype, buckets):
        if buckets < 1:
            raise ValueError(f"`buckets` must be positive. Received: {buckets} ({name!r})")
        self.name = name
        self.dtype = dtype
        self.buckets = buckets

    def encode(self, values):
        """Maps raw values to rows.

        Args:
            values: array of any shape. Raw values.

        Returns:
            int32 array of the same shape.
        """
        values = _as_array(values, self.dtype)
        codes, distinct = pd.factorize(values.ravel())
        text = [str(value) for value in distinct]
        hashed = tf.strings.to_hash_bucket_fast(tf.constant(text, tf.string), self.buckets)
        rows = hashed.numpy().astype(np.int32) + schema.FIRST_INDEX
        rows[_is_missing(distinct, self.dtype)] = schema.PADDING
        return rows[codes].reshape(values.shape)

    def table(self, dim=8):
        """Describes these buckets in a schema.

        Args:
            dim: int. Width of an embedding. Defaults to `8`.

        Returns:
            `schema.Table`.
        """
        return schema.Table(self.name, "hash", self.dtype, schema.FIRST_INDEX + self.buckets, dim)

    def save(self, directory):
        """Writes nothing, because the schema holds everything.

        Args:
            directory: str or `pathlib.Path`. As in `Vocabulary`.
        """


class Boundaries:
    """Gives each number the row of its interval: 2 + how many boundaries are <= the number.

    Args:
        name: str. Name of the table.
        boundaries: sequence of floats. Increasing numbers. They are rounded to float32, because
            serving compares in float32.

    Raises:
        ValueError: If the boundaries are not finite and increasing.
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
        """Cuts the numbers that training has seen into intervals of about equally many.

        Args:
            name: str. Name of the table.
            values: float array of shape (n,). Distinct raw values; NaN is missing.
            counts: int array of shape (n,). How often training has seen each.
            buckets: int. Number of intervals, at least 2. Few distinct values have fewer.

        Returns:
            `Boundaries`.

        Raises:
            ValueError: If `buckets` is less than 2.
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
        """Maps numbers to rows.

        Args:
            values: float array of any shape. NaN is missing.

        Returns:
            int32 array of the same shape.
        """
        values = np.asarray(values, np.float32)
        rows = np.searchsorted(self.boundaries, values, side="right") + schema.FIRST_INDEX
        return np.where(np.isnan(values), schema.PADDING, rows).astype(np.int32)

    def table(self, dim=8):
        """Describes these intervals in a schema.

        Args:
            dim: int. Width of an embedding. Defaults to `8`.

        Returns:
            `schema.Table`.
        """
        rows = schema.FIRST_INDEX + len(self.boundaries) + 1
        return schema.Table(
            self.name, "boundaries", self.dtype, rows, dim, tuple(self.boundaries.tolist())
        )

    def save(self, directory):
        """Writes nothing, because the schema holds everything.

        Args:
            directory: str or `pathlib.Path`. As in `Vocabulary`.
        """


class Numbers:
    """Leaves numbers as they are: a model embeds them by their values.

    Args:
        name: str. Name of the table.
        mean: float. As in `schema.Table`. Defaults to `0.0`.
        deviation: float. As in `schema.Table`. Defaults to `1.0`.
        width: int. As in `schema.Table`. Defaults to `0`.
    """

    dtype = "float32"

    def __init__(self, name, mean=0.0, deviation=1.0, width=0):
        self.name = name
        self.mean = mean
        self.deviation = deviation
        self.width = width

    def encode(self, values):
        """Numbers as float32.

        Args:
            values: float array of any shape. NaN is missing.

        Returns:
            float32 array of the same shape, in which what is not finite is NaN.
        """
        values = np.asarray(values, np.float32)
        return np.where(np.isfinite(values), values, np.float32("nan"))

    def table(self, dim=8):
        """Describes these numbers in a schema.

        Args:
            dim: int. Width of an embedding. Defaults to `8`.

        Returns:
            `schema.Table`.
        """
        kind = "vector" if self.width else "number"
        return schema.Table(
            self.name,
            kind,
            self.dtype,
            schema.FIRST_INDEX,
            dim,
            width=self.width,
            mean=self.mean,
            deviation=self.deviation,
        )

    def save(self, directory):
        """Writes nothing, because the schema holds everything.

        Args:
            directory: str or `pathlib.Path`. As in `Vocabulary`.
        """


def has_line_break(values):
    """Tells the texts that cannot be one line of a file.

    Args:
        values: array of str of shape (n,).

    Returns:
        bool array of shape (n,).
    """
    # `splitlines` splits at every character that any reader takes for the end of a line.
    return np.fromiter(("".join(v.splitlines()) != v for v in values), bool, len(values))


def _as_array(values, dtype):
    return np.asarray(values, np.int64 if dtype == "int64" else object)


def _is_missing(values, dtype):
    return np.asarray(values == (-1 if dtype == "int64" else ""), bool)
