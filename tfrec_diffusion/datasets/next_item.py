"""Next-item requests: is this the item that the user turns to next, or a random negative?

This is the protocol of DIEN, MIMN and HierDiffuse. The positives are the items of users' last
behaviors, and each positive has random negatives.
"""

import zlib
from typing import NamedTuple

import numpy as np

from tfrec_diffusion import schema
from tfrec_diffusion.datasets import records, requests, tables, vocabularies

_PROTOCOLS = ("last_behaviors", "by_user")
# SQL of the number, from 0 to 9, of one of ten equal parts of the users.
_FOLD = 'md5_number_lower("user"::VARCHAR) % 10'
# SQL of a number of at least 0 for each user. Two of a million texts share one with odds of 1e-7.
_USER_NUMBER = {"int64": '"user"', "string": '(md5_number_lower("user") >> 1)::BIGINT'}
_CANDIDATES = 100


class _Positives(NamedTuple):
    """Which behaviors are the positives of a split.

    Args:
        folds: range. Parts of the users.
        places: range. Positions in a user's behaviors, counted back from the last, which is 0.
    """

    folds: range
    places: range


class NextItem(requests.RequestBuilder):
    """Next-item requests from a log of behaviors: user, item, category and time.

    In the splits `train`, `validation` and `test`, each positive is one request and its negative,
    drawn uniformly, is another. The positives of the test come back in `test_popularity`, where the
    negative is drawn in proportion to popularity, and in `test_99`, where a request has the
    positive among 99 uniform negatives.

    A negative is another item than the positive, with that item's most frequent category. The
    negatives of training are items that training sees; those of validation and test are any items
    of the file. If the positive has a row of its own, so do its negatives; if it is out of
    vocabulary, so are they. So "out of vocabulary" never tells the positive from a negative. (In
    files so small that there are not two such items, the negatives are any.)

    A subclass sets `VERSION`, `dtype` and `exact_times`, and has `load`.

    Args:
        raw_dir: str or `pathlib.Path`. Directory of the raw files.
        data_dir: str or `pathlib.Path`. Root of the prepared data sets.
        history_length: int. Longest history; the newest behaviors are kept. Defaults to `200`.
        min_count: int. How often training must see an item, category or user to give it a row.
            Defaults to `1`.
        protocol: str. Which behaviors are positives. `"last_behaviors"`: a user's last behavior is
            the positive of the test, the one before it that of validation, and those before that
            are positives of training. `"by_user"` (DIEN, MIMN): of ten users eight are for
            training, one for validation and one for the test, and their last behaviors are the
            positives. Defaults to `"last_behaviors"`.
        train_positives: int. How many positives each user gives to training, the newest that
            training may have. Defaults to `1`.
        popularity_tiers: int. Number of tiers of popularity of the items, see `schema.Table`. Each
            tier holds about the same share of what training sees. Defaults to `2`.

    Attributes:
        dtype: str. Type of the raw users, items and categories: `"int64"` or `"string"`.
        exact_times: bool. Whether times tell the order of a user's behaviors. If `True`, a history
            holds only behaviors earlier than the positive, the feature `history_gap` is the minutes
            from the user's previous behavior to each, and `history_age` the minutes from each to
            the positive. If `False`, behaviors of the same time come in the order of the file, and
            there are no such features.
    """

    def __init__(
        self,
        *,
        raw_dir,
        data_dir,
        history_length=200,
        min_count=1,
        protocol="last_behaviors",
        train_positives=1,
        popularity_tiers=2,
    ):
        requests.check_integers(
            history_length=history_length,
            min_count=min_count,
            train_positives=train_positives,
            popularity_tiers=popularity_tiers,
        )
        if protocol not in _PROTOCOLS:
            raise ValueError(f"`protocol` must be one of {_PROTOCOLS}. Received: {protocol!r}")
        self.history_length = history_length
        self.min_count = min_count
        self.protocol = protocol
        self.train_positives = train_positives
        self.popularity_tiers = popularity_tiers
        super().__init__(raw_dir=raw_dir, data_dir=data_dir)

    @property
    def features(self):
        """tuple of `schema.Feature`s."""
        features = (
            schema.Feature("user", "user", "user"),
            schema.Feature("item", "candidate", "item"),
            schema.Feature("category", "candidate", "category"),
            schema.Feature("history_item", "history", "item"),
            schema.Feature("history_category", "history", "category"),
        )
        if self.exact_times:
            features += (
                schema.Feature("history_gap", "behavior", "gap"),
                schema.Feature("history_age", "behavior", "age"),
            )
        return features

    def load(self, database):
        """Fills the table `behaviors` with the usable rows of the raw data.

        Its columns are `user`, `item` and `category`, of `dtype` and never NULL, and `time`, in
        seconds. Its `rowid` is the order of the file.

        Args:
            database: `tables.Database`. Where the table is made.
        """
        raise NotImplementedError

    def convert(self):
        """See `RequestBuilder.convert`."""
        with tables.Database(self.scratch, self.report) as database:
            self.load(database)
            items = self._order(database)
            seen = {name: self._count_seen(database, name) for name in ("user", "item", "category")}
            rows = f"SELECT *, {_USER_NUMBER[self.dtype]} AS number, {_FOLD} AS fold FROM by_user"
            parts = database.cut(self.scratch / "parts", "user", {"behaviors": rows})
        vocabs = {
            name: vocabularies.Vocabulary.from_counts(
                name,
                self.dtype,
                values,
                counts,
                min_count=self.min_count,
                tiers=self.popularity_tiers if name == "item" else 1,
            )
            for name, (values, counts) in seen.items()
        }
        if self.exact_times:
            vocabs["gap"] = vocabularies.Boundaries("gap", requests.GAP_BOUNDARIES)
            vocabs["age"] = vocabularies.Boundaries("age", requests.AGE_BOUNDARIES)
        seen_items, _ = seen["item"]
        if len(seen_items) < 2:
            raise ValueError(
                f"negatives need at least two distinct items in training; {self.report}"
            )
        in_training = np.zeros_like(items.counts)
        in_training[items.positions(seen_items)] = 1
        everywhere = np.ones_like(items.counts)
        # Popularity counts the whole file, because it says how hard a negative is, and because an
        # item that only the test has would give itself away if it never were a negative.
        negatives = {
            "train": (1, in_training),
            "validation": (1, everywhere),
            "test": (1, everywhere),
            "test_popularity": (1, items.counts),
            "test_99": (_CANDIDATES - 1, everywhere),
        }
        splits = {
            name: records.Split(
                _Encoder(
                    name=name,
                    positives=self._positives(name),
                    items=items,
                    vocabularies=vocabs,
                    negatives=count,
                    weights=weights,
                    history_length=self.history_length,
                ),
                parts,
            )
            for name, (count, weights) in negatives.items()
        }
        tables_ = [vocabulary.table() for vocabulary in vocabs.values()]
        schema_ = schema.Schema(self.name, self.features, tables_, self.history_length)
        return schema_, vocabs, splits

    def _order(self, database):
        """Turns `behaviors` into the table `by_user`, in order of time; returns all `_Items`."""
        items = _Items(database, "behaviors")
        # One positive for each split that a user is in, and a behavior before them.
        least = 4 if self.protocol == "last_behaviors" else 2
        few = f'SELECT "user" FROM behaviors GROUP BY "user" HAVING count(*) < {least}'
        reason = f"user with fewer than {least} behaviors"
        database.drop("behaviors", f'"user" IN ({few})', reason, bad=False)
        database.execute(
            'CREATE TABLE by_user AS SELECT "user", item, category, time FROM behaviors '
            'ORDER BY "user", time, rowid',
            "Sorting behaviors",
        )
        database.execute("DROP TABLE behaviors")
        return items

    def _positives(self, split):
        """The `_Positives` of a split."""
        if self.protocol == "by_user":
            folds = {"train": range(8), "validation": range(8, 9)}.get(split, range(9, 10))
            return _Positives(folds, range(self.train_positives if split == "train" else 1))
        first = {"train": 2, "validation": 1}.get(split, 0)
        count = self.train_positives if split == "train" else 1
        return _Positives(range(10), range(first, first + count))

    def _count_seen(self, database, column):
        """The values of a column that training may see, and how often."""
        positives = self._positives("train")
        values, counts, *_ = database.value_counts(
            f"""
            SELECT "{column}" AS value
            FROM by_user
            JOIN (SELECT "user", max(rowid) AS last FROM by_user GROUP BY "user") USING ("user")
            WHERE {_FOLD} < {positives.folds.stop}
                AND by_user.rowid <= last - {positives.places.start}
            """
        )
        return values, counts


class _Encoder:
    """Makes the requests of a split.

    Args:
        name: str. Name of the split, which chooses its random numbers.
        positives: `_Positives`. Its positives.
        items: `_Items`. All items of the raw file.
        vocabularies: dict of the vocabularies by name of the table.
        negatives: int. Number of negatives for each positive.
        weights: int array of shape (items,). How likely each item is a negative.
        history_length: int. Longest history.
    """

    def __init__(self, *, name, positives, items, vocabularies, negatives, weights, history_length):
        self._stream = zlib.crc32(name.encode())
        self._positives = positives
        self._items = items
        self._vocabularies = vocabularies
        self._count = negatives
        self._history_length = history_length
        self._item_rows = vocabularies["item"].encode(items.ids)
        self._category_rows = vocabularies["category"].encode(items.categories)
        self._sampler = _Sampler(weights, self._item_rows != schema.OUT_OF_VOCABULARY)

    def __call__(self, part):
        """Yields the `(key, request)`s of a part, a dict with the path of its `behaviors`."""
        part = tables.read(part["behaviors"])
        folds, wanted_places = self._positives
        first, last = _runs(part["user"])
        places = last - np.arange(len(last))
        (positives,) = np.nonzero(
            (part["fold"] >= folds.start)
            & (part["fold"] < folds.stop)
            & (places >= wanted_places.start)
            & (places < wanted_places.stop)
            # A user's first behavior has no history to be predicted from.
            & (places < last - first)
        )
        if not len(positives):
            return
        vocabs, exact_times = self._vocabularies, "age" in self._vocabularies
        behaviors = {
            "history_item": vocabs["item"].encode(part["item"]),
            "history_category": vocabs["category"].encode(part["category"]),
        }
        ends = np.arange(len(first))
        if exact_times:
            behaviors["history_gap"] = vocabs["gap"].encode(_gaps(part["time"], first))
            ends, _ = _runs(part["user"], part["time"])
        users, numbers = part["user"][positives], part["number"][positives]
        places, ends = places[positives], ends[positives]
        user_rows = vocabs["user"].encode(users)
        negatives = self._sampler.draw(
            self._items.positions(part["item"][positives]),
            _random(self._stream, numbers, places, self._count),
        )
        order = _random(self._stream + 1, numbers, places, 1)[:, 0] % np.uint64(self._count + 1)
        items = _mix(behaviors["history_item"][positives], self._item_rows[negatives], order)
        categories = _mix(
            behaviors["history_category"][positives], self._category_rows[negatives], order
        )
        labels = _mix(np.ones(len(users), np.float32), np.zeros(negatives.shape), order)
        starts = np.maximum(first[positives], ends - self._history_length)
        # One request for all candidates of a long list, one for each of a pair.
        lists = [slice(None)] if self._count > 1 else [slice(0, 1), slice(1, 2)]
        times = part["time"][positives]
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            history = {key: rows[start:end] for key, rows in behaviors.items()}
            if exact_times:
                minutes = (times[i] - part["time"][start:end]) / 60
                history["history_age"] = vocabs["age"].encode(minutes)
            for j, candidates in enumerate(lists):
                yield (
                    f"{users[i]}/{places[i]}/{j}",
                    {
                        schema.GROUP_ID: numbers[i],
                        schema.LABEL: labels[i, candidates],
                        "user": user_rows[i],
                        "item": items[i, candidates],
                        "category": categories[i, candidates],
                        **history,
                    },
                )


class _Items:
    """All items of the raw file: ascending `ids`, their `counts` and most frequent `categories`."""

    def __init__(self, database, table):
        pairs = database.columns(
            f"SELECT item, category, count(*) AS n FROM {table} "
            "GROUP BY item, category ORDER BY item, n DESC, category"
        )
        self.ids, first = np.unique(pairs["item"], return_index=True)
        self.categories = pairs["category"][first]
        self.counts = np.add.reduceat(pairs["n"], first) if len(first) else pairs["n"]

    def positions(self, ids):
        """Positions of the given items in `ids`."""
        return np.searchsorted(self.ids, ids)


class _Sampler:
    """Draws negatives in proportion to integer weights, never the positive itself.

    Args:
        weights: int array of shape (items,). At least two are not 0.
        known: bool array of shape (items,). Whether an item has a row of its own. Negatives are
            drawn among the items that are like the positive in this, or among all where fewer than
            two are.
    """

    def __init__(self, weights, known):
        self._known = known
        self._weights = []
        for side in (False, True):
            alike = np.where(known == side, weights, 0)
            self._weights.append(alike if np.count_nonzero(alike) > 1 else weights)
        self._ends = [np.cumsum(alike) for alike in self._weights]

    def draw(self, positives, numbers):
        """Draws negatives.

        Args:
            positives: int array of shape (n,). Positions of the positives among the items.
            numbers: uint64 array of shape (n, count). Random numbers.

        Returns:
            int64 array of shape (n, count). Positions of the negatives.
        """
        drawn = np.empty(numbers.shape, np.int64)
        for side in (False, True):
            (rows,) = np.nonzero(self._known[positives] == side)
            drawn[rows] = self._draw(side, positives[rows], numbers[rows])
        return drawn

    def _draw(self, side, positives, numbers):
        weight, ends = self._weights[side][positives], self._ends[side]
        rest = (ends[-1] - weight).astype(np.uint64)[:, None]
        drawn = (numbers % rest).astype(np.int64)
        # The positive's interval is cut out of [0, total): larger numbers move behind it.
        start = (ends[positives] - weight)[:, None]
        drawn += np.where(drawn >= start, weight[:, None], 0)
        return np.searchsorted(ends, drawn, side="right")


def _gaps(times, first):
    """Minutes from a user's previous behavior to each, (rows,), with NaN for the first."""
    minutes = np.diff(times, prepend=0) / 60
    return np.where(first == np.arange(len(first)), np.nan, minutes)


def _random(stream, users, places, count):
    """Random uint64, (n, count), that depend only on a stream, a user and a place."""
    state = _scramble(np.full((1, 1), stream, np.uint64))
    for key in (users[:, None], places[:, None], np.arange(count)[None, :]):
        state = _scramble(state ^ key.astype(np.uint64))
    return state


def _scramble(x):
    """One step of the SplitMix64 generator from each state x."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix(positive, negatives, order):
    """Puts the positives, (n,), among the negatives, (n, count), at column `order` of a row."""
    mixed = np.concatenate([positive[:, None], negatives.astype(positive.dtype)], axis=1)
    rows = np.arange(len(mixed))
    mixed[rows, 0] = mixed[rows, order]
    mixed[rows, order] = positive
    return mixed


def _runs(*columns):
    """First and last index of the run of equal rows that each row is in."""
    changes = np.ones(len(columns[0]), bool)
    changes[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    starts = np.flatnonzero(changes)
    run = np.cumsum(changes) - 1
    return starts[run], np.append(starts[1:], len(changes))[run] - 1
