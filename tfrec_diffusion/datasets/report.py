"""Counts what a preparation reads, drops and writes, for `report.json`."""

import collections
import datetime
import json


class Report:
    """Counts the rows that are read and dropped, by source: a raw file or a table.

    A record of several lines of a CSV file counts as that many rows, so that the numbers are those
    of its lines.

    Args:
        max_bad_rows: float. As in `preparation.Preparation`.
    """

    _PLACES = 5

    def __init__(self, max_bad_rows):
        self.max_bad_rows = max_bad_rows
        self._bad = collections.Counter()
        self._unwanted = collections.Counter()
        self._read = collections.Counter()
        self._dropped = {}
        self._notes = {}
        self._warnings = []

    def read(self, source, rows=1):
        """Counts rows of a source as read, also those that are dropped later.

        Args:
            source: str. Name of the source.
            rows: int. Number of rows. Defaults to `1`.
        """
        self._read[source] += rows

    def drop(self, source, reason, rows=1, places=(), *, bad=True):
        """Counts rows of a source as dropped, after they were counted as read.

        Args:
            source: str. Name of the source.
            reason: str. Why they are dropped, in short. Rows with the same reason are counted
                together.
            rows: int. Number of rows. Defaults to `1`.
            places: sequence of str. Where the first of these rows stand, such as `"clicks.csv:17"`,
                or what they hold. The report keeps five for each reason. Defaults to `()`.
            bad: bool. Whether the rows are wrong. If `False`, they are right, but of no use here.
                Defaults to `True`.

        Raises:
            ValueError: If the share of bad rows exceeds `max_bad_rows`, among the rows of the
                source so far that are not merely of no use.
        """
        if not rows:
            return
        drop = self._dropped.setdefault(source, {}).setdefault(reason, {"rows": 0, "places": []})
        drop["rows"] += int(rows)
        drop["places"] = [*drop["places"], *places][: self._PLACES]
        (self._bad if bad else self._unwanted)[source] += int(rows)
        wanted = self._read[source] - self._unwanted[source]
        if self._bad[source] > self.max_bad_rows * wanted:
            raise ValueError(
                f"{source}: {self._bad[source]:,} of {wanted:,} rows are bad, more "
                f"than `max_bad_rows`={self.max_bad_rows:g} of them. The last found: {reason} "
                f"({', '.join(drop['places'])})"
            )

    def note(self, name, value):
        """Adds something that only this data set reports, such as `best_reachable`.

        Args:
            name: str. Its key in `report.json`.
            value: Anything that JSON can hold.
        """
        self._notes[name] = value

    def warn(self, text):
        """Adds something that is most likely wrong, which `prepare` prints on stderr.

        Args:
            text: str. What was found, in one sentence.
        """
        self._warnings.append(text)

    def get_config(self):
        """The counts as JSON can hold them.

        Returns:
            dict with `"sources"`, which has for each source the rows read, kept, and dropped by
            reason; with the notes; and with the list `"warnings"` if there are any.
        """
        sources = {}
        for source, rows in self._read.items():
            dropped = self._dropped.get(source, {})
            lost = sum(drop["rows"] for drop in dropped.values())
            sources[source] = {"read": int(rows), "kept": int(rows) - lost, "dropped": dropped}
        warnings = {"warnings": self._warnings} if self._warnings else {}
        return {"sources": sources, **self._notes, **warnings}

    def __str__(self):
        return f"read and dropped: {json.dumps(self.get_config()['sources'])}"


def split_report(counts, targets=()):
    """What `report.json` says of a split.

    Args:
        counts: `collections.Counter`. As `records.RecordEncoder` has filled it.
        targets: sequence of str. `Schema.targets` without the first label. Defaults to `()`.

    Returns:
        dict of the numbers of requests, candidates, clicks and behaviors, the label rate, the means
        of the targets if there are any and, where days are known, the candidates and clicks of each
        day.
    """
    report = {name: counts[name] for name in ("requests", "candidates", "clicks", "behaviors")}
    report["label_rate"] = counts["clicks"] / counts["candidates"]
    if targets:
        report["means"] = {name: round(counts[name] / counts["candidates"], 6) for name in targets}
    days = sorted(key[1] for key in counts if key[0] == "candidates" and isinstance(key, tuple))
    if days:
        report["days"] = {
            str(datetime.date(1970, 1, 1) + datetime.timedelta(day)): {
                name: counts[name, day] for name in ("candidates", "clicks")
            }
            for day in days
        }
    return report
