"""The spec file of the data set `logs`, which says what each column of the user's tables is."""

import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import typing

from tfrec_diffusion import schema
from tfrec_diffusion.datasets import csv_files, sql_values, vocabularies

# The units that a column of times may have, in nanoseconds.
TIME_UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
# Columns of behaviors that are computed if no file has them.
GAP, AGE = "minutes_since_previous", "minutes_before_impression"
# End of a test that ends with the log, in nanoseconds since 1970.
LAST_TIME = 2**63 - 1


class _Files:
    """What all tables have in common."""

    @property
    def format(self):
        """`csv_files.Format` of the CSV files."""
        return csv_files.Format(self.delimiter, self.quote)


@dataclasses.dataclass(frozen=True)
class Join(_Files):
    """A side table, joined to impressions or behaviors by a column that both have.

    Args:
        files: str. Glob pattern below `raw_dir`.
        on: str. Name of that column. Of several rows with the same value, the first is used.
        delimiter: str. As in `Events`. Defaults to `","`.
        quote: str. As in `Events`. Defaults to `'"'`.
        comment: str. A note for the reader. Defaults to `""`.
    """

    files: str
    on: str
    delimiter: str = csv_files.COMMAS.delimiter
    quote: str = csv_files.COMMAS.quote
    comment: str = ""


@dataclasses.dataclass(frozen=True)
class Label:
    """A column of labels beside the first one, to train another model on.

    Args:
        column: str. A column of the impressions' own files.
        positive: tuple of str. As in `Events`. Defaults to `()`.
        comment: str. A note for the reader. Defaults to `""`.
    """

    column: str
    positive: tuple[str, ...] = ()
    comment: str = ""


@dataclasses.dataclass(frozen=True)
class Events(_Files):
    """The table of impressions or the table of behaviors.

    Args:
        files: str. Glob pattern below `raw_dir`, or of absolute paths: CSV files with a header
            line, plain or `.gz`, `.bz2` or `.zst`, and `.parquet` files. Each file's columns are
            found by their names.
        user: str. Column of the user's id.
        time: str. Column of integer times since 1970 UTC; or of texts in ISO 8601, which are in the
            spec's time zone if they have no offset from UTC; or, in Parquet, of TIMESTAMPs or
            DATEs, which are in UTC if they have no time zone.
        time_unit: str. Unit of the integer times, one of `TIME_UNITS`. Others have their own unit.
        label: str. Column of 0 and 1, or of `true` and `false`. Impressions must have it. Defaults
            to `""`.
        positive: tuple of str. The labels that are positive, as they stand in the files, such as
            `["4", "5"]` of ratings from 1 to 5; all others are negative. Defaults to `()`, where
            labels are 0 and 1.
        labels: dict of `Label`s by name. Further labels of the same impressions, such as purchases
            beside clicks. `train --label=<name>` learns one of them. For impressions only. Defaults
            to `{}`.
        weight: str. Column of how much an impression counts in the loss and in the metrics, a
            number of at least 0. Impressions of weight 0 are left out. For impressions only.
            Defaults to `""`, where each counts 1.
        request: str. Column that says which impressions were shown together, such as the id of a
            request, a page or a session; for impressions only. All impressions of one user with the
            same value count as shown at the time of the first of them, so that they share one
            history, which `prepare --group_by=request` stores once. An impression whose value is
            empty is alone. Defaults to `""`, which is no such column.
        keep: dict of tuples of str by column. The values, as text, of the rows to keep. Rows with
            other values are left out. Defaults to `{}`.
        join: tuple of `Join`s. Side tables. A feature's column is looked up in `files` and then in
            these, in their order. Defaults to `()`.
        delimiter: str. The character between the fields of CSV files. Defaults to `","`.
        quote: str. The character around a field of CSV files that holds a delimiter or a line
            break; if empty, there is none. Defaults to `'"'`.
        comment: str. A note for the reader. Defaults to `""`.
    """

    files: str
    user: str
    time: str
    time_unit: str
    label: str = ""
    positive: tuple[str, ...] = ()
    labels: dict[str, Label] = dataclasses.field(default_factory=dict)
    weight: str = ""
    request: str = ""
    keep: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    join: tuple[Join, ...] = ()
    delimiter: str = csv_files.COMMAS.delimiter
    quote: str = csv_files.COMMAS.quote
    comment: str = ""

    @property
    def all_labels(self):
        """dict of `Label` by key of the records, see `schema.label_key`; empty for behaviors."""
        first = {"": Label(self.label, self.positive)} if self.label else {}
        return {schema.label_key(name): label for name, label in {**first, **self.labels}.items()}


@dataclasses.dataclass(frozen=True)
class Splits:
    """The times that separate the splits, in ISO 8601.

    A time without an offset from UTC is in the spec's time zone.

    Args:
        train_until: str. End of training, where validation begins.
        validation_until: str. End of validation, where the test begins.
        train_from: str. Start of training. Impressions before it are left out, while behaviors
            before it stay in the histories of later ones. Defaults to `""`, where training begins
            with the log.
        test_until: str. End of the test; impressions from then on are left out. Defaults to `""`,
            where the test ends with the log.
        comment: str. A note for the reader. Defaults to `""`.
    """

    train_until: str
    validation_until: str
    train_from: str = ""
    test_until: str = ""
    comment: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """How raw values become rows, see `schema.Table`.

    Args:
        kind: str. `"vocabulary"`, `"hash"`, `"boundaries"`, `"number"` or `"vector"`. A number is
            standardized by its mean and standard deviation in training, and a missing one has an
            embedding of its own.
        dtype: str. Type of the raw values: `"int64"` or `"string"`. The kinds of numbers need none:
            theirs is `"float32"`. Defaults to `""`.
        min_count: int. For the kind `"vocabulary"`: how often training must see a value to give it
            a row of its own. Defaults to `1`.
        buckets: int. For the kind `"hash"`: number of rows that values share. For the kind
            `"boundaries"`: number of intervals with about equally many training values. Defaults to
            `0`.
        boundaries: tuple of floats. For the kind `"boundaries"`, in the place of `buckets`: the
            boundaries themselves. Defaults to `()`.
        tiers: int. For the kind `"vocabulary"`: number of tiers of popularity. Defaults to `1`.
        width: int. For the kind `"vector"`: how many numbers a value has. Defaults to `0`.
        comment: str. A note for the reader. Defaults to `""`.
    """

    kind: str
    dtype: str = ""
    min_count: int = 1
    buckets: int = 0
    boundaries: tuple[float, ...] = ()
    tiers: int = 1
    width: int = 0
    comment: str = ""

    def __post_init__(self):
        if not self.dtype and (self.is_numeric or self.kind == "boundaries"):
            object.__setattr__(self, "dtype", "float32")

    @property
    def is_numeric(self):
        """bool. As that of `schema.Table`."""
        return self.kind in schema.NUMERIC


@dataclasses.dataclass(frozen=True)
class Feature:
    """A `schema.Feature` and its column in the impressions or behaviors.

    Two columns of the behaviors are computed if no file has them. `"minutes_since_previous"` is the
    time since the user's previous behavior among those that are kept: 0 at equal times, missing for
    the first. `"minutes_before_impression"` is the time from the behavior to the impression whose
    history it is in; its table must have `boundaries`.

    Args:
        group: str. As in `schema.Feature`. The groups `"history"` and `"behavior"` have columns of
            the behaviors, the others columns of the impressions.
        column: str. A column of the events' own files or of a side table.
        table: str. As in `schema.Feature`.
        values: int. How many values the column may hold at once, such as the tags of an item; the
            first so many are used. Their embeddings are averaged. Defaults to `1`.
        separator: str. What stands between the values in CSV files, and in columns of text in
            Parquet; for columns of several values and for vectors. Brackets around the whole, as
            Python writes a list, are left out. Defaults to `"|"`.
        comment: str. A note for the reader. Defaults to `""`.
    """

    group: str
    column: str
    table: str
    values: int = 1
    separator: str = "|"
    comment: str = ""

    @property
    def of_behaviors(self):
        """bool. Whether the column is one of the behaviors."""
        return self.group in ("history", "behavior")


@dataclasses.dataclass(frozen=True)
class Spec:
    """The content of a spec file, checked.

    Args:
        impressions: `Events`. What was shown and clicked or not.
        behaviors: `Events`. What users did. The history of an impression is what lies strictly
            before it.
        splits: `Splits`. The times that separate the splits.
        tables: dict of `Table` by name. The tables that the features name.
        features: dict of `Feature` by name. The features in the schema's order.
        time_zone_hours: float. Offset from UTC of the times in `splits`, and of times in ISO 8601
            in files, that have none themselves; such as 5.5. Defaults to `0`.
        null: tuple of str. Texts that are missing values, beside the empty text, unless `keep`
            names them. Defaults to `sql_values.NULLS`.
        comment: str. A note for the reader. Defaults to `""`.

    Raises:
        ValueError: If the content is wrong. It names the key, what is expected and what came.
    """

    impressions: Events
    behaviors: Events
    splits: Splits
    tables: dict[str, Table]
    features: dict[str, Feature]
    time_zone_hours: float = 0
    comment: str = ""
    null: tuple[str, ...] = sql_values.NULLS

    def __post_init__(self):
        for where, events in (("impressions", self.impressions), ("behaviors", self.behaviors)):
            if events.time_unit not in TIME_UNITS:
                raise _Wrong(f"{where}.time_unit", f"one of {list(TIME_UNITS)}", events.time_unit)
            _check_format(where, events)
            for i, join in enumerate(events.join):
                _check_format(f"{where}.join[{i}]", join)
        for name in ("positive", "labels", "weight", "request"):
            if getattr(self.behaviors, name):
                raise ValueError(f"'behaviors.{name}' must stand in 'impressions'")
        used = {feature.table for feature in self.features.values()}
        for name, table in self.tables.items():
            if name not in used:
                raise ValueError(f"'tables.{name}' is used by no feature")
            if table.min_count < 1:
                raise _Wrong(f"tables.{name}.min_count", "a positive integer", table.min_count)
            if table.boundaries and (table.kind != "boundaries" or table.buckets):
                raise ValueError(
                    f"'tables.{name}.boundaries' must stand in a table of the kind 'boundaries', "
                    "in the place of 'buckets'"
                )
            least = {"hash": 1, "boundaries": 0 if table.boundaries else 2}.get(table.kind, 0)
            if table.buckets < least:
                raise _Wrong(f"tables.{name}.buckets", f"at least {least}", table.buckets)
            if table.tiers < 1 or (table.tiers > 1 and table.kind != "vocabulary"):
                expected = "a positive integer, and 1 unless the kind is 'vocabulary'"
                raise _Wrong(f"tables.{name}.tiers", expected, table.tiers)
            if (table.width > 0) != (table.kind == "vector"):
                expected = "positive for the kind 'vector', and 0 for others"
                raise _Wrong(f"tables.{name}.width", expected, table.width)
        if self.train_from >= self.train_until:
            raise _Wrong(
                "splits.train_until",
                f"a time after train_from={self.splits.train_from}",
                self.splits.train_until,
            )
        if self.train_until > self.validation_until:
            raise _Wrong(
                "splits.validation_until",
                f"a time after train_until={self.splits.train_until}",
                self.splits.validation_until,
            )
        if self.validation_until > self.test_until:
            raise _Wrong(
                "splits.test_until",
                f"a time after validation_until={self.splits.validation_until}",
                self.splits.test_until,
            )
        # The schema and the vocabularies check the rest, before hours are spent on reading.
        for name, table in self.tables.items():
            vocabularies.Boundaries(name, table.boundaries)
        rows = schema.FIRST_INDEX
        tables = [
            schema.Table(name, t.kind, t.dtype, rows, width=t.width)
            for name, t in self.tables.items()
        ]
        schema.Schema(
            "spec", self.schema_features, tables, history_length=1, labels=self.impressions.labels
        )
        for name, feature in self.features.items():
            if not feature.separator:
                raise _Wrong(f"features.{name}.separator", "a text", feature.separator)
        for feature in self.features.values():
            column, table = feature.column, self.tables[feature.table]
            if not feature.of_behaviors or column not in (GAP, AGE):
                continue
            if table.dtype != "float32":
                raise _Wrong(
                    f"tables.{feature.table}.dtype", f"'float32' for {column!r}", table.dtype
                )
            if column == AGE and not table.boundaries:
                raise _Wrong(f"tables.{feature.table}.boundaries", f"given for {AGE!r}", [])

    @classmethod
    def load(cls, path):
        """Reads a spec file.

        Args:
            path: str or `os.PathLike`. Path of a JSON file.

        Returns:
            `Spec`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If `path` is no path or the file is no spec. It names the file, the key,
                what is expected and what came.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"`spec` must be the path of a JSON file. Received: {path!r}")
        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"`spec` must be the path of a JSON file. Received: {path}")
        try:
            spec = _read(cls, json.loads(path.read_text(encoding="utf-8")), "")
            if not spec.impressions.label:
                raise _Wrong("impressions.label", "the name of a column", "nothing")
            return spec
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def without_labels(self):
        """`Spec` of impressions of which it is not known what came of them, nor what they weigh."""
        nothing = {"label": "", "positive": (), "labels": {}, "weight": ""}
        return dataclasses.replace(
            self, impressions=dataclasses.replace(self.impressions, **nothing)
        )

    def with_splits(
        self, train_from=None, train_until=None, validation_until=None, test_until=None
    ):
        """The same spec with other times of the splits.

        Args:
            train_from: str or `None`. As in `Splits`. If `None`, as it is. Defaults to `None`.
            train_until: str or `None`. As in `Splits`. If `None`, as it is. Defaults to `None`.
            validation_until: str or `None`. As in `Splits`. If `None`, as it is, or `train_until`
                if that is given. Defaults to `None`.
            test_until: str or `None`. As in `Splits`. If `None`, as it is. Defaults to `None`.

        Returns:
            `Spec`.

        Raises:
            ValueError: If the times are wrong.
        """
        given = {"train_from": train_from, "train_until": train_until}
        given |= {"validation_until": validation_until or train_until, "test_until": test_until}
        given = {name: text for name, text in given.items() if text is not None}
        if not given:
            return self
        return dataclasses.replace(self, splits=dataclasses.replace(self.splits, **given))

    @property
    def schema_features(self):
        """tuple of `schema.Feature`s."""
        return tuple(
            schema.Feature(name, feature.group, feature.table, feature.values)
            for name, feature in self.features.items()
        )

    @property
    def targets(self):
        """tuple of str. `Schema.targets`."""
        return schema.targets(self.impressions.labels, bool(self.impressions.weight))

    @property
    def train_from(self):
        """int. Start of training, in nanoseconds since 1970 UTC."""
        return self._nanoseconds("train_from") if self.splits.train_from else 0

    @property
    def train_until(self):
        """int. End of training, in nanoseconds since 1970 UTC."""
        return self._nanoseconds("train_until")

    @property
    def validation_until(self):
        """int. End of validation, in nanoseconds since 1970 UTC."""
        return self._nanoseconds("validation_until")

    @property
    def digest(self):
        """str of hexadecimal digits that change with the content, but not with the comment."""
        content = dataclasses.asdict(dataclasses.replace(self, comment=""))
        content = {key: _without_comments(value) for key, value in content.items()}
        # A spec without these keys has the digits that it had before there were the keys.
        _remove(content, null=sql_values.NULLS)
        _remove(content["splits"], train_from="", test_until="")
        for events in (content["impressions"], content["behaviors"]):
            _remove(events, request="", positive=(), labels={}, weight="")
            for files in (events, *events["join"]):
                _remove(files, **csv_files.COMMAS._asdict())
        for table in content["tables"].values():
            _remove(table, width=0)
        for feature in content["features"].values():
            _remove(feature, values=1, separator="|")
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def test_until(self):
        """int. End of the test, in nanoseconds since 1970 UTC."""
        return self._nanoseconds("test_until") if self.splits.test_until else LAST_TIME

    def _nanoseconds(self, name):
        text = getattr(self.splits, name)
        try:
            time = datetime.datetime.fromisoformat(text)
        except ValueError:
            raise _Wrong(f"splits.{name}", "a time in ISO 8601", text) from None
        if time.tzinfo is None:
            hours = datetime.timedelta(hours=self.time_zone_hours)
            time = time.replace(tzinfo=datetime.timezone(hours))
        return round(time.timestamp()) * TIME_UNITS["s"]


def _check_format(key, files):
    for name, character in files.format._asdict().items():
        allowed = character.isascii() and len(character) == 1 and character not in "\r\n"
        if not allowed and (name, character) != ("quote", ""):
            raise _Wrong(f"{key}.{name}", "one ASCII character", character)
    if files.delimiter == files.quote:
        raise _Wrong(f"{key}.quote", "another character than the delimiter", files.quote)


def _without_comments(content):
    # A name may be "comment" as well: of a column to keep, a label, a table or a feature.
    if isinstance(content, tuple):
        return tuple(map(_without_comments, content))
    if not isinstance(content, dict):
        return content
    return {
        key: _without_comments(value)
        for key, value in content.items()
        if key != "comment" or not isinstance(value, str)
    }


def _remove(content, **defaults):
    """Removes entries that have their defaults."""
    for name, default in defaults.items():
        if content[name] == default:
            del content[name]


class _Wrong(ValueError):
    def __init__(self, key, expected, value):
        super().__init__(f"{key!r} must be {expected}. It is: {value!r}")


def _read(kind, value, key):
    """Turns a JSON value into `kind`, one of the types that the fields above have."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    json_type = {tuple: list, dict: dict, None: dict}[origin] if origin else kind
    if kind is float and isinstance(value, int):
        json_type = int
    if dataclasses.is_dataclass(kind):
        json_type = dict
    if not isinstance(value, json_type) or isinstance(value, bool):
        expected = {
            dict: "an object",
            list: "a list",
            str: "a text",
            int: "an integer",
            float: "a number",
        }
        raise _Wrong(key or "the whole", expected[json_type], value)
    if origin is tuple:
        return tuple(_read(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        return {name: _read(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    if not dataclasses.is_dataclass(kind):
        return value
    fields = {field.name: field for field in dataclasses.fields(kind)}
    types = typing.get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in fields:
            raise ValueError(f"{prefix + name!r} is not a key; there are {', '.join(fields)}")
    for name, field in fields.items():
        no_default = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if no_default and name not in value:
            raise ValueError(f"{prefix + name!r} is missing")
    return kind(**{name: _read(types[name], item, prefix + name) for name, item in value.items()})
