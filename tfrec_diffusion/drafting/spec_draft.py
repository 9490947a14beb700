"""Drafts a spec file of the data set `logs` from what a directory of raw files holds."""

import datetime
import json
import os
import pathlib
import shlex
import tempfile
import textwrap

import numpy as np

from tfrec_diffusion import files, schema
from tfrec_diffusion.datasets import csv_files, logs_spec, sql_values, tables
from tfrec_diffusion.datasets.report import Report
from tfrec_diffusion.drafting import (
    column_names,
    draft_features,
    event_columns,
    log_roles,
    raw_profile,
    raw_samples,
    raw_tables,
)

# Splits begin with a day if there are so many days, else with an hour or a second.
_DAY, _HOUR, _SECOND = 86_400, 3600, 1
_LEAST_SLOTS = 10
_LINE = 100


def draft(path, raw_dir):
    """Writes a spec file that `prepare` can use, with a `comment` wherever the user must decide.

    Nothing is written if something is wrong.

    Args:
        path: str or `pathlib.Path`. The spec file, which must not exist.
        raw_dir: str or `pathlib.Path`. Directory of the raw files.

    Returns:
        list of str: what was found and what the user must decide, line by line.

    Raises:
        FileExistsError: If `path` exists.
        OSError: If `path` cannot be written, or a file cannot be read.
        ValueError: If there are no tables that can be used.
    """
    path, root = pathlib.Path(path), pathlib.Path(raw_dir)
    _check_new(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} must be a directory to write {path.name} to")
    found, left_out = raw_tables.find_tables(root)
    report = Report(max_bad_rows=1)
    with (
        tempfile.TemporaryDirectory(prefix=files.INCOMPLETE, dir=path.parent) as scratch,
        tables.Database(pathlib.Path(scratch), report) as database,
    ):
        scratch = pathlib.Path(scratch)
        samples = []
        for i, table in enumerate(found):
            try:
                samples.append(raw_samples.load(database, report, scratch, table, f"sample_{i}"))
            except (ValueError, OSError) as error:
                left_out[table.pattern] = str(error).splitlines()[0]
        profiles = [raw_profile.profile(database, sample) for sample in samples]
        if not profiles:
            reasons = "; ".join(f"{name} {why}" for name, why in left_out.items())
            raise ValueError(
                f"{root} must hold CSV files with a header line or Parquet files. "
                f"It holds {'none that can be read: ' + reasons if reasons else 'none'}"
            )
        made = _Draft(database, profiles, left_out)
        text = _json(made.spec) + "\n"
        trial = scratch / path.name
        trial.write_text(text, encoding="utf-8")
        logs_spec.Spec.load(trial)
    _check_new(path)
    with files.written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return [*made.summary(root), *_next_steps(made.spec, path, root)]


def _check_new(path):
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already: move it away, or name another file")


class _Draft:
    """A spec, and what is to be said of it.

    Args:
        database: `tables.Database`. Has the samples.
        profiles: list of `raw_profile.Profile`. The tables.
        left_out: dict of str. Why files cannot be read, by their names.

    Attributes:
        spec: dict. The content of the spec file.
    """

    def __init__(self, database, profiles, left_out):
        impressions, behaviors, unused = log_roles.find_roles(profiles)
        self._events = {"impressions": impressions, "behaviors": behaviors}
        found = draft_features.Features(impressions, behaviors)
        self._features = found.features
        self._positive = event_columns.positive_share(impressions.profile, impressions.labels[0])
        columns = {
            f"{profile.name}: {name}": why
            for profile in profiles
            for name, why in profile.table.unusable.items()
        }
        self._left_out = {
            "columns left out": columns | found.left_out,
            "tables not used": unused,
            "files not read": left_out,
        }
        self.spec = {
            "comment": self._comment(),
            "time_zone_hours": 0,
            "splits": _splits(database, impressions),
            **{name: self._content(name) for name in self._events},
            "tables": found.tables,
            "features": found.features,
        }

    def _content(self, name):
        """What the spec says of the impressions or of the behaviors."""
        events = self._events[name]
        table = events.profile.table
        of_behaviors = name == "behaviors"
        needed = {
            events.columns[feature["column"]][1]
            for feature in self._features.values()
            if (feature["group"] in ("history", "behavior")) == of_behaviors
            and feature["column"] in events.columns
        }
        labels = {}
        for label in events.labels[1:]:
            chosen = column_names.feature_name(label.name, {name.lower() for name in labels})
            labels[chosen] = {"column": label.name, **_known(positive=list(label.positive))}
        checks = " ".join([*events.checks, *table.notes])
        return {
            "files": table.pattern,
            "user": events.user,
            "time": events.time,
            "time_unit": events.unit,
            **_known(
                label=events.labels and events.label,
                positive=list(events.labels[0].positive) if events.labels else [],
                labels=labels,
                weight=events.weight,
                request=events.request,
                keep=events.keep,
                join=[_join(side, on) for side, on in events.joins if side in needed],
            ),
            **_format(table.format),
            **_known(comment=checks and draft_features.CHECK + checks),
        }

    def _comment(self):
        parts = ["Drafted from the files. Comments that begin with `check:` are for you to decide."]
        for what, reasons in self._left_out.items():
            if reasons:
                listing = "; ".join(f"{name} {why}" for name, why in reasons.items())
                parts.append(f"{what.capitalize()}: {listing}.")
        return " ".join(parts)

    def summary(self, root):
        """What was found, line by line.

        Args:
            root: `pathlib.Path`. Directory of the files.

        Yields:
            str.
        """
        yield f"Found in {root}:"
        for what, events in self._events.items():
            content, profile = self.spec[what], events.profile
            first = "" if profile.whole else "looked at the first "
            yield f"  {what:12}{content['files']} ({first}{profile.rows:,} rows)"
            names = ("user", "time", "label", "labels", "weight", "request")
            shown = {name: content[name] for name in names if name in content}
            shown = {
                name: value if isinstance(value, str) else ", ".join(value)
                for name, value in shown.items()
            }
            if events.labels:
                shown["label"] += f" ({self._positive:.1%} positive)"
            yield f"{'':14}" + "; ".join(f"{name}: {value}" for name, value in shown.items())
            for column, values in content.get("keep", {}).items():
                yield f"{'':14}only where {column} is {' or '.join(values)}"
            for join in content.get("join", ()):
                yield f"{'':14}joined with {join['files']} by {join['on']}"
        for group in schema.GROUPS:
            names = [name for name, f in self._features.items() if f["group"] == group]
            if names:
                yield from _wrapped(f"  {group:12}", ", ".join(names))
        for what, reasons in self._left_out.items():
            if reasons:
                yield f"{what.capitalize()}:"
                for name, why in reasons.items():
                    yield f"  {name} {why}"


def _known(**entries):
    """The entries that are not empty."""
    return {name: value for name, value in entries.items() if value}


def _join(side, on):
    notes = " ".join(side.table.notes)
    return {
        "files": side.table.pattern,
        "on": on,
        **_format(side.table.format),
        **_known(comment=notes and draft_features.CHECK + notes),
    }


def _format(format_):
    defaults = csv_files.COMMAS._asdict()
    return {name: value for name, value in format_._asdict().items() if value != defaults[name]}


# Splits


def _splits(database, events):
    """The times before which 80% and 90% of the impressions lie, and how many there are."""
    profile = events.profile
    stamped = database.load(
        "times",
        list(profile.table.paths),
        {events.time: "BIGINT"},
        format_=profile.table.format,
        nulls={events.time: sql_values.NULLS},
        times={events.time: 0.0},
    )
    size = logs_spec.TIME_UNITS["ns" if events.time in stamped else events.unit]
    time = tables.column(events.time)
    for seconds in (_DAY, _HOUR, _SECOND):
        found = database.columns(
            f"SELECT {time} // {seconds * 10**9 // size} AS slot, count(*) AS n FROM times "
            f"WHERE {time} BETWEEN 0 AND {raw_profile.LAST_TIME * 10**9 // size} "
            "GROUP BY slot ORDER BY slot"
        )
        share = np.cumsum(found["n"]) / max(1, found["n"].sum())
        # Some times may be wrong.
        first, last = np.searchsorted(share, [0.005, 0.995])
        if last and found["slot"][last] - found["slot"][first] + 1 >= _LEAST_SLOTS:
            break
    if len(share) < 3:
        raise ValueError(
            f"{profile.name}: {events.time} has too few times to separate training, validation "
            f"and test: {len(share)}"
        )
    # Each split has at least one of the times.
    train = int(np.argmin(np.abs(share[:-2] - 0.8))) + 1
    validation = int(np.argmin(np.abs(share[train:-1] - 0.9))) + train + 1
    starts = [_iso(slot * seconds, seconds) for slot in found["slot"].tolist()]
    sizes = np.diff([0, share[train - 1], share[validation - 1], 1])
    sizes = ", ".join(f"{size:.0%}" for size in sizes)
    comment = (
        f"choose the times and time_zone_hours; impressions are from {starts[0]} to {starts[-1]} "
        f"in UTC, and {sizes} of them are in training, validation and test."
    )
    return {
        "train_until": starts[train],
        "validation_until": starts[validation],
        "comment": draft_features.CHECK + comment,
    }


def _iso(time, step):
    time = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=time)
    return str(time.date()) if step == _DAY else time.isoformat()


# Text


def _json(value, indent=0, before=0):
    """JSON in which what fits into a line is one."""
    line = json.dumps(value, ensure_ascii=False)
    objects = isinstance(value, dict) and any(isinstance(v, dict) for v in value.values())
    if not isinstance(value, (dict, list)) or (
        indent and not objects and indent + before + len(line) < _LINE
    ):
        return line
    outer, inner = " " * indent, " " * (indent + 1)
    if isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
        body = textwrap.fill(
            line[1:-1], _LINE, initial_indent=inner, subsequent_indent=inner,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        return f"[\n{body}\n{outer}]"
    if isinstance(value, list):
        items = [inner + _json(item, indent + 1) for item in value]
        return "[\n" + ",\n".join(items) + f"\n{outer}]"
    items = [
        f"{inner}{(key := json.dumps(name, ensure_ascii=False))}: "
        + _json(item, indent + 1, len(key) + 3)
        for name, item in value.items()
    ]
    return "{\n" + ",\n".join(items) + f"\n{outer}}}"


def _wrapped(head, text):
    yield from textwrap.wrap(text, _LINE, initial_indent=head, subsequent_indent=" " * len(head))


def _next_steps(spec, path, root):
    yield f"To check in {path}:"
    for where, comment in _checks(spec, ""):
        yield from _wrapped("  - ", f"{where}: {comment}")
    yield f"Written: {path}"
    places = f"--raw_dir={shlex.quote(str(root))} --set=spec={shlex.quote(str(path))}"
    yield f"Then: python -m tfrec_diffusion.prepare --dataset=logs {places}"


def _checks(value, where):
    """The questions in the comments of a spec, and where they stand."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _checks(item, f"{where}[{i}]")
    if not isinstance(value, dict):
        return
    comment = value.get("comment")
    if where and isinstance(comment, str) and comment.startswith(draft_features.CHECK):
        yield where, comment.removeprefix(draft_features.CHECK)
    for name, item in value.items():
        yield from _checks(item, f"{where}.{name}" if where else name)
