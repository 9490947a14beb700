"""What is drawn of the splits: history lengths, popularity, and label rates."""

import math

import numpy as np
import pandas as pd

from tfrec_diffusion.schema import FIRST_INDEX

LENGTHS = "history lengths"
POPULARITY = "popularity"
RATE_BY_LENGTH = "label rate by history length"
RATE_BY_POPULARITY = "label rate by popularity"
RATE_BY_DAY = "label rate by day"

_BINS = 20  # of history lengths
_RANKS = 200  # points of a popularity curve


def curves(schema, counts, days):
    """The points of every curve.

    Args:
        schema: `Schema`.
        counts: dict by split of `Counts`.
        days: dict by split of dicts by day of dicts: `candidates` and `clicks`.

    Returns:
        `pandas.DataFrame` of `panel`, `split`, `feature`, `x`, `y` and `n`, the candidates behind
        a label rate. Of a bin of history lengths, x is the least of them and y the mean share of
        the requests of one length. Of a day, x is the number of days since 1970, as matplotlib
        counts them.
    """
    parts = []

    def add(panel, split, feature, x, y, n=math.nan):
        named = {"panel": panel, "split": split, "feature": feature}
        parts.append(pd.DataFrame({"x": x, "y": y, "n": n}).assign(**named))

    key = schema.candidate_key
    for split, c in counts.items():
        for panel, points in _by_length(schema, c).items():
            add(panel, split, schema.history_key, *points)
        for name, frequencies in ((key, c.shown[key]), (schema.history_key, c.behaviors)):
            if frequencies[FIRST_INDEX:].any():
                add(POPULARITY, split, name, *_popularity(frequencies))
        if c.shown[key][FIRST_INDEX:].any():
            rates = _rate_by_popularity(c.shown[key], c.clicked[key])
            add(RATE_BY_POPULARITY, split, key, *rates)
    for split, of_split in days.items():
        x = np.array(list(of_split), "datetime64[D]").astype(int)
        candidates, clicks = (
            np.array([n[name] for n in of_split.values()]) for name in ("candidates", "clicks")
        )
        add(RATE_BY_DAY, split, "day", x, clicks / candidates, candidates)
    return pd.concat(parts)[["panel", "split", "feature", "x", "y", "n"]]


def _by_length(schema, counts):
    longest = schema.history_length
    # Empty and full histories have bins of their own.
    starts = np.unique([0, *np.linspace(1, longest, _BINS + 1).astype(int)])
    ends = np.append(starts[1:], longest + 1)
    requests, candidates, clicks = (
        np.add.reduceat(x, starts) for x in (counts.requests, counts.candidates, counts.clicks)
    )
    used = candidates > 0
    middle = (starts + ends - 1) / 2
    return {
        LENGTHS: (starts, requests / (ends - starts) / requests.sum()),
        RATE_BY_LENGTH: (middle[used], clicks[used] / candidates[used], candidates[used]),
    }


def _popularity(frequencies):
    """Ranks of the values that occur, and the share of each in all, unknown ones included."""
    ranked = np.sort(frequencies[FIRST_INDEX:])[::-1]
    ranked = ranked[ranked > 0]
    ranks = np.unique(np.geomspace(1, len(ranked), _RANKS).round().astype(int))
    return ranks, ranked[ranks - 1] / frequencies.sum()


def _rate_by_popularity(shown, clicked):
    shown, clicked = shown[FIRST_INDEX:], clicked[FIRST_INDEX:]
    order = np.argsort(-shown, kind="stable")[: np.count_nonzero(shown)]
    # Ranks 1, 2 to 3, 4 to 7, .., drawn at the middle of a logarithmic axis.
    first = 2 ** np.arange(len(order).bit_length())
    last = np.append(first[1:] - 1, len(order))
    candidates, clicks = (np.add.reduceat(x[order], first - 1) for x in (shown, clicked))
    return np.sqrt(first * last), clicks / candidates, candidates
