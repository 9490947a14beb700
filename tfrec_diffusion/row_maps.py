"""Rows of the tables of one data set as those of another, by the raw values that they stand for."""

import dataclasses
import pathlib

import numpy as np
import pandas as pd

from tfrec_diffusion.schema import FIRST_INDEX, OUT_OF_VOCABULARY


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
        values, known = (_values(schema, table.name) for schema in (source, target))
        if values == known:
            continue
        # Of an unknown value the position is -1, which lands on the row before the first one.
        rows = pd.Index(known).get_indexer(values) + FIRST_INDEX
        maps[table.name] = np.array([*range(FIRST_INDEX), *rows], np.int32)
    return maps


def unknown_values(maps):
    """Counts the data's values that the model has no row for.

    Args:
        maps: dict. What `row_maps` returned.

    Returns:
        str of one line, or `None` if it has a row for each.
    """
    counts = {name: np.sum(rows == OUT_OF_VOCABULARY) - 1 for name, rows in maps.items()}
    parts = [
        f"{name} {count:,} of {len(maps[name]) - FIRST_INDEX:,}"
        for name, count in counts.items()
        if count
    ]
    return f"values that training has not seen: {', '.join(parts)}" if parts else None


def _check_alike(source, target):
    features, of_target = ({f.name: f for f in schema.features} for schema in (source, target))
    differing = [
        f"feature {name!r}"
        for name in {**features, **of_target}
        if features.get(name) != of_target.get(name)
    ]
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


def _values(schema, table):
    path = pathlib.Path(schema.vocabulary_path(schema.table(table)))
    return path.read_bytes().decode().split("\n")[:-1]
