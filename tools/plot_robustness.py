"""AUC when some of the newest behaviors are not the user's: measures HierDiffuse's claim.

    python tools/plot_robustness.py --run=HierDiffuse=runs/hd_0,runs/hd_1 --run=DIN=runs/din_0 \
        --picture=robustness.png

A run is a name, and the directories of trained models that differ in their seed only. Of the newest
`--length` behaviors of each request of `--split`, a share is replaced by random popular ones:
behaviors of training histories whose item is in the first tier of popularity, drawn as often as
they occur there. The times of the behaviors stay. All models see the same replaced behaviors. The
table has mean and standard deviation over the seeds; it is also written as CSV beside the picture.
"""

import pathlib

import numpy as np
import pandas as pd
from absl import flags
from matplotlib.figure import Figure

from tfrec_diffusion import command, metrics
from tfrec_diffusion.training.run_directory import RunDirectory

_COUNT = 100_000  # behaviors to draw from, at least


def define_flags(values):
    flags.DEFINE_multi_string(
        "run", None, "name=directory,directory; repeat it", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", None, "of prepared data sets; default: where the models were trained from",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("split", "test", "a split of the data set", flag_values=values)
    flags.DEFINE_integer(
        "length", 50, "newest behaviors that may be replaced", 1, flag_values=values
    )
    flags.DEFINE_list(
        "shares", ["0", "0.1", "0.2", "0.3", "0.4", "0.5"], "shares that are replaced",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("seed", 0, "seed of what is replaced by what", flag_values=values)
    flags.DEFINE_string(
        "picture", "robustness.png", "file to write; its data go beside it as CSV",
        flag_values=values,
    )  # fmt: skip


def popular_behaviors(data, seed):
    """Behaviors of training histories with a popular item.

    Args:
        data: `RequestData`.
        seed: int. Seed of the order in which training requests are read.

    Returns:
        dict of equally long arrays, by the name of the history feature.

    Raises:
        ValueError: If the data set knows no popularity.
    """
    schema = data.schema
    tiers = schema.table(schema.group("history")[0].table).tiers
    if not tiers:
        raise ValueError(f"the item table of {data.directory} has no tiers of popularity")
    names = [feature.name for feature in schema.group("history")]
    parts, count = [], 0
    for features, *_ in data.batches("train", shuffle_seed=seed):
        items = features[schema.history_key].numpy()
        popular = (items > 1) & (items < tiers[0])
        parts.append({name: features[name].numpy()[popular] for name in names})
        count += popular.sum()
        if count >= _COUNT:
            break
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def replace(features, schema, share, length, popular, rng):
    """The features with a share of each request's newest behaviors replaced.

    Args:
        features: dict of tensors.
        schema: `Schema`.
        share: float. Share that is replaced.
        length: int. Newest behaviors that may be replaced.
        popular: dict of arrays. What `popular_behaviors` returned.
        rng: `np.random.Generator`.

    Returns:
        dict of tensors and arrays.
    """
    mask = features[schema.history_key].numpy() > 0
    newest = mask & (np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] <= length)
    chosen = newest & (rng.random(mask.shape) < share)
    drawn = rng.integers(0, len(popular[schema.history_key]), chosen.sum())
    features = dict(features)
    for name, values in popular.items():
        changed = features[name].numpy().copy()
        changed[chosen] = values[drawn]
        features[name] = changed
    return features


def auc(model, data, share, popular, values):
    """AUC of a split with a share of the behaviors replaced.

    Args:
        model: `RankingModel`.
        data: `RequestData`.
        share: float. As in `replace`.
        popular: dict of arrays. As in `replace`.
        values: `absl.flags.FlagValues`.
    """
    rng = np.random.default_rng(values.seed)
    labels, scores = [], []
    for features, label, weight in data.batches(values.split):
        real = weight.numpy() > 0
        replaced = replace(features, data.schema, share, values.length, popular, rng)
        scores.append(model.predict_on_batch(replaced)[real])
        labels.append(label.numpy()[real])
    return metrics.auc(np.concatenate(labels), np.concatenate(scores))


def draw(results, values):
    """Draws a line for each run, with the standard deviation over its seeds.

    Args:
        results: `pandas.DataFrame` with the columns run, share and auc.
        values: `absl.flags.FlagValues`.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, rows in results.groupby("run", sort=False):
        by_share = rows.groupby("share")["auc"]
        deviation = by_share.std().fillna(0)
        axes.errorbar(
            100 * deviation.index, by_share.mean(), deviation, label=name, marker="o", capsize=3
        )
    axes.set_xlabel(f"% of the newest {values.length} behaviors replaced by popular ones")
    axes.set_ylabel(f"AUC, {values.split}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(values.picture, dpi=150)


def main(values):
    rows = []
    shares = [float(share) for share in values.shares]
    for run in values.run:
        name, _, directories = run.partition("=")
        if not directories:
            raise ValueError(f"`run` must be name=directory,directory. Received: run={run}")
        for directory in directories.split(","):
            model, data = RunDirectory(directory).load_run(values.data_dir)
            popular = popular_behaviors(data, values.seed)
            for share in shares:
                value = auc(model, data, share, popular, values)
                rows.append({"run": name, "directory": directory, "share": share, "auc": value})
                print(f"{name} {directory} {share:.0%}: {value:.4f}", flush=True)
    results = pd.DataFrame(rows)
    results.to_csv(pathlib.Path(values.picture).with_suffix(".csv"), index=False)
    draw(results, values)

    table = results.groupby(["share", "run"])["auc"].agg(["mean", "std"])
    run_names = list(results["run"].unique())
    print(f"\n| replaced | {' | '.join(run_names)} |\n|---|{'---|' * len(run_names)}")
    for share in shares:
        cells = ["{mean:.4f} ± {std:.4f}".format(**table.loc[share, name]) for name in run_names]
        print(f"| {share:.0%} | {' | '.join(cells)} |")


if __name__ == "__main__":
    command.run(main, define_flags)
