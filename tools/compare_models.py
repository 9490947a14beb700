"""One table of all models on all data sets, with the same budget of tuning for each.

    python tools/compare_models.py --model_dir=runs/comparison --jobs=2

`--comparison` names the rows, a model and its settings each, and the prepared data sets. On every
data set a row is trained with seed 0 and each of `--learning_rates`; that with the best AUC on the
validation split is taken for all seeds. What follows `--` goes to `tfrec_diffusion.train` for every
run, after the flags of the data set. The table shows the test split, which nothing is chosen by.

Interrupted or killed, the same command goes on where it was: what has finished is not trained
again. A row with a run that fails is left, the others go on. `--output` and the picture beside it
are written anew after each run. `--rows` and `--datasets` choose some; the first row, which the
others are compared with, is always there. Needs scipy and matplotlib.

Trainings share the cores as they can. TF_NUM_INTRAOP_THREADS=1 in the environment keeps each to one
thread, but the last digits of what XLA sums depend on it.
"""

import datetime
import itertools
import json
import math
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
from absl import app, flags
from matplotlib.figure import Figure
from seeded_runs import COLUMNS, Run, cells, file_name, welch

from tfrec_diffusion import flags as train_flags
from tfrec_diffusion.input_pipeline import find_prepared
from tfrec_diffusion.locking import lock
from tfrec_diffusion.train import find_data

MODEL_DIR = flags.DEFINE_string("model_dir", None, "directory of the runs", required=True)
COMPARISON = flags.DEFINE_string(
    "comparison", "experiments/comparison.json", "rows and data sets; see there"
)
ROWS = flags.DEFINE_list("rows", None, "names of rows; default: all")
DATASETS = flags.DEFINE_list("datasets", None, "names of data sets; default: all")
LEARNING_RATES = flags.DEFINE_list("learning_rates", ["0.001", "0.003", "0.01"], "to choose from")
SEEDS = flags.DEFINE_integer("seeds", 3, "number of seeds, from 0", 2)
JOBS = flags.DEFINE_integer("jobs", 1, "trainings at a time", 1)
OUTPUT = flags.DEFINE_string("output", "compare.md", "file to write, Markdown")
PICTURE = flags.DEFINE_string("picture", None, "file to write; default: .png beside --output")

_STDERR = "stderr.log"
_LAST_WORDS = 5  # lines of it that are shown of a task that failed


class Clustering:
    """A data set prepared from another one with the model of a finished run.

    Args:
        run: `Run`.
        settings: Flags of `tfrec_diffusion.prepare`.
    """

    def __init__(self, run, settings):
        trained = json.loads((run.directory / "flags.json").read_text())
        name = json.loads((run.directory / "schema.json").read_text())["name"]
        place = file_name(" ".join(["clustered_by", run.directory.name, *settings]))
        self.directory = run.directory.with_name(place)
        self.dataset = f"clustered/{name}"
        self.flags = [f"--dataset={self.dataset}", f"--data_dir={self.directory}"]
        self.command = [
            *(sys.executable, "-m", "tfrec_diffusion.prepare", "--dataset=clustered"),
            f"--raw_dir={find_prepared(trained['data_dir'], trained['dataset'])}",
            *(f"--data_dir={self.directory}", f"--set=model_dir={run.directory}", *settings),
        ]

    def finished(self):
        """Whether it is prepared."""
        try:
            find_prepared(self.directory, self.dataset)
        except FileNotFoundError:
            return False
        return True


class Entry:
    """A row on a data set: what there is to run, and what came out so far.

    Args:
        row: Name.
        data_set: Name.
        run: As `Run` takes it.
        arguments: Flags of the data set.
        directory: Of the data set's runs.
        clustered_by: The `Entry` whose model clusters the data set first, or `None`.
        clustering: Flags of `tfrec_diffusion.prepare` for that.
        shown: Whether it is in the table. Else it is only there to cluster: seed 0 will do.
    """

    def __init__(self, row, data_set, run, arguments, directory, clustered_by, clustering, shown):
        self.row = row
        self.data_set = data_set
        self.run = run
        self.arguments = arguments
        self.directory = directory
        self.clustered_by = clustered_by
        self.clustering = clustering
        self.shown = shown
        self.num_seeds = SEEDS.value if shown else 1
        self.failed = False

    @property
    def num_runs(self):
        """Runs from the first to the last."""
        return len(LEARNING_RATES.value) + self.num_seeds - 1

    def tasks(self, seed):
        """`Run`s with a seed, or the `Clustering` before them; none as long as others go first."""
        if seed:
            return self.of_seeds()[seed : seed + 1]
        clustering = self._clustering()
        if clustering and not clustering.finished():
            return [clustering]
        return list(self.tuning().values())

    def tuning(self):
        """The `Run` with seed 0 of each learning rate; empty before the data set is there."""
        if not self._place():
            return {}
        return {rate: self._run(rate, seed=0) for rate in LEARNING_RATES.value}

    def learning_rate(self):
        """That with the best AUC on the validation split; `None` before all have been tried."""
        metrics = {rate: run.metrics() for rate, run in self.tuning().items()}
        if not metrics or None in metrics.values():
            return None
        aucs = {rate: found["splits"]["validation"]["auc"] for rate, found in metrics.items()}
        return max(aucs, key=lambda rate: -1 if aucs[rate] is None else aucs[rate])

    def of_seeds(self):
        """The `Run` of each seed; empty before the learning rate is known."""
        rate = self.learning_rate()
        return [self._run(rate, seed) for seed in range(self.num_seeds)] if rate else []

    def finished(self):
        """Those of its `Run`s that have finished."""
        return [run for run in (*self.tuning().values(), *self.of_seeds()[1:]) if run.finished()]

    def results(self):
        """Metrics on the test split of each seed that has finished."""
        return [run.metrics()["splits"]["test"] for run in self.of_seeds() if run.finished()]

    def missing(self):
        """What the table still lacks of it, in words; empty if nothing."""
        if self.failed:
            return "failed"
        if not self.learning_rate():
            return f"{len(self.finished())} of {len(LEARNING_RATES.value)} learning rates"
        finished = len(self.results())
        return f"{finished} of {self.num_seeds} seeds" if finished < self.num_seeds else ""

    def _run(self, rate, seed):
        arguments, directory = self._place()
        return Run(f"{self.run} --learning_rate={rate}", seed, arguments, directory)

    def _place(self):
        """Flags and directory of the runs; `None` before the data set is there."""
        if not self.clustered_by:
            return self.arguments, self.directory
        clustering = self._clustering()
        if not clustering or not clustering.finished():
            return None
        return [*self.arguments, *clustering.flags], clustering.directory

    def _clustering(self):
        rate = self.clustered_by and self.clustered_by.learning_rate()
        return Clustering(self.clustered_by.tuning()[rate], self.clustering) if rate else None


def read_entries(arguments):
    """The entries, data set by data set, in the order of `--comparison`.

    Args:
        arguments: Flags of `tfrec_diffusion.train` for every run.
    """
    comparison = json.loads(pathlib.Path(COMPARISON.value).read_text())
    rows, data_sets = comparison["rows"], comparison["data_sets"]
    shown = {next(iter(rows)), *choose("rows", ROWS.value, rows)}
    needed = shown | {rows[row].get("clustered_by") for row in shown}
    for name in choose("datasets", DATASETS.value, data_sets):
        entries = {None: None}
        for row in filter(needed.__contains__, rows):
            try:
                entries[row] = Entry(
                    row=row,
                    data_set=name,
                    run=rows[row]["run"].format(**data_sets[name]),
                    arguments=[*shlex.split(data_sets[name]["flags"]), *arguments],
                    directory=pathlib.Path(MODEL_DIR.value, file_name(name)),
                    clustered_by=entries[rows[row].get("clustered_by")],
                    clustering=shlex.split(
                        rows[row].get("clustering", "").format(**data_sets[name])
                    ),
                    shown=row in shown,
                )
            except KeyError as missing:
                raise ValueError(
                    f"{COMPARISON.value}: {row} on {name} needs {missing}, which neither the data "
                    "set nor a row above gives"
                ) from None
        yield from list(entries.values())[1:]


def choose(flag, names, known):
    """Those of the known names that a flag gives, in their own order; `None`: all."""
    unknown = set(names or ()) - set(known)
    if unknown:
        raise ValueError(f"`{flag}` must be among {list(known)}. Received: {sorted(unknown)}")
    return [name for name in known if names is None or name in names]


def work(entries):
    """Runs all that there is to run, `--jobs` at a time, and reports after each."""
    running = {}
    begun, before = time.monotonic(), count(entries)
    report(entries)
    try:
        while start(entries, running):
            while all(process.poll() is None for process in running):
                time.sleep(0.1)
            for process in [process for process in running if process.poll() is not None]:
                entry, task = running.pop(process)
                entry.failed = entry.failed or not task.finished()
                print(outcome(task), flush=True)
            report(entries)
            done, total = count(entries), sum(entry.num_runs for entry in entries)
            if done > before:
                seconds = (time.monotonic() - begun) * (total - done) / (done - before)
                left = datetime.timedelta(seconds=round(seconds))
                print(f"{done} of {total} runs; {left} to go, as fast as so far", flush=True)
    finally:
        for process in running:
            process.terminate()  # training writes a checkpoint first
        for process in running:
            process.wait()


def start(entries, running):
    """Starts what can run and fits into `--jobs`; whether anything is running.

    Args:
        running: dict of process → its entry and task; those started are added.
    """
    for entry, task in ready(entries):
        if len(running) == JOBS.value:
            break
        if task.directory not in [other.directory for _, other in running.values()]:
            print(f"{task.directory} ...", flush=True)
            task.directory.mkdir(parents=True, exist_ok=True)
            with open(task.directory / _STDERR, "wb") as stderr:
                process = subprocess.Popen(task.command, stdout=subprocess.DEVNULL, stderr=stderr)
            running[process] = entry, task
    return bool(running)


def ready(entries):
    """Entries and tasks that can run: data set by data set, all rows with seed 0, then 1 and on."""
    for _, of_data_set in by_data_set(entries):
        for seed in range(SEEDS.value):
            for entry in of_data_set:
                if not entry.failed:
                    tasks = entry.tasks(seed)
                    yield from ((entry, task) for task in tasks if not task.finished())


def by_data_set(entries):
    """Pairs of a data set's name and the list of its entries."""
    for name, of_data_set in itertools.groupby(entries, lambda entry: entry.data_set):
        yield name, list(of_data_set)


def count(entries):
    """Number of finished runs."""
    return sum(len(entry.finished()) for entry in entries)


def outcome(task):
    """What to say of a task that has ended: its result, or the command and its last words."""
    if not task.finished():
        words = (task.directory / _STDERR).read_text(errors="replace").splitlines()
        return "\n  ".join(["FAILED", shlex.join(task.command), *words[-_LAST_WORDS:]])
    if isinstance(task, Clustering):
        return f"{task.directory} is prepared"
    metrics = task.metrics()
    auc = metrics["splits"]["validation"]["auc"] or math.nan
    return f"{task.directory}: validation AUC {auc:.4f}, {metrics['training_seconds']:.0f} s"


def report(entries):
    """Writes the Markdown and the picture, whole or not at all."""
    output = pathlib.Path(OUTPUT.value)
    picture = pathlib.Path(PICTURE.value or output.with_suffix(".png"))
    shown = [entry for entry in entries if entry.shown]
    write(picture, lambda file: draw(shown).savefig(file, dpi=150, format="png"))
    link = os.path.relpath(picture, output.parent)
    text = "\n".join(markdown(shown, link)) + "\n"
    write(output, lambda file: file.write(text.encode()))


def write(path, fill):
    """Has a new file filled and takes it for `path`, which is never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"incomplete.{path.name}")
    with open(aside, "wb") as file:
        fill(file)
    os.replace(aside, path)


def markdown(entries, picture):
    """Lines: what was done, a table for each data set, the picture.

    Args:
        entries: Those of the table.
        picture: Path to link to.
    """
    base = entries[0].row
    yield (
        f"Test split: mean ± standard deviation over {SEEDS.value} seeds. The learning rate is the "
        f"one of {', '.join(LEARNING_RATES.value)} with the best AUC on the validation split, seed "
        f"0. RelaImpr and p (Welch's t-test on the AUCs) are against {base}."
    )
    for name, of_data_set in by_data_set(entries):
        yield f"\n## {name}\n\n| | learning rate | {' | '.join(COLUMNS)} |"
        yield f"|---|---|{'---|' * len(COLUMNS)}"
        of_base = of_data_set[0].results()
        for entry in of_data_set:
            results = entry.results()
            if results:
                compared = of_base if entry.row != base and of_base else None
                numbers = [entry.learning_rate(), *cells(results, compared)]
            else:
                numbers = [""] * (1 + len(COLUMNS))
            missing = f" (**{entry.missing()}**)" if entry.missing() else ""
            yield f"| {entry.row}{missing} | {' | '.join(numbers)} |"
    yield f"\n![AUC of each row on each data set]({picture})"


def draw(entries):
    """A panel for each data set: AUC, and its standard deviation over the seeds, by row."""
    panels = list(by_data_set(entries))
    rows = [entry.row for entry in panels[0][1]]
    size = (max(6, 1.5 + 2.6 * len(panels)), 1.5 + 0.28 * len(rows))
    figure = Figure(size, layout="constrained")
    for axes, (name, of_data_set) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        base = _aucs(of_data_set[0])
        if len(base):
            axes.axvline(base.mean(), color="0.5", linestyle="--", linewidth=1)
        for place, entry in enumerate(of_data_set):
            aucs = _aucs(entry)
            if not len(aucs):
                continue
            enough = min(len(aucs), len(base)) > 1
            sure = enough and welch(aucs, base) < 0.05
            axes.errorbar(
                aucs.mean(), place, xerr=aucs.std(ddof=1) if len(aucs) > 1 else None,
                fmt="o", capsize=3, color="C0" if not entry.missing() else "0.6",
                markerfacecolor=None if sure else "white",
            )  # fmt: skip
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("AUC")
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x", alpha=0.3)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(
        f"Mean ± standard deviation; dashed: {rows[0]}; filled: differs from it with p < 0.05;\n"
        "gray: not all seeds yet.",
        fontsize="small",
    )
    return figure


def _aucs(entry):
    return np.array([result["auc"] for result in entry.results()], float)


def check_data(entries):
    """Raises `FileNotFoundError` if data to train on are not there; makes the synthetic ones."""
    for arguments in {tuple(entry.arguments) for entry in entries if entry.missing()}:
        values = flags.FlagValues()
        train_flags.train(values)
        values(["train", *arguments, "--model=din", f"--model_dir={MODEL_DIR.value}"])
        find_data(values.dataset, values.data_dir)


def main(arguments):
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell may have SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    entries = list(read_entries(arguments[1:]))
    os.makedirs(MODEL_DIR.value, exist_ok=True)
    with lock(MODEL_DIR.value, "comparing models in"):
        try:
            check_data(entries)
            work(entries)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here")
            return 128 + signal.SIGINT
    print(f"{OUTPUT.value}: {count(entries)} runs")
    return int(any(entry.failed for entry in entries))


if __name__ == "__main__":
    app.run(main)
