"""Rows of embedding tables as people read them.

Rows of vocabularies are shown as the raw values, of boundaries as intervals [from, to), of hashes
as their buckets, which is all that is left of the values.
"""

import itertools
import math

from tfrec_diffusion.schema import FIRST_INDEX, OUT_OF_VOCABULARY, PADDING


def decode(schema, table, rows):
    """Raw values as text.

    Args:
        schema: `Schema`. With the directory of its vocabularies.
        table: str. Name of a table.
        rows: set of int. Rows that are wanted.

    Returns:
        dict by row of str. It may have other rows, too.

    Raises:
        ValueError: If the vocabulary's file is too short.
    """
    table = schema.table(table)
    texts = {PADDING: "<missing>", OUT_OF_VOCABULARY: "<unknown>"}
    if table.kind == "hash":
        return texts | {row: f"<bucket {row - FIRST_INDEX}>" for row in rows if row >= FIRST_INDEX}
    if table.kind == "boundaries":
        return texts | _intervals(table.boundaries)
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


def number(entry):
    """A number or a vector as text.

    Args:
        entry: float array of shape () or (width,). NaN is missing.

    Returns:
        str. Of a vector, the first three numbers.
    """
    numbers = entry.ravel().tolist()
    if any(math.isnan(x) for x in numbers):
        return "<missing>"
    shown = ", ".join(f"{x:.6g}" for x in numbers[:3])
    return shown if entry.ndim == 0 else f"[{shown}{', ...' if len(numbers) > 3 else ''}]"


def _intervals(boundaries):
    edges = ["-inf", *(f"{edge:.6g}" for edge in boundaries), "inf"]
    pairs = enumerate(itertools.pairwise(edges))
    return {FIRST_INDEX + i: f"{'[' if i else '('}{low}, {high})" for i, (low, high) in pairs}
