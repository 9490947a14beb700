"""What is in a prepared data set: its schema, counts, first requests in raw values, and a picture.

    python tools/inspect_records.py --dataset=logs/kuairand --picture=inspect.png

Reads every record of `--split`, or of all splits, once; memory grows with the users and the rows of
the key tables, not with the records. The first `--requests` of the first split are shown as people
read them: rows of vocabularies as the raw values, of boundaries as intervals [from, to), of hashes
as their buckets, which is all that is left of the values. What is drawn lies beside the picture as
CSV. Needs matplotlib.

Label rates are by the values of context features, such as hour or weekday, and by day where
`prepare` knew of days: records have none, so those are from its report.
"""

import collections
import itertools
import json
import math
import os
import pathlib

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from absl import flags
from matplotlib.dates import DateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tfrec_diffusion import flags as commands
from tfrec_diffusion.datasets.requests import REPORT
from tfrec_diffusion.input_pipeline import RequestData, find_prepared
from tfrec_diffusion.schema import FIRST_INDEX, GROUPS, OUT_OF_VOCABULARY, PADDING

_BATCH = 512
_PERCENTILES = (5, 25, 50, 75, 95)
_BINS = 20  # of history lengths
_LEAST = 50  # candidates behind a label rate that is drawn
_VALUES = 24  # of a context feature, the most frequent
_OLDEST, _NEWEST = 2, 6  # behaviors, and candidates, that are shown of more
_MERGE = 1 << 20  # ids that wait, at least, before they are merged into the distinct ones


def define_flags(values):
    flags.DEFINE_string(
        "dataset", None, "as taobao or logs/kuairand", required=True, flag_values=values
    )
    flags.DEFINE_string("data_dir", "data", "directory of prepared data sets", flag_values=values)
    flags.DEFINE_string("split", None, "a split; default: all", flag_values=values)
    flags.DEFINE_integer("requests", 3, "to show of the first split", 0, flag_values=values)
    flags.DEFINE_string(
        "picture", "inspect.png", "file to write; its data: .csv beside it", flag_values=values
    )


class Distinct:
    """How many distinct integers there are, in memory of the distinct ones."""

    def __init__(self):
        self._known = np.zeros(0, np.int64)
        self._waiting, self._length = [], 0

    def add(self, values):
        self._waiting.append(np.unique(values))
        self._length += len(self._waiting[-1])
        # Waiting for as many as are known keeps the sorting linear in all, but for a logarithm.
        if self._length > max(_MERGE, len(self._known)):
            self._merge()

    def _merge(self):
        self._known = np.unique(np.concatenate([self._known, *self._waiting]))
        self._waiting, self._length = [], 0

    def count(self):
        self._merge()
        return len(self._known)


class Counts:
    """What is counted of a split; `rows` are those of the embedding tables.

    Attributes:
        requests, candidates, clicks: (longest history + 1,), by the length of the history.
        sizes: (most candidates + 1,): requests, by the number of candidates.
        places, missing, unknown: by feature: the places for a value in real candidates and
            behaviors, and how many of them have none, or one out of vocabulary.
        shown: by context feature and candidate key, (rows,): candidates.
        clicked: likewise: clicks.
        behaviors: (rows,) of the history key.
        users: `Distinct` group ids.
        size: bytes of the files.
    """

    def __init__(self, schema, size):
        lengths = schema.history_length + 1
        self.requests, self.candidates = np.zeros(lengths, np.int64), np.zeros(lengths, np.int64)
        self.clicks = np.zeros(lengths)
        self.sizes = np.zeros(1, np.int64)
        self.places, self.missing, self.unknown = (collections.Counter() for _ in range(3))
        rows = {feature.name: schema.table(feature.table).rows for feature in schema.features}
        by_row = (schema.candidate_key, *(f.name for f in schema.group("context")))
        self.shown = {name: np.zeros(rows[name], np.int64) for name in by_row}
        self.clicked = {name: np.zeros(rows[name]) for name in by_row}
        self.behaviors = np.zeros(rows[schema.history_key], np.int64)
        self.users = Distinct()
        self.size = size
        self._schema = schema

    def add(self, features, label, weight, group_id):
        """Counts a batch, as numpy arrays."""
        schema = self._schema
        real, past = weight > 0, features[schema.history_key] != PADDING
        candidates, clicks, length = real.sum(1), (label * real).sum(1), past.sum(1)
        np.add.at(self.requests, length, 1)
        np.add.at(self.candidates, length, candidates)
        np.add.at(self.clicks, length, clicks)
        sizes = np.bincount(candidates, minlength=len(self.sizes))
        sizes[: len(self.sizes)] += self.sizes
        self.sizes = sizes
        for feature in schema.features:
            rows = features[feature.name]
            if feature.group == "candidate":
                rows = rows[real]
            elif feature.group in ("history", "behavior"):
                rows = rows[past]
            self.places[feature.name] += rows.size
            self.missing[feature.name] += np.count_nonzero(rows == PADDING)
            self.unknown[feature.name] += np.count_nonzero(rows == OUT_OF_VOCABULARY)
            if feature.group == "context":
                np.add.at(self.shown[feature.name], rows, candidates)
                np.add.at(self.clicked[feature.name], rows, clicks)
        key = schema.candidate_key
        np.add.at(self.shown[key], features[key][real], 1)
        np.add.at(self.clicked[key], features[key][real], label[real])
        np.add.at(self.behaviors, features[schema.history_key][past], 1)
        self.users.add(group_id)


def count(data, split):
    """`Counts` of a split, which is read once, with a bar of the progress."""
    counts = Counts(data.schema, sum(os.path.getsize(shard.path) for shard in data.shards(split)))
    batches = data.batches(split, _BATCH, with_group_id=True).as_numpy_iterator()
    bar = {"desc": f"Reading {split}", "unit": " batches", "leave": False, "mininterval": 1.0}
    for batch in tfds.core.utils.tqdm(batches, total=data.num_batches(split, _BATCH), **bar):
        counts.add(*batch)
    return counts


def percentiles(requests):
    """Of requests by length or size: for each p, the least that p% of them do not exceed."""
    up_to = 100 * np.cumsum(requests)
    return [int(np.searchsorted(up_to, p * requests.sum())) for p in _PERCENTILES]


# Rows of tables as people read them


def decode(schema, wanted):
    """Raw values as text: {table: {row}} to {table: {row: text}}."""
    return {name: _decode_table(schema, schema.table(name), wanted[name]) for name in wanted}


def _decode_table(schema, table, rows):
    texts = {PADDING: "<missing>", OUT_OF_VOCABULARY: "<unknown>"}
    if table.kind == "hash":
        return texts | {row: f"<bucket {row - FIRST_INDEX}>" for row in rows if row >= FIRST_INDEX}
    if table.kind == "boundaries":
        edges = ["-inf", *(f"{edge:.6g}" for edge in table.boundaries), "inf"]
        for i, (low, high) in enumerate(itertools.pairwise(edges)):
            closed = "(" if i == 0 else "["
            texts[FIRST_INDEX + i] = f"{closed}{low}, {high})"
        return texts
    path = schema.vocabulary_path(table)
    # Not read as a whole: it may have a hundred million lines, of which a few are wanted.
    with open(path, encoding="utf-8", newline="\n") as file:
        for row, line in enumerate(file, FIRST_INDEX):
            if row in rows:
                texts[row] = line.removesuffix("\n")
    lost = rows - texts.keys()
    if lost:
        raise ValueError(f"{path} must have {table.rows - FIRST_INDEX} lines: no row {min(lost)}")
    return texts


def first_requests(data, split, number):
    """Text of the first requests of a split, in the order of its files."""
    number = min(number, data.num_requests(split))
    if not number:
        return []
    schema = data.schema
    batch = next(data.batches(split, number, with_group_id=True).as_numpy_iterator())
    features, label, weight, group_id = batch
    wanted = collections.defaultdict(set)
    for feature in schema.features:
        wanted[feature.table].update(np.unique(features[feature.name]).tolist())
    texts = decode(schema, wanted)

    def column(feature, i, kept=...):
        return [texts[feature.table][row] for row in features[feature.name][i][kept].tolist()]

    described = []
    for i in range(number):
        real, past = weight[i] > 0, features[schema.history_key][i] != PADDING
        lines = [f"{split}, request {i + 1}, group id {group_id[i]}"]
        for group in ("user", "context"):
            named = [
                f"{f.name}={texts[f.table][int(features[f.name][i])]}" for f in schema.group(group)
            ]
            lines += [f"  {group}: {'  '.join(named)}"] if named else []
        lines.append(f"  candidates: {real.sum()}, clicked: {label[i][real].sum():g}")
        columns = {"label": [f"{value:g}" for value in label[i][real]]}
        columns |= {f.name: column(f, i, real) for f in schema.group("candidate")}
        lines += shortened(columns)
        lines.append(f"  history: {past.sum()} of at most {schema.history_length}, newest last")
        columns = {f.name: column(f, i, past) for f in schema.group("history", "behavior")}
        described.append("\n".join(lines + shortened(columns)))
    return described


def shortened(columns):
    """Lines of a numbered table without the middle of a long one."""
    rows = [(str(i), *cells) for i, cells in enumerate(zip(*columns.values(), strict=True), 1)]
    left_out = len(rows) - _OLDEST - _NEWEST
    if left_out > 1:
        dots = ("..", f"({left_out} more)", *[".."] * (len(columns) - 1))
        rows[_OLDEST:-_NEWEST] = [dots]
    return ["    " + line for line in aligned(("#", *columns), rows)] if rows else []


def aligned(header, rows):
    """Lines of a table: its first column to the left, the others to the right."""
    rows = [tuple(map(str, header)), *(tuple(map(str, row)) for row in rows)]
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([name.ljust(first), *map(str.rjust, cells, widths)]).rstrip()
        for name, *cells in rows
    ]


# The report


def print_table(title, header, rows):
    print("\n".join(["", title, "", *aligned(header, rows)]), flush=True)


def print_schema(data):
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
    print_table(title, header[:used], [row[:used] for row in rows])


def print_counts(schema, counts):
    rows = []
    for split, c in counts.items():
        requests, candidates = c.requests.sum(), c.candidates.sum()
        rate = f"{c.clicks.sum() / max(candidates, 1):.4f}"
        size = (f"{c.size / 1e6:,.1f}", f"{c.size / requests:,.0f}")
        rows.append(
            (split, f"{requests:,}", f"{candidates:,}", rate, f"{c.users.count():,}", *size)
        )
    header = ("split", "requests", "candidates", "label rate", "users", "MB", "bytes a request")
    print_table("Splits", header, rows)

    if any(len(c.sizes) > 2 for c in counts.values()):
        rows = []
        for split, c in counts.items():
            mean = c.candidates.sum() / c.requests.sum()
            rows.append((split, f"{mean:.2f}", *percentiles(c.sizes), len(c.sizes) - 1))
        header = ("split", "mean", *(f"{p}%" for p in _PERCENTILES), "largest")
        print_table("Candidates of a request: mean, percentiles", header, rows)

    rows = []
    for split, c in counts.items():
        requests = c.requests.sum()
        mean = c.requests @ np.arange(len(c.requests)) / requests
        empty, full = 100 * c.requests[[0, -1]] / requests
        rows.append((split, f"{mean:.1f}", *percentiles(c.requests), f"{empty:.2f}", f"{full:.2f}"))
    header = ("split", "mean", *(f"{p}%" for p in _PERCENTILES), "% empty", "% full")
    print_table("History lengths: mean, percentiles", header, rows)

    rows = [
        (feature.name, *(_shares(c, feature.name) for c in counts.values()))
        for feature in schema.features
    ]
    title = "Missing / out of vocabulary, % of the real candidates' and behaviors' values"
    print_table(title, ("feature", *counts), rows)


def _shares(counts, name):
    places = counts.places[name]
    if not places:
        return "-"
    shares = (100 * part[name] / places for part in (counts.missing, counts.unknown))
    return " / ".join(f"{share:.2f}" if share else "0" for share in shares)


def print_context(schema, counts):
    """Label rates by the most frequent values of each context feature."""
    for feature in schema.group("context"):
        table = schema.table(feature.table)
        total = sum(c.shown[feature.name] for c in counts.values())
        frequent = [int(row) for row in np.argsort(-total, kind="stable")[:_VALUES] if total[row]]
        texts = _decode_table(schema, table, set(frequent))
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
        print_table(title, (feature.name, *counts), rows)


def print_days(days):
    """Label rates by day; `days` holds those of the report, by split."""
    rows = []
    for split, of_split in days.items():
        for day, n in of_split.items():
            rate = n["clicks"] / n["candidates"]
            rows.append((split, day, f"{n['candidates']:,}", f"{n['clicks']:,}", f"{rate:.4f}"))
    if rows:
        header = ("split", "day", "candidates", "clicks", "label rate")
        print_table("Label rate by day", header, rows)


# The picture

_LENGTHS = "history lengths"
_FREQUENCIES = "popularity"
_RATE_BY_LENGTH = "label rate by history length"
_RATE_BY_RANK = "label rate by popularity"
_RATE_BY_DAY = "label rate by day"


def curves(schema, counts, days):
    """What is drawn: a table of panel, split, feature, x, y and n, the candidates behind a rate.

    Of a bin of history lengths, x is the least and y the mean share of the requests of one length.
    Of a day, x is the number of days since 1970, as matplotlib counts them.
    """
    longest = schema.history_length
    # Empty and full histories have bins of their own.
    starts = np.unique([0, *np.linspace(1, longest, _BINS + 1).astype(int)])
    ends = np.append(starts[1:], longest + 1)
    parts = []

    def add(panel, split, feature, x, y, n=math.nan):
        named = {"panel": panel, "split": split, "feature": feature}
        parts.append(pd.DataFrame({"x": x, "y": y, "n": n}).assign(**named))

    for split, c in counts.items():
        key = schema.history_key
        requests = np.add.reduceat(c.requests, starts)
        candidates, clicks = (np.add.reduceat(x, starts) for x in (c.candidates, c.clicks))
        add(_LENGTHS, split, key, starts, requests / (ends - starts) / requests.sum())
        used = candidates > 0
        middle = (starts + ends - 1) / 2
        rates = clicks[used] / candidates[used]
        add(_RATE_BY_LENGTH, split, key, middle[used], rates, candidates[used])

        key = schema.candidate_key
        for name, frequencies in ((key, c.shown[key]), (schema.history_key, c.behaviors)):
            ranked = np.sort(frequencies[FIRST_INDEX:])[::-1]
            ranked = ranked[ranked > 0]
            if len(ranked):
                ranks = np.unique(np.geomspace(1, len(ranked), 200).round().astype(int))
                add(_FREQUENCIES, split, name, ranks, ranked[ranks - 1] / frequencies.sum())
        shown, clicked = c.shown[key][FIRST_INDEX:], c.clicked[key][FIRST_INDEX:]
        order = np.argsort(-shown, kind="stable")[: np.count_nonzero(shown)]
        if len(order):
            # Ranks 1, 2 to 3, 4 to 7, .., drawn at the middle of a logarithmic axis.
            first = 2 ** np.arange(len(order).bit_length())
            last = np.append(first[1:] - 1, len(order))
            candidates, clicks = (np.add.reduceat(x[order], first - 1) for x in (shown, clicked))
            middle = np.sqrt(first * last)
            add(_RATE_BY_RANK, split, key, middle, clicks / candidates, candidates)
    for split, of_split in days.items():
        x = np.array(list(of_split), "datetime64[D]").astype(int)
        candidates, clicks = (
            np.array([n[name] for n in of_split.values()]) for name in ("candidates", "clicks")
        )
        add(_RATE_BY_DAY, split, "day", x, clicks / candidates, candidates)
    return pd.concat(parts)[["panel", "split", "feature", "x", "y", "n"]]


def draw(table, schema, path):
    """The panels, a color for each split; that of days only where there are any."""
    rows = [[_LENGTHS, _FREQUENCIES], [_RATE_BY_LENGTH, _RATE_BY_RANK]]
    if _RATE_BY_DAY in set(table["panel"]):
        rows.append([_RATE_BY_DAY] * 2)
    figure = Figure(figsize=(12, 4.25 * len(rows)), layout="constrained")
    panels = figure.subplot_mosaic(rows)
    colors = {split: f"C{i}" for i, split in enumerate(table["split"].unique())}
    top = 0.01
    for (panel, split, feature), curve in table.groupby(["panel", "split", "feature"], sort=False):
        axes, style = panels[panel], {"color": colors[split], "linewidth": 1.4}
        x, y = curve["x"].to_numpy(), curve["y"].to_numpy()
        if panel == _LENGTHS:
            label = f"{split}: {y[0]:.1%} of the histories empty, {y[-1]:.1%} full"
            axes.stairs(100 * y, np.append(x, schema.history_length + 1), label=label, **style)
            top = max(top, 110 * y[1:-1].max(initial=0))
        elif panel == _FREQUENCIES:
            axes.plot(x, y, "--" if feature == schema.history_key else "-", **style)
        else:
            sure = curve["n"].to_numpy() >= _LEAST
            low, high = interval(y[sure], curve["n"].to_numpy()[sure])
            axes.plot(x[sure], y[sure], marker="o", markersize=3, **style)
            if panel == _RATE_BY_DAY:
                # A split may have one day, of which a band would be nothing.
                axes.vlines(x[sure], low, high, color=colors[split], alpha=0.4, linewidth=4)
            else:
                axes.fill_between(x[sure], low, high, color=colors[split], alpha=0.12, linewidth=0)
    key = schema.candidate_key
    # Of many data sets most histories are full: that bin, with its share in the legend, may go
    # beyond the top.
    panels[_LENGTHS].set(
        xlabel="behaviors in the history", ylabel="% of the requests, per length", ylim=(0, top)
    )
    panels[_FREQUENCIES].set(
        xlabel=f"rank in its split; solid: {key}, dashed: {schema.history_key}",
        ylabel="share of the candidates, of the behaviors",
        xscale="log", yscale="log",
    )  # fmt: skip
    panels[_RATE_BY_LENGTH].set(xlabel="behaviors in the history", ylabel="label rate")
    panels[_RATE_BY_RANK].set(
        xlabel=f"rank of {key} among the candidates of its split", ylabel="label rate", xscale="log"
    )
    if _RATE_BY_DAY in panels:
        days = table.loc[table["panel"] == _RATE_BY_DAY, "x"]
        # Of a single day, matplotlib would show years.
        panels[_RATE_BY_DAY].set(ylabel="label rate", xlim=(days.min() - 0.5, days.max() + 0.5))
        panels[_RATE_BY_DAY].xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
        panels[_RATE_BY_DAY].xaxis.set_major_formatter(DateFormatter("%a\n%Y-%m-%d"))
    for panel, axes in panels.items():
        axes.set_title(panel[0].upper() + panel[1:], fontsize="medium")
        axes.grid(alpha=0.3)
    handles = panels[_LENGTHS].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        f"{schema.name}; shaded: 95% intervals; label rates of under {_LEAST} candidates not drawn"
    )
    figure.savefig(path, dpi=120)


def interval(rate, n):
    """Wilson's 95% interval of a rate of n trials."""
    z = 1.96
    middle = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return middle - half, middle + half


def main(values):
    picture = pathlib.Path(values.picture)
    if not picture.parent.is_dir():
        raise FileNotFoundError(f"no directory {picture.parent} for --picture={picture}")
    data = RequestData(find_prepared(values.data_dir, values.dataset))
    # In the order in which they were written, training first.
    splits = json.loads((data.directory / REPORT).read_text(encoding="utf-8"))["splits"]
    if values.split is not None:
        data.shards(values.split)  # says so if there is none, before anything is printed
        splits = {values.split: splits[values.split]}
    days = {split: known["days"] for split, known in splits.items() if "days" in known}
    print_schema(data)
    for text in first_requests(data, next(iter(splits)), values.requests):
        print(f"\n{text}", flush=True)
    counts = {split: count(data, split) for split in splits}
    print_counts(data.schema, counts)
    print_days(days)
    print_context(data.schema, counts)
    table = curves(data.schema, counts, days)
    table.to_csv(picture.with_suffix(".csv"), index=False)
    draw(table, data.schema, picture)
    print(f"\n{picture}")


if __name__ == "__main__":
    commands.run(main, define_flags)
