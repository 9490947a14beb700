"""The tables of a description: schema, splits, values, and label rates by context and by day."""

import math

import numpy as np

from tfrec_diffusion.inspection import raw_values, text
from tfrec_diffusion.schema import FIRST_INDEX, GROUPS

_PERCENTILES = (5, 25, 50, 75, 95)
_MOST_VALUES = 24  # of a context feature


def schema_table(data):
    """The features and their embedding tables.

    Args:
        data: `RequestData`.

    Returns:
        str.
    """
    schema = data.schema
    rows = []
    for feature in (f for group in GROUPS for f in schema.group(group)):
        table = schema.table(feature.table)
        meaning = (feature.name, feature.group, table.name, table.kind, table.dtype)
        tiers = ", ".join(f"{start:,}" for start in table.tiers)
        rows.append((*meaning, f"{table.rows:,}", table.dim, tiers))
    header = ("feature", "group", "table", "kind", "of", "rows", "dim", "tiers from row")
    # Most schemas have no tiers.
    used = len(header) if any(row[-1] for row in rows) else -1
    title = f"{schema.name}, {data.directory}, histories of up to {schema.history_length:,}"
    if schema.negative_rate < 1:
        title += f", {schema.negative_rate:.4g} of the negatives kept"
    return text.table(title, header[:used], [row[:used] for row in rows])


def count_tables(schema, counts):
    """Yields what is counted of all splits.

    Args:
        schema: `Schema`.
        counts: dict by split of `Counts`.

    Yields:
        str. A table.
    """
    yield _splits(counts)
    if any(len(c.sizes) > 2 for c in counts.values()):
        yield _candidates(counts)
    yield _history_lengths(counts)
    rows = [
        (feature.name, *(_shares(c, feature.name) for c in counts.values()))
        for feature in schema.features
    ]
    title = "Missing / out of vocabulary, % of the real candidates' and behaviors' values"
    yield text.table(title, ("feature", *counts), rows)


def _splits(counts):
    rows = []
    for split, c in counts.items():
        requests, candidates = c.requests.sum(), c.candidates.sum()
        rate = f"{c.clicks.sum() / max(candidates, 1):.4f}"
        size = (f"{c.size / 1e6:,.1f}", f"{c.size / requests:,.0f}")
        rows.append(
            (split, f"{requests:,}", f"{candidates:,}", rate, f"{c.users.count():,}", *size)
        )
    header = ("split", "requests", "candidates", "label rate", "users", "MB", "bytes a request")
    return text.table("Splits", header, rows)


def _candidates(counts):
    rows = []
    for split, c in counts.items():
        mean = c.candidates.sum() / c.requests.sum()
        rows.append((split, f"{mean:.2f}", *percentiles(c.sizes), len(c.sizes) - 1))
    header = ("split", "mean", *(f"{p}%" for p in _PERCENTILES), "largest")
    return text.table("Candidates of a request: mean, percentiles", header, rows)


def _history_lengths(counts):
    rows = []
    for split, c in counts.items():
        requests = c.requests.sum()
        mean = c.requests @ np.arange(len(c.requests)) / requests
        empty, full = 100 * c.requests[[0, -1]] / requests
        rows.append((split, f"{mean:.1f}", *percentiles(c.requests), f"{empty:.2f}", f"{full:.2f}"))
    header = ("split", "mean", *(f"{p}%" for p in _PERCENTILES), "% empty", "% full")
    return text.table("History lengths: mean, percentiles", header, rows)


def percentiles(requests):
    """Percentiles of lengths or sizes: for each p, the least that p% of the requests do not exceed.

    Args:
        requests: int array. Requests by length or size, from 0.

    Returns:
        list of int.
    """
    up_to = 100 * np.cumsum(requests)
    return [int(np.searchsorted(up_to, p * requests.sum())) for p in _PERCENTILES]


def _shares(counts, name):
    places = counts.places[name]
    if not places:
        return "-"
    shares = (100 * part[name] / places for part in (counts.missing, counts.unknown))
    return " / ".join(f"{share:.2f}" if share else "0" for share in shares)


def context_tables(schema, counts):
    """Yields the label rates by the most frequent values of each context feature.

    Args:
        schema: `Schema`.
        counts: dict by split of `Counts`.

    Yields:
        str. A table.
    """
    for feature in filter(schema.is_scalar, schema.group("context")):
        table = schema.table(feature.table)
        total = sum(c.shown[feature.name] for c in counts.values())
        order = np.argsort(-total, kind="stable")[:_MOST_VALUES]
        frequent = [int(row) for row in order if total[row]]
        texts = raw_values.decode(schema, feature.table, set(frequent))
        if table.kind == "vocabulary" and table.dtype == "int64":
            # Hours and weekdays in their order.
            frequent.sort(key=lambda row: int(texts[row]) if row >= FIRST_INDEX else -math.inf)
        rows = []
        for row in frequent:
            cells = [texts[row]]
            for c in counts.values():
                shown, clicked = c.shown[feature.name][row], c.clicked[feature.name][row]
                share = shown / c.candidates.sum()
                cells.append(f"{clicked / shown:.4f} ({share:.1%})" if shown else "-")
            rows.append(cells)
        more = np.count_nonzero(total) - len(frequent)
        left_out = f"; {more:,} rarer values left out" if more else ""
        title = f"Label rate by {feature.name} (share of the candidates{left_out})"
        yield text.table(title, (feature.name, *counts), rows)


def day_tables(days):
    """Yields the label rates by day, if days are known.

    Args:
        days: dict by split of dicts by day of dicts: `candidates` and `clicks`.

    Yields:
        str. A table.
    """
    rows = []
    for split, of_split in days.items():
        for day, n in of_split.items():
            rate = n["clicks"] / n["candidates"]
            rows.append((split, day, f"{n['candidates']:,}", f"{n['clicks']:,}", f"{rate:.4f}"))
    if rows:
        header = ("split", "day", "candidates", "clicks", "label rate")
        yield text.table("Label rate by day", header, rows)
