"""Bring your own logs: a table of impressions and one of behaviors, described by a spec file."""

import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from tfrec_diffusion import schema
from tfrec_diffusion.datasets import logs_spec, requests, tables, vocabularies

_LARGEST_TIME = 2**63 - 1
_MINUTE = 60 * 10**9  # in nanoseconds
_OF_REQUEST = "NULL::FLOAT"  # SQL of a column that depends on the impression, too


class _Events(NamedTuple):
    """A loaded table of events with its side tables.

    Args:
        tables: SQL of a FROM clause that joins them; the events are `e`.
        columns: SQL of the value of each column that features need.
        unit: Nanoseconds in one of the time column's units.
    """

    tables: str
    columns: dict[str, str]
    unit: int


class Logs(requests.RequestBuilder):
    """One request for each impression, with the user's behaviors before it.

    The history of an impression holds behaviors of an earlier time than its own only, newest last,
    those of the same time in the order of the files. Vocabularies count the training impressions
    and the behaviors before the end of training.

    Args:
        raw_dir: Directory of the tables.
        data_dir: Root of the prepared data sets; this one goes to
            <data_dir>/logs/<name of the spec file>/<version>.
        spec: Path of the spec file; `logs_spec.Spec` documents it, `experiments/kuairand.json` is
            an example.
        history_length: Longest history; the newest behaviors are kept.
    """

    VERSION = tfds.core.Version("1.2.0")

    def __init__(self, *, raw_dir, data_dir, spec=None, history_length=100):
        requests.check_integers(history_length=history_length)
        self._spec = logs_spec.Spec.load(spec)
        self._spec_path = pathlib.Path(spec)
        self.spec = f"{self._spec_path.name} ({self._spec.digest})"
        self.history_length = history_length
        config = tfds.core.BuilderConfig(name=self._spec_path.stem)
        super().__init__(raw_dir=raw_dir, data_dir=data_dir, config=config)

    @property
    def features(self):
        """The spec's features."""
        return self._spec.schema_features

    def convert(self):
        """See `RequestBuilder.convert`."""
        database = self.resources.enter_context(tables.Database(self.scratch, self.report))
        try:
            impressions = self._load(database, "impressions")
            behaviors = self._load(database, "behaviors")
            self._interleave(database, impressions, behaviors)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{self._spec_path}: {error}") from error
        vocabs = {name: self._vocabulary(database, name) for name in self._spec.tables}
        tables_ = [vocabulary.table() for vocabulary in vocabs.values()]
        schema_ = schema.Schema(self._spec_path.stem, self.features, tables_, self.history_length)
        ages = {
            name
            for name, feature in self._features_of("behaviors").items()
            if behaviors.columns[feature.column] == _OF_REQUEST
        }
        train_until, validation_until = self._spec.train_until, self._spec.validation_until
        splits = {
            "train": (0, train_until),
            "validation": (train_until, validation_until),
            "test": (validation_until, _LARGEST_TIME),
        }
        requests_ = {
            name: self._requests(database, vocabs, ages, since, until)
            for name, (since, until) in splits.items()
        }
        return schema_, vocabs, requests_

    def _features_of(self, name):
        """Spec features by name whose columns are in the `"impressions"` or `"behaviors"`."""
        return {
            feature: column
            for feature, column in self._spec.features.items()
            if column.of_behaviors == (name == "behaviors")
        }

    def _key(self, name):
        """The first candidate or history feature, which tells real from padding."""
        group = "history" if name == "behaviors" else "candidate"
        return next(f for f in self._features_of(name).values() if f.group == group)

    def _column_types(self, name):
        """SQL types of the columns that are needed of the impressions or behaviors."""
        types = {}
        for feature in self._features_of(name).values():
            kind = tables.SQL_TYPES[self._spec.tables[feature.table].dtype]
            if types.setdefault(feature.column, kind) != kind:
                raise ValueError(
                    f"column {feature.column!r} of {name} must be of one type. "
                    f"Its features' tables say: {types[feature.column]} and {kind}"
                )
        return types

    def _load(self, database, name):
        """Loads the impressions or behaviors with their side tables; drops what is unusable."""
        events = getattr(self._spec, name)
        types = self._column_types(name)
        user = self._spec.impressions.user
        required = {
            events.user: self._column_types("impressions").get(user, "VARCHAR"),
            events.time: "BIGINT",
            **({events.label: "FLOAT"} if events.label else {}),
            **{column: types.get(column, "VARCHAR") for column in events.keep},
            **{join.on: types.get(join.on, "VARCHAR") for join in events.join},
        }
        paths = tables.find_files(self.raw_dir, events.files)
        header = tables.column_names(paths[0])
        own = {column: kind for column, kind in types.items() if column in header} | required
        strict = {*required, self._key(name).column}
        database.load(name, paths, own, lenient=own.keys() - strict)
        columns = {column: f"e.{tables.quoted(column)}" for column in own}
        from_ = f"{name} AS e"
        for i, join in enumerate(events.join):
            side = self._load_side(
                database, name, join, required[join.on], types, columns, strict, f"s{i}"
            )
            on = tables.quoted(join.on)
            from_ += f" LEFT JOIN {tables.quoted(side)} AS s{i} ON e.{on} = s{i}.{on}"
        stamped = tables.holds_timestamps(paths[0], events.time)
        unit = logs_spec.TIME_UNITS["ns" if stamped else events.time_unit]
        if name == "behaviors":
            columns.setdefault(logs_spec.GAP, _gap(events, unit))
            columns.setdefault(logs_spec.AGE, _OF_REQUEST)
        for column in types:
            if column not in columns:
                files = [events.files, *(join.files for join in events.join)]
                raise ValueError(f"{name} must have a column {column!r} in one of {files}")
        loaded = _Events(from_, columns, unit)
        self._drop_unusable(database, name, events, required[events.user], loaded)
        return loaded

    def _load_side(self, database, name, join, key_type, types, columns, strict, alias):
        """Loads a side table with the columns that are still missing in `columns`."""
        side = f"{name} join {join.files}"
        paths = tables.find_files(self.raw_dir, join.files)
        header = tables.column_names(paths[0])
        found = {c: kind for c, kind in types.items() if c in header and c not in columns}
        own = {join.on: key_type, **found}
        database.load(side, paths, own, lenient=found.keys() - strict)
        first = f"SELECT min(rowid) FROM {tables.quoted(side)} GROUP BY {tables.quoted(join.on)}"
        database.drop(side, f"rowid NOT IN ({first})", f"{join.on} repeated")
        columns |= {column: f"{alias}.{tables.quoted(column)}" for column in found}
        return side

    def _drop_unusable(self, database, name, events, user_type, loaded):
        for column, values in events.keep.items():
            kept = ", ".join(map(tables.literal, values))
            database.drop(
                name,
                f"coalesce({tables.quoted(column)}::VARCHAR, '') NOT IN ({kept})",
                f"{column} not kept",
            )
        missing = tables.MISSING[user_type]
        database.drop(
            name, f"coalesce({tables.quoted(events.user)}, {missing}) = {missing}", "no user"
        )
        last = _LARGEST_TIME // loaded.unit
        database.drop(
            name,
            f"NOT coalesce({tables.quoted(events.time)} BETWEEN 0 AND {last}, false)",
            "no time, or out of range",
        )
        if events.label:
            database.drop(
                name,
                f"NOT coalesce({tables.quoted(events.label)} IN (0, 1), false)",
                "label neither 0 nor 1",
            )
        key = self._key(name)
        value = self._value(key, loaded)
        nothing = tables.MISSING[tables.SQL_TYPES[self._spec.tables[key.table].dtype]]
        rows = f"SELECT e.rowid FROM {loaded.tables} WHERE {value} = {nothing}"
        database.drop(name, f"rowid IN ({rows})", f"no {key.column}")

    def _value(self, feature, loaded):
        """SQL of a feature's raw value, with the value that stands for a missing one."""
        kind = tables.SQL_TYPES[self._spec.tables[feature.table].dtype]
        return f"coalesce({loaded.columns[feature.column]}, {tables.MISSING[kind]})"

    def _interleave(self, database, impressions, behaviors):
        """Fills the table `events`: by user and time, at equal times the impressions first."""
        selects = []
        for name, loaded in (("impressions", impressions), ("behaviors", behaviors)):
            events = getattr(self._spec, name)
            user, time = tables.quoted(events.user), tables.quoted(events.time)
            own = self._features_of(name)
            values = []
            for feature, column in self._spec.features.items():
                kind = tables.SQL_TYPES[self._spec.tables[column.table].dtype]
                value = self._value(column, loaded) if feature in own else tables.MISSING[kind]
                values.append(f"{value} AS {tables.quoted('f_' + feature)}")
            label = f"e.{tables.quoted(events.label)}" if events.label else "0"
            selects.append(
                f"SELECT e.{user} AS user_id, e.{time} * {loaded.unit} AS time, "
                f"{name == 'behaviors'} AS is_behavior, e.rowid AS row, {label}::FLOAT AS label, "
                f"{', '.join(values)} FROM {loaded.tables}"
            )
        database.execute(
            f"CREATE TABLE events AS {' UNION ALL '.join(selects)} "
            "ORDER BY user_id, time, is_behavior, row"
        )
        database.execute("DROP TABLE impressions")
        database.execute("DROP TABLE behaviors")

    # Encoding

    def _vocabulary(self, database, name):
        """What turns a table's raw values into rows, from what training may see."""
        table = self._spec.tables[name]
        if table.kind == "hash":
            return vocabularies.HashBuckets(name, table.dtype, table.buckets)
        if table.boundaries:
            return vocabularies.Boundaries(name, table.boundaries)
        seen = " UNION ALL ".join(
            f"SELECT {tables.quoted('f_' + feature)} AS value FROM events "
            f"WHERE is_behavior = {column.of_behaviors} AND time < {self._spec.train_until}"
            for feature, column in self._spec.features.items()
            if column.table == name
        )
        counts = database.columns(
            f"SELECT value, count(*) AS n FROM ({seen}) GROUP BY value ORDER BY value"
        )
        if table.dtype == "string":
            broken = int(vocabularies.has_line_break(counts["value"]).sum())
            if broken:
                self.report.note(f"{name}: values with a line break, taken for unknown", broken)
        if table.kind == "boundaries":
            return vocabularies.Boundaries.from_counts(
                name, counts["value"], counts["n"], buckets=table.buckets
            )
        return vocabularies.Vocabulary.from_counts(
            name,
            table.dtype,
            counts["value"],
            counts["n"],
            min_count=table.min_count,
            tiers=table.tiers,
        )

    def _requests(self, database, vocabs, ages, since, until):
        """The requests of the impressions with `since` <= time < `until`, in nanoseconds.

        `ages` are the features whose value is the time from a behavior to the impression.
        """
        features = self._spec.features
        users = 0
        for chunk in tables.whole_groups(database.chunks("SELECT * FROM events"), "user_id"):
            is_behavior = chunk["is_behavior"].astype(bool)
            first_of_user = np.ones(len(is_behavior), bool)
            first_of_user[1:] = chunk["user_id"][1:] != chunk["user_id"][:-1]
            user_numbers = users + np.cumsum(first_of_user)
            users = user_numbers[-1]
            wanted = ~is_behavior & (chunk["time"] >= since) & (chunk["time"] < until)
            if not wanted.any():
                continue
            # Behaviors of the chunk, counted before each row, and before its user's first row.
            ends = np.cumsum(is_behavior) - is_behavior
            starts = ends[np.flatnonzero(first_of_user)][np.cumsum(first_of_user) - 1]
            starts = np.maximum(starts, ends - self.history_length)
            rows = {
                name: vocabs[feature.table].encode(
                    chunk[f"f_{name}"][is_behavior if feature.of_behaviors else wanted]
                )
                for name, feature in features.items()
            }
            keys, labels = chunk["row"][wanted].tolist(), chunk["label"][wanted]
            user_numbers, ends, starts = user_numbers[wanted], ends[wanted], starts[wanted]
            times, behavior_times = chunk["time"][wanted], chunk["time"][is_behavior]
            for i, key in enumerate(keys):
                request = {
                    schema.GROUP_ID: user_numbers[i],
                    schema.LABEL: labels[i : i + 1],
                }
                for name, feature in features.items():
                    if name in ages:
                        minutes = (times[i] - behavior_times[starts[i] : ends[i]]) / _MINUTE
                        request[name] = vocabs[feature.table].encode(minutes)
                    elif feature.of_behaviors:
                        request[name] = rows[name][starts[i] : ends[i]]
                    elif feature.group == "candidate":
                        request[name] = rows[name][i : i + 1]
                    else:
                        request[name] = rows[name][i]
                yield key, request


def _gap(events, unit):
    """SQL of the minutes since the user's previous behavior; NULL for the first."""
    user, time = tables.quoted(events.user), tables.quoted(events.time)
    previous = f"lag(e.{time}) OVER (PARTITION BY e.{user} ORDER BY e.{time}, e.rowid)"
    return f"((e.{time} - {previous}) * {unit} / {_MINUTE})::FLOAT"
