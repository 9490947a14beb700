"""The report of a comparison: Markdown tables, claims, and pictures beside them."""

import os

import numpy as np

from tfrec_diffusion.comparison.claims import judge
from tfrec_diffusion.comparison.differences import differences, lacking
from tfrec_diffusion.comparison.picture import draw
from tfrec_diffusion.comparison.run import file_name
from tfrec_diffusion.comparison.statistics import REPLICATES, SURE, mean_and_deviation
from tfrec_diffusion.files import written_aside
from tfrec_diffusion.metrics import rela_impr

_METRICS = {"auc": "AUC", "gauc": "GAUC", "log_loss": "log loss"}
_COLUMNS = (*_METRICS.values(), "RelaImpr", "difference", "95% interval", "p")
_OF_CLAIMS = ("claim", "paper", "measured", "expected", *_COLUMNS[4:], "verdict", "why")


class Report:
    """The report of a comparison, a Markdown file and its pictures.

    The picture of the only table is `picture`. Those of named tables lie in a directory called
    after it.

    Args:
        plan: `Plan`.
        output: `pathlib.Path`. The Markdown file.
        picture: `pathlib.Path`. The picture, in a format that its name says.
    """

    def __init__(self, plan, output, picture):
        self.plan = plan
        self.output = output
        self.pictures = {
            table.name: picture.with_suffix("") / f"{file_name(table.name)}{picture.suffix}"
            if table.name
            else picture
            for table in plan.tables
            if table.figure
        }
        self._drawn = {}

    def write(self):
        """Writes the Markdown and the pictures, each whole or not at all.

        Pictures are drawn anew where there are new results.
        """
        for path in (self.output, *self.pictures.values()):
            path.parent.mkdir(parents=True, exist_ok=True)
        for table in self.plan.tables:
            finished = [run.directory for entry in table.entries for run in entry.finished()]
            if table.figure and table.sections() and self._drawn.get(table.name) != finished:
                path = self.pictures[table.name]
                with written_aside(path) as aside:
                    draw(table).savefig(aside, dpi=150, format=path.suffix[1:] or "png")
                self._drawn[table.name] = finished
        links = {
            name: os.path.relpath(path, self.output.parent) for name, path in self.pictures.items()
        }
        with written_aside(self.output) as aside:
            aside.write_text("\n".join(markdown(self.plan, links)) + "\n", encoding="utf-8")


def markdown(plan, pictures):
    """Yields lines: the claims, what was done, the tables and pictures.

    Args:
        plan: `Plan`.
        pictures: dict of the path to link to by the name of a table.

    Yields:
        str.
    """
    if plan.claims:
        yield from _claims(plan.claims)
        yield "\n## Tables\n"
    tables = plan.tables
    yield f"Mean ± standard deviation over {tables[0].entries[0].num_seeds} seeds."
    tuned = any(entry.num_tried > 1 for table in tables for entry in table.entries)
    if tuned:
        yield (
            "Tuned: what was chosen, of how many settings, by the AUC on the validation split with "
            "seed 0. Groups of alternatives were tried one after the other, each with the best of "
            "those before."
        )
    bases = {table.base for table in tables}
    base = bases.pop() if len(bases) == 1 else "the row that is named above a table"
    yield (
        f"RelaImpr and difference are of the AUC, against {base}; the difference is the mean "
        "over pairs of equal seeds. Its squared standard error is its variance over "
        f"{REPLICATES} bootstrap samples of the users (a user comes with all impressions; all rows "
        "have the same samples) plus (s² - w) / n, not below 0: s² is the variance among the n "
        "seeds, w the part of it that the same samples explain. The 95% interval and p are of "
        "Student's t with Satterthwaite's degrees of freedom; p is adjusted by Holm over the rows "
        "of a table, the interval is not. With one seed there is neither."
    )
    if any(table.speed for table in tables):
        yield (
            "Speed: impressions a second at inference, reading them included, of the fastest seed, "
            "as a multiple of the base's. Other trainings shared the machine: differences below a "
            "third mean little."
        )
    for table in tables:
        yield from _named(table, pictures.get(table.name), tuned)


def _named(table, picture, tuned):
    """A table with what is above and below it."""
    sections = table.sections()
    link = [f"\n![AUC of each row on each data set]({picture})"] if picture and sections else []
    if table.name:
        yield f"\n## {table.name}\n"
        yield f"{table.caption} Differences are from {table.base}.".strip()
        yield from link
    for section in sections:
        heading = "###" if table.name else "##"
        yield f"\n{heading} {section.base.data_set.name}, {section.split} split\n"
        yield from _table(section, tuned, table.speed)
    if not table.name:
        yield from link


def _table(section, tuned, speed):
    entries, base, split = section
    columns = [*(["tuned"] if tuned else []), *_COLUMNS, *(["speed"] if speed else [])]
    yield f"| | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    of_base = base.results_on(split)
    for entry, difference in zip(entries, differences(entries, base, split), strict=True):
        results = entry.results_on(split)
        numbers = []
        if results:
            compared = of_base if entry is not base and of_base else None
            numbers = [*([_choice(entry)] if tuned else []), *cells(results, compared, difference)]
            if speed and of_base:
                numbers += [""] * (len(columns) - 1 - len(numbers))
                numbers.append(f"{_speed(results) / _speed(of_base):.2f}")
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


def _choice(entry):
    if entry.num_tried == 1:
        return entry.chosen()
    return f"{entry.chosen() or 'as it stands'} (of {entry.num_tried})"


def _oracles(entries, split):
    return next(filter(None, (entry.oracles(split) for entry in entries)), {})


def _speed(seeds):
    return max(seed["samples_per_second"] for seed in seeds)


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
    return [*numbers, *_certainty(difference)]


def _certainty(difference):
    """Cells of a difference, its interval and p."""
    mean, low, high, p = difference
    return [f"{mean:+.4f}", f"{low:+.4f} to {high:+.4f}", "<0.001" if p < 0.001 else f"{p:.3f}"]


def _claims(claims):
    """The table of the claims, and what decides."""
    yield "## What the papers claim\n"
    yield (
        f"With p < {SURE}, a claim holds if the difference is where it is expected, and does not "
        "hold if it is not; otherwise the runs cannot tell. p is that of the bound of what is "
        "expected, by the paired bootstrap described below, and adjusted by Holm over the rows of "
        "the claim; the 95% interval is each row's own. Claims are decided one by one: of twenty "
        "in which there is nothing, one is decided by chance.\n"
    )
    yield f"| {' | '.join(_OF_CLAIMS)} |"
    yield f"|{'---|' * len(_OF_CLAIMS)}"
    before = None
    for one in judge(claims):
        claim = one.claim
        about = [claim.text, claim.paper] if claim is not before else ["", ""]
        measured = str(one.contrast) + (f"; less: {one.minus}" if one.minus else "")
        certainty = _certainty(one.difference) if one.difference else ["", "", ""]
        if one.share is not None:
            certainty[0] += f" ({one.share:.0%} of the gap from {' to '.join(claim.gap)})"
        verdict = one.verdict or "not measured"
        if one.missing:
            verdict += f" (**{one.missing}**)"
        why = claim.why if claim is not before else ""
        cells = [*about, measured, _expected(claim), *certainty, verdict, why]
        yield f"| {' | '.join(cells)} |"
        before = claim


def _expected(claim):
    sign = {"above": ">", "below": "<", "equal within": "±"}[claim.expected]
    return f"{sign} {claim.margin:g}"
