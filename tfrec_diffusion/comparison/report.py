"""The report of a comparison: Markdown tables, and a picture beside them."""

import os

import numpy as np

from tfrec_diffusion.comparison.entry import by_data_set
from tfrec_diffusion.comparison.picture import draw
from tfrec_diffusion.comparison.statistics import mean_and_deviation, welch
from tfrec_diffusion.files import written_aside
from tfrec_diffusion.metrics import rela_impr

_METRICS = {"auc": "AUC", "gauc": "GAUC", "log_loss": "log loss"}
_COLUMNS = (*_METRICS.values(), "RelaImpr", "p")


def write(entries, splits, output, picture):
    """Writes the Markdown and the picture, whole or not at all.

    Args:
        entries: list of `Entry`, data set by data set.
        splits: list of str. Splits in the tables, or `["all"]`.
        output: `pathlib.Path`. The Markdown file.
        picture: `pathlib.Path`. The picture, in a format that its name says.
    """
    sections = list(sections_of([entry for entry in entries if entry.shown], splits))
    for path in (output, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(picture) as aside:
        draw(sections).savefig(aside, dpi=150, format=picture.suffix[1:] or "png")
    link = os.path.relpath(picture, output.parent)
    with written_aside(output) as aside:
        aside.write_text("\n".join(markdown(sections, link)) + "\n", encoding="utf-8")


def sections_of(entries, splits):
    """Yields what each table shows.

    Args:
        entries: list of `Entry` in the tables, data set by data set.
        splits: list of str. As of `write`. Of a data set that has finished runs, those that these
            were evaluated on.

    Yields:
        list of `Entry` of a data set, and str, a split.
    """
    for of_data_set in by_data_set(entries):
        results = [result for entry in of_data_set for result in entry.results()]
        known = list(results[0]) if results else ["test"] if splits == ["all"] else splits
        for split in known if splits == ["all"] else splits:
            if split in known:
                yield of_data_set, split


def markdown(sections, picture):
    """Yields lines: what was done, the tables, the picture.

    Args:
        sections: list of what `sections_of` yields.
        picture: str. Path to link to.

    Yields:
        str.
    """
    base = sections[0][0][0]
    yield f"Mean ± standard deviation over {base.num_seeds} seeds."
    if len(base.learning_rates) > 1:
        yield (
            f"The learning rate is the one of {', '.join(base.learning_rates)} with the best AUC "
            "on the validation split, seed 0."
        )
    yield f"RelaImpr and p (Welch's t-test on the AUCs) are against {base.row}."
    columns = [*(["learning rate"] if base.learning_rates else []), *_COLUMNS]
    for entries, split in sections:
        yield f"\n## {entries[0].data_set.name}, {split} split\n"
        yield f"| | {' | '.join(columns)} |"
        yield f"|---|{'---|' * len(columns)}"
        of_base = _of_split(entries[0], split)
        for entry in entries:
            results = _of_split(entry, split)
            numbers = [""] * len(columns)
            if results:
                compared = of_base if entry is not entries[0] and of_base else None
                numbers = [entry.best().learning_rate] if base.learning_rates else []
                numbers += cells(results, compared)
            missing = f" (**{entry.missing()}**)" if entry.missing() else ""
            yield f"| {entry.row}{missing} | {' | '.join(numbers)} |"
    yield f"\n![AUC of each row on each data set]({picture})"


def _of_split(entry, split):
    return [result[split] for result in entry.results() if split in result]


def cells(seeds, base):
    """Cells of a row.

    Args:
        seeds: list of dicts of each seed: metric to value.
        base: list of dicts. The same of the row to compare with, or `None`.

    Returns:
        list of str: the metrics, RelaImpr and p of Welch's t-test on the AUCs.
    """
    values = {metric: np.array([seed[metric] for seed in seeds], float) for metric in _METRICS}
    numbers = [mean_and_deviation(values[metric]) for metric in _METRICS]
    if base is None:
        return [*numbers, "", ""]
    of_base = np.array([seed["auc"] for seed in base], float)
    p = welch(values["auc"], of_base)
    improvement = f"{rela_impr(values['auc'].mean(), of_base.mean()):+.2f}%"
    return [*numbers, improvement, "" if p is None else f"{p:.3f}"]
