"""Makes requests of a table of impressions and a table of behaviors, which a spec describes."""

import functools
import math
from typing import NamedTuple

from tfrec_diffusion import schema
from tfrec_diffusion.datasets import (
    impressions,
    log_checks,
    logs_spec,
    raw_columns,
    records,
    requests,
    sql_lists,
    tables,
    vocabularies,
)

_DAY = 86400 * logs_spec.TIME_UNITS["s"]
_LISTS_OF_NUMBERS = {"BIGINT[]": "integers of 64 bits", "FLOAT[]": "numbers"}
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
        known: `known_tables.KnownTables` or `None`. The tables of a trained model. If `None`, they
            are made from what training sees. Defaults to `None`.
        config: `tfds.core.BuilderConfig` or `None`. As in `requests.RequestBuilder`. Defaults to
            `None`.
    """

    def __init__(
        self, *, raw_dir, data_dir, spec, spec_path, history_length, known=None, config=None
    ):
        requests.check_integers(history_length=history_length)
        self._known = known
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
            "train": (self._spec.train_from, train_until),
            "validation": (train_until, validation_until),
            "test": (validation_until, self._spec.test_until),
        }

    @property
    def features(self):
        """tuple of `schema.Feature`s, those of the spec."""
        return self._spec.schema_features

    @property
    def seen_until(self):
        """int. Up to where vocabularies look, in nanoseconds since 1970."""
        return self._spec.train_until

    @property
    def targets(self):
        """See `RequestBuilder.targets`."""
        return self._spec.targets

    @property
    def numeric_tables(self):
        """See `RequestBuilder.numeric_tables`."""
        return {name for name, table in self._spec.tables.items() if table.is_numeric}

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
        schema_ = schema.Schema(
            self._spec_path.stem,
            self.features,
            tables_,
            self.history_length,
            labels=self._spec.impressions.labels,
            weighted=bool(self._spec.impressions.weight),
        )
        encoder = functools.partial(
            impressions.Encoder,
            features=self.features,
            targets=self.targets,
            vocabularies=vocabs,
            gaps=[name for name, column in computed.items() if column == logs_spec.GAP],
            ages=[name for name, column in computed.items() if column == logs_spec.AGE],
            history_length=self.history_length,
            ticks=logs_spec.TIME_UNITS["s"],
            time_zone_hours=self._spec.time_zone_hours,
        )
        splits = {
            name: records.Split(encoder(span=span), parts)
            for name, span in self.spans.items()
            if span[0] < span[1]
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
            self._settle(types, name, feature.column, self._type(feature))
        return types

    def _separators(self, name):
        """What stands between the values of each column of lists."""
        separators = {}
        for feature in self._features_of(name).values():
            if sql_lists.value_type(self._type(feature)):
                self._settle(separators, name, feature.column, feature.separator)
        return separators

    def _type(self, feature):
        """SQL type of a feature's column."""
        table = self._spec.tables[feature.table]
        kind = tables.SQL_TYPES[table.dtype]
        if table.width:
            return f"{kind}[{table.width}]"
        return f"{kind}[]" if feature.values > 1 else kind

    def _settle(self, known, name, column, value):
        if known.setdefault(column, value) != value:
            raise ValueError(
                f"column {column!r} of {name} must be of one type and have one separator. "
                f"The spec says: {known[column]} and {value}"
            )

    def _load(self, database, name):
        """Loads the impressions or behaviors with their side tables; drops unusable rows."""
        events = getattr(self._spec, name)
        types = self._column_types(name)
        user = self._spec.impressions.user
        keys = [events.request, *events.keep, *(join.on for join in events.join)]
        required = {
            events.user: self._column_types("impressions").get(user, "VARCHAR"),
            events.time: "BIGINT",
            **{
                label.column: "VARCHAR" if label.positive else "FLOAT"
                for label in events.all_labels.values()
            },
            **({events.weight: "FLOAT"} if events.weight else {}),
            **{column: types.get(column, "VARCHAR") for column in keys if column},
        }
        for column, kind in required.items():
            if sql_lists.value_type(kind):
                raise ValueError(f"column {column!r} of {name} must have one value, not a list")
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
            separators=self._separators(name),
        )
        self._note_missing(database, name, own, strict)
        self._note_cut(database, name, name, own)
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
            separators=self._separators(name),
        )
        self._note_missing(database, side, own, strict)
        self._note_cut(database, side, name, own)
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
        last = logs_spec.LAST_TIME // logs_spec.TIME_UNITS[loaded.unit]
        database.drop(
            name,
            f"NOT coalesce({time} BETWEEN 0 AND {last}, false)",
            "no time, or out of range",
        )
        for label in events.all_labels.values():
            self._drop_unlabeled(database, name, label)
        if events.weight:
            weight = tables.column(events.weight)
            number = f"coalesce(isfinite({weight}) AND {weight} >= 0, false)"
            database.drop(name, f"NOT {number}", f"{events.weight} is no weight of at least 0")
            database.drop(name, f"{weight} = 0", f"{events.weight} is 0", bad=False)
        key = self._key(name)
        value = self._value(key, loaded)
        kind = tables.SQL_TYPES[self._spec.tables[key.table].dtype]
        rows = f"rowid IN (SELECT e.rowid FROM {loaded.tables} WHERE {{}})".format
        if kind == "BIGINT":
            minus_one = rows(f"{loaded.columns[key.column]} = -1")
            database.drop(name, minus_one, _MINUS_ONE.format(key.column))
        nothing = rows(f"{value} = {tables.MISSING[kind]}")
        database.drop(name, nothing, f"no {key.column}")

    def _drop_unlabeled(self, database, name, label):
        column = tables.column(label.column)
        if label.positive:
            database.drop(name, f"coalesce({column}, '') = ''", f"no value of {label.column}")
            ((rows, some),) = database.execute(
                f"SELECT count(*) FILTER ({column} IN ({_positive(label)})), min({column}) "
                f"FROM {name}"
            )
            if some is not None and not rows:
                self.report.warn(
                    f"{label.column} is in no row one of its positive values, {_positive(label)}: "
                    f"it is, for example, {some!r}"
                )
        else:
            wrong = f"NOT coalesce({column} IN (0, 1), false)"
            database.drop(name, wrong, f"{label.column} neither 0 nor 1")

    def _nulls(self, columns, events):
        """Texts that are missing values in each of the columns."""
        return {
            column: tuple(t for t in self._spec.null if t not in events.keep.get(column, ()))
            for column in columns
        }

    def _note_missing(self, database, table, columns, strict):
        conditions = {}
        for name, kind in columns.items():
            value = tables.column(name)
            if kind == "BIGINT" and name not in strict:
                conditions[f"{name} is -1, taken for missing"] = f"{value} = -1"
            elif kind == "BIGINT[]":
                conditions[f"{name} has -1, taken for missing"] = f"list_contains({value}, -1)"
            if kind in _LISTS_OF_NUMBERS:
                note = f"{name} has values that are not {_LISTS_OF_NUMBERS[kind]}, left out"
                conditions[note] = f"list_count({value}) < len({value})"
        self._note_rows(database, table, conditions)

    def _note_cut(self, database, table, name, columns):
        conditions = {}
        for feature in self._features_of(name).values():
            if feature.values > 1 and feature.column in columns:
                note = f"{feature.column} has more values than the {feature.values} that are used"
                conditions[note] = f"len({tables.column(feature.column)}) > {feature.values}"
        self._note_rows(database, table, conditions)

    def _note_rows(self, database, table, conditions):
        """Notes the rows of a table for which each condition holds."""
        if conditions:
            counts = ", ".join(f"count(*) FILTER ({sql})" for sql in conditions.values())
            (found,) = database.execute(f"SELECT {counts} FROM {tables.quoted(table)}")
            for note, rows in zip(conditions, found, strict=True):
                if rows:
                    self.report.note(f"{table}: {note}", rows)

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
        column, kind = loaded.columns[feature.column], self._type(feature)
        base = sql_lists.value_type(kind)
        if not base:
            return f"coalesce({column}, {tables.MISSING[kind]})"
        missing, width = tables.MISSING[base], self._spec.tables[feature.table].width
        length = width or feature.values
        values = f"[x FOR x IN {column} IF x <> {missing}][1:{length}]"
        if width:  # it is there as a whole or not at all
            values = f"{column}::{base}[]"
        return f"list_resize(coalesce({values}, []), {length}, {missing})"

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
                values["row"] = "e.rowid"
                values |= {key: _label(label) for key, label in events.all_labels.items()}
                if events.weight:
                    values[schema.WEIGHT] = f"e.{tables.column(events.weight)}"
                values |= self._kept_values(loaded[name])
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

    def _kept_values(self, loaded):
        """SQL by name of what the sorted impressions have beside what requests are made of."""
        del loaded
        return {}

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
                same = same and not table.is_numeric and column.values == other.values == 1
                if same and other.table == column.table and history not in computed:
                    missing = tables.MISSING[tables.SQL_TYPES[table.dtype]]
                    shared[candidate, column.column] = history, other.column, missing
        log_checks.report_meeting(database, self.report, self._spec, shared)

    # Encoding

    def _vocabulary(self, database, name, computed):
        """Maps the raw values of a table to rows, by what training may see."""
        table = self._spec.tables[name]
        seen = " UNION ALL ".join(
            self._seen(feature, column, computed)
            for feature, column in self._spec.features.items()
            if column.table == name
        )
        if self._known:
            found, new = self._known.table(
                name,
                lambda: self._value_counts(database, name, seen),
                table.min_count,
                self._spec.train_until // _DAY,
            )
            if new:
                self.report.note(f"{name}: values that the model does not know", new)
            return found
        if table.kind == "hash":
            return vocabularies.HashBuckets(name, table.dtype, table.buckets)
        if table.is_numeric:
            mean, variance = database.moments(seen)
            if table.width:
                mean, variance = 0.0, variance + mean**2
            return vocabularies.Numbers(name, mean, math.sqrt(variance) or 1.0, table.width)
        if table.boundaries:
            return vocabularies.Boundaries(name, table.boundaries)
        if table.kind == "boundaries":
            values, counts, *_ = database.value_counts(seen)
            return vocabularies.Boundaries.from_counts(name, values, counts, buckets=table.buckets)
        values, counts, total, days = self._value_counts(database, name, seen, table.min_count)
        return vocabularies.Vocabulary.from_counts(
            name, table.dtype, values, counts, tiers=table.tiers, seen=total, last_seen=days
        )

    def _value_counts(self, database, name, seen, least=1):
        counts = database.value_counts(seen, least, last=f"time // {_DAY}")
        if self._spec.tables[name].dtype == "string":
            broken = int(vocabularies.has_line_break(counts.values).sum())
            if broken:
                self.report.note(f"{name}: values with a line break, taken for unknown", broken)
        return counts

    def _seen(self, feature, column, computed):
        """SQL of the raw values of a feature that training may see, as `value`, and of `time`."""
        value = tables.quoted(f"f_{feature}")
        if feature in computed:
            value = _MINUTES_SINCE_PREVIOUS
        base = sql_lists.value_type(self._type(column))
        if base:
            value = f"unnest({value})"
        # Behaviors before the start of training are in the histories of its impressions.
        source = "behaviors" if column.of_behaviors else "impressions"
        since = 0 if column.of_behaviors else self._spec.train_from
        seen = (
            f"SELECT {value} AS value, time FROM {source}_by_user "
            f"WHERE time >= {since} AND time < {self.seen_until}"
        )
        return f"SELECT * FROM ({seen}) WHERE value <> {tables.MISSING[base]}" if base else seen


def _names(path, format_):
    names = tables.column_names(path, format_)
    return {*names, *(name.strip() for name in names)}


def _label(label):
    """SQL of an impression's label, 0 or 1."""
    column = f"e.{tables.column(label.column)}"
    if not label.positive:
        return column
    return f"({column} IN ({_positive(label)}))::FLOAT"


def _positive(label):
    return ", ".join(map(tables.literal, label.positive))
