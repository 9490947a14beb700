"""Starts a search, or goes on with one: its file, data, study, trainings and report together."""

import math
import pathlib
import signal

from tfrec_diffusion import processes
from tfrec_diffusion.datasets.preparation import find_or_make
from tfrec_diffusion.files import lock
from tfrec_diffusion.tuning import search_file, settings
from tfrec_diffusion.tuning.report import Report
from tfrec_diffusion.tuning.scheduler import Scheduler
from tfrec_diffusion.tuning.study import Study
from tfrec_diffusion.tuning.training import Training


def tune(options, train_flags, parse):
    """Trains trial after trial, and says which one was the best on the validation split.

    The first trial has the settings of the flags as they stand, if the search holds them.

    Args:
        options: The parsed flags of `flags.tune`, or an object with the same attributes.
        train_flags: list of str. Flags of `tfrec_diffusion.train` for every trial, behind those of
            the search file.
        parse: callable. Takes a list of flags of `tfrec_diffusion.train`, returns an object
            that has their values as attributes and by name, and `flag_values_dict()`.

    Returns:
        int. The exit status: 0, or that of SIGINT if stopped.

    Raises:
        OSError: If a file or data are missing, or another process tunes in the directory.
        ValueError: If an option cannot be used, or the first trials fail.
    """
    search = search_file.read(options.search, train_flags)
    settings.check(search, parse)
    values = settings.all_values(search, parse)
    search = search._replace(metric=values["--best_by"])
    total = search.num_trials(options.trials)
    directory = pathlib.Path(options.tune_dir)
    directory.mkdir(parents=True, exist_ok=True)

    def training_of(trial):
        varied = search.flags_of(trial.params)
        place = directory / "trials" / f"{trial.number:03d}"
        epochs = parse([*search.flags, *varied, f"--model_dir={place}"]).epochs
        return Training(place, search.flags, varied, search.metric, epochs)

    with lock(directory, "tuning in"):
        find_or_make(values["--dataset"], values["--data_dir"])
        study = Study(directory, search, options.seed, _claim(search, options.seed, values))
        report = Report(study, search, directory, training_of)

        def after_each():
            report.write()
            _remove_checkpoints(study, training_of)

        scheduler = Scheduler(study, search.metric, training_of, after_each)
        with processes.noted_signals() as signals:
            scheduler.work(
                total,
                options.jobs,
                options.timeout or math.inf,
                signals,
                _first(search, parse),
                options.retry_failed,
            )
        report.write()
        report.draw()
        print(report)
    if signals:
        print("stopped; the same command goes on from here")
        return 128 + signal.SIGINT
    if scheduler.ended < total:
        print(f"the time is up after {scheduler.ended} of {total} trials; the same command goes on")
    return 0


def _claim(search, seed, values):
    """What the trials depend on, by name."""
    of_parameters = {f"search.{p.name}": list(p[1:]) for p in search.parameters}
    how = {"sampler": search.sampler, "pruner": search.pruner, "seed": seed}
    return {**how, **of_parameters, **values}


def _first(search, parse):
    """What to try first: the settings of the flags as they stand, or `None`."""
    if search.sampler == "grid":
        return None
    params, others = settings.own(search, parse)
    if others:
        print(f"the flags' own settings are not among those searched: {', '.join(others)}")
        return None
    return params


def _remove_checkpoints(study, training_of):
    best = study.best()
    for trial in study.trials():
        if trial.state != "running" and (best is None or trial.number != best.number):
            training_of(trial).remove_checkpoints()
