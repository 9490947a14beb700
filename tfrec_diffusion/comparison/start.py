"""Starts a comparison, or goes on with one: its plan, data, runs and report put together."""

import itertools
import pathlib
import signal

from tfrec_diffusion import command, datasets, extras, processes
from tfrec_diffusion.comparison import plan, scheduler
from tfrec_diffusion.comparison.entry import DataSet
from tfrec_diffusion.comparison.report import Report
from tfrec_diffusion.comparison.run import Run
from tfrec_diffusion.datasets.preparation import find_or_make, prepare
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
    planned = _plan(options, model_dir, train_flags, parse)
    entries = planned.entries
    model_dir.mkdir(parents=True, exist_ok=True)
    with lock(model_dir, "comparing models in"):
        try:
            with processes.interruptible():
                _check(planned, parse)
                report = Report(planned, output, picture)
                scheduler.work(entries, options.jobs, report.write)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here")
            return 128 + signal.SIGINT
    print(f"\n{output.read_text(encoding='utf-8')}\n{output}: {scheduler.count(entries)} runs")
    return int(any(entry.failed for entry in entries))


def _plan(options, model_dir, train_flags, parse):
    splits = ["all"] if "all" in options.splits else options.splits
    if options.comparison:
        return plan.from_file(
            options.comparison,
            model_dir,
            options.seeds,
            flags=train_flags,
            learning_rates=options.learning_rates,
            row_names=options.rows,
            data_set_names=options.datasets,
            splits=splits,
        )
    name = parse(Run(options.run[0], 0, train_flags, model_dir).flags).dataset
    data_set = DataSet(name, train_flags, model_dir)
    rates = options.learning_rates or ()
    return plan.from_runs(options.run, data_set, options.seeds, rates, splits)


def _check(planned, parse):
    """Checks the flags, data and splits of what is to be trained, and makes what data it can."""
    known = {"all"}
    needed = {}
    for entry in planned.entries:
        known.update(*entry.results())
        for run in entry.unclustered() if entry.missing() else ():
            values = parse(run.flags)
            needed[values.dataset, values.data_dir] = entry.data_set.options
    for (dataset, data_dir), options in needed.items():
        known.update(PreparedDirectory(_prepared(dataset, data_dir, options)).splits())
    # Nothing is evaluated on it.
    known.discard("train")
    asked = {split for table in planned.tables for split in table.splits}
    asked |= {
        contrast.split
        for claim in planned.claims
        for contrast in itertools.chain(*claim.contrasts)
        if contrast
    }
    unknown = asked - known
    if unknown:
        raise ValueError(f"`splits` must be among {sorted(known)}. Received: {sorted(unknown)}")


def _prepared(dataset, data_dir, options):
    """The directory of a data set, which is made with these options if it is missing."""
    if options is None:
        return find_or_make(dataset, data_dir)
    options = command.settings(options, datasets.builder_class(dataset))
    return prepare(dataset, data_dir=data_dir, **options)
