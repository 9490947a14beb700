"""A small spec of `logs`, and changes of specs."""

import copy

SPLITS = {"train_until": "2024-05-03", "validation_until": "2024-05-05"}
SPEC = {
    "splits": SPLITS,
    "impressions": {
        "files": "impressions*",
        "user": "user",
        "time": "ts",
        "time_unit": "s",
        "label": "click",
    },
    "behaviors": {"files": "behaviors*", "user": "user", "time": "ts", "time_unit": "s"},
    "tables": {
        "user": {"kind": "vocabulary", "dtype": "string"},
        "item": {"kind": "vocabulary", "dtype": "int64"},
        "shop": {"kind": "vocabulary", "dtype": "string"},
    },
    "features": {
        "user": {"group": "user", "column": "user", "table": "user"},
        "item": {"group": "candidate", "column": "item", "table": "item"},
        "shop": {"group": "candidate", "column": "shop", "table": "shop"},
        "history_item": {"group": "history", "column": "item", "table": "item"},
        "history_shop": {"group": "history", "column": "shop", "table": "shop"},
    },
}


def changed(spec, **values):
    """A spec with `a__b=value` for spec["a"]["b"] = value; a value of None removes the key."""
    spec = copy.deepcopy(spec)
    for path, value in values.items():
        *parents, key = path.split("__")
        place = spec
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[key]
        else:
            place[key] = value
    return spec
