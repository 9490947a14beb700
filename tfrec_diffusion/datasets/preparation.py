"""Prepares data sets by name, each once, and describes what a preparation has read and written."""

import inspect
import json
import pathlib
from typing import NamedTuple

from tfrec_diffusion import datasets, names
from tfrec_diffusion.prepared_directory import PreparedDirectory, find_prepared


class Preparation(NamedTuple):
    """How requests are written, whatever the data set.

    Args:
        group_by: str. `"impression"`: every request of the data set is written as one record, which
            in a log is one impression. `"request"`: consecutive requests that differ only in their
            candidates and labels, as the candidates of one page do, become one record. Defaults to
            `"impression"`.
        max_bad_rows: float. Largest share of bad rows, in [0, 1], in any file or table, where those
            of CSV files are lines; more is an error. Defaults to `0.01`.
        workers: int. Number of processes on this machine that encode requests. Defaults to `1`,
            which is this process alone.
        beam_options: list of str or `None`. Pipeline options of Apache Beam, such as
            `"--runner=DataflowRunner"`, which then encodes and writes the requests in place of
            `workers`. If `None`, Beam is not used. Defaults to `None`.
    """

    group_by: str = "impression"
    max_bad_rows: float = 0.01
    workers: int = 1
    beam_options: list[str] | None = None


def prepare(dataset, *, data_dir, raw_dir=None, overwrite=False, preparation=None, **options):
    """Prepares a data set unless it is there already.

    It appears under its name when it is whole; after an error nothing is left of it.

    Args:
        dataset: str. Name of a data set, a key of `names.DATASETS`.
        data_dir: str or `pathlib.Path`. Root of the prepared data sets.
        raw_dir: str, `pathlib.Path` or `None`. Directory of the raw files. If `None`, the data set
            must make its own, as `planted` and `synthetic` do. Defaults to `None`.
        overwrite: bool. Whether to prepare the data set again if it is there. Defaults to `False`.
        preparation: `Preparation` or `None`. How requests are written. If `None`, with the defaults
            of `Preparation`. Defaults to `None`.
        **options: Options of the data set, which its class documents.

    Returns:
        `pathlib.Path` of the prepared data set.

    Raises:
        FileNotFoundError: If a raw file is missing.
        OSError: If the disk is full, a raw file is damaged, or another process is preparing the
            data set.
        ValueError: If an option or the raw data cannot be used, or the data set is there but was
            prepared with other options.
    """
    arguments = {"raw_dir": raw_dir, "data_dir": data_dir, **options}
    builder_class = datasets.builder_class(dataset)
    builder = builder_class(**arguments)
    directory = pathlib.Path(builder.data_dir)
    if overwrite:
        builder_class.overwrite(preparation, **arguments)
    elif not directory.exists():
        builder.write(preparation)
    # Also after `write`: it may have put back what a killed --overwrite had moved aside.
    group_by = (preparation or Preparation()).group_by
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(builder_class).parameters.items()
    }
    _check_options(directory, {**builder.options, "group_by": group_by}, defaults)
    return directory


def find_or_make(dataset, data_dir):
    """Finds a prepared data set; one that makes its own raw files is prepared if it is missing.

    Args:
        dataset: str. As in `prepared_directory.find_prepared`.
        data_dir: str or `pathlib.Path`. Root of the prepared data sets.

    Returns:
        `pathlib.Path` of its newest version.

    Raises:
        FileNotFoundError: If the data set is not there and does not make its own raw files.
    """
    try:
        return find_prepared(data_dir, dataset)
    except FileNotFoundError:
        if not _makes_raw_files(dataset):
            raise
        return prepare(dataset, data_dir=data_dir)


def _makes_raw_files(dataset):
    if dataset not in names.DATASETS:
        return False
    parameters = inspect.signature(datasets.builder_class(dataset)).parameters
    return parameters["raw_dir"].default is None


def _check_options(path, options, defaults):
    directory = PreparedDirectory(path)
    if not directory.is_whole:
        raise ValueError(f"{path} is not a prepared data set: remove it")
    # Of options that there were not yet, data sets of before have the defaults.
    before = {"group_by": Preparation().group_by, **defaults, **directory.report["options"]}
    now = json.loads(json.dumps(options))
    changed = [name for name in now if now[name] != before.get(name)]
    if changed:
        listing = ", ".join(f"{name}={before.get(name)!r}, not {now[name]!r}" for name in changed)
        raise ValueError(
            f"{path} was prepared with {listing}: give --overwrite or another --data_dir"
        )


# What `describe` has lines of its own for, or leaves to the command.
_DESCRIBED = ("options", "sources", "splits", "times", "histories", "meeting", "warnings")


def describe(report):
    """Describes a preparation: rows of each raw file, requests of each split, the data set's notes.

    Args:
        report: dict. `PreparedDirectory.report`.

    Yields:
        str, one or more lines of text.
    """
    yield f"\n{'':36}{'read':>12}{'kept':>12}"
    for source, rows in report["sources"].items():
        yield f"{source:36}{rows['read']:12,}{rows['kept']:12,}"
        for reason, dropped in rows["dropped"].items():
            first = f", first: {dropped['places'][0]}" if dropped["places"] else ""
            yield f"  dropped {dropped['rows']:,}: {reason}{first}"
    yield f"\n{'':36}{'requests':>12}{'candidates':>12}{'label rate':>12}"
    for split, counts in report["splits"].items():
        yield (
            f"{split:36}{counts['requests']:12,}{counts['candidates']:12,}"
            f"{counts['label_rate']:12.4f}"
        )
        for name, mean in counts.get("means", {}).items():
            yield f"  {f'mean {name}':58}{mean:12.4f}"
    if "times" in report:
        yield f"\n{'':36}{'first time':>26}{'last time':>26}"
        for name, times in report["times"].items():
            yield f"{name:36}{times['first']:>26}{times['last']:>26}"
    if "histories" in report:
        counts = report["histories"]
        share = counts["with_history"] / max(1, counts["impressions"])
        yield (
            f"\n{counts['with_history']:,} of {counts['impressions']:,} impressions ({share:.1%}) "
            f"have a history; there are {counts['behaviors']:,} behaviors"
        )
        yield f"\n{'':36}{'impressions':>12}{'among behaviors':>20}"
        for name, counts in report["meeting"].items():
            share = counts["among_behaviors"] / max(1, counts["impressions"])
            yield (
                f"{name:36}{counts['impressions']:12,}{counts['among_behaviors']:12,}{share:8.1%}"
            )
    for name, value in report.items():
        if name not in _DESCRIBED:
            yield f"\n{name}: {json.dumps(value)}"
