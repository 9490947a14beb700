"""Makes requests of impressions and the behaviors before them, which two sorted tables hold."""

import numpy as np

from tfrec_diffusion import schema
from tfrec_diffusion.datasets import records, tables


class Encoder:
    """Makes a request of each impression in a span of time, with the behaviors before it.

    The history of an impression holds only behaviors of its user at earlier times than its own,
    newest last.

    A part has the paths of two Parquet files about the same users, `impressions` and `behaviors`.
    The rows of both are sorted by `user`, an integer from 0 on, and `time`. The column `f_<name>`
    has the raw value of a feature that is not computed. An impression also has a `row`, which is
    the key of its request, and its `targets`.

    Args:
        features: sequence of `schema.Feature`s. What a request holds.
        targets: sequence of str. `Schema.targets`.
        vocabularies: dict of the vocabularies by name of the table.
        gaps: sequence of str. Names of features that are computed: the minutes since the user's
            previous behavior.
        ages: sequence of str. Names of features that are computed: the minutes from a behavior to
            the impression.
        history_length: int. Longest history; the newest behaviors are kept.
        span: tuple of two ints. First time of the impressions, and the first time after them.
        ticks: int. How many units of `time` are a second. `time` counts from 1970 UTC.
        time_zone_hours: float. Offset from UTC of the clock by which an impression has its day.
    """

    def __init__(
        self,
        *,
        features,
        targets=(schema.LABEL,),
        vocabularies,
        gaps,
        ages,
        history_length,
        span,
        ticks,
        time_zone_hours,
    ):
        rows = {feature.name: vocabularies[feature.table] for feature in features}
        self._gaps = {name: rows.pop(name) for name in gaps}
        self._ages = {name: rows.pop(name) for name in ages}
        past = [feature.name for feature in features if feature.group in ("history", "behavior")]
        self._of_behaviors = {name: rows.pop(name) for name in past if name in rows}
        self._of_impressions = rows
        self._candidate = {feature.name for feature in features if feature.group == "candidate"}
        self._targets = targets
        self._history_length = history_length
        self._span = span
        self._ticks = ticks
        self._offset = round(time_zone_hours * 3600)

    def __call__(self, part):
        """Makes the requests of a part.

        Args:
            part: dict of `pathlib.Path`. The files `impressions` and `behaviors`.

        Yields:
            Pairs of a key (int) and a request, as in `records.Split`.
        """
        since, until = self._span
        impressions = tables.read(part["impressions"])
        times = impressions["time"]
        impressions = _rows(impressions, (times >= since) & (times < until))
        if not len(impressions["row"]):
            return
        behaviors = tables.read(part["behaviors"])
        # Behaviors that no history holds need no encoding.
        known = np.isin(behaviors["user"], impressions["user"]) & (behaviors["time"] < until)
        behaviors = _rows(behaviors, known)
        shown = _encode(self._of_impressions, impressions)
        done = _encode(self._of_behaviors, behaviors)
        for name, vocabulary in self._gaps.items():
            done[name] = vocabulary.encode(self._minutes(_since_previous(behaviors)))
        starts, ends = _histories(impressions, behaviors)
        starts = np.maximum(starts, ends - self._history_length)
        users, times = impressions["user"], impressions["time"]
        targets = {name: impressions[name].astype(np.float32) for name in self._targets}
        days = (times // self._ticks + self._offset) // 86400
        for i, key in enumerate(impressions["row"].tolist()):
            past = slice(starts[i], ends[i])
            request = {schema.GROUP_ID: users[i], records.DAY: days[i]}
            for name, values in targets.items():
                request[name] = values[i : i + 1]
            for name, rows in shown.items():
                request[name] = rows[i : i + 1] if name in self._candidate else rows[i]
            for name, rows in done.items():
                request[name] = rows[past]
            for name, vocabulary in self._ages.items():
                ages = self._minutes(times[i] - behaviors["time"][past])
                request[name] = vocabulary.encode(ages)
            yield key, request

    def _minutes(self, ticks):
        return ticks / (60 * self._ticks)


def _rows(columns, chosen):
    return {name: values[chosen] for name, values in columns.items()}


def _encode(vocabularies, columns):
    return {name: vocab.encode(columns[f"f_{name}"]) for name, vocab in vocabularies.items()}


def _since_previous(behaviors):
    """Time from a user's previous behavior to each, with NaN for the first."""
    first = np.diff(behaviors["user"], prepend=-1) != 0
    return np.where(first, np.nan, np.diff(behaviors["time"], prepend=0))


def _histories(impressions, behaviors):
    """Where the behaviors before each impression begin and end, in all behaviors."""
    users, times = (
        np.concatenate([impressions[name], behaviors[name]]) for name in ("user", "time")
    )
    # The sort is stable: at equal times the impressions come first.
    is_behavior = np.lexsort((times, users)) >= len(impressions["user"])
    ends = np.cumsum(is_behavior)[~is_behavior]
    return np.searchsorted(behaviors["user"], impressions["user"]), ends
