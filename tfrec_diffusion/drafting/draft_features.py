"""Which features a draft of a spec has: the group, table and kind of each column of a log."""

import dataclasses

from tfrec_diffusion import schema
from tfrec_diffusion.datasets import logs_spec
from tfrec_diffusion.drafting import column_names, event_columns, log_roles, raw_samples, raw_tables

# What the comments of a draft begin with.
CHECK = "check: "
# Most values of a list that are used.
_MOST_VALUES = 20
# From how many values on a vocabulary is large, and integers may be quantities.
_LARGE, _QUANTITIES, _MANY = 100_000, 10, 1000
# Share of the values that differ in a column that tells no more than the number of the row.
_UNIQUE = 0.95
# A feature of at most so many values may tell the label by itself.
_FEW = 20
_GAP = {"kind": "boundaries", "boundaries": [30]}
_AGE = {"kind": "boundaries", "boundaries": [2**i for i in range(20)]}
_RESERVED = {
    *(schema.LABEL, schema.GROUP_ID, "history_gap", "history_age"),
    *("gap", "behavior_age"),  # their tables
}


@dataclasses.dataclass
class Features:
    """The features of a draft.

    Args:
        impressions: `log_roles.Events`. The impressions.
        behaviors: `log_roles.Events`. The behaviors.

    Attributes:
        tables: dict of dicts by name, the tables of the spec.
        features: dict of dicts by name, the features of the spec.
        left_out: dict of str: why columns are no features, by `<table>: <column>`.

    Raises:
        ValueError: If no feature could be compared with a history.
    """

    impressions: log_roles.Events
    behaviors: log_roles.Events
    tables: dict = dataclasses.field(default_factory=dict, init=False)
    features: dict = dataclasses.field(default_factory=dict, init=False)
    left_out: dict = dataclasses.field(default_factory=dict, init=False)

    def __post_init__(self):
        impressions = self.impressions
        self._wide, self._past = impressions.columns, self.behaviors.columns
        self._history = {}
        names = [n for n in self._wide if n not in impressions.roles | {impressions.item}]
        groups = {impressions.user: "user", impressions.item: "candidate"}
        groups |= {name: self._group(name) for name in names if not self._wide[name][2]}
        groups |= {n: groups.get(self._wide[n][2], "context") for n in names if n not in groups}
        for group in ("user", "context", "candidate"):
            for name in (impressions.user, impressions.item, *names):
                if groups[name] == group:
                    self._add(name, group)
        self._add_history()
        self._add_times()
        self._note_unshared()

    def _group(self, name):
        """The group of a column of the impressions' own files."""
        impressions, profile = self.impressions, self.impressions.profile
        if profile.determines(impressions.user, name):
            return "user"
        if profile.determines(impressions.item, name):
            return "candidate"
        if impressions.request:
            of_request = profile.determines(impressions.request, name)
            if of_request is not None:
                return "context" if of_request else "candidate"
        named = column_names.group(name)
        separate = self.behaviors.profile is not profile
        return named or ("candidate" if separate and name in self._past else "context")

    def _add(self, name, group):
        column, profile, _ = self._wide[name]
        is_key = name in (self.impressions.user, self.impressions.item)
        past = self._in_behaviors(name, group)
        columns = [column, *([self._past[past][0]] if past else [])]
        if name == self.impressions.user:
            columns.append(self._past[self.behaviors.user][0])
        for events in (self.impressions, self.behaviors):
            columns += [side.columns[key] for side, key in events.joins if key in (name, past)]
        try:
            reason = None if is_key else self._useless(name)
            table, feature = _described(columns, is_key)
        except _UnreadableError as error:
            if is_key:
                raise ValueError(f"{profile.name}: {name} {error}") from error
            reason = reason or str(error)
        if reason:
            self.left_out[f"{profile.name}: {name}"] = reason
            return
        chosen = column_names.feature_name(name, self._taken())
        if column_names.is_position(name):
            _ask(feature, f"serving must know {name} before it ranks.")
        self.tables[chosen] = table
        self.features[chosen] = {"group": group, "column": name, "table": chosen, **feature}
        if past:
            entries = {key: feature[key] for key in ("values", "separator") if key in feature}
            history = column_names.feature_name(f"history_{chosen}", self._taken(), shorten=False)
            self._history[history] = {
                "group": "history", "column": past, "table": chosen, **entries
            }  # fmt: skip

    def _taken(self):
        return _RESERVED | {name.lower() for name in (*self.features, *self._history)}

    def _in_behaviors(self, name, group):
        """The column of the behaviors that is the same as one of the impressions, or `""`."""
        impressions, behaviors = self.impressions, self.behaviors
        if name == impressions.item:
            return behaviors.item
        alone = impressions.profile is behaviors.profile
        if group == "user" or (group == "context" and alone):
            return ""
        there = [n for n in self._past if n not in behaviors.roles | {behaviors.item}]
        if name in there:
            return name
        same = [n for n in there if column_names.thing(n) == column_names.thing(name)]
        return same[0] if len(same) == 1 else ""

    def _add_history(self):
        keys = [name for name, feature in self._history.items() if self._can_be_key(feature)]
        if not keys:
            raise ValueError(
                f"no column of {self.behaviors.profile.name} can be compared with one of "
                f"{self.impressions.profile.name}: both must have the ids of the items"
            )
        # The item comes first, or another id where the behaviors have no items.
        self.features |= {keys[0]: self._history[keys[0]], **self._history}

    def _can_be_key(self, feature):
        is_candidate = self.features[feature["table"]]["group"] == "candidate"
        looked_up = self.tables[feature["table"]]["kind"] == "vocabulary"
        return is_candidate and looked_up and "values" not in feature

    def _add_times(self):
        """The gaps and ages of behaviors, unless their times are days or positions."""
        column = self.behaviors.profile.columns[self.behaviors.time]
        if not (column.iso or column.unit) or (
            column.iso and column.characters <= len("2024-05-01")
        ):
            return
        age = "behavior_age" if "age" in self.tables else "age"
        self.tables |= {"gap": dict(_GAP), age: dict(_AGE)}
        self.features["history_gap"] = {
            "group": "behavior", "column": logs_spec.GAP, "table": "gap"
        }  # fmt: skip
        self.features["history_age"] = {"group": "behavior", "column": logs_spec.AGE, "table": age}

    def _useless(self, name):
        """Why a column of the impressions is no feature, or `None`."""
        column, profile, on = self._wide[name]
        in_sample = "" if profile.whole else f" in the first {profile.rows:,} rows"
        many_rows = profile.rows >= log_roles.FEW_ROWS
        if not column.present:
            return f"is empty{in_sample}"
        if event_columns.is_time(column):
            return "is a time"
        if column.distinct == 1 and column.present == profile.rows:
            return f"is constant{in_sample}"
        if column.is_list:
            return None
        text = not column.numbers
        many_words = column.words >= 3 and column.distinct > 0.5 * column.present
        if text and (column.characters > 100 or many_words):
            return "is free text"
        looked_up = text or (column.integers and not column_names.is_quantity(name))
        if looked_up and many_rows and column.distinct >= _UNIQUE * column.present:
            return f"differs in nearly every row{in_sample}"
        if on:
            return None
        item, label = self.impressions.item, self.impressions.label
        late = column.numbers and column_names.is_afterwards(name)
        if late and not profile.determines(item, name):
            return "may be known only after the impression"
        if many_rows and column.distinct <= _FEW:
            values, with_labels, _ = profile.distinct(name, label)
            if values == with_labels and profile.columns[label].distinct > 1:
                return f"tells {label}{in_sample}"
        return None

    def _note_unshared(self):
        behaviors = self.behaviors
        if behaviors.profile is self.impressions.profile:
            return
        used = {feature["column"] for feature in self.features.values()}
        for name, (_, profile, on) in self._past.items():
            where = f"{profile.name}: {name}"
            other = name not in used | behaviors.roles | set(behaviors.keep) and name != on
            if other and where not in self.left_out:
                self.left_out[where] = "is in the behaviors only, so that nothing compares with it"


class _UnreadableError(Exception):
    """Columns cannot be a feature."""


def _described(columns, is_key):
    """What tables and features say of columns with the same values.

    Args:
        columns: list of `raw_profile.Column`. That of the impressions is the first.
        is_key: bool. Whether it must be looked up.

    Returns:
        Tuple of a table and of further entries of a feature.
    """
    first = columns[0]
    parts = [column.part or column for column in columns]
    numbers, integers = all(p.numbers for p in parts), all(p.integers for p in parts)
    feature = _list(columns)
    if first.width:
        if {column.width for column in columns} != {first.width}:
            raise _UnreadableError("has vectors of different lengths")
        feature.pop("values", None)
        return {"kind": "vector", "width": first.width}, feature
    if not is_key and numbers and not integers:
        if feature:
            raise _UnreadableError("has lists of different numbers of decimals")
        if not _all_read(columns, "FLOAT"):
            raise _UnreadableError(f"has the type {first.type}, which is not read as numbers")
        return {"kind": "number"}, feature
    quantity = column_names.is_quantity(first.name) and first.distinct > _QUANTITIES
    if not is_key and integers and quantity and not feature and _all_read(columns, "FLOAT"):
        table = {"kind": "number"}
        _ask(table, f"{first.name} is taken for a quantity; a vocabulary has a row for each value.")
        return table, feature
    return _vocabulary(columns, is_key), feature


def _vocabulary(columns, is_key):
    first, parts = columns[0], [column.part or column for column in columns]
    integers = all(p.integers and not p.large for p in parts) and _all_read(columns, "BIGINT")
    text = _all_read(columns, "VARCHAR")
    if not text and not integers:
        raise _UnreadableError(f"has the type {first.type}, which is not read as ids")
    # Among integers, -1 would be missing.
    exact = integers and not (text and any(part.minus_one for part in parts))
    table = {"kind": "vocabulary", "dtype": "int64" if exact else "string"}
    values = max(part.distinct for part in parts)
    plain = not is_key and not first.is_list and not column_names.is_id(first.name)
    if values > min(_LARGE, 0.5 * raw_samples.ROWS):
        table["min_count"] = 2
        _ask(table, f"{first.name} has many values; those that training has once share a row.")
    elif plain and exact and values > _MANY:
        _ask(table, f"if {first.name} is a quantity and no id, take the kind number.")
    return table


def _all_read(columns, kind):
    kind = f"{kind}[]" if any(column.is_list for column in columns) else kind
    return all(raw_tables.can_be_read(column.type, kind) for column in columns)


def _list(columns):
    """What a feature says of its lists."""
    lists = [column for column in columns if column.is_list]
    if not lists:
        return {}
    longest = max(column.values for column in lists)
    feature = {"values": max(2, min(_MOST_VALUES, longest))}
    separators = {column.separator for column in lists} - {raw_samples.OF_PARQUET}
    if len(separators) > 1:
        raise _UnreadableError(f"has several separators: {sorted(separators)}")
    if separators - {"|"}:
        feature["separator"] = separators.pop()
    if feature.get("separator") == "," and longest == 2 and all(c.part.integers for c in lists):
        _ask(feature, f"{lists[0].name} is taken for lists; decimals must have a point.")
    if longest > _MOST_VALUES and not lists[0].width:
        _ask(feature, f"lists have up to {longest} values; the first {_MOST_VALUES} are used.")
    return feature


def _ask(entry, question):
    entry["comment"] = f"{entry['comment']} {question}" if "comment" in entry else CHECK + question
