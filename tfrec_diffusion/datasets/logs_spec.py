"""The spec file of the data set `logs`: which column of which table is what."""

import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import typing

from tfrec_diffusion import schema
from tfrec_diffusion.datasets import vocabularies

# Nanoseconds in one of a time column's units.
TIME_UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
# Columns that behaviors have without being in a file.
GAP, AGE = "minutes_since_previous", "minutes_before_impression"


@dataclasses.dataclass(frozen=True)
class Join:
    """A side table, joined by a key column that both have.

    Args:
        files: Glob pattern below `raw_dir`.
        on: The key column; of rows with the same key the first is used.
    """

    files: str
    on: str


@dataclasses.dataclass(frozen=True)
class Events:
    """The table of impressions or that of behaviors.

    Args:
        files: Glob pattern below `raw_dir`: .csv (with a header line), .csv.gz or .parquet.
        user: Column of the user's id.
        time: Column of an integer time since 1970 UTC, or a TIMESTAMP (Parquet; in UTC if it has no
            time zone).
        time_unit: One of `TIME_UNITS`; a TIMESTAMP has its own.
        label: Column of 0 or 1, or a BOOLEAN (Parquet); of impressions only.
        request: Column of what impressions were shown together in, such as the id of a request, a
            page or a session; of impressions only, and optional. Those of one user with the same
            value count as shown at the time of the first of them, so that they share one history,
            which `prepare --group_by=request` stores once. An empty value is no request.
        keep: Per column the values (as text) to keep; rows with others are left out.
        join: Side tables. A feature's column is looked for in `files`, then in these in order.
    """

    files: str
    user: str
    time: str
    time_unit: str
    label: str = ""
    request: str = ""
    keep: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    join: tuple[Join, ...] = ()


@dataclasses.dataclass(frozen=True)
class Splits:
    """Where the impressions part: training lies before `train_until`, the test begins at
    `validation_until`. ISO 8601; without an offset in the spec's time zone.
    """

    train_until: str
    validation_until: str


@dataclasses.dataclass(frozen=True)
class Table:
    """How raw values become rows; see `schema.Table`.

    Args:
        kind: `"vocabulary"`, `"hash"` or `"boundaries"`.
        dtype: Of the raw values: `"int64"` or `"string"`; `"float32"` for `"boundaries"`.
        min_count: Of a vocabulary: how often training must see a value to give it a row.
        buckets: Of a hash: number of rows; of boundaries: number of intervals with about equally
            many training values.
        boundaries: The boundaries themselves, in the place of `buckets`.
        tiers: Of a vocabulary: number of tiers of popularity; see `schema.Table`.
    """

    kind: str
    dtype: str
    min_count: int = 1
    buckets: int = 0
    boundaries: tuple[float, ...] = ()
    tiers: int = 1


@dataclasses.dataclass(frozen=True)
class Feature:
    """A `schema.Feature` and its column in the impressions or (of some groups) in the behaviors.

    Behaviors have two columns even if no file has them. `"minutes_since_previous"`: the time since
    the user's previous behavior among those kept; 0 at equal times, missing for the first.
    `"minutes_before_impression"`: the time from the behavior to the impression whose history it is
    in; its table must name its `boundaries`.

    Args:
        group: Of `schema.Feature`; `"history"` and `"behavior"` are those of behaviors.
        column: Of the events' own files or of a joined side table.
        table: Of `schema.Feature`.
    """

    group: str
    column: str
    table: str

    @property
    def of_behaviors(self):
        """Whether the column is one of the behaviors."""
        return self.group in ("history", "behavior")


@dataclasses.dataclass(frozen=True)
class Spec:
    """A spec file's content, checked.

    Args:
        impressions: What is shown and clicked or not.
        behaviors: What users did; an impression's history is what lies strictly before it.
        splits: Times.
        tables: By name.
        features: By name, in the schema's order.
        time_zone_hours: Offset from UTC of times in `splits`, such as 5.5.
        comment: For the reader.
    """

    impressions: Events
    behaviors: Events
    splits: Splits
    tables: dict[str, Table]
    features: dict[str, Feature]
    time_zone_hours: float = 0
    comment: str = ""

    def __post_init__(self):
        for where, events in (("impressions", self.impressions), ("behaviors", self.behaviors)):
            if events.time_unit not in TIME_UNITS:
                raise _Wrong(f"{where}.time_unit", f"one of {list(TIME_UNITS)}", events.time_unit)
        if not self.impressions.label:
            raise _Wrong("impressions.label", "the name of a column", "nothing")
        if self.behaviors.request:
            raise ValueError("'behaviors.request' must stand in 'impressions'")
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
        if self.train_until >= self.validation_until:
            raise _Wrong(
                "splits.validation_until",
                f"a time after train_until={self.splits.train_until}",
                self.splits.validation_until,
            )
        # The schema's and the vocabularies' own checks, before hours are spent on reading.
        for name, table in self.tables.items():
            vocabularies.Boundaries(name, table.boundaries)
        rows = schema.FIRST_INDEX
        tables = [schema.Table(name, t.kind, t.dtype, rows) for name, t in self.tables.items()]
        schema.Schema("spec", self.schema_features, tables, history_length=1)
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

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If `path` is no path or the file no spec; names the file, the key, what is
                expected and what came.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"`spec` must be the path of a JSON file. Received: {path!r}")
        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"`spec` must be the path of a JSON file. Received: {path}")
        try:
            return _read(cls, json.loads(path.read_text(encoding="utf-8")), "")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def schema_features(self):
        """Tuple of `schema.Feature`s."""
        return tuple(schema.Feature(n, f.group, f.table) for n, f in self.features.items())

    @property
    def train_until(self):
        """In nanoseconds since 1970 UTC."""
        return self._nanoseconds("train_until")

    @property
    def validation_until(self):
        """In nanoseconds since 1970 UTC."""
        return self._nanoseconds("validation_until")

    @property
    def digest(self):
        """Hexadecimal digits that change with the content, the comment left aside."""
        content = dataclasses.asdict(dataclasses.replace(self, comment=""))
        for events in (content["impressions"], content["behaviors"]):
            # A spec without it keeps the digits that it had before there was this key.
            if not events["request"]:
                del events["request"]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

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


class _Wrong(ValueError):
    def __init__(self, key, expected, value):
        super().__init__(f"{key!r} must be {expected}. It is: {value!r}")


def _read(kind, value, key):
    """Turns a JSON value into `kind`, a type that the dataclasses above name."""
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
