import copy
import dataclasses

import numpy as np
from printed import table

from tfrec_diffusion.inspection import tables


def test_candidates_of_a_request(schema, counts, make_requests):
    one = make_requests(batch=5, candidates=1)
    label = np.zeros((5, 1))
    counts.add(one, label, label + 1, np.arange(5))  # sizes are now 1 five times, 2, 3, 3
    printed = "\n".join(tables.count_tables(schema, {"train": counts}))
    shown = table(printed, "Candidates of a request")
    assert shown["train"] == ["1.62", "1", "1", "1", "2", "3", "3"]


def test_the_share_of_negatives_kept_is_told(data):
    data = copy.copy(data)
    data.schema = dataclasses.replace(data.schema, negative_rate=0.1)
    assert tables.schema_table(data).splitlines()[0].endswith(", 0.1 of the negatives kept")


def test_tiers_are_told_where_there_are_any(data, schema):
    data = copy.copy(data)
    data.schema = schema
    shown = table(tables.schema_table(data), "small, ")
    assert shown["feature"][-1] == "tiers from row"
    assert shown["item"] == ["candidate", "item", "vocabulary", "int64", "40", "8", "9"]
    without = [dataclasses.replace(table, tiers=()) for table in schema.tables]
    data.schema = dataclasses.replace(schema, tables=without)
    shown = table(tables.schema_table(data), "small, ")
    assert shown["feature"][-1] == "dim" and shown["item"][-1] == "8"
