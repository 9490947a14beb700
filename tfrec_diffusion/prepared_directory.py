"""What lies in the directory of a prepared data set, and where data sets are found.

A data set `<data_dir>/<name>/<version>` holds TFRecord files as TensorFlow Datasets writes them
(`dataset_info.json` lists them), `schema.json`, `vocabularies/`, and `report.json`: the options it
was prepared with, the rows read and dropped, and counts of each split.
"""

import json
import pathlib

import tensorflow_datasets as tfds

from tfrec_diffusion import schema

_REPORT_FILE = "report.json"
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
