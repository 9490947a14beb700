"""What lies in the directory of a prepared data set, and where data sets are found.

A data set `<data_dir>/<name>/<version>` holds TFRecord files as TensorFlow Datasets writes them
(`dataset_info.json` lists them), `schema.json`, `vocabularies/`, and `report.json`: the options it
was prepared with, the rows read and dropped, and counts of each split. `raw_files.json` says where
the raw files lay, if `prepare` was told.
"""

import datetime
import json
import os
import pathlib

import tensorflow_datasets as tfds

from tfrec_diffusion import schema
from tfrec_diffusion.files import INCOMPLETE

_REPORT_FILE = "report.json"
_RAW_FILE = "raw_files.json"
_RECORDS_FILE = "dataset_info.json"  # of TensorFlow Datasets


def find_prepared(data_dir, dataset):
    """Directory of the newest version of a prepared data set.

    Args:
        data_dir: str or `pathlib.Path`. Directory of prepared data sets.
        dataset: str. Name, as `taobao` or `logs/kuairand`.

    Returns:
        `pathlib.Path`.

    Raises:
        FileNotFoundError: If there is none.
    """
    versions = pathlib.Path(data_dir, dataset).glob(f"[0-9]*/{schema.FILE_NAME}")
    numbered = [(tuple(map(int, path.parent.name.split("."))), path.parent) for path in versions]
    if not numbered:
        raise FileNotFoundError(
            f"no prepared data set in {pathlib.Path(data_dir, dataset)}: expected what "
            f"`python -m tfrec_diffusion.prepare --dataset={dataset.split('/')[0]} "
            f"--data_dir={data_dir}` writes"
        )
    return max(numbered)[1]


class PreparedDirectory:
    """The directory of one prepared data set.

    Args:
        path: str or `pathlib.Path`.
    """

    def __init__(self, path):
        # Absolute, because workers elsewhere may have other working directories.
        self.path = pathlib.Path(path).absolute()

    @property
    def is_whole(self):
        """Whether a preparation has come to its end there."""
        return (self.path / _REPORT_FILE).exists()

    @property
    def prepared_at(self):
        """When the preparation ended, in seconds since 1970."""
        return (self.path / _REPORT_FILE).stat().st_mtime

    @property
    def report(self):
        """dict of `report.json`."""
        return json.loads((self.path / _REPORT_FILE).read_text(encoding="utf-8"))

    def write_report(self, report):
        """Writes `report.json`.

        Args:
            report: dict.
        """
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        (self.path / _REPORT_FILE).write_text(text, encoding="utf-8")

    def remember_raw_files(self, directory, read_at):
        """Writes down where the raw files lie, for `newer_raw_files`.

        Those that a preparation has made by itself do not count.

        Args:
            directory: str or `pathlib.Path`.
            read_at: float. When the preparation began to read them, in seconds since 1970.
        """
        if not any(time <= read_at for time in _written(directory).values()):
            return
        where = {"directory": str(pathlib.Path(directory).absolute()), "read_at": read_at}
        (self.path / _RAW_FILE).write_text(json.dumps(where) + "\n", encoding="utf-8")

    def newer_raw_files(self):
        """One line on raw files that were written after the preparation had read them.

        Returns:
            str, or `None` if there are none, or it is not known where they lie, or they are gone.
        """
        if not (self.path / _RAW_FILE).exists():
            return None
        where = json.loads((self.path / _RAW_FILE).read_text(encoding="utf-8"))
        written = _written(where["directory"])
        newer = [path for path, time in written.items() if time > where["read_at"]]
        if not newer:
            return None
        last = max(newer, key=written.get)
        read, wrote = (
            f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m-%d %H:%M} UTC"
            for time in (where["read_at"], written[last])
        )
        return (
            f"{self.path} was prepared of the raw files of {read}, and {len(newer):,} of them "
            f"{'is' if len(newer) == 1 else 'are'} newer, such as {last} of {wrote}: to train on "
            "them, prepare the data set again with --overwrite"
        )

    def splits(self):
        """dict by name of TensorFlow Datasets' `SplitInfo`s.

        Raises:
            FileNotFoundError: If there are no records.
        """
        if not (self.path / _RECORDS_FILE).exists():
            raise FileNotFoundError(
                f"{self.path} has a schema but no records: expected a directory written by "
                "`python -m tfrec_diffusion.prepare`"
            )
        return tfds.builder_from_directory(str(self.path)).info.splits


def _written(directory):
    """When each raw file in a directory was last written, in seconds since 1970."""
    written = {}
    for place, below, names in os.walk(directory):
        below[:] = [name for name in below if not name.startswith((".", INCOMPLETE))]
        if schema.FILE_NAME in names and place != str(directory):
            below.clear()  # what was prepared or trained may lie beside the raw files
            continue
        paths = (pathlib.Path(place, name) for name in names if not name.startswith("."))
        written |= {path: path.stat().st_mtime for path in paths if path.is_file()}
    return written
