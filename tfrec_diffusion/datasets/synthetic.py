"""Synthetic raw files in Ele.me's format, of users whose true click probabilities are known.

A user has several interests, each of which is a category with its own strength and beginning. An
interest fills the history for a while and hardly any more after that, but its clicks stay nearly as
likely. So an old strong interest counts, although few of its behaviors are recent. Every history
also holds popular items and accidental clicks on anything. The log-odds of a click are the sum of
the user's interest in the candidate's category, the candidate's appeal and the user's readiness to
click.
"""

import math
import pathlib
import zlib

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

from tfrec_diffusion import metrics
from tfrec_diffusion.datasets import ele_me, raw_files, requests

_VERSION = "1.2.0"  # rises with every change of the files that the same options give
_DAY = 24 * 60 * 60
_START = 1648742400  # 1 April 2022, a Friday, in China (UTC+8): the beginning of day 1
_PAST_DAYS = 90  # that histories reach back before day 1
_DAYS = 8
_USERS_PER_FILE = 500

# Behaviors
_FROM_POPULARITY, _BY_ACCIDENT = 0.25, 0.15  # shares; the others come from an interest
_ACTIVE_DAYS = (10, 25)  # that an interest fills the history: the least, and the mean of the rest
_LATER_BEHAVIORS, _LATER_CLICKS = 0.1, 0.7  # shares of an interest's strength after that time
_POPULARITY_SPREAD = 1.5  # popularity is exp(this * appeal)
_HOURS = np.array(  # how frequent each hour of the day is
    [1, 0.5, 0.3, 0.2, 0.2, 0.3, 1, 2, 3, 3, 6, 10, 9, 4, 3, 3, 4, 8, 10, 7, 4, 3, 2, 1]
)
_LISTED = {
    "shop_id_list": "shop_id",
    "item_id_list": "item_id",
    "category_1_id_list": "category_1_id",
    "merge_standard_food_id_list": "merge_standard_food_id",
    "brand_id_list": "brand_id",
    "price_list": "price",
    "shop_aoi_id_list": "shop_aoi_id",
    "shop_geohash6_list": "shop_geohash_6",
}

# Impressions
_SHOWN_BY_INTEREST, _SHOWN_BY_POPULARITY = 0.4, 0.3  # shares; the others are any item
_STRENGTH = (1.0, 5.0)
_LOG_ODDS, _APPEAL_WEIGHT, _READINESS = -3.0, 0.5, 0.3
_NEW_USERS = 0.05  # share of users whose first impression is on the test day


class Synthetic(ele_me.EleMe):
    """Synthetic raw files in Ele.me's format, prepared as Ele.me's own.

    The report has, under `best_reachable`, the AUC, GAUC and log loss of the true click
    probabilities on each split. No model can be expected to do better.

    Raw files that were written earlier with the same options are used again. Those of other options
    are replaced.

    Args:
        data_dir: str or `pathlib.Path`. Root of the prepared data sets.
        raw_dir: str, `pathlib.Path` or `None`. Directory for the raw files. If `None`, it is
            `<data_dir>/synthetic/raw`. Defaults to `None`.
        users: int. Number of users. One in twenty has impressions on the test day only. Defaults to
            `3000`.
        items: int. Number of items. Defaults to `1200`.
        categories: int. Number of categories, at most `items`. Defaults to `40`.
        interests: int. Largest number of interests that a user has, at most `categories`. The
            smallest is two. Defaults to `4`.
        impressions: int. Number of rows of each user on each day. Defaults to `3`.
        history_length: int. Longest history. The mean is about 0.8 of it. Defaults to `50`.
        min_count: int. As in `ele_me.EleMe`. Defaults to `2`.
        seed: int. Seed of all random numbers. Defaults to `0`.
    """

    VERSION = tfds.core.Version(_VERSION)

    def __init__(
        self,
        *,
        data_dir,
        raw_dir=None,
        users=3000,
        items=1200,
        categories=40,
        interests=4,
        impressions=3,
        history_length=50,
        min_count=2,
        seed=0,
    ):
        self.users = users
        self.items = items
        self.categories = categories
        self.interests = interests
        self.impressions = impressions
        self.seed = seed
        super().__init__(
            raw_dir=raw_dir or pathlib.Path(data_dir) / "synthetic" / "raw",
            data_dir=data_dir,
            history_length=history_length,
            min_count=min_count,
        )
        _check(self._raw_options)

    @property
    def _raw_options(self):
        return {name: value for name, value in self.options.items() if name != "min_count"}

    def convert(self):
        """Writes the raw files and converts them, see `RequestBuilder.convert`."""
        write_raw(self.raw_dir, **self._raw_options)
        self.report.note(
            "best_reachable",
            {
                split: best_reachable(self.raw_dir, days)
                for split, days in ele_me.split_days(self.train_days).items()
            },
        )
        return super().convert()


def write_raw(raw_dir, *, users, items, categories, interests, impressions, history_length, seed):
    """Writes the raw files, unless `raw_dir` already holds those of the same options.

    They are `D<day>_<part>.csv` and, with the click probability of each row as a float64,
    `D<day>_<part>.probability.npy`. A part has the same users on every day. More users only add
    parts, and the others stay the same.

    Args:
        raw_dir: str or `pathlib.Path`. Directory of the files. It appears when they are all
            written.
        users: int. As in `Synthetic`.
        items: int. As in `Synthetic`.
        categories: int. As in `Synthetic`.
        interests: int. As in `Synthetic`.
        impressions: int. As in `Synthetic`.
        history_length: int. As in `Synthetic`.
        seed: int. As in `Synthetic`.

    Raises:
        ValueError: If an option is out of its range, or `raw_dir` holds files of another origin.
    """
    options = {
        "users": users,
        "items": items,
        "categories": categories,
        "interests": interests,
        "impressions": impressions,
        "history_length": history_length,
        "seed": seed,
    }
    _check(options)
    with raw_files.written_once(raw_dir, {**options, "version": _VERSION}) as directory:
        if directory:
            _write(directory, **options)


def _write(directory, users, items, categories, interests, impressions, history_length, seed):
    catalog = _Catalog(items, categories, np.random.default_rng([seed, 0]))
    parts = tfds.core.utils.tqdm(
        range(math.ceil(users / _USERS_PER_FILE)), desc="Writing raw files", leave=False
    )
    for part in parts:
        first = part * _USERS_PER_FILE
        people = _Users(
            range(first, min(first + _USERS_PER_FILE, users)),
            catalog,
            interests,
            history_length,
            np.random.default_rng([seed, 1 + part]),
        )
        for day in range(_DAYS):
            columns, probabilities = people.impressions(day, impressions)
            path = directory / f"D{day + 1}_{part}.csv"
            with path.open("w", encoding="utf-8", newline="\n") as file:
                rows = zip(*(columns[name] for name in ele_me.COLUMNS), strict=True)
                file.writelines(",".join(row) + "\n" for row in rows)
            np.save(_probability_path(path), probabilities)


def _check(options):
    for name, value in options.items():
        requests.check_integers(least={"seed": 0, "interests": 2}.get(name, 1), **{name: value})
    for name, limit in (("categories", "items"), ("interests", "categories")):
        if options[name] > options[limit]:
            raise ValueError(
                f"`{name}` must be at most {limit}={options[limit]}. "
                f"Received: {name}={options[name]}"
            )


def best_reachable(raw_dir, days):
    """Metrics of the true click probabilities.

    Args:
        raw_dir: str or `pathlib.Path`. Directory that `write_raw` has written.
        days: iterable of int. The days whose rows count, from 1.

    Returns:
        dict of floats `auc`, `gauc` and `log_loss`.
    """
    labels, users, probabilities = [], [], []
    for path in (file for day in days for file in ele_me.day_files(raw_dir, day)):
        with path.open() as file:
            for line in file:
                label, user, _ = line.split(",", 2)
                labels.append(label == "1")
                users.append(user)
        probabilities.append(np.load(_probability_path(path)))
    labels, probabilities = np.array(labels, np.int64), np.concatenate(probabilities)
    groups, _ = pd.factorize(np.array(users, object))
    return metrics.summary(labels, probabilities, groups)


def _probability_path(path):
    return path.with_suffix(".probability.npy")


class _Catalog:
    """The items, sorted by category. A shop has four of them, and a brand three shops."""

    def __init__(self, items, categories, rng):
        self.items = items
        self.categories = categories
        self.category = np.arange(items) * categories // items
        self.appeal = rng.normal(size=items)
        self.popularity = np.cumsum(np.exp(_POPULARITY_SPREAD * self.appeal))
        shop = np.arange(items) // 4
        # Some shops have no area or no brand, so these are missing wherever their items occur.
        place = rng.integers(0, 1000, shop[-1] + 1)[shop]
        area = np.where(place < 30, "-1", _ids("area", place % 50))
        self.columns = {
            "shop_id": _ids("shop", shop),
            "item_id": _ids("item", np.arange(items)),
            "city_id": np.where(place < 10, "-1", _ids("city", np.zeros_like(place))),
            "district_id": np.where(place < 20, "-1", _ids("district", place % 10)),
            "shop_aoi_id": area,
            "shop_geohash_6": np.where(place < 30, "-1", _ids("geohash", place // 4)),
            "shop_geohash_12": np.where(place < 30, "-1", _ids("geohash", place + 1000)),
            "brand_id": np.where(place % 7 == 0, "", _ids("brand", shop // 3)),
            "category_1_id": _ids("category", self.category),
            "merge_standard_food_id": _ids("food", np.arange(items) // 3),
            "price": np.char.mod("%.2f", np.exp(rng.normal(3, 0.5, items))),
        }
        for days, noise in ((7, 1.0), (30, 0.5), (90, 0.2)):
            seen = self.appeal + rng.normal(0, noise, items)
            rank = np.argsort(np.argsort(-seen)) + 1
            ranked = rank <= 0.8 * items
            self.columns[f"rank_{days}"] = np.where(ranked, rank, -1).astype(str)
        self.columns = {name: column.astype(object) for name, column in self.columns.items()}

    def popular(self, rng, shape):
        """Items drawn by popularity."""
        return self._at(rng.random(shape) * self.popularity[-1])

    def popular_of(self, rng, categories):
        """Items drawn by popularity within each of the given categories."""
        first = np.searchsorted(self.category, categories)
        last = np.searchsorted(self.category, categories, side="right") - 1
        low = np.where(first > 0, self.popularity[first - 1], 0.0)
        span = self.popularity[last] - low
        return np.clip(self._at(low + span * rng.random(categories.shape)), first, last)

    def _at(self, points):
        return np.minimum(np.searchsorted(self.popularity, points), self.items - 1)


class _Users:
    """Some users and all that they do until the end of the last day.

    Arrays have the shape (users, behaviors) or (users, interests). Times are seconds since
    `_PAST_DAYS` before day 1.
    """

    def __init__(self, numbers, catalog, interests, history_length, rng):
        self._catalog = catalog
        self._rng = rng
        self._history_length = history_length
        users = len(numbers)
        self._new = rng.random(users) < _NEW_USERS
        self._readiness = rng.normal(0, _READINESS, users)

        self._interests = rng.integers(2, interests + 1, users)
        order = np.argsort(rng.random((users, catalog.categories)), axis=1)
        self._liked = order[:, :interests]
        self._strength = rng.uniform(*_STRENGTH, (users, interests))
        self._strength[np.arange(interests) >= self._interests[:, None]] = 0
        # The first interest was there from the beginning, the others come at any time.
        self._begin = rng.uniform(0, (_PAST_DAYS + _DAYS - 10) * _DAY, (users, interests))
        self._begin[:, 0] = 0
        least, mean = _ACTIVE_DAYS
        self._end = self._begin + (least + rng.exponential(mean, (users, interests))) * _DAY

        self._behave(users)
        self._columns = self._describe(_ids("user", np.array(numbers)))

    def _level(self, times, later):
        """How much of its strength an interest has at times: (users, n, interests)."""
        times = times[..., None]
        level = np.where(times < self._end[:, None], 1.0, later)
        return np.where(times < self._begin[:, None], 0.0, level)

    def _behave(self, users):
        rng, catalog, longest = self._rng, self._catalog, 12 * self._history_length // 5
        shape = (users, longest)
        fewest = longest // 12
        count = np.where(
            self._new,
            rng.integers(0, fewest + 1, users),
            rng.integers(fewest, longest + 1, users),
        )
        times = _times(rng, rng.integers(0, _PAST_DAYS + _DAYS, shape))
        times[np.arange(longest) >= count[:, None]] = (_PAST_DAYS + _DAYS) * _DAY
        self._times = np.sort(times, axis=1)

        weight = self._strength[:, None] * self._level(self._times, _LATER_BEHAVIORS)
        weight = np.cumsum(weight, axis=-1)
        drawn = rng.random(shape)[..., None] * weight[..., -1:]
        interest = (drawn >= weight).sum(-1).clip(max=weight.shape[-1] - 1)
        why = rng.random(shape)
        self._items = np.select(
            [why < _FROM_POPULARITY, why < _FROM_POPULARITY + _BY_ACCIDENT],
            [catalog.popular(rng, shape), rng.integers(0, catalog.items, shape)],
            catalog.popular_of(rng, np.take_along_axis(self._liked, interest, 1)),
        )
        self._behaviors = {
            name: catalog.columns[column][self._items] for name, column in _LISTED.items()
        }
        for name, values in _clock(self._times).items():
            if name != "times":
                self._behaviors[f"{name}_list"] = values

    def _describe(self, names):
        rng, users = self._rng, len(names)
        price = np.exp(rng.normal(3, 0.4, users)).round(2)
        orders = rng.poisson(6, users)
        clicking = 1 / (1 + np.exp(2 - self._readiness - rng.normal(0, 0.1, users)))
        columns = {
            "user_id": names,
            "gender": rng.choice(["1", "2", "-99"], users, p=[0.45, 0.45, 0.1]),
            "visit_city": np.where(
                rng.random(users) < 0.03, "-1", _ids("city", np.zeros_like(orders))
            ),
            "avg_price": np.where(rng.random(users) < 0.05, "", np.char.mod("%.2f", price)),
            "is_supervip": rng.choice(["0", "1"], users, p=[0.8, 0.2]),
            "ctr_30": np.where(self._new, "", np.char.mod("%.4f", clicking)),
            "ord_30": np.where(self._new, "", orders.astype(str)),
            "total_amt_30": np.where(self._new, "", np.char.mod("%.2f", orders * price)),
            "geohash12": _ids("geohash", rng.integers(0, 1000, users) + 1000),
        }
        return {name: column.astype(object) for name, column in columns.items()}

    def impressions(self, day, per_user):
        """The raw columns of a day's rows, and their click probabilities.

        A user's rows follow each other and are of one time. This must be called once for each day,
        in the order of the days, because it draws random numbers.
        """
        rng, catalog = self._rng, self._catalog
        users = len(self._new)
        shape = (users, per_user)
        time = _times(rng, np.full(users, _PAST_DAYS + day))
        interest = np.floor(rng.random(shape) * self._interests[:, None]).astype(np.int64)
        why = rng.random(shape)
        items = np.select(
            [why < _SHOWN_BY_INTEREST, why < _SHOWN_BY_INTEREST + _SHOWN_BY_POPULARITY],
            [
                catalog.popular_of(rng, np.take_along_axis(self._liked, interest, 1)),
                catalog.popular(rng, shape),
            ],
            rng.integers(0, catalog.items, shape),
        )
        strength = self._strength * self._level(time[:, None], _LATER_CLICKS)[:, 0]
        matches = catalog.category[items][..., None] == self._liked[:, None]
        log_odds = (
            _LOG_ODDS
            + (matches * strength[:, None]).sum(-1)
            + _APPEAL_WEIGHT * catalog.appeal[items]
            + self._readiness[:, None]
        )
        probabilities = 1 / (1 + np.exp(-log_odds))
        labels = rng.random(shape) < probabilities

        seen = np.full(users, day == _DAYS - 1) | ~self._new
        row_user = np.repeat(np.flatnonzero(seen), per_user)
        columns = {"label": np.where(labels, "1", "0")[seen].ravel()}
        of_user = {**self._columns, **_clock(time), **self._history_texts(time)}
        columns.update((name, values[row_user]) for name, values in of_user.items())
        shown = items[seen].ravel()
        columns.update((name, values[shown]) for name, values in catalog.columns.items())
        return columns, probabilities[seen].ravel()

    def _history_texts(self, time):
        """The newest behaviors before each user's `time`, as lists of the raw files."""
        ends = (self._times < time[:, None]).sum(1)
        spans = [slice(max(end - self._history_length, 0), end) for end in ends]
        lists = {**self._behaviors, "timediff_list": (time[:, None] - self._times).astype(str)}
        return {
            name: np.array(
                [";".join(values[span]) for values, span in zip(rows, spans, strict=True)], object
            )
            for name, rows in lists.items()
        }


def _times(rng, days):
    """Random seconds of the given days, at the hours when people order meals."""
    hours = rng.choice(24, size=days.shape, p=_HOURS / _HOURS.sum())
    return days * _DAY + hours * 3600 + rng.integers(0, 3600, days.shape)


def _clock(times):
    """The raw columns that tell a time."""
    days, hours = times // _DAY, times % _DAY // 3600
    meal = np.select(
        [(hours >= 5) & (hours < 10), (hours >= 10) & (hours < 14), (hours >= 14) & (hours < 17)],
        ["breakfast", "lunch", "tea"],
        np.where((hours >= 17) & (hours < 21), "dinner", "night"),
    )
    friday = 4
    columns = {
        "times": _START + times - _PAST_DAYS * _DAY,
        "hours": hours,
        "time_type": meal,
        "weekdays": (days - _PAST_DAYS + friday) % 7,
    }
    return {name: column.astype(str).astype(object) for name, column in columns.items()}


def _ids(kind, numbers):
    """Ids of ten hexadecimal digits, distinct for the numbers of a kind and in no visible order."""
    # Multiplication by an odd factor permutes the numbers below 2^40.
    mixed = (np.asarray(numbers, np.uint64) + np.uint64(zlib.crc32(kind.encode()))) * np.uint64(
        0x9E3779B97F4A7C15
    )
    return np.char.mod("%010x", mixed % np.uint64(2**40))
