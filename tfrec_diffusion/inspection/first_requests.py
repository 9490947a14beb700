"""The first requests of a split, in raw values."""

import collections

import numpy as np

from tfrec_diffusion.inspection import raw_values, text
from tfrec_diffusion.schema import PADDING

_OLDEST, _NEWEST = 2, 6  # rows that are shown of a long list


def first_requests(data, split, number):
    """Yields the first requests of a split, in the order of its files.

    Args:
        data: `RequestData`.
        split: str. One of `data.splits`.
        number: int. How many to show.

    Yields:
        str. The lines of one request.
    """
    number = min(number, data.num_requests(split))
    if not number:
        return
    schema = data.schema
    with data.naming_damage(split):
        batch = next(data.batches(split, number, with_group_id=True).as_numpy_iterator())
    features, label, weight, group_id = batch
    wanted = collections.defaultdict(set)
    for feature in schema.features:
        if not schema.table(feature.table).is_numeric:
            wanted[feature.table].update(np.unique(features[feature.name]).tolist())
    texts = {table: raw_values.decode(schema, table, rows) for table, rows in wanted.items()}

    def text(feature, entry):
        if feature.values > 1:
            return "|".join(texts[feature.table][row] for row in entry.tolist() if row != PADDING)
        if schema.table(feature.table).is_numeric:
            return raw_values.number(entry)
        return texts[feature.table][int(entry)]

    def column(feature, i, kept=...):
        return [text(feature, entry) for entry in features[feature.name][i][kept]]

    for i in range(number):
        real, past = weight[i] > 0, features[schema.history_key][i] != PADDING
        lines = [f"{split}, request {i + 1}, group id {group_id[i]}"]
        for group in ("user", "context"):
            named = [f"{f.name}={text(f, features[f.name][i])}" for f in schema.group(group)]
            lines += [f"  {group}: {'  '.join(named)}"] if named else []
        lines.append(f"  candidates: {real.sum()}, clicked: {label[i][real].sum():g}")
        columns = {"label": [f"{value:g}" for value in label[i][real]]}
        if schema.weighted:
            columns["weight"] = [f"{value:g}" for value in weight[i][real]]
        columns |= {f.name: column(f, i, real) for f in schema.group("candidate")}
        lines += shortened(columns)
        lines.append(f"  history: {past.sum()} of at most {schema.history_length}, newest last")
        columns = {f.name: column(f, i, past) for f in schema.group("history", "behavior")}
        yield "\n".join(lines + shortened(columns))


def shortened(columns):
    """A numbered table without the middle of a long one.

    Args:
        columns: dict by name of lists of str.

    Returns:
        list of str. Its lines; empty if the columns are.
    """
    rows = [(str(i), *cells) for i, cells in enumerate(zip(*columns.values(), strict=True), 1)]
    left_out = len(rows) - _OLDEST - _NEWEST
    if left_out > 1:
        dots = ("..", f"({left_out} more)", *[".."] * (len(columns) - 1))
        rows[_OLDEST:-_NEWEST] = [dots]
    return ["    " + line for line in text.aligned(("#", *columns), rows)] if rows else []
