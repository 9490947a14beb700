"""Rows of the tables of one data set as those of another, by the raw values that they stand for."""

import dataclasses

import numpy as np
import pandas as pd

from tfrec_diffusion.schema import FIRST_INDEX, OUT_OF_VOCABULARY, differing_features


def row_maps(source, target):
    """Maps rows of one schema's vocabularies to those that have the same values in another's.

    Args:
        source: `Schema`, with its vocabularies. What the rows are of.
        target: `Schema`, with its vocabularies. It has the same features; only vocabularies may
            differ, and widths of embeddings.

    Returns:
        dict by table of int32 arrays of shape (rows of the source,). Values that the target does
        not have are out of vocabulary there. Tables that are the same are left out.

    Raises:
        ValueError: If a row or a number means something else. It names what differs.
    """
    _check_alike(source, target)
    maps = {}
    for table in source.tables:
        if table.kind != "vocabulary":
            continue
        values, known = (schema.vocabulary_values(table.name) for schema in (source, target))
        if values == known:
            continue
        # Of an unknown value the position is -1, which lands on the row before the first one.
        rows = pd.Index(known).get_indexer(values) + FIRST_INDEX
        maps[table.name] = np.array([*range(FIRST_INDEX), *rows], np.int32)
    return maps


def count_unknown(maps):
    """Counts the values that the target has no row for.

    Args:
        maps: dict. What `row_maps` returned.

    Returns:
        dict of int by table.
    """
    # Row 1 stays what it is.
    return {name: int(np.sum(rows == OUT_OF_VOCABULARY)) - 1 for name, rows in maps.items()}


def unknown_values(maps):
    """Says how many of the data's values the model has no row for.

    Args:
        maps: dict. What `row_maps` returned.

    Returns:
        str of one line, or `None` if it has a row for each.
    """
    parts = [
        f"{name} {count:,} of {len(maps[name]) - FIRST_INDEX:,}"
        for name, count in count_unknown(maps).items()
        if count
    ]
    return f"values that training has not seen: {', '.join(parts)}" if parts else None


def _check_alike(source, target):
    differing = differing_features(source.features, target.features)
    if not differing:
        differing = [
            f"table {table.name!r}"
            for table in source.tables
            if _meaning(table) != _meaning(target.table(table.name))
        ]
    if source.negative_rate != target.negative_rate:
        differing.append("the share of negatives that was kept")
    if differing:
        raise ValueError(
            f"{target.directory} was trained on other data than {source.directory}: they differ in "
            f"{', '.join(differing)}. `prepare --like` encodes logs as a trained model knows them"
        )


def _meaning(table):
    # Numbers are stored as they are, so that a model's own mean and deviation apply.
    same = {"dim": 1, "mean": 0.0, "deviation": 1.0}
    if table.kind == "vocabulary":
        same |= {"rows": FIRST_INDEX, "tiers": ()}
    return dataclasses.replace(table, **same)
