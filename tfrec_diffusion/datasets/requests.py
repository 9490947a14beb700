"""The base class of every data set, which writes its requests as TFRecord files beside a schema."""

import collections
import inspect
import os
import pathlib
import shutil
import types

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import splits as tfds_splits
from tensorflow_datasets.core import writer as tfds_writer

from tfrec_diffusion import files
from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import text_files, workers
from tfrec_diffusion.datasets.preparation import Preparation
from tfrec_diffusion.datasets.records import RecordEncoder
from tfrec_diffusion.datasets.report import Report, split_report
from tfrec_diffusion.prepared_directory import PreparedDirectory

# Boundaries of the minutes from one behavior to the next: a new session begins after 30.
GAP_BOUNDARIES = (30.0,)
# Boundaries of the minutes from a behavior to the request: 1, 2, 4, .. to about a year.
AGE_BOUNDARIES = tuple(2.0**power for power in range(20))


def check_integers(*, least=1, **options):
    """Checks options that must be integers.

    Args:
        least: int. Smallest allowed value. Defaults to `1`.
        **options: The options by name.

    Raises:
        ValueError: If one is not an integer or less than `least`.
    """
    for name, value in options.items():
        # bool is an int to Python.
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}"
            )


class RequestBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the requests of a data set; the base class of every data set.

    A subclass sets `VERSION` and `features` (a tuple of `schema.Feature`s, which is needed before
    the raw data is read) and has `convert`. The arguments of its constructor, except `raw_dir` and
    `data_dir`, are the options of the data set. One of them is `history_length`. Options have
    defaults, and an attribute of the same name holds the value, which JSON must be able to hold.

    Args:
        raw_dir: str or `pathlib.Path`. Directory of the raw files.
        data_dir: str or `pathlib.Path`. Root of the prepared data sets. This one is written to
            `<data_dir>/<name>/<version>`.
        config: `tfds.core.BuilderConfig` or `None`. Has the name of a variant, which is written to
            `<data_dir>/<name>/<config>/<version>`. Defaults to `None`.

    Raises:
        ValueError: If `raw_dir` is `None`, or a directory is not on a disk of this machine.
    """

    def __init__(self, *, raw_dir, data_dir, config=None):
        if raw_dir is None:
            raise ValueError("`raw_dir` must be the directory of the raw files. Received: None")
        for name, path in (("`raw_dir`", raw_dir), ("`data_dir`", data_dir)):
            text_files.check_is_local(name, path)
        self.raw_dir = pathlib.Path(raw_dir)
        self._preparation = Preparation()
        self.report = Report(self._preparation.max_bad_rows)
        super().__init__(data_dir=os.fspath(data_dir), config=config)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(skip_registration=True, **kwargs)

    @property
    def options(self):
        """dict of the options by name, as `report.json` records them."""
        names = inspect.signature(type(self)).parameters.keys() - {"raw_dir", "data_dir"}
        return {name: getattr(self, name) for name in sorted(names)}

    @property
    def numeric_tables(self):
        """Collection of str. Names of tables whose values are numbers that are not looked up."""
        return ()

    @property
    def targets(self):
        """tuple of str. `Schema.targets`, which is needed before the raw data is read."""
        return (schema_lib.LABEL,)

    @property
    def may_lack_splits(self):
        """bool. Whether splits without requests are left out, as long as there is one with some."""
        return False

    @property
    def scratch(self):
        """`pathlib.Path` of a directory for temporary files on the disk of `data_dir`, which is
        removed at the end.
        """
        path = pathlib.Path(self.data_dir) / "scratch"
        path.mkdir(exist_ok=True)
        return path

    def raw_file(self, name, source):
        """Finds a raw file, plain or gzipped.

        Args:
            name: str. Name of the plain file in `raw_dir`; the gzipped one has `.gz` added.
            source: str. Where to download the file from, for the error.

        Returns:
            `pathlib.Path`.

        Raises:
            FileNotFoundError: If there is neither.
        """
        for path in (self.raw_dir / name, self.raw_dir / f"{name}.gz"):
            if path.is_file():
                return path
        raise FileNotFoundError(f"{self.raw_dir} must hold {name} or {name}.gz, from {source}")

    def convert(self):
        """Reads the raw data, and counts what it reads and drops in `self.report`.

        Returns:
            Tuple of the `schema.Schema`, a dict of the tables' vocabularies by name, and a dict of
            `records.Split`s by name, in the order in which they are to be written.

        Raises:
            FileNotFoundError: If a raw file is missing.
            ValueError: If the raw data cannot be used.
        """
        raise NotImplementedError

    def write(self, preparation=None):
        """Prepares the data set unless it is there already.

        It appears under its name when it is whole; after an error nothing is left of it.

        Args:
            preparation: `preparation.Preparation` or `None`. How requests are written. If `None`,
                with the defaults of `Preparation`. Defaults to `None`.

        Raises:
            BlockingIOError: If another process is preparing it.
            OSError: If it cannot be written, for instance because the disk is full.
        """
        with files.replaceable(pathlib.Path(self.data_dir), "preparing"):
            self._write(preparation)

    @classmethod
    def overwrite(cls, preparation=None, **arguments):
        """Prepares a data set in place of what is there, which comes back after an error.

        Args:
            preparation: `preparation.Preparation` or `None`. As in `write`. Defaults to `None`.
            **arguments: Arguments of the class.

        Raises:
            BlockingIOError: If another process is preparing it.
            OSError: If it cannot be written, for instance because the disk is full.
        """
        path = pathlib.Path(cls(**arguments).data_dir)
        with files.replaceable(path, "preparing") as aside:
            if path.exists():
                path.rename(aside)
            # A builder made before would have taken the old data set's description for its own.
            cls(**arguments)._write(preparation)

    def _write(self, preparation):
        self._preparation = preparation or Preparation()
        if self._preparation.beam_options is not None:
            # Before hours of conversion.
            _import_beam_writer().make_pipeline(self._preparation.beam_options)
        self.report.max_bad_rows = self._preparation.max_bad_rows
        try:
            self.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
        except tf.errors.OpError as error:
            raise OSError(f"cannot write {self.data_dir}: {error.message}") from error

    # Methods of TFDS. `convert` takes the place of these two.

    _split_generators = None
    _generate_examples = None

    def _info(self):
        features = {schema_lib.GROUP_ID: np.int64}
        features |= {name: _list_of(np.float32) for name in self.targets}
        for feature in self.features:
            numeric = feature.table in self.numeric_tables
            features[feature.name] = (
                np.int64
                if feature.group in ("user", "context") and feature.values == 1 and not numeric
                else _list_of(np.float32 if numeric else np.int32)
            )
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), homepage=None
        )

    def _make_download_manager(self, **_):
        # Nothing is downloaded, and TFDS's manager makes empty directories in `data_dir`.
        return types.SimpleNamespace(downloaded_size=0)

    def _generate_splits(self, dl_manager, download_config):
        # The loop of TFDS around the same writer takes eight times as long, and serializes the
        # entries of a record in arbitrary order, so that no two runs give the same bytes.
        del dl_manager
        schema, vocabularies, splits = self.convert()
        encode = RecordEncoder(schema, self._preparation.group_by)
        write = self._write_here if self._preparation.beam_options is None else self._write_by_beam
        counts, infos = write(splits, encode, download_config.get_shard_config())
        if not infos:
            raise ValueError(f"no split of {self.name} got a request; {self.report}")
        shutil.rmtree(self.scratch)
        schema.save(self.data_dir)
        for vocabulary in vocabularies.values():
            vocabulary.save(self.data_dir)
        report = {
            "options": {**self.options, "group_by": self._preparation.group_by},
            **self.report.get_config(),
            "splits": {name: split_report(counts[name], schema.targets[1:]) for name in counts},
        }
        PreparedDirectory(self.data_dir).write_report(report)
        return infos

    def _write_here(self, splits, encode, shard_config):
        counts, infos = {}, []
        with workers.Workers(self._preparation.workers, self.scratch) as processes:
            for name, split in splits.items():
                writer = self._writer(tfds_writer.Writer, name, shard_config)
                counts[name] = collections.Counter()
                for key, record in tfds.core.utils.tqdm(
                    processes.records(name, split, encode, counts[name]),
                    desc=f"Writing {name}", unit=" requests", leave=False, mininterval=1.0,
                ):  # fmt: skip
                    writer.write(key, record)
                if self._has_requests(name, counts):
                    infos.append(self._split_info(name, writer))
        return counts, infos

    def _write_by_beam(self, splits, encode, shard_config):
        beam_writer = _import_beam_writer()
        writers = {
            name: self._writer(tfds_writer.BeamWriter, name, shard_config) for name in splits
        }
        counts = beam_writer.write(
            splits, encode, writers, self.scratch, self._preparation.beam_options
        )
        infos = [
            self._split_info(name, writer)
            for name, writer in writers.items()
            if self._has_requests(name, counts)
        ]
        return counts, infos

    def _writer(self, writer_class, split, shard_config):
        return writer_class(
            serializer=_Serialized(),
            filename_template=self._get_filename_template(split_name=split),
            hash_salt=split,
            disable_shuffling=False,
            example_writer=self._example_writer(),
            shard_config=shard_config,
        )

    def _split_info(self, name, writer):
        lengths, size = writer.finalize()
        return tfds_splits.SplitInfo(
            name=name,
            shard_lengths=lengths,
            num_bytes=size,
            filename_template=self._get_filename_template(split_name=name),
        )

    def _has_requests(self, name, counts):
        """Whether a split has any; raises an error if it must have."""
        if counts[name]["requests"]:
            return True
        if not self.may_lack_splits:
            raise ValueError(f"split {name!r} of {self.name} got no request; {self.report}")
        del counts[name]
        return False


def _import_beam_writer():
    try:
        from tfrec_diffusion.datasets import beam_writer
    except ModuleNotFoundError as error:
        raise ValueError(
            f"`beam_options` need Apache Beam (pip install 'tfrec_diffusion[beam]'): {error}"
        ) from error
    return beam_writer


class _Serialized:
    """Stands in for TFDS's serializer, because the examples are serialized already."""

    example_specs = None

    def serialize_example(self, example):
        return example


def _list_of(dtype):
    return tfds.features.Tensor(shape=(None,), dtype=dtype, encoding=tfds.features.Encoding.BYTES)
