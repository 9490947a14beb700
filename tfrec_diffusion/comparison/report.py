"""The report of a comparison: Markdown tables, and a picture beside them."""

import os

import numpy as np

from tfrec_diffusion.comparison.differences import differences, lacking
from tfrec_diffusion.comparison.entry import by_data_set
from tfrec_diffusion.comparison.picture import draw
from tfrec_diffusion.comparison.statistics import REPLICATES, mean_and_deviation
from tfrec_diffusion.files import written_aside
from tfrec_diffusion.metrics import rela_impr

_METRICS = {"auc": "AUC", "gauc": "GAUC", "log_loss": "log loss"}
_COLUMNS = (*_METRICS.values(), "RelaImpr", "difference", "95% interval", "p")


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
    tuned = any(entry.num_tried > 1 for entries, _ in sections for entry in entries)
    if tuned:
        yield (
            "Tuned: what was chosen, of how many settings, by the AUC on the validation split with "
            "seed 0. Groups of alternatives were tried one after the other, each with the best of "
            "those before."
        )
    yield (
        f"RelaImpr and difference are of the AUC, against {base.row}; the difference is the mean "
        "over pairs of equal seeds. Its squared standard error is its variance over "
        f"{REPLICATES} bootstrap samples of the users (a user comes with all impressions; all rows "
        "have the same samples) plus (s² - w) / n, not below 0: s² is the variance among the n "
        "seeds, w the part of it that the same samples explain. The 95% interval and p are of "
        "Student's t with Satterthwaite's degrees of freedom; p is adjusted by Holm over the rows "
        "of a table, the interval is not. With one seed there is neither."
    )
    for entries, split in sections:
        yield f"\n## {entries[0].data_set.name}, {split} split\n"
        yield from _table(entries, split, tuned)
    yield f"\n![AUC of each row on each data set]({picture})"


def _table(entries, split, tuned):
    columns = [*(["tuned"] if tuned else []), *_COLUMNS]
    yield f"| | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    of_base = _of_split(entries[0], split)
    for entry, difference in zip(entries, differences(entries, split), strict=True):
        results = _of_split(entry, split)
        numbers = []
        if results:
            compared = of_base if entry is not entries[0] and of_base else None
            numbers = [*([_choice(entry)] if tuned else []), *cells(results, compared, difference)]
        missing = f" (**{entry.missing()}**)" if entry.missing() else ""
        yield _line(f"{entry.row}{missing}", numbers, columns)
    for name, known in _oracles(entries, split).items():
        values = [known.get(metric) for metric in _METRICS]
        numbers = ["" if value is None else f"{value:.4f}" for value in values]
        yield _line(name, [*([""] if tuned else []), *numbers], columns)
    runs = lacking(entries, split)
    if runs:
        yield (
            f"\n{len(runs)} of the runs have kept no predictions, without which there is no "
            "interval. Of each, as of the first, this command adds them:\n"
            f"`python -m tfrec_diffusion.evaluate --model_dir={runs[0].directory} --split={split} "
            "--write_predictions`"
        )


def _line(name, cells, columns):
    return f"| {' | '.join([name, *cells, *[''] * (len(columns) - len(cells))])} |"


def _of_split(entry, split):
    return [result[split] for result in entry.results() if split in result]


def _choice(entry):
    if entry.num_tried == 1:
        return entry.chosen()
    return f"{entry.chosen() or 'as it stands'} (of {entry.num_tried})"


def _oracles(entries, split):
    """Metrics of the true click probabilities and of best estimates, by name, where known."""
    for run in (run for entry in entries for run in entry.finished()):
        best = run.metrics.get("best_reachable", {}).get(split)
        oracles = run.metrics.get("oracles", {}).get(split) or {}
        if best or oracles:
            named = {f"oracle: {name}": known for name, known in oracles.items()}
            return {**({"best reachable": best} if best else {}), **named}
    return {}


def cells(seeds, base, difference):
    """Cells of a row.

    Args:
        seeds: list of dicts of each seed: metric to value.
        base: list of dicts or `None`. The same of the row to compare with. If `None`, there is
            nothing to compare with.
        difference: `Difference` or `None`. From that row. If `None`, its interval is not known.

    Returns:
        list of str: the metrics, RelaImpr, the difference in AUC, its interval and p, as far as
        they are known.
    """
    values = {metric: np.array([seed[metric] for seed in seeds], float) for metric in _METRICS}
    numbers = [mean_and_deviation(values[metric]) for metric in _METRICS]
    if base is None:
        return numbers
    auc, of_base = values["auc"].mean(), np.mean([seed["auc"] for seed in base], dtype=float)
    numbers.append(f"{rela_impr(auc, of_base):+.2f}%")
    if difference is None:
        return [*numbers, f"{auc - of_base:+.4f}"]
    mean, low, high, p = difference
    certainty = [f"{low:+.4f} to {high:+.4f}", "<0.001" if p < 0.001 else f"{p:.3f}"]
    return [*numbers, f"{mean:+.4f}", *certainty]
