"""Your own logs: a table of impressions and a table of behaviors, which a spec file describes."""

import functools
import pathlib
from typing import NamedTuple

import tensorflow_datasets as tfds

from tfrec_diffusion import schema
from tfrec_diffusion.datasets import (
    impressions,
    log_checks,
    logs_spec,
    raw_columns,
    records,
    requests,
    tables,
    vocabularies,
)

_LARGEST_TIME = 2**63 - 1
_COMPUTED = "NULL::FLOAT"  # in place of a column that the encoder computes
_MINUS_ONE = '{} is -1, which means missing among integers: read it as text (dtype "string")'
_MINUTES_SINCE_PREVIOUS = (
    'coalesce(((time - lag(time) OVER (PARTITION BY "user" ORDER BY time)) / 6e10)::FLOAT, '
    f"{tables.MISSING['FLOAT']})"
)


class _Loaded(NamedTuple):
    """The impressions or behaviors in the database, with their side tables.

    Args:
        tables: str. SQL of a FROM clause that joins them; the alias of the events is `e`.
        columns: dict of SQL by column. The value of each column that features need.
        unit: str. The unit of the times, a key of `logs_spec.TIME_UNITS`.
    """

    tables: str
    columns: dict[str, str]
    unit: str


class LogBuilder(requests.RequestBuilder):
    """One request for each impression of a log, with the user's behaviors before it.

    The base class of the data sets that a spec describes.

    Args:
        raw_dir: str or `pathlib.Path`. Directory of the tables.
        data_dir: str or `pathlib.Path`. As in `requests.RequestBuilder`.
        spec: `logs_spec.Spec`. What the columns of the tables are.
        spec_path: `pathlib.Path`. Path of the spec file, for errors. Its name without the ending
            becomes the schema's name.
        history_length: int. Longest history; the newest behaviors are kept.
        config: `tfds.core.BuilderConfig` or `None`. As in `requests.RequestBuilder`. Defaults to
            `None`.
    """

    def __init__(self, *, raw_dir, data_dir, spec, spec_path, history_length, config=None):
        requests.check_integers(history_length=history_length)
        self._spec = spec
        self._spec_path = spec_path
        self.history_length = history_length
        super().__init__(raw_dir=raw_dir, data_dir=data_dir, config=config)

    @property
    def spans(self):
        """dict by split of the first time of its impressions and the first time after them, in
        nanoseconds since 1970.
        """
        train_until, validation_until = self._spec.train_until, self._spec.validation_until
        return {
            "train": (0, train_until),
            "validation": (train_until, validation_until),
            "test": (validation_until, _LARGEST_TIME),
        }

    @property
    def features(self):
        """tuple of `schema.Feature`s, those of the spec."""
        return self._spec.schema_features

    def convert(self):
        """See `RequestBuilder.convert`."""
        with tables.Database(self.scratch, self.report) as database:
            try:
                loaded = {name: self._load(database, name) for name in ("impressions", "behaviors")}
                computed = self._computed(loaded["behaviors"])
                self._sort(database, loaded, computed)
                self._check(database, computed)
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(f"{self._spec_path}: {error}") from error
            vocabs = {
                name: self._vocabulary(database, name, computed) for name in self._spec.tables
            }
            queries = {name: f"SELECT * FROM {name}_by_user" for name in loaded}
            parts = database.cut(self.scratch / "parts", "user", queries)
        tables_ = [vocabulary.table() for vocabulary in vocabs.values()]
        schema_ = schema.Schema(self._spec_path.stem, self.features, tables_, self.history_length)
        encoder = functools.partial(
            impressions.Encoder,
            features=self.features,
            vocabularies=vocabs,
            gaps=[name for name, column in computed.items() if column == logs_spec.GAP],
            ages=[name for name, column in computed.items() if column == logs_spec.AGE],
            history_length=self.history_length,
            ticks=logs_spec.TIME_UNITS["s"],
            time_zone_hours=self._spec.time_zone_hours,
        )
        splits = {
            name: records.Split(encoder(span=span), parts) for name, span in self.spans.items()
        }
        return schema_, vocabs, splits

    def _features_of(self, name):
        """The spec's features, by name, whose columns are in the impressions or behaviors."""
        return {
            feature: column
            for feature, column in self._spec.features.items()
            if column.of_behaviors == (name == "behaviors")
        }

    def _computed(self, behaviors):
        """Columns that the encoder computes, by the names of their features."""
        return {
            name: feature.column
            for name, feature in self._features_of("behaviors").items()
            if behaviors.columns[feature.column] == _COMPUTED
        }

    def _key(self, name):
        """The first candidate or history feature, which tells real entries from padding."""
        group = "history" if name == "behaviors" else "candidate"
        return next(f for f in self._features_of(name).values() if f.group == group)

    def _column_types(self, name):
        """SQL types of the columns of the impressions or behaviors that features need."""
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
        """Loads the impressions or behaviors with their side tables; drops unusable rows."""
        events = getattr(self._spec, name)
        types = self._column_types(name)
        user = self._spec.impressions.user
        required = {
            events.user: self._column_types("impressions").get(user, "VARCHAR"),
            events.time: "BIGINT",
            **({events.label: "VARCHAR" if events.positive else "FLOAT"} if events.label else {}),
            **({events.request: types.get(events.request, "VARCHAR")} if events.request else {}),
            **{column: types.get(column, "VARCHAR") for column in events.keep},
            **{join.on: types.get(join.on, "VARCHAR") for join in events.join},
        }
        paths = tables.find_files(self.raw_dir, events.files)
        header = _names(paths[0], events.format)
        own = {column: kind for column, kind in types.items() if column in header} | required
        strict = {*required, self._key(name).column}
        stamped = database.load(
            name,
            paths,
            own,
            lenient=own.keys() - strict,
            format_=events.format,
            nulls=self._nulls(own, events),
            times={events.time: self._spec.time_zone_hours},
        )
        self._note_minus_one(database, name, own, strict)
        columns = {column: f"e.{tables.column(column)}" for column in own}
        from_ = f"{name} AS e"
        for i, join in enumerate(events.join):
            side = self._load_side(
                database, name, join, required[join.on], types, columns, strict, f"s{i}"
            )
            on = tables.column(join.on)
            from_ += f" LEFT JOIN {tables.quoted(side)} AS s{i} ON e.{on} = s{i}.{on}"
        unit = "ns" if events.time in stamped else events.time_unit
        if name == "behaviors":
            columns.setdefault(logs_spec.GAP, _COMPUTED)
            columns.setdefault(logs_spec.AGE, _COMPUTED)
        for column in types:
            if column not in columns:
                files = [events.files, *(join.files for join in events.join)]
                there = self._all_names(events)
                raise ValueError(
                    f"{name} must have a column {column!r} in one of {files}"
                    f"{raw_columns.hint(there, column)}"
                )
        loaded = _Loaded(from_, columns, unit)
        self._drop_unusable(database, name, events, required[events.user], loaded)
        return loaded

    def _load_side(self, database, name, join, key_type, types, columns, strict, alias):
        """Loads a side table with those of the needed columns that are not in `columns` yet."""
        side = f"{name} join {join.files}"
        paths = tables.find_files(self.raw_dir, join.files)
        header = _names(paths[0], join.format)
        found = {c: kind for c, kind in types.items() if c in header and c not in columns}
        own = {join.on: key_type, **found}
        database.load(
            side,
            paths,
            own,
            lenient=found.keys() - strict,
            format_=join.format,
            nulls=dict.fromkeys(own, self._spec.null),
        )
        self._note_minus_one(database, side, own, strict)
        database.drop_repeated(side, tables.column(join.on), f"{join.on} repeated", bad=False)
        columns |= {column: f"{alias}.{tables.column(column)}" for column in found}
        return side

    def _drop_unusable(self, database, name, events, user_type, loaded):
        for column, values in events.keep.items():
            kept = ", ".join(map(tables.literal, values))
            database.drop(
                name,
                f"coalesce({tables.column(column)}::VARCHAR, '') NOT IN ({kept})",
                f"{column} not kept",
                bad=False,
            )
        user, time = map(tables.column, (events.user, events.time))
        if user_type == "BIGINT":
            database.drop(name, f"{user} = -1", _MINUS_ONE.format(events.user))
        database.drop(name, f"{user} IS NULL OR {user} = {tables.MISSING[user_type]}", "no user")
        log_checks.drop_times_of_another_unit(database, name, events.time, loaded.unit, self._spec)
        last = _LARGEST_TIME // logs_spec.TIME_UNITS[loaded.unit]
        database.drop(
            name,
            f"NOT coalesce({time} BETWEEN 0 AND {last}, false)",
            "no time, or out of range",
        )
        if events.positive:
            database.drop(name, f"coalesce({tables.column(events.label)}, '') = ''", "no label")
        elif events.label:
            database.drop(
                name,
                f"NOT coalesce({tables.column(events.label)} IN (0, 1), false)",
                "label neither 0 nor 1",
            )
        key = self._key(name)
        value = self._value(key, loaded)
        kind = tables.SQL_TYPES[self._spec.tables[key.table].dtype]
        rows = f"rowid IN (SELECT e.rowid FROM {loaded.tables} WHERE {{}})".format
        if kind == "BIGINT":
            minus_one = rows(f"{loaded.columns[key.column]} = -1")
            database.drop(name, minus_one, _MINUS_ONE.format(key.column))
        nothing = rows(f"{value} = {tables.MISSING[kind]}")
        database.drop(name, nothing, f"no {key.column}")

    def _nulls(self, columns, events):
        """Texts that are missing values in each of the columns."""
        return {
            column: tuple(t for t in self._spec.null if t not in events.keep.get(column, ()))
            for column in columns
        }

    def _note_minus_one(self, database, table, columns, strict):
        names = [name for name, kind in columns.items() if kind == "BIGINT" and name not in strict]
        if names:
            counts = ", ".join(f"count(*) FILTER ({tables.column(name)} = -1)" for name in names)
            (found,) = database.execute(f"SELECT {counts} FROM {tables.quoted(table)}")
            for name, rows in zip(names, found, strict=True):
                if rows:
                    self.report.note(f"{table}: {name} is -1, taken for missing", rows)

    def _all_names(self, events):
        """Names of the columns of the first file of events and of each side table."""
        return [
            name
            for files in (events, *events.join)
            for name in tables.column_names(
                tables.find_files(self.raw_dir, files.files)[0], files.format
            )
        ]

    def _value(self, feature, loaded):
        """SQL of a feature's raw value, where the schema's missing value replaces NULL."""
        kind = tables.SQL_TYPES[self._spec.tables[feature.table].dtype]
        return f"coalesce({loaded.columns[feature.column]}, {tables.MISSING[kind]})"

    def _sort(self, database, loaded, computed):
        """Makes the tables for `impressions.Encoder`, with users numbered 1, 2, .. in order."""
        users = " UNION ".join(
            f"SELECT {tables.column(getattr(self._spec, name).user)} AS id FROM {name}"
            for name in loaded
        )
        database.execute(
            "CREATE TABLE users AS "
            f"SELECT id, row_number() OVER (ORDER BY id) AS number FROM ({users})",
            "Numbering users",
        )
        for name, (from_, _, unit) in loaded.items():
            events = getattr(self._spec, name)
            order = [f"e.{tables.column(events.time)}", "e.rowid"]
            if events.request:
                together = self._together(events)
                order = [*(f"min({value}) OVER {together}" for value in order), *order]
            values = {"user": "u.number", "time": f"{order[0]} * {logs_spec.TIME_UNITS[unit]}"}
            if name == "impressions":
                values |= {"row": "e.rowid", "label": _label(events)}
            for feature, column in self._features_of(name).items():
                if feature not in computed:
                    values[f"f_{feature}"] = self._value(column, loaded[name])
            values = ", ".join(f"{sql} AS {tables.quoted(value)}" for value, sql in values.items())
            database.execute(
                f"CREATE TABLE {name}_by_user AS SELECT {values} "
                f"FROM {from_} JOIN users AS u ON e.{tables.column(events.user)} = u.id "
                f"ORDER BY u.number, {', '.join(order)}",
                f"Sorting {name}",
            )
            database.execute(f"DROP TABLE {name}")

    def _together(self, events):
        """SQL of the window over the impressions of one request, or over one without a request."""
        kind = self._column_types("impressions").get(events.request, "VARCHAR")
        missing, request = tables.MISSING[kind], f"e.{tables.column(events.request)}"
        alone = f"CASE WHEN coalesce({request}, {missing}) = {missing} THEN e.rowid END"
        return f"(PARTITION BY e.{tables.column(events.user)}, {request}, {alone})"

    def _check(self, database, computed):
        """Reports the times of the tables and what they have in common."""
        log_checks.report_times(database, self.report, self._spec)
        shared = {}
        for candidate, column in self._features_of("impressions").items():
            table = self._spec.tables[column.table]
            for history, other in self._features_of("behaviors").items():
                same = column.group == "candidate" and other.group == "history"
                if same and other.table == column.table and history not in computed:
                    missing = tables.MISSING[tables.SQL_TYPES[table.dtype]]
                    shared[candidate, column.column] = history, other.column, missing
        log_checks.report_meeting(database, self.report, self._spec, shared)

    # Encoding

    def _vocabulary(self, database, name, computed):
        """Maps the raw values of a table to rows, by what training may see."""
        table = self._spec.tables[name]
        if table.kind == "hash":
            return vocabularies.HashBuckets(name, table.dtype, table.buckets)
        if table.boundaries:
            return vocabularies.Boundaries(name, table.boundaries)
        selects = []
        for feature, column in self._spec.features.items():
            if column.table == name:
                value = (
                    _MINUTES_SINCE_PREVIOUS
                    if feature in computed
                    else tables.quoted(f"f_{feature}")
                )
                source = "behaviors" if column.of_behaviors else "impressions"
                selects.append(
                    f"SELECT {value} AS value FROM {source}_by_user "
                    f"WHERE time < {self._spec.train_until}"
                )
        seen = " UNION ALL ".join(selects)
        is_vocabulary = table.kind == "vocabulary"
        least = table.min_count if is_vocabulary else 1
        values, counts, total = database.value_counts(seen, least)
        if table.dtype == "string":
            broken = int(vocabularies.has_line_break(values).sum())
            if broken:
                self.report.note(f"{name}: values with a line break, taken for unknown", broken)
        if not is_vocabulary:
            return vocabularies.Boundaries.from_counts(name, values, counts, buckets=table.buckets)
        return vocabularies.Vocabulary.from_counts(
            name, table.dtype, values, counts, tiers=table.tiers, seen=total
        )


def _names(path, format_):
    names = tables.column_names(path, format_)
    return {*names, *(name.strip() for name in names)}


def _label(events):
    """SQL of an impression's label, 0 or 1."""
    label = f"e.{tables.column(events.label)}"
    if not events.positive:
        return label
    return f"({label} IN ({', '.join(map(tables.literal, events.positive))}))::FLOAT"


class Logs(LogBuilder):
    """One request for each impression, with the user's behaviors before it.

    The history of an impression holds only behaviors at earlier times than its own, newest last;
    behaviors of the same time come in the order of the files. Vocabularies count the training
    impressions and the behaviors before the end of training.

    Args:
        raw_dir: str or `pathlib.Path`. Directory of the tables.
        data_dir: str or `pathlib.Path`. Root of the prepared data sets. This one is written to
            `<data_dir>/logs/<name of the spec file>/<version>`.
        spec: str or `pathlib.Path`. Path of the spec file. `logs_spec.Spec` documents its content,
            and `experiments/kuairand.json` is an example. It must be given. Defaults to `None`,
            which is an error.
        history_length: int. Longest history; the newest behaviors are kept. Defaults to `100`.
    """

    VERSION = tfds.core.Version("1.2.0")

    def __init__(self, *, raw_dir, data_dir, spec=None, history_length=100):
        loaded = logs_spec.Spec.load(spec)
        path = pathlib.Path(spec)
        self.spec = f"{path.name} ({loaded.digest})"
        super().__init__(
            raw_dir=raw_dir,
            data_dir=data_dir,
            spec=loaded,
            spec_path=path,
            history_length=history_length,
            config=tfds.core.BuilderConfig(name=path.stem),
        )
