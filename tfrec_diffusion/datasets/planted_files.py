"""The raw files of the data set `planted`, in the format of the data set `logs`.

There are `planted.json`, the spec; `impressions_*.parquet` and `behaviors_*.parquet`, which it
describes; and what no model sees: `users_*.parquet` and `items.parquet`, what is true of users and
items, and `oracles_*.parquet`, what the oracles predict for each impression.
"""

import dataclasses
import datetime
import json
import pathlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from pyarrow import parquet

from tfrec_diffusion.datasets import (
    logs_spec,
    planted_oracles,
    planted_users,
    raw_files,
    requests,
)

VERSION = "1.0.0"  # rises with every change of the files that the same options give
SPEC = "planted.json"
_USERS_PER_PART = 2500
_DAY = 24 * 60 * 60
_START = 1704067200  # 1 January 2024 UTC, when the first requests are
_TRAINING_DAYS = 7
_PERCENT_SPURIOUS = (0, 10, 20, 30, 40, 50)
# Ids have equally many digits, so that `logs`, which sorts them as text, keeps the users' order.
_FIRST_ID = 10**7
_LEAST = {"seed": 0, "types": 0, "values": 2}
_LEAST_WITH_SESSIONS = {
    "history_length": planted_users.SESSIONS * planted_users.SESSION,
    "items": 100,
}
_LARGEST = {"aspects": 16, "values": 100}


class _Split(NamedTuple):
    """The users of a split.

    Args:
        name: str. Name of the split.
        users: int. Number of users.
        begin: int. First time of their requests, in seconds since 1970.
        end: int. First time after their requests.
        spurious_share: float. Share of their sessions that are spurious.
        seed: int. Splits of the same seed have the same users but for this share.
    """

    name: str
    users: int
    begin: int
    end: int
    spurious_share: float
    seed: int


def splits(users=1, held_out_users=1, sessions=False):
    """The splits.

    Args:
        users: int. As in `planted.Planted`. Defaults to `1`.
        held_out_users: int. As in `planted.Planted`. Defaults to `1`.
        sessions: bool. As in `planted.Planted`. Defaults to `False`.

    Returns:
        dict by name of objects with `name`, `users`, `begin`, `end` (seconds since 1970),
        `spurious_share` and `seed`, in the order of their times.
    """
    share = planted_users.SPURIOUS_SHARE
    rows = [
        ("train", users, _TRAINING_DAYS, share, 2),
        ("validation", held_out_users, 1, share, 3),
        ("test", held_out_users, 1, share, 4),
    ]
    if sessions:
        rows += [
            (f"test_spurious_{percent}", held_out_users, 1, percent / 100, 5)
            for percent in _PERCENT_SPURIOUS
        ]
    found, begin = {}, _START
    for name, number, days, spurious, seed in rows:
        end = begin + days * _DAY
        found[name] = _Split(name, number, begin, end, spurious, seed)
        begin = end
    return found


def spec(aspects, visible):
    """The spec of the files.

    Args:
        aspects: int. As in `planted.Planted`.
        visible: bool. As in `planted.Planted`.

    Returns:
        `logs_spec.Spec`.
    """
    columns = {"item": "item_id"}
    if visible:
        columns |= {f"aspect_{i + 1}": f"aspect_{i + 1}" for i in range(aspects)}
    times = splits()
    return logs_spec.Spec(
        comment="Made by the data set `planted`. A user has one request of several candidates: "
        "prepare with --group_by=request.",
        splits=logs_spec.Splits(
            train_until=_iso(times["train"].end),
            validation_until=_iso(times["validation"].end),
        ),
        impressions=logs_spec.Events(
            files="impressions_*.parquet",
            user="user_id",
            time="time",
            time_unit="s",
            label="label",
            request="request_id",
        ),
        behaviors=logs_spec.Events(
            files="behaviors_*.parquet", user="user_id", time="time", time_unit="s"
        ),
        tables={
            **{
                name: logs_spec.Table("vocabulary", "int64", tiers=2 if name == "item" else 1)
                for name in columns
            },
            "gap": logs_spec.Table("boundaries", "float32", boundaries=requests.GAP_BOUNDARIES),
            "age": logs_spec.Table("boundaries", "float32", boundaries=requests.AGE_BOUNDARIES),
        },
        features={
            **{n: logs_spec.Feature("candidate", column, n) for n, column in columns.items()},
            **{
                f"history_{n}": logs_spec.Feature("history", column, n)
                for n, column in columns.items()
            },
            "history_gap": logs_spec.Feature("behavior", logs_spec.GAP, "gap"),
            "history_age": logs_spec.Feature("behavior", logs_spec.AGE, "age"),
        },
    )


def check(options):
    """Checks the options of `planted.Planted`.

    Args:
        options: dict. All of them by name.

    Raises:
        ValueError: If one is out of its range.
    """
    for name in ("visible", "sessions"):
        if not isinstance(options[name], bool):
            raise ValueError(f"`{name}` must be True or False. Received: {name}={options[name]!r}")
    if options["spurious_items"] not in ("popular", "niche"):
        raise ValueError(
            "`spurious_items` must be 'popular' or 'niche'. "
            f"Received: spurious_items={options['spurious_items']!r}"
        )
    if options["sessions"] and not options["visible"]:
        raise ValueError("`visible` must be True where `sessions` is. Received: visible=False")
    least = {**_LEAST, **(_LEAST_WITH_SESSIONS if options["sessions"] else {})}
    for name, value in options.items():
        if name in ("visible", "sessions", "spurious_items"):
            continue
        requests.check_integers(least=least.get(name, 1), **{name: value})
        if value > _LARGEST.get(name, value):
            raise ValueError(f"`{name}` must be at most {_LARGEST[name]}. Received: {name}={value}")
    combinations = options["values"] ** options["aspects"]
    if not options["visible"] and options["items"] < combinations:
        raise ValueError(
            f"`items` must be at least values ** aspects = {combinations} unless `visible`. "
            f"Received: items={options['items']}"
        )


def write(raw_dir, *, users, held_out_users, **options):
    """Writes the raw files, unless `raw_dir` already holds those of the same options.

    More users only add files, and change the last one of a split.

    Args:
        raw_dir: str or `pathlib.Path`. Directory of the files. It appears when they are all
            written.
        users: int. As in `planted.Planted`.
        held_out_users: int. As in `planted.Planted`.
        **options: The other options of `planted.Planted`, all of them.

    Raises:
        ValueError: If an option is out of its range, or `raw_dir` holds files of another origin.
    """
    written = {"users": users, "held_out_users": held_out_users, **options}
    check(written)
    with raw_files.written_once(raw_dir, {**written, "version": VERSION}) as directory:
        if directory is None:
            return
        world = planted_users.World(**options)
        text = json.dumps(_not_empty(dataclasses.asdict(spec(world.aspects, world.visible))))
        (directory / SPEC).write_text(text + "\n")
        _write(directory / "items.parquet", _items(world))
        parts = [
            (split, part, first)
            for split in splits(users, held_out_users, world.sessions).values()
            for part, first in enumerate(range(0, split.users, _USERS_PER_PART))
        ]
        first_id = _FIRST_ID
        for split, part, first in tfds.core.utils.tqdm(
            parts, desc="Writing raw files", leave=False
        ):
            people = planted_users.Users(
                world,
                min(_USERS_PER_PART, split.users - first),
                split.spurious_share,
                np.random.default_rng([world.seed, split.seed, part]),
            )
            ids = first_id + np.arange(len(people.when))
            first_id += len(ids)
            for name, columns in _columns(world, people, split, ids).items():
                _write(directory / f"{name}_{split.name}_{part:04}.parquet", columns)


def read_oracles(raw_dir, split):
    """What the oracles predict.

    Args:
        raw_dir: str or `pathlib.Path`. Directory that `write` has written.
        split: str. One of `splits`.

    Returns:
        dict of arrays of shape (impressions,) by name: `user_id`, `label`, `true` (the true click
        probability), `counts` (`planted_oracles.pooled_counts`) and, unless the split is train,
        each of `planted_oracles.click_probabilities`.
    """
    paths = sorted(pathlib.Path(raw_dir).glob(f"oracles_{split}_[0-9]*.parquet"))
    table = pa.concat_tables(parquet.read_table(path) for path in paths)
    return {name: table[name].to_numpy() for name in table.column_names}


def _items(world):
    catalog = world.catalog
    columns = {
        "item_id": catalog.ids,
        "popularity": catalog.popularity,
        "is_popular": catalog.is_popular,
        "appeal": catalog.appeal,
    }
    if not world.visible:
        shape = (world.values,) * world.aspects
        columns |= _numbered("aspect", np.stack(np.unravel_index(catalog.groups, shape), axis=1))
    return columns


def _columns(world, people, split, ids):
    """The columns of some users' files, by name of the file."""
    times = split.begin + (people.when * (split.end - split.begin)).astype(np.int64)
    shown, done = people.labels.shape[1], world.history_length
    oracles = {"true": people.probabilities}
    if split.name != "train":
        oracles |= planted_oracles.click_probabilities(world, people)
    oracles["counts"] = planted_oracles.pooled_counts(people)
    labels = {"label": people.labels.ravel().astype(np.int8)}
    return {
        "impressions": {
            "request_id": np.repeat(ids, shown),
            "user_id": np.repeat(ids, shown),
            "time": np.repeat(times, shown),
            "item_id": world.catalog.ids[people.candidate_items].ravel(),
            **_numbered("aspect", people.candidates),
            **labels,
        },
        "behaviors": {
            "user_id": np.repeat(ids, done),
            "time": (times[:, None] - people.ages).ravel(),
            "item_id": world.catalog.ids[people.items].ravel(),
            **_numbered("aspect", people.values),
        },
        "users": {
            "user_id": ids,
            "type": people.types,
            **_numbered("preferred", people.preferred),
            **_numbered("strength", people.strengths),
        },
        "oracles": {
            "user_id": np.repeat(ids, shown),
            **labels,
            **{name: predicted.ravel() for name, predicted in oracles.items()},
        },
    }


def _numbered(name, values):
    """Columns `<name>_1`, `<name>_2`, .. of the last axis."""
    return {f"{name}_{i + 1}": values[..., i].ravel() for i in range(values.shape[-1])}


def _write(path, columns):
    parquet.write_table(pa.table(columns), path)


def _iso(time):
    return datetime.datetime.fromtimestamp(time, datetime.UTC).isoformat()


def _not_empty(value):
    """A spec without the keys that have nothing to say."""
    if not isinstance(value, dict):
        return value
    kept = {name: _not_empty(entry) for name, entry in value.items()}
    return {name: entry for name, entry in kept.items() if entry not in ("", 0, (), {})}
