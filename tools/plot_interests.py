"""Draws what DiffuMIN makes of users' histories (section 4.6, figure 3), one panel for each user.

    python tools/plot_interests.py --model_dir=runs/kuairand_diffumin --picture=interests.png

A user is a request of `--split` with its first clicked candidate. `--users` gives the numbers of
requests, from 0; without it, those clicked requests are drawn that have the longest histories. What
is drawn is also written as CSV beside the picture. This tool needs scikit-learn and matplotlib.

Only directions are drawn. Channels have length 1, means of behaviors are short, and generated
interests are as long as sampling leaves them: t-SNE of these vectors would show the lengths. So all
vectors are scaled to length 1, where the squared distance that t-SNE looks at is 2 - 2 cosine.
t-SNE keeps neighborhoods: it means something that two points lie together, but not how far groups
lie apart. The cosines themselves stand below each panel.

The search is like the first stage of TWIN: the model's own filter, by default the top 20%, by the
score against the target alone. It searches the same trained embeddings, so that the picture
compares two ways to select and not two trainings.
"""

import pathlib

import keras
import matplotlib
import numpy as np
import pandas as pd
from absl import flags
from keras import ops
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from tfrec_diffusion import command
from tfrec_diffusion import flags as shared_flags
from tfrec_diffusion.layers.multi_interest import MultiInterestExtractor
from tfrec_diffusion.layers.routing import TopRouting
from tfrec_diffusion.models import DiffuMIN
from tfrec_diffusion.training.run_directory import RunDirectory

_GRAY, _FAINT = "0.7", "0.85"
_COLORS = [color for i, color in enumerate(matplotlib.color_sequences["tab10"]) if i != 7]  # gray
_STYLES = {  # of `scatter`, by kind, the lowest first
    "behavior": {"label": "behavior, in the color of its channel", "s": 16},
    "target": {"label": "target", "marker": "*", "s": 600, "edgecolors": "black"},
    "channel": {"label": "interest channel o", "marker": "*", "s": 190, "edgecolors": "black"},
    "aggregated": {"label": "aggregated interest r", "s": 260, "edgecolors": "white"},
    "augmented": {"label": "augmented interest r*", "s": 60, "edgecolors": "black"},
}


def define_flags(values):
    shared_flags.trained_model(values, "DiffuMIN")
    flags.DEFINE_list("users", None, "numbers of requests in the split, from 0", flag_values=values)
    flags.DEFINE_integer(
        "count", 2, "number of panels, where --users is not given", 1, flag_values=values
    )
    flags.DEFINE_string(
        "picture", "interests.png", "file to write; its data go beside it as CSV",
        flag_values=values,
    )  # fmt: skip


def longest_clicked(data, split, count):
    """The numbers of the clicked requests with the longest histories.

    Args:
        data: `RequestData`.
        split: str. A split of the data set.
        count: int. How many requests. If fewer were clicked, others follow.

    Returns:
        int array of shape (count,).
    """
    lengths = []
    for features, label, _ in data.batches(split):
        length = np.count_nonzero(features[data.schema.history_key], axis=1)
        lengths.append(np.where((label.numpy() > 0).any(axis=1), length, -1))
    return np.argsort(-np.concatenate(lengths), kind="stable")[:count]


def read(data, split, number):
    """Reads a request.

    Args:
        data: `RequestData`.
        split: str. A split of the data set.
        number: int. Number of the request in the split, from 0.

    Returns:
        dict of its features as a batch of one, and its labels, an array of shape (candidates,).

    Raises:
        ValueError: If there is no such request, or it has no behaviors.
    """
    if not 0 <= number < data.num_requests(split):
        raise ValueError(
            f"--users must be in [0, {data.num_requests(split)}) for {split}. Received: {number}"
        )
    features, label, _ = next(iter(data.batches(split, batch_size=1, first_batch=number)))
    if not np.any(features[data.schema.history_key]):
        raise ValueError(f"--users must have behaviors. Received: {number}, which has none")
    return features, label.numpy()[0]


def inner_model(model):
    """A model that returns tensors inside a DiffuMIN, by name, for requests."""
    extractor = model.get_layer("diffumin.extractor")
    history, channels, target, history_mask, *_ = extractor.input
    outputs = {
        "history": history,
        "history_mask": history_mask,
        "target": target,
        "channel": channels,
        "aggregated": keras.tree.flatten(extractor.output)[0],  # before the evidence
        "probability": model.output,
    }
    if model.generator is not None:
        outputs["augmented"] = model.get_layer("diffumin.generator").output
    return keras.Model(model.input, outputs)


def interests(model, features, candidate):
    """The vectors of one request and candidate.

    Args:
        model: `DiffuMIN`.
        features: dict of tensors: a batch of one request.
        candidate: int. Number of the candidate in the request.

    Returns:
        The predicted probability, and a `pandas.DataFrame` with a row for each vector: `kind` is a
        key of `_STYLES`; `channels` are the numbers, from 1, of the channels that keep a behavior,
        or the number of the vector's own channel; `searched` says whether the search keeps the
        behavior; `vector` has length 1. Channels that keep nothing have no rows.
    """
    inner = inner_model(model)(features)
    history, target = (ops.cast(inner[name], "float32") for name in ("history", "target"))
    extractor = model.get_layer("diffumin.extractor")
    search = MultiInterestExtractor(TopRouting(), extractor.filtering, extractor.aggregation)
    kept, searched = (
        np.asarray(layer.select(history, channels, inner["history_mask"])[1])[0, candidate] > 0
        for layer, channels in ((extractor, inner["channel"]), (search, target[:, :, None]))
    )  # (channels, length) and (1, length)
    rows = [
        ("behavior", tuple(np.flatnonzero(kept[:, i]) + 1), searched[0, i], history[0, i])
        for i in np.flatnonzero(inner["history_mask"][0])
    ]
    rows.append(("target", (), False, target[0, candidate]))
    for kind in ("channel", "aggregated", "augmented"):
        for i in np.flatnonzero(kept.any(axis=1)):
            if kind in inner:
                rows.append((kind, (i + 1,), False, inner[kind][0, candidate, i]))
    table = pd.DataFrame(rows, columns=["kind", "channels", "searched", "vector"])
    table["vector"] = [unit(np.asarray(vector, "float32")) for vector in table["vector"]]
    return float(inner["probability"][0, candidate]), table


def unit(vector):
    return vector / max(np.linalg.norm(vector), 1e-12)


def place(table):
    """The table with `x` and `y`, where t-SNE puts the vectors."""
    vectors = np.stack(table["vector"])
    tsne = TSNE(perplexity=min(30, len(vectors) / 5), init="pca", random_state=0)
    x, y = tsne.fit_transform(vectors).T
    return table.assign(x=x, y=y)


def of_channel(table, channel):
    return table[[channel in channels for channels in table["channels"]]]


def compare_selections(table):
    """How many behaviors the channels and the search keep, and how near to each other they are."""
    behaviors = table[table["kind"] == "behavior"]
    vectors = np.stack(behaviors["vector"])
    (target,) = table.loc[table["kind"] == "target", "vector"]
    kept, searched = behaviors["channels"].map(len).to_numpy() > 0, behaviors["searched"].to_numpy()
    rows = {}
    for name, chosen in (
        ("history", np.ones_like(kept)),
        ("channels", kept),
        ("search", searched),
        ("both of them", kept & searched),
    ):
        cosines = vectors[chosen] @ vectors[chosen].T
        rows[name] = {
            "behaviors": len(cosines),
            "mean cos to target": pd.Series(vectors[chosen] @ target).mean(),
            "to each other": pd.Series(cosines[np.triu_indices_from(cosines, 1)]).mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def compare_channels(table, num_channels):
    """How many behaviors each channel keeps, and how near its vectors are to each other."""
    (target,) = table.loc[table["kind"] == "target", "vector"]
    rows = {}
    for channel in range(1, num_channels + 1):
        own = of_channel(table, channel)
        if own.empty:
            rows[f"channel {channel}, not drawn"] = {"behaviors": 0}
            continue
        vector = dict(zip(own["kind"], own["vector"], strict=True))
        cosines = {
            "cos(r, target)": vector["aggregated"] @ target,
            "cos(r, o)": vector["aggregated"] @ vector["channel"],
        }
        if "augmented" in vector:
            cosines["cos(r, r*)"] = vector["aggregated"] @ vector["augmented"]
        rows[f"channel {channel}"] = {"behaviors": sum(own["kind"] == "behavior"), **cosines}
    return pd.DataFrame.from_dict(rows, orient="index")


def color(channel):
    return _COLORS[(channel - 1) % len(_COLORS)]


def draw(axes, table, num_channels):
    """One panel of a placed table."""
    searched = table[table["searched"]]
    label = "kept by a search by the target alone"
    axes.scatter(searched["x"], searched["y"], s=130, color=_GRAY, linewidths=0, label=label)
    for channel in range(1, num_channels + 1):
        own = of_channel(table, channel)
        for mean in own[own["kind"] == "aggregated"].itertuples():
            for behavior in own[own["kind"] == "behavior"].itertuples():
                xs, ys = (mean.x, behavior.x), (mean.y, behavior.y)
                axes.plot(xs, ys, color=color(channel), alpha=0.3, linewidth=0.8)
            center = {"ha": "center", "va": "center_baseline", "zorder": 10}
            axes.text(mean.x, mean.y, channel, color="white", weight="bold", **center)
    for zorder, (kind, style) in enumerate(_STYLES.items(), 3):
        rows = table[table["kind"] == kind]
        colors = [color(channels[0]) if channels else _FAINT for channels in rows["channels"]]
        if kind == "target":
            colors = "gold"
        axes.scatter(rows["x"], rows["y"], c=colors, linewidths=0.8, zorder=zorder, **style)
    axes.set(xticks=[], yticks=[])
    below = (compare_channels(table, num_channels), compare_selections(table))
    texts = [x.to_string(float_format="{:.2f}".format, na_rep="-") for x in below]
    axes.set_xlabel("\n\n".join(texts), family="monospace", size=9)


def main(values):
    model, data = RunDirectory(values.model_dir).load_run(values.data_dir)
    if not isinstance(model, DiffuMIN):
        raise ValueError(f"--model_dir must hold a DiffuMIN. Received: {type(model).__name__}")
    numbers = [int(n) for n in values.users or longest_clicked(data, values.split, values.count)]
    num_channels = model.get_layer("diffumin.channels").output.shape[2]
    figure = Figure(figsize=(6.2 * len(numbers), 8.5), layout="constrained")
    panels = figure.subplots(1, len(numbers), squeeze=False)[0]
    drawn = []
    for number, axes in zip(numbers, panels, strict=True):
        features, label = read(data, values.split, number)
        candidate = int(label.argmax())
        probability, table = interests(model, features, candidate)
        table = place(table)
        draw(axes, table, num_channels)
        clicked = "clicked" if label[candidate] else "not clicked"
        axes.set_title(f"request {number}: {clicked}, predicted {probability:.2f}")
        table.insert(0, "request", number)
        drawn.append(table.drop(columns="vector"))
    note = "t-SNE of embeddings of length 1: neighborhoods count, distances do not"
    figure.suptitle(note, size=11)
    markers = panels[0].get_legend_handles_labels()
    style = {"markerscale": 0.8, "labelspacing": 0.9, "fontsize": 9, "frameon": False}
    figure.legend(*markers, loc="outside lower center", ncols=2, **style)
    figure.savefig(values.picture, dpi=120)
    table = pd.concat(drawn)
    table["channels"] = [" ".join(map(str, channels)) for channels in table["channels"]]
    table.to_csv(pathlib.Path(values.picture).with_suffix(".csv"), index=False)
    print(f"{values.picture}: requests {', '.join(map(str, numbers))} of {values.split}")


if __name__ == "__main__":
    command.run(main, define_flags)
