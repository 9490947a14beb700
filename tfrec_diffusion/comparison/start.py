"""Starts a comparison, or goes on with one: its plan, data, runs and report put together."""

import pathlib
import signal

from tfrec_diffusion import extras
from tfrec_diffusion.comparison import plan, report, scheduler
from tfrec_diffusion.comparison.entry import DataSet
from tfrec_diffusion.comparison.run import Run
from tfrec_diffusion.datasets.preparation import find_or_make
from tfrec_diffusion.files import lock
from tfrec_diffusion.prepared_directory import PreparedDirectory


def compare(options, train_flags, parse):
    """Trains what is not trained yet, and reports after each run.

    Args:
        options: The parsed flags of `flags.compare`, or an object with the same attributes.
        train_flags: list of str. Flags of `tfrec_diffusion.train` for every run.
        parse: callable. Takes a list of flags of `tfrec_diffusion.train`, returns an object with
            their values as attributes.

    Returns:
        int. The exit status: 0, 1 if a row has failed, or that of SIGINT if stopped.

    Raises:
        OSError: If data are missing, or another process compares in the directory.
        ValueError: If an option cannot be used.
    """
    extras.require("tools", "scipy", "matplotlib")
    model_dir = pathlib.Path(options.model_dir)
    output = pathlib.Path(options.output or model_dir / "compare.md")
    picture = pathlib.Path(options.picture or output.with_suffix(".png"))
    splits = ["all"] if "all" in options.splits else options.splits
    entries = _entries(options, model_dir, train_flags, parse)
    model_dir.mkdir(parents=True, exist_ok=True)
    with lock(model_dir, "comparing models in"):
        try:
            with scheduler.interruptible():
                _check(entries, splits, parse)
                scheduler.work(
                    entries,
                    options.jobs,
                    lambda: report.write(entries, splits, output, picture),
                )
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here")
            return 128 + signal.SIGINT
    print(f"\n{output.read_text(encoding='utf-8')}\n{output}: {scheduler.count(entries)} runs")
    return int(any(entry.failed for entry in entries))


def _entries(options, model_dir, train_flags, parse):
    if options.comparison:
        return plan.from_file(
            options.comparison,
            model_dir,
            options.seeds,
            flags=train_flags,
            learning_rates=options.learning_rates,
            row_names=options.rows,
            data_set_names=options.datasets,
        )
    name = parse(Run(options.run[0], 0, train_flags, model_dir).flags).dataset
    data_set = DataSet(name, train_flags, model_dir)
    return plan.from_runs(options.run, data_set, options.seeds, options.learning_rates or ())


def _check(entries, splits, parse):
    """Checks the flags and data of what is to be trained, and makes the synthetic data."""
    known = {"all"}
    needed = {}
    for entry in entries:
        known.update(*entry.results())
        for run in entry.unclustered() if entry.missing() else ():
            values = parse(run.flags)
            needed[values.dataset, values.data_dir] = None
    for data_set in needed:
        known.update(PreparedDirectory(find_or_make(*data_set)).splits())
    # Nothing is evaluated on it.
    known.discard("train")
    unknown = set(splits) - known
    if unknown:
        raise ValueError(f"`splits` must be among {sorted(known)}. Received: {sorted(unknown)}")
