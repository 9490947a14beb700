"""Ele.me's raw files (Tianchi 131047), one request per impression."""

import collections
import itertools
import pathlib
import re

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

from tfrec_diffusion.datasets import requests, vocabularies
from tfrec_diffusion.schema import Feature, Schema

COLUMNS = (
    *("label", "user_id", "gender", "visit_city", "avg_price", "is_supervip", "ctr_30", "ord_30"),
    *("total_amt_30", "shop_id", "item_id", "city_id", "district_id", "shop_aoi_id"),
    *("shop_geohash_6", "shop_geohash_12", "brand_id", "category_1_id", "merge_standard_food_id"),
    *("rank_7", "rank_30", "rank_90", "shop_id_list", "item_id_list", "category_1_id_list"),
    *("merge_standard_food_id_list", "brand_id_list", "price_list", "shop_aoi_id_list"),
    *("shop_geohash6_list", "timediff_list", "hours_list", "time_type_list", "weekdays_list"),
    *("times", "hours", "time_type", "weekdays", "geohash12"),
)

_GROUPS = {
    "user": (
        *("gender", "visit_city", "avg_price", "is_supervip", "ctr_30", "ord_30", "total_amt_30"),
    ),
    "candidate": (
        *("item_id", "shop_id", "category_1_id", "shop_aoi_id", "brand_id", "district_id"),
        *("merge_standard_food_id", "rank_7", "rank_30", "rank_90"),
    ),
    "context": ("hours", "time_type", "weekdays"),
    "history": (
        *("item_id_list", "shop_id_list", "category_1_id_list", "shop_aoi_id_list", "hours_list"),
    ),
}
_SECONDS = "timediff_list"
_GAP, _AGE = "history_gap", "history_age"
_HISTORY_KEY = _GROUPS["history"][0]
_LISTS = (*_GROUPS["history"], _SECONDS)
_INTEGERS = frozenset({"gender", "is_supervip", "hours", "weekdays", "hours_list", _SECONDS})
_NUMBERS = frozenset(
    {"avg_price", "ctr_30", "ord_30", "total_amt_30", "rank_7", "rank_30", "rank_90"}
)
_MISSING = ("", "-1")
_NO_GENDER = -99
_POSITION = {name: position for position, name in enumerate(COLUMNS)}
_BUCKETS = 20
_TIERS = {"item_id": 2}  # of popularity, by table
_CHUNK_BYTES = 8 << 20
DAYS = {"train": range(1, 7), "validation": range(7, 8), "test": range(8, 9)}


def _table(column):
    return column.removesuffix("_list")


class EleMe(requests.RequestBuilder):
    """Ele.me's impressions: files `D<day>_<part>.csv` of 39 columns without a header.

    A feature of a raw column has its name. Of each behavior the shop, item, category, area (aoi)
    and hour are read, as in the configuration that DiffuMIN's authors released; of the user, the
    candidate and the context all columns but the user's id (one row per user would learn the labels
    by heart), geohashes (the area says it more coarsely), the candidate's city (the user's, but for
    a few) and the exact time. Averages, amounts, rates and ranks are cut at quantiles of the
    training days.

    Missing are the empty text, -1 and gender -99; who serves the model sends the schema's value for
    a missing one instead. The order within a raw list is not relied upon: behaviors are ordered by
    `timediff_list`, the seconds from a behavior to the impression, and one that is not before it is
    dropped. In minutes they are `history_age`, and their differences `history_gap`: the minutes
    since the previous behavior of the list.

    Days 1 to 6 train, day 7 validates, day 8 tests.

    Args:
        raw_dir: Directory of the raw files; there must be at least one per day.
        data_dir: Root of the prepared data sets.
        history_length: Newest behaviors to keep.
        min_count: How often an id must stand in the training days' candidates and histories to get
            a row of its own.
    """

    VERSION = tfds.core.Version("1.2.0")
    features = (
        *(Feature(name, group, _table(name)) for group, names in _GROUPS.items() for name in names),
        Feature(_GAP, "behavior", "gap"),
        Feature(_AGE, "behavior", "age"),
    )

    def __init__(self, *, raw_dir, data_dir, history_length=50, min_count=2):
        requests.check_integers(history_length=history_length, min_count=min_count)
        self.history_length = history_length
        self.min_count = min_count
        super().__init__(raw_dir=raw_dir, data_dir=data_dir)

    def convert(self):
        """As `RequestBuilder.convert`: one pass over the training days, then one over all."""
        files = {
            split: [file for day in days for file in day_files(self.raw_dir, day)]
            for split, days in DAYS.items()
        }
        tables = self._vocabularies(files["train"])
        tables["gap"] = vocabularies.Boundaries("gap", requests.GAP_BOUNDARIES)
        tables["age"] = vocabularies.Boundaries("age", requests.AGE_BOUNDARIES)
        schema = Schema(
            name=self.name,
            features=self.features,
            tables=[table.table() for table in tables.values()],
            history_length=self.history_length,
        )
        return schema, tables, {split: self._requests(files[split], tables) for split in files}

    def _vocabularies(self, files):
        counts = collections.defaultdict(collections.Counter)
        # The second pass reads these rows again, and reports what it drops.
        unreported = requests.Report()
        for file in tfds.core.utils.tqdm(files, desc="Counting values", unit=" files", leave=False):
            for chunk in _read(file, unreported):
                for name, values in (*chunk.columns.items(), *chunk.lists.items()):
                    if name in _NUMBERS:
                        values = _round(values[~np.isnan(values)])
                    counts[_table(name)].update(values.tolist())
        return {name: self._vocabulary(name, table) for name, table in counts.items()}

    def _vocabulary(self, name, counts):
        values, counts = list(counts), list(counts.values())
        if name in _NUMBERS:
            return vocabularies.Boundaries.from_counts(name, values, counts, buckets=_BUCKETS)
        dtype = "int64" if name in _INTEGERS else "string"
        return vocabularies.Vocabulary.from_counts(
            name, dtype, values, counts, min_count=self.min_count, tiers=_TIERS.get(name, 1)
        )

    def _requests(self, files, tables):
        for file in files:
            for chunk in _read(file, self.report):
                scalars = {
                    name: tables[name].encode(values) for name, values in chunk.columns.items()
                }
                lists = {
                    name: tables[_table(name)].encode(values)
                    for name, values in chunk.lists.items()
                }
                lists[_GAP] = tables["gap"].encode(chunk.gaps)
                lists[_AGE] = tables["age"].encode(chunk.ages)
                starts = np.maximum(chunk.ends - self.history_length, np.r_[0, chunk.ends[:-1]])
                for row, line in enumerate(chunk.lines):
                    request = {name: values[row] for name, values in scalars.items()}
                    for name in _GROUPS["candidate"]:
                        request[name] = scalars[name][row : row + 1]
                    for name, values in lists.items():
                        request[name] = values[starts[row] : chunk.ends[row]]
                    request["group_id"] = chunk.users[row]
                    request["label"] = chunk.labels[row : row + 1]
                    yield f"{file.name}:{line}", request


def day_files(raw_dir, day):
    """The files of a day, in the order of their numbers.

    Raises:
        FileNotFoundError: If there is none.
    """
    parts = {}
    for path in pathlib.Path(raw_dir).glob(f"D{day}_*.csv"):
        if match := re.fullmatch(rf"D{day}_(\d+)\.csv", path.name):
            parts[int(match[1])] = path
    if not parts:
        raise FileNotFoundError(
            f"{raw_dir} has no file of day {day}: expected D{day}_0.csv and so on, for each of "
            "the days 1 to 8"
        )
    return [parts[part] for part in sorted(parts)]


_Chunk = collections.namedtuple(
    "_Chunk",
    (
        "lines",  # (rows,), where a row stands in its file, from 1
        "labels",  # (rows,), float32
        "users",  # (rows,), int64, one number per user
        "columns",  # raw values by column, (rows,)
        "lists",  # raw values by list column, (behaviors,), row after row, each newest last
        "gaps",  # (behaviors,), minutes since the previous behavior; NaN for a row's first
        "ages",  # (behaviors,), minutes before the impression
        "ends",  # (rows,), where a row's behaviors end in the lists
    ),
)


def _read(path, report):
    """Yields the usable rows of a file in `_Chunk`s; counts the others."""
    with path.open("rb") as file:
        last = 0
        while batch := file.readlines(_CHUNK_BYTES):
            report.read(path.name, len(batch))
            lines, rows = [], []
            for line, text in enumerate(batch, last + 1):
                fields, fault = _split(text)
                if fault:
                    report.drop(path.name, fault, places=[f"{path.name}:{line}"])
                else:
                    lines.append(line)
                    rows.append(fields)
            last += len(batch)
            if rows:
                yield _parse(path.name, np.array(lines), rows, report)


def _split(line):
    """The fields of a line, and what is wrong with them, if anything."""
    try:
        fields = line.decode("utf-8").rstrip("\r\n").split(",")
    except UnicodeDecodeError:
        return None, "not UTF-8"
    if len(fields) != len(COLUMNS):
        return None, f"not {len(COLUMNS)} columns"
    if fields[0] not in ("0", "1"):
        return None, "label is neither 0 nor 1"
    for name in ("user_id", "item_id"):
        if fields[_POSITION[name]] in _MISSING:
            return None, f"{name} is missing"
    if len({fields[_POSITION[name]].count(";") for name in _LISTS}) > 1:
        return None, "lists of unequal length"
    return fields, None


def _parse(file, lines, rows, report):
    """Split lines to a `_Chunk`, without the rows in which a number is none."""
    raw = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    # An empty list and a list of one missing value look the same, and neither has a behavior.
    lengths = [text.count(";") + 1 if text else 0 for text in raw[_HISTORY_KEY]]
    row_of = np.repeat(np.arange(len(rows)), lengths)
    columns, lists, bad_rows = {}, {}, {}
    for name in (*_GROUPS["user"], *_GROUPS["candidate"], *_GROUPS["context"]):
        columns[name], bad = _values(name, raw[name])
        bad_rows[name] = np.flatnonzero(bad)
    for name in _LISTS:
        filled = zip(raw[name], lengths, strict=True)
        tokens = itertools.chain.from_iterable(text.split(";") for text, n in filled if n)
        lists[name], bad = _values(name, list(tokens))
        bad_rows[name] = np.unique(row_of[bad])

    good = np.ones(len(rows), bool)
    for name, found in bad_rows.items():
        found = found[good[found]]
        good[found] = False
        places = [f"{file}:{line}" for line in lines[found]]
        report.drop(file, f"{name} has what is no number", len(found), places)

    seconds = lists.pop(_SECONDS)
    known, past = lists[_HISTORY_KEY] != "", seconds > 0
    read = good[row_of]
    report.read("behaviors", read.sum())
    report.drop("behaviors", "not before the impression", (read & ~past).sum())
    report.drop("behaviors", f"{_HISTORY_KEY} is missing", (read & past & ~known).sum())
    order = np.lexsort((-seconds, row_of))
    order = order[(read & past & known)[order]]
    seconds = seconds[order]
    users = pd.util.hash_array(np.array(raw["user_id"], object), categorize=False)
    return _Chunk(
        lines=lines[good],
        labels=np.array(raw["label"], np.float32)[good],
        users=(users[good] >> 1).astype(np.int64),
        columns={name: values[good] for name, values in columns.items()},
        lists={name: values[order] for name, values in lists.items()},
        gaps=np.where(
            np.diff(row_of[order], prepend=-1), np.nan, -np.diff(seconds, prepend=0) / 60
        ),
        ages=seconds / 60,
        ends=np.cumsum(np.bincount(row_of[order], minlength=len(rows))[good]),
    )


def _values(column, texts):
    """A column's texts as its table's raw values, and which of them it cannot have: two arrays."""
    texts = np.array(texts, object)
    missing = np.isin(texts, _MISSING)
    if column not in _INTEGERS | _NUMBERS:
        return np.where(missing, "", texts), np.zeros(len(texts), bool)
    numbers = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(np.float64)
    if column in _NUMBERS:
        return np.where(missing, np.nan, numbers), ~missing & ~np.isfinite(numbers)
    if column == "gender":
        missing |= numbers == _NO_GENDER
    bad = ~missing & ~((numbers == np.floor(numbers)) & (np.abs(numbers) < 2**53))
    return np.where(missing | bad, -1, numbers).astype(np.int64), bad


def _round(numbers):
    """To three digits: enough for quantiles, and few enough distinct values to count."""
    magnitude = np.floor(np.log10(np.abs(np.where(numbers == 0, 1, numbers))))
    unit = 10.0 ** (magnitude - 2)
    return np.round(numbers / unit) * unit
