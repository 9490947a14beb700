"""AUC when some of the newest behaviors are not the user's: HierDiffuse's claim, measured.

    python tools/plot_robustness.py --run=HierDiffuse=runs/hd_0,runs/hd_1 --run=DIN=runs/din_0 \
        --picture=robustness.png

A run is a name and the directories of trained models that differ in their seed only. Of the newest
`--length` behaviors of each request of `--split`, a share is replaced by random popular ones:
behaviors of training histories whose item is of the first tier of popularity, drawn as often as
they occur there; their times stay. All models see the same replaced behaviors. Prints the table
(mean and standard deviation over the seeds), which lies beside the picture as CSV.
"""

import pathlib

import numpy as np
import pandas as pd
from absl import app, flags
from matplotlib.figure import Figure

from tfrec_diffusion import metrics
from tfrec_diffusion.runs import load_run

RUNS = flags.DEFINE_multi_string("run", None, "name=directory,directory; repeat it", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "default: where the models were trained from")
SPLIT = flags.DEFINE_string("split", "test", "a split of the data set")
LENGTH = flags.DEFINE_integer("length", 50, "newest behaviors that may be replaced", 1)
SHARES = flags.DEFINE_list("shares", ["0", "0.1", "0.2", "0.3", "0.4", "0.5"], "shares replaced")
SEED = flags.DEFINE_integer("seed", 0, "of what is replaced by what")
PICTURE = flags.DEFINE_string(
    "picture", "robustness.png", "file to write; its data: .csv beside it"
)

_COUNT = 100_000  # behaviors to draw from, at least


def popular_behaviors(data):
    """Behaviors of training histories with a popular item: dict of equally long arrays."""
    schema = data.schema
    tiers = schema.table(schema.group("history")[0].table).tiers
    if not tiers:
        raise ValueError(f"the item table of {data.directory} has no tiers of popularity")
    names = [feature.name for feature in schema.group("history")]
    parts, count = [], 0
    for features, *_ in data.batches("train", shuffle_seed=SEED.value):
        items = features[schema.history_key].numpy()
        popular = (items > 1) & (items < tiers[0])
        parts.append({name: features[name].numpy()[popular] for name in names})
        count += popular.sum()
        if count >= _COUNT:
            break
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def replace(features, schema, share, popular, rng):
    """The features with a share of each request's newest behaviors replaced."""
    mask = features[schema.history_key].numpy() > 0
    newest = mask & (np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] <= LENGTH.value)
    chosen = newest & (rng.random(mask.shape) < share)
    drawn = rng.integers(0, len(popular[schema.history_key]), chosen.sum())
    features = dict(features)
    for name, values in popular.items():
        changed = features[name].numpy().copy()
        changed[chosen] = values[drawn]
        features[name] = changed
    return features


def auc(model, data, share, popular):
    """AUC of a split with that share of the behaviors replaced."""
    rng = np.random.default_rng(SEED.value)
    labels, scores = [], []
    for features, label, weight in data.batches(SPLIT.value):
        real = weight.numpy() > 0
        replaced = replace(features, data.schema, share, popular, rng)
        scores.append(model.predict_on_batch(replaced)[real])
        labels.append(label.numpy()[real])
    return metrics.auc(np.concatenate(labels), np.concatenate(scores))


def draw(results, path):
    """A line for each run, with the standard deviation over its seeds."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, rows in results.groupby("run", sort=False):
        by_share = rows.groupby("share")["auc"]
        deviation = by_share.std().fillna(0)
        axes.errorbar(
            100 * deviation.index, by_share.mean(), deviation, label=name, marker="o", capsize=3
        )
    axes.set_xlabel(f"% of the newest {LENGTH.value} behaviors replaced by popular ones")
    axes.set_ylabel(f"AUC, {SPLIT.value}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(_):
    rows = []
    shares = [float(share) for share in SHARES.value]
    for run in RUNS.value:
        name, _, directories = run.partition("=")
        if not directories:
            raise ValueError(f"`run` must be name=directory,directory. Received: run={run}")
        for directory in directories.split(","):
            model, data = load_run(directory, DATA_DIR.value)
            popular = popular_behaviors(data)
            for share in shares:
                value = auc(model, data, share, popular)
                rows.append({"run": name, "directory": directory, "share": share, "auc": value})
                print(f"{name} {directory} {share:.0%}: {value:.4f}", flush=True)
    results = pd.DataFrame(rows)
    picture = pathlib.Path(PICTURE.value)
    results.to_csv(picture.with_suffix(".csv"), index=False)
    draw(results, picture)

    table = results.groupby(["share", "run"])["auc"].agg(["mean", "std"])
    names = list(results["run"].unique())
    print(f"\n| replaced | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for share in shares:
        cells = ["{mean:.4f} ± {std:.4f}".format(**table.loc[share, name]) for name in names]
        print(f"| {share:.0%} | {' | '.join(cells)} |")


if __name__ == "__main__":
    app.run(main)
