"""Logs of a shop, a day each, and the flags of a small model that learns from them."""

import json

import numpy as np
import pandas as pd

from tfrec_diffusion.datasets.preparation import prepare

DAY = 86400
SPEC = {
    "splits": {"train_until": "2024-05-03", "validation_until": "2024-05-04"},
    "impressions": {
        "files": "impressions.csv",
        "user": "user",
        "time": "time",
        "time_unit": "s",
        "label": "click",
    },
    "behaviors": {"files": "behaviors.csv", "user": "user", "time": "time", "time_unit": "s"},
    "tables": {
        "user": {"kind": "hash", "dtype": "string", "buckets": 7},
        "item": {"kind": "vocabulary", "dtype": "string"},
        "price": {"kind": "number"},
    },
    "features": {
        "user": {"group": "user", "column": "user", "table": "user"},
        "item": {"group": "candidate", "column": "item", "table": "item"},
        "price": {"group": "candidate", "column": "price", "table": "price"},
        "history_item": {"group": "history", "column": "item", "table": "item"},
    },
}


def write_day(directory, first_item, prices=(1, 2)):
    """A log of three days about ten items in a row; half of the impressions are clicked."""
    directory.mkdir()
    rng = np.random.default_rng(first_item)
    size = 300
    rows = pd.DataFrame({"user": [f"u{i}" for i in rng.integers(20, size=size)]})
    rows["item"] = [f"i{i}" for i in first_item + rng.integers(10, size=size)]
    rows["time"] = 1714521600 + np.arange(size) * 4 * DAY // size
    rows["click"] = rng.integers(2, size=size)
    rows["price"] = np.resize(prices, size)
    rows.to_csv(directory / "impressions.csv", index=False)
    rows[["user", "item", "time"]].to_csv(directory / "behaviors.csv", index=False)
    (directory / "shop.json").write_text(json.dumps(SPEC))
    return prepare("logs", raw_dir=directory, data_dir=directory, spec=directory / "shop.json")


def arguments(data_dir, model_dir, *more):
    return (
        "train", "--dataset=logs/shop", f"--data_dir={data_dir}", f"--model_dir={model_dir}",
        "--model=diffumin", "--set=tower_units=4", "--set=channels=2", "--set=embedding_dim=4",
        "--set=profile_units=", "--set=short_term_length=3", "--batch_size=32",
        "--learning_rate=0.01", "--nojit_compile", *more,
    )  # fmt: skip


def prepared(days, name):
    return days / name / "logs" / "shop" / "1.2.0"
