"""Ele.me (Tianchi 131047): one request per impression of the raw files."""

import datetime
import pathlib
import re

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from pyarrow import parquet

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import records, requests, tables, vocabularies
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

_SOURCE = "https://tianchi.aliyun.com/dataset/131047"
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
_SCALARS = (*_GROUPS["user"], *_GROUPS["candidate"], *_GROUPS["context"])
_SECONDS = "timediff_list"
_GAP, _AGE = "history_gap", "history_age"
_HISTORY_KEY = _GROUPS["history"][0]
_LISTS = (*_GROUPS["history"], _SECONDS)
_INTEGERS = frozenset({"gender", "is_supervip", "hours", "weekdays", "hours_list", _SECONDS})
_NUMBERS = frozenset(
    {"avg_price", "ctr_30", "ord_30", "total_amt_30", "rank_7", "rank_30", "rank_90"}
)
# Patterns of an integer, which may be missing, and of a list of them in the raw files.
_INTEGER = r"(-?[0-9]{1,15}(\.0*)?)?"
_INTEGER_LIST = rf"{_INTEGER}(;{_INTEGER})*"
_BUCKETS = 20
# SQL that rounds a number to three digits: exact enough for quantiles, and few values to count.
_UNIT = "pow(10, floor(log10(abs(nullif(value, 0)))) - 2)"
_THREE_DIGITS = f"coalesce(round_even(value / {_UNIT}, 0) * {_UNIT}, 0)"
_TIERS = {"item_id": 2}  # of popularity, by table
_BATCH_ROWS = 8192  # that are encoded at once, and stand in one row group of a Parquet file
_PART_GROUPS = 4  # row groups in one part
_VALIDATION_DAY, _TEST_DAY = 7, 8
_DAY_0 = (datetime.date(2022, 3, 31) - datetime.date(1970, 1, 1)).days


def split_days(train_days):
    """The days of each split.

    Args:
        train_days: int. How many days before day 7 are for training.

    Returns:
        dict of range by name of the split.
    """
    return {
        "train": range(_VALIDATION_DAY - train_days, _VALIDATION_DAY),
        "validation": range(_VALIDATION_DAY, _TEST_DAY),
        "test": range(_TEST_DAY, _TEST_DAY + 1),
    }


def day_files(raw_dir, day):
    """Finds the files of a day.

    Args:
        raw_dir: str or `pathlib.Path`. Directory of the raw files.
        day: int. Day of April 2022.

    Returns:
        list of `pathlib.Path`, in the order of the files' numbers.

    Raises:
        FileNotFoundError: If there is none.
    """
    parts = {}
    for path in pathlib.Path(raw_dir).glob(f"D{day}_*.csv"):
        if match := re.fullmatch(rf"D{day}_(\d+)\.csv", path.name):
            parts[int(match[1])] = path
    if not parts:
        raise FileNotFoundError(
            f"{raw_dir} has no file of day {day}: expected D{day}_0.csv and so on, from {_SOURCE}"
        )
    return [parts[part] for part in sorted(parts)]


class EleMe(requests.RequestBuilder):
    """Ele.me's impressions, from files `D<day>_<part>.csv` of 39 columns without a header.

    The features have the names of the raw columns. Of a behavior they are the shop, item, category,
    area (aoi) and hour, as in the configuration that DiffuMIN's authors released. Of the user, the
    candidate and the context they are all columns except the user's id (one row per user would
    memorize the labels), the geohashes (finer than the area), the candidate's city (nearly always
    the user's) and the exact time. Averages, amounts, rates and ranks are cut at quantiles of the
    training days.

    An empty text, -1 and gender -99 are missing values. A client of the served model sends the
    schema's value for a missing one instead.

    Behaviors are sorted by `timediff_list`, the seconds from a behavior to the impression, whatever
    their order in the raw list. A behavior that is not before the impression is dropped.
    `history_age` is these seconds in minutes, and `history_gap` the minutes since the previous
    behavior of the list.

    Days 1 to 6 of April 2022 are for training, day 7 for validation and day 8 for the test.

    Args:
        raw_dir: str or `pathlib.Path`. Directory of the raw files, with at least one for each day
            that is read.
        data_dir: str or `pathlib.Path`. Root of the prepared data sets.
        history_length: int. Longest history; the newest behaviors are kept. Defaults to `50`.
        min_count: int. How often an id must occur in the candidates and histories of the training
            days to get a row of its own. Defaults to `2`.
        negative_rate: float. Share of the negatives that are kept, in (0, 1], the same in all
            splits. A hash of user, item and time chooses them. Defaults to `1.0`.
        train_days: int. How many days before day 7 are for training, at most 6. Files of earlier
            days are not read. Defaults to `6`.
    """

    VERSION = tfds.core.Version("1.3.0")
    features = (
        *(
            Feature(name, group, name.removesuffix("_list"))
            for group, names in _GROUPS.items()
            for name in names
        ),
        Feature(_GAP, "behavior", "gap"),
        Feature(_AGE, "behavior", "age"),
    )

    def __init__(
        self,
        *,
        raw_dir,
        data_dir,
        history_length=50,
        min_count=2,
        negative_rate=1.0,
        train_days=6,
    ):
        requests.check_integers(
            history_length=history_length, min_count=min_count, train_days=train_days
        )
        if train_days >= _VALIDATION_DAY:
            raise ValueError(f"`train_days` must be at most 6. Received: train_days={train_days}")
        # bool is a number to Python.
        is_number = isinstance(negative_rate, int | float) and not isinstance(negative_rate, bool)
        if not is_number or not 0 < negative_rate <= 1:
            raise ValueError(
                "`negative_rate` must be a number in (0, 1]. "
                f"Received: negative_rate={negative_rate!r}"
            )
        self.history_length = history_length
        self.min_count = min_count
        self.negative_rate = negative_rate
        self.train_days = train_days
        super().__init__(raw_dir=raw_dir, data_dir=data_dir)

    def convert(self):
        """See `RequestBuilder.convert`."""
        files = {
            split: [(day, path) for day in days for path in day_files(self.raw_dir, day)]
            for split, days in split_days(self.train_days).items()
        }
        with tables.Database(self.scratch, self.report) as database:
            paths = {
                split: [(day, self._typed_rows(database, path)) for day, path in of_split]
                for split, of_split in files.items()
            }
            self._report_behaviors(database, [path for of in paths.values() for _, path in of])
            vocabs = {
                feature.table: self._vocabulary(
                    database, feature.table, [path for _, path in paths["train"]]
                )
                for feature in self.features
                if feature.group != "behavior"
            }
        vocabs["gap"] = vocabularies.Boundaries("gap", requests.GAP_BOUNDARIES)
        vocabs["age"] = vocabularies.Boundaries("age", requests.AGE_BOUNDARIES)
        schema = Schema(
            name=self.name,
            features=self.features,
            tables=[vocabulary.table() for vocabulary in vocabs.values()],
            history_length=self.history_length,
            negative_rate=self.negative_rate,
        )
        encode = _Encode(vocabs, self.history_length)
        splits = {
            split: records.Split(
                encode, [part for day, path in of_split for part in _parts(day, path)]
            )
            for split, of_split in paths.items()
        }
        return schema, vocabs, splits

    def _typed_rows(self, database, path):
        """Writes the usable rows of a raw file to Parquet, with NULL for a missing value."""
        name, table = path.name, tables.quoted(path.name)
        columns = ("label", "user_id", "times", *_SCALARS, *_LISTS)
        types = dict.fromkeys(columns, "VARCHAR")
        database.load(name, [path], types, header=COLUMNS, wanted=self._kept())
        ((rest,),) = database.execute(f"SELECT count(*) FILTER (NOT wanted) FROM {table}")
        self.report.drop(name, "negative not kept", rest, bad=False)
        faults = _faults()
        # One pass finds the few faults that occur.
        cases = [f"WHEN {sql} THEN {tables.literal(fault)}" for fault, sql in faults.items()]
        found = database.execute(
            f"SELECT DISTINCT CASE {' '.join(cases)} END FROM {table} WHERE wanted",
            f"Checking {name}",
        )
        for fault, sql in faults.items():
            if (fault,) in found:
                database.drop(name, f"wanted AND {sql}", fault)
        typed = ", ".join(f"{_typed(column)} AS {column}" for column in columns)
        # Only impressions that follow each other are joined to one request.
        grouped = self._preparation.group_by == "request"
        order = "ORDER BY user_id, times, rowid" if grouped else ""
        written = self.scratch / f"{name}.parquet"
        database.execute(
            f"COPY (SELECT {typed} FROM {table} WHERE wanted {order}) "
            f"TO {tables.literal(written)} "
            f"(FORMAT parquet, COMPRESSION lz4, ROW_GROUP_SIZE {_BATCH_ROWS})",
            f"Splitting lists of {name}",
        )
        database.execute(f"DROP TABLE {table}")
        return written

    def _kept(self):
        """SQL that holds for positives and for the negatives that are kept."""
        if self.negative_rate == 1:
            return "true"
        # Of DuckDB's hashes, this one is the same in every version.
        number = "md5_number_lower(concat_ws(',', user_id, item_id, times))"
        return f"(coalesce(label, '') <> '0' OR {number} < {int(self.negative_rate * 2**64)})"

    def _report_behaviors(self, database, paths):
        past = f"coalesce({_SECONDS} > 0, false)"
        ((rows, late, unknown),) = database.execute(
            f"SELECT count(*), count(*) FILTER (NOT {past}), "
            f"count(*) FILTER ({past} AND {_HISTORY_KEY} IS NULL) "
            f"FROM ({_behaviors(paths)})",
            "Counting behaviors",
        )
        self.report.read("behaviors", rows)
        self.report.drop("behaviors", "not before the impression", late, bad=False)
        self.report.drop("behaviors", f"{_HISTORY_KEY} is missing", unknown, bad=False)

    def _vocabulary(self, database, name, paths):
        column = f"{name}_list"
        sources = []
        if name in _SCALARS:
            sources.append(f"SELECT {name} AS value FROM {_rows(paths)}")
        if column in _LISTS:
            sources.append(
                f"SELECT {column} AS value FROM ({_behaviors(paths, column)}) "
                f"WHERE {_SECONDS} > 0 AND {_HISTORY_KEY} IS NOT NULL"
            )
        value = _THREE_DIGITS if name in _NUMBERS else "value"
        seen = f"SELECT {value} AS value FROM ({' UNION ALL '.join(sources)})"
        seen += " WHERE value IS NOT NULL"
        if name in _NUMBERS:
            values, counts, *_ = database.value_counts(seen)
            return vocabularies.Boundaries.from_counts(name, values, counts, buckets=_BUCKETS)
        values, counts, total, _ = database.value_counts(seen, self.min_count)
        return vocabularies.Vocabulary.from_counts(
            name,
            "int64" if name in _INTEGERS else "string",
            values,
            counts,
            tiers=_TIERS.get(name, 1),
            seen=total,
        )


class _Encode:
    """Makes the requests of a part, as the `encode` of a `records.Split`.

    Args:
        vocabs: dict of the vocabularies by name of the table.
        history_length: int. Longest history; the newest behaviors are kept.
    """

    def __init__(self, vocabs, history_length):
        self._vocabs = vocabs
        self._history_length = history_length

    def __call__(self, part):
        row = part["first_row"]
        with parquet.ParquetFile(part["path"]) as file:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=part["row_groups"]):
                for request in self._requests(batch, part["day"]):
                    row += 1
                    yield f"{part['path'].stem}:{row}", request

    def _requests(self, batch, day):
        labels = batch["label"].to_numpy()
        users = _per_distinct(batch["user_id"], pd.util.hash_array) >> 1
        columns = {name: self._encoded(name, batch[name]) for name in _SCALARS}
        # Python's own integers are the quickest to write.
        numbers = {name: columns[name].tolist() for name in (*_GROUPS["user"], *_GROUPS["context"])}
        candidates = {name: columns[name] for name in _GROUPS["candidate"]}
        starts, ends, lists = self._histories(batch)
        for row, user in enumerate(users.tolist()):
            request = {name: values[row] for name, values in numbers.items()}
            for name, values in candidates.items():
                request[name] = values[row : row + 1]
            for name, values in lists.items():
                request[name] = values[starts[row] : ends[row]]
            request[schema_lib.GROUP_ID] = user
            request[schema_lib.LABEL] = labels[row : row + 1]
            request[records.DAY] = day
            yield request

    def _histories(self, batch):
        """Where the history of each row begins and ends in the lists of all rows; these lists."""
        lengths = np.diff(batch[_HISTORY_KEY].offsets.to_numpy())
        seconds = batch[_SECONDS].flatten().fill_null(0).to_numpy()
        known = batch[_HISTORY_KEY].flatten().is_valid().to_numpy(zero_copy_only=False)
        order = np.flatnonzero((seconds > 0) & known)
        row_of = np.repeat(np.arange(len(lengths)), lengths)[order]
        # To sort by row and age as one number is quicker than by two keys.
        span = seconds.max(initial=0) + 1
        oldest_first = np.argsort(row_of * span - seconds[order], kind="stable")
        order = order[oldest_first]
        row_of, seconds = row_of[oldest_first], seconds[order]
        first = np.diff(row_of, prepend=-1) > 0
        minutes = -np.diff(seconds, prepend=0) / 60
        lists = {
            name: self._encoded(name, batch[name].flatten())[order] for name in _GROUPS["history"]
        }
        lists[_GAP] = self._vocabs["gap"].encode(np.where(first, np.nan, minutes))
        lists[_AGE] = self._vocabs["age"].encode(seconds / 60)
        ends = np.cumsum(np.bincount(row_of, minlength=len(lengths)))
        starts = np.maximum(ends - self._history_length, np.r_[0, ends[:-1]])
        return starts.tolist(), ends.tolist(), lists

    def _encoded(self, column, values):
        vocabulary = self._vocabs[column.removesuffix("_list")]
        if column in _NUMBERS:
            return vocabulary.encode(values.to_numpy(zero_copy_only=False))
        if column in _INTEGERS:
            return vocabulary.encode(values.fill_null(-1).to_numpy())
        return _per_distinct(values, vocabulary.encode)


def _parts(day, path):
    """The parts of a typed file, which are a few row groups each."""
    with parquet.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    firsts = np.cumsum([0, *sizes]).tolist()
    for start in range(0, len(sizes), _PART_GROUPS):
        groups = list(range(start, min(start + _PART_GROUPS, len(sizes))))
        first = firsts[start]
        yield {"path": path, "day": _DAY_0 + day, "row_groups": groups, "first_row": first}


def _per_distinct(texts, function):
    """Applies a function to the distinct texts of a pyarrow array; the result for every text."""
    coded = texts.dictionary_encode("encode")
    distinct = coded.dictionary.fill_null("").to_numpy(zero_copy_only=False)
    return function(distinct)[coded.indices.to_numpy()]


def _faults():
    """SQL conditions that make a raw row unusable, by their names in the report."""
    missing = "coalesce({}, '-1') = '-1'".format
    lengths = ", ".join(f"len({_split(name)})" for name in _LISTS)
    faults = {
        "label is neither 0 nor 1": "coalesce(label, '') NOT IN ('0', '1')",
        "user_id is missing": missing("user_id"),
        "item_id is missing": missing("item_id"),
        "lists of unequal length": f"len(list_distinct([{lengths}])) > 1",
    }
    for name in (*_SCALARS, *_LISTS):
        if name in _NUMBERS:
            number = f"coalesce(isfinite(TRY_CAST({name} AS DOUBLE)), false)"
            faults[f"{name} has what is no number"] = f"NOT ({missing(name)} OR {number})"
        elif name in _INTEGERS:
            text = tables.literal(_INTEGER_LIST if name in _LISTS else _INTEGER)
            number = f"regexp_full_match(coalesce({name}, ''), {text})"
            faults[f"{name} has what is no number"] = f"NOT {number}"
    return faults


def _typed(column):
    """SQL of a raw column in its type, with NULL for a missing value."""
    if column in _LISTS:
        # An empty list looks like a list of one missing value, and neither has a behavior.
        known = f"CASE WHEN {_HISTORY_KEY} IS NOT NULL THEN {_split(column)} END"
        if column in _INTEGERS:
            return f"TRY_CAST({known} AS BIGINT[])"
        return f"list_transform({known}, lambda x: CASE WHEN x NOT IN ('', '-1') THEN x END)"
    if column == "label":
        return "label::FLOAT"
    if column == "gender":
        return "nullif(TRY_CAST(gender AS BIGINT), -99)"
    if column in _INTEGERS:
        return f"TRY_CAST({column} AS BIGINT)"
    known = f"nullif({column}, '-1')"
    return f"TRY_CAST({known} AS DOUBLE)" if column in _NUMBERS else known


def _split(column):
    """SQL of a raw list as a list of texts."""
    return f"string_split(coalesce({column}, ''), ';')"


def _rows(paths):
    """SQL of the rows of typed files."""
    return f"read_parquet([{', '.join(map(tables.literal, paths))}])"


def _behaviors(paths, *columns):
    """SELECT of the behaviors of typed files: their seconds, items and other columns."""
    names = dict.fromkeys((_SECONDS, _HISTORY_KEY, *columns))
    return f"SELECT {', '.join(f'unnest({n}) AS {n}' for n in names)} FROM {_rows(paths)}"
