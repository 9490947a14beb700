"""Prepares a data set, once: raw files to records, `schema.json`, vocabularies and a report.

python -m tfrec_diffusion.prepare --dataset=taobao --raw_dir=... --data_dir=... [--set=name=value]
"""

import json
import pathlib
import time

from tfrec_diffusion import datasets, flags
from tfrec_diffusion.datasets import requests


def prepare(dataset, *, data_dir, raw_dir=None, overwrite=False, preparation=None, **options):
    """Prepares a data set unless it is there, whole or not at all.

    Args:
        dataset: Name of a data set, one of `datasets.names()`.
        data_dir: Root of the prepared data sets.
        raw_dir: Directory of the raw files; a data set that makes its own may do without.
        overwrite: Whether to prepare again what is there.
        preparation: `datasets.requests.Preparation`; default: one with its defaults.
        **options: The data set's own, as its class documents them.

    Returns:
        `pathlib.Path` of the prepared data set.

    Raises:
        FileNotFoundError: If a raw file is missing.
        OSError: If the disk is full, a raw file is damaged, or another process prepares the same.
        ValueError: If an option or the raw data cannot be used, or the data set is there with other
            options.
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
    group_by = (preparation or requests.Preparation()).group_by
    _check_options(directory, {**builder.options, "group_by": group_by})
    return directory


def _check_options(directory, options):
    if not (directory / requests.REPORT).exists():
        raise ValueError(f"{directory} is not a prepared data set: remove it")
    before = {"group_by": requests.Preparation().group_by, **_report(directory)["options"]}
    now = json.loads(json.dumps(options))
    changed = [name for name in now if now[name] != before.get(name)]
    if changed:
        listing = ", ".join(f"{name}={before.get(name)!r}, not {now[name]!r}" for name in changed)
        raise ValueError(
            f"{directory} was prepared with {listing}: give --overwrite or another --data_dir"
        )


def _report(directory):
    return json.loads((directory / requests.REPORT).read_text(encoding="utf-8"))


def _print_report(directory):
    report = _report(directory)
    print(f"\n{'':36}{'read':>12}{'kept':>12}")
    for source, rows in report["sources"].items():
        print(f"{source:36}{rows['read']:12,}{rows['kept']:12,}")
        for reason, dropped in rows["dropped"].items():
            first = f", first: {dropped['places'][0]}" if dropped["places"] else ""
            print(f"  dropped {dropped['rows']:,}: {reason}{first}")
    print(f"\n{'':36}{'requests':>12}{'candidates':>12}{'label rate':>12}")
    for split, counts in report["splits"].items():
        print(
            f"{split:36}{counts['requests']:12,}{counts['candidates']:12,}"
            f"{counts['label_rate']:12.4f}"
        )
    for name, value in report.items():
        if name not in ("options", "sources", "splits"):
            print(f"\n{name}: {json.dumps(value)}")


def main(values):
    """Runs the command with parsed flags."""
    options = flags.settings(values.set, datasets.builder_class(values.dataset))
    begun = time.time()
    directory = prepare(
        values.dataset,
        data_dir=values.data_dir,
        raw_dir=values.raw_dir,
        overwrite=values.overwrite,
        preparation=requests.Preparation(
            group_by=values.group_by,
            max_bad_rows=values.max_bad_rows,
            workers=values.workers,
            beam_options=values.beam_options or None,
        ),
        **options,
    )
    _print_report(directory)
    fresh = (directory / requests.REPORT).stat().st_mtime >= begun
    print(f"\n{'Prepared' if fresh else 'Was already there'}: {directory}")


if __name__ == "__main__":
    flags.run(main, flags.prepare)
