"""What every data set shares: its requests are written as TFDS records beside a schema."""

import collections
import contextlib
import datetime
import inspect
import json
import os
import pathlib
import shutil
import types
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import splits as tfds_splits
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.proto import tf_example_pb2

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import workers
from tfrec_diffusion.locking import lock

REPORT = "report.json"
# An entry of a request that is counted and not written: days since 1970 on the log's own clock. No
# feature can have the name.
DAY = "day of the log"
GROUPINGS = ("impression", "request")
# Where data sets cut a behavior's minutes since the one before it: a session begins after 30.
GAP_BOUNDARIES = (30.0,)
# And its minutes before the request: 1, 2, 4, .. to about a year.
AGE_BOUNDARIES = tuple(2.0**power for power in range(20))


class Preparation(NamedTuple):
    """How requests are written, whatever the data set.

    Args:
        group_by: `"impression"`: a request as the data set gives it, which of a log is one
            impression. `"request"`: those that follow each other and differ in nothing but their
            candidates and labels, as the candidates of one page do, become one with all of these.
        max_bad_rows: Share of the rows of a file or table, in [0, 1], that may be bad; more is an
            error.
        workers: Processes of this machine that encode the requests.
        beam_options: Pipeline options of Apache Beam, such as `"--runner=DataflowRunner"`, to
            encode and write the requests with it instead; `None`: without.
    """

    group_by: str = "impression"
    max_bad_rows: float = 0.01
    workers: int = 1
    beam_options: list[str] | None = None


class Split(NamedTuple):
    """What a split is made of, in parts that any process can work on.

    Args:
        encode: Makes an iterator of `(unique key, request)` of a part. It can be pickled. A request
            is a dict: user and context features and `group_id` (one number per user) are integers,
            candidate and history features int32 arrays (histories newest last, at most
            `history_length`), `label` a float32 array; and `DAY`, where it is known.
        parts: What `encode` is called with, in this order.
    """

    encode: Callable
    parts: list


class Report:
    """Counts of what was read and dropped, for `report.json`.

    A source is a raw file or table, named as its reader knows it.

    Args:
        max_bad_rows: As in `Preparation`.
    """

    _PLACES = 5

    def __init__(self, max_bad_rows=Preparation._field_defaults["max_bad_rows"]):
        self.max_bad_rows = max_bad_rows
        self._bad = collections.Counter()
        self._unwanted = collections.Counter()
        self._read = collections.Counter()
        self._dropped = {}
        self._notes = {}

    def read(self, source, rows=1):
        """Counts rows of a source, those dropped later included."""
        self._read[source] += rows

    def drop(self, source, reason, rows=1, places=(), *, bad=True):
        """Counts rows of a source that are not used, after they were counted as read.

        Args:
            reason: Short; rows with the same reason are counted together.
            places: Where the first of them stand (`"clicks.csv:17"`) or what they are; five are
                kept.
            bad: Whether they should not have been there, while else they are just of no use.

        Raises:
            ValueError: If of the rows of the source that might be of use, up to now, more are bad
                than `max_bad_rows`.
        """
        if not rows:
            return
        drop = self._dropped.setdefault(source, {}).setdefault(reason, {"rows": 0, "places": []})
        drop["rows"] += int(rows)
        drop["places"] = [*drop["places"], *places][: self._PLACES]
        (self._bad if bad else self._unwanted)[source] += int(rows)
        wanted = self._read[source] - self._unwanted[source]
        if self._bad[source] > self.max_bad_rows * wanted:
            raise ValueError(
                f"{source}: {self._bad[source]:,} of {wanted:,} rows are bad, more "
                f"than `max_bad_rows`={self.max_bad_rows:g} of them. The last found: {reason} "
                f"({', '.join(drop['places'])})"
            )

    def note(self, name, value):
        """Adds a JSON-ready fact of the data set's own, such as `best_reachable`."""
        self._notes[name] = value

    def get_config(self):
        """A JSON-ready dict: per source the rows read, kept and dropped by reason; the notes."""
        sources = {}
        for source, rows in self._read.items():
            dropped = self._dropped.get(source, {})
            lost = sum(drop["rows"] for drop in dropped.values())
            sources[source] = {"read": int(rows), "kept": int(rows) - lost, "dropped": dropped}
        return {"sources": sources, **self._notes}

    def __str__(self):
        return f"read and dropped: {json.dumps(self.get_config()['sources'])}"


def check_integers(*, least=1, **options):
    """Raises a `ValueError` if an option, by name, is not an integer of at least `least`."""
    for name, value in options.items():
        # bool is an int to Python.
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}"
            )


class RequestBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes a data set's requests: the base class of every data set.

    A subclass sets `VERSION`, `features` (a tuple of `schema.Feature`s, needed before the raw data
    is read) and `convert`. Its constructor's arguments but `raw_dir` and `data_dir` are its
    options, `history_length` among them: they have defaults, and each is kept in an attribute of
    the same name that JSON can hold.

    Args:
        raw_dir: Directory of the raw files.
        data_dir: Root of the prepared data sets; this one goes to <data_dir>/<name>/<version>.
        config: `tfds.core.BuilderConfig` with the name of a variant; the directory is then
            <data_dir>/<name>/<config>/<version>.
    """

    def __init__(self, *, raw_dir, data_dir, config=None):
        if raw_dir is None:
            raise ValueError("`raw_dir` must be the directory of the raw files. Received: None")
        self.raw_dir = pathlib.Path(raw_dir)
        self.report = Report()
        self._preparation = Preparation()
        super().__init__(data_dir=os.fspath(data_dir), config=config)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(skip_registration=True, **kwargs)

    @property
    def options(self):
        """The options of this preparation by name, as `report.json` records them."""
        names = inspect.signature(type(self)).parameters.keys() - {"raw_dir", "data_dir"}
        return {name: getattr(self, name) for name in sorted(names)}

    @property
    def scratch(self):
        """A directory for temporary files on the disk of `data_dir`, removed at the end."""
        path = pathlib.Path(self.data_dir) / "scratch"
        path.mkdir(exist_ok=True)
        return path

    def raw_file(self, name, source):
        """Path of a raw file, plain or gzipped.

        Raises:
            FileNotFoundError: If there is neither; it names the `source` to download it from.
        """
        for path in (self.raw_dir / name, self.raw_dir / f"{name}.gz"):
            if path.is_file():
                return path
        raise FileNotFoundError(f"{self.raw_dir} must hold {name} or {name}.gz, from {source}")

    def convert(self):
        """Reads the raw data and counts what it drops in `self.report`.

        Returns:
            `schema.Schema`; dict of the tables' vocabularies by name; dict of `Split`s by name,
            which are made in that order.

        Raises:
            FileNotFoundError: If a raw file is missing.
            ValueError: If the raw data cannot be used.
        """
        raise NotImplementedError

    def write(self, preparation=None):
        """Prepares the data set unless it is there: whole under its name, or not at all.

        Args:
            preparation: `Preparation`; default: one with its defaults.

        Raises:
            BlockingIOError: If another process is preparing it.
            OSError: If it cannot be written, for instance because the disk is full.
        """
        with _hold(pathlib.Path(self.data_dir)):
            self._write(preparation)

    @classmethod
    def overwrite(cls, preparation=None, **arguments):
        """Prepares the data set of a builder with these arguments in place of what is there.

        The old one comes back if that fails.

        Raises:
            BlockingIOError: If another process is preparing it.
            OSError: If it cannot be written, for instance because the disk is full.
        """
        path = pathlib.Path(cls(**arguments).data_dir)
        with _hold(path) as aside:
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

    # What TFDS asks for; `convert` takes the place of the two below.

    _split_generators = None
    _generate_examples = None

    def _info(self):
        features = {schema_lib.GROUP_ID: np.int64, schema_lib.LABEL: _list_of(np.float32)}
        for feature in self.features:
            features[feature.name] = np.int64 if _is_scalar(feature) else _list_of(np.int32)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), homepage=None
        )

    def _make_download_manager(self, **_):
        # Nothing is downloaded, and TFDS's manager makes empty directories in `data_dir`.
        return types.SimpleNamespace(downloaded_size=0)

    def _generate_splits(self, dl_manager, download_config):
        # TFDS's own loop around the same writer serializes the entries of a record in arbitrary
        # order, so that no two runs give the same bytes, and takes eight times as long.
        del dl_manager
        schema, vocabularies, splits = self.convert()
        encode = RecordEncoder(schema, self._preparation.group_by)
        write = self._write_here if self._preparation.beam_options is None else self._write_by_beam
        counts, infos = write(splits, encode, download_config.get_shard_config())
        shutil.rmtree(self.scratch)
        schema.save(self.data_dir)
        for vocabulary in vocabularies.values():
            vocabulary.save(self.data_dir)
        report = {
            "options": {**self.options, "group_by": self._preparation.group_by},
            **self.report.get_config(),
            "splits": {name: _split_report(counts[name]) for name in splits},
        }
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        (pathlib.Path(self.data_dir) / REPORT).write_text(text, encoding="utf-8")
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
                self._check_not_empty(name, counts[name])
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
        for name in splits:
            self._check_not_empty(name, counts[name])
        return counts, [self._split_info(name, writer) for name, writer in writers.items()]

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

    def _check_not_empty(self, name, counts):
        if not counts["requests"]:
            raise ValueError(f"split {name!r} of {self.name} got no request; {self.report}")


def _import_beam_writer():
    try:
        from tfrec_diffusion.datasets import beam_writer
    except ModuleNotFoundError as error:
        raise ValueError(
            f"`beam_options` need Apache Beam (pip install 'tfrec_diffusion[beam]'): {error}"
        ) from error
    return beam_writer


class RecordEncoder:
    """Requests of a split's part to serialized `tf.train.Example`s as `Schema.record_spec` says.

    Args:
        schema: `schema.Schema` of the data set.
        group_by: As in `Preparation`.
    """

    def __init__(self, schema, group_by):
        self._schema = schema
        self._grouped = group_by == "request"
        self._scalars = (schema_lib.GROUP_ID, *(f.name for f in schema.group("user", "context")))
        self._candidates = tuple(f.name for f in schema.group("candidate"))
        self._history = tuple(f.name for f in schema.group("history", "behavior"))

    def __call__(self, split, part, counts):
        """Yields `(unique key, bytes)`.

        Args:
            split: `Split`.
            part: One of its parts.
            counts: `collections.Counter` of the split, which is added to.
        """
        requests = split.encode(part)
        for key, request in self._joined(requests) if self._grouped else requests:
            labels = np.asarray(request[schema_lib.LABEL], "<f4")
            yield key, self._serialized(request, labels)
            clicks = int(labels.sum())
            counts["requests"] += 1
            counts["candidates"] += labels.size
            counts["clicks"] += clicks
            counts["behaviors"] += len(request[self._history[0]])
            if DAY in request:
                counts["candidates", int(request[DAY])] += labels.size
                counts["clicks", int(request[DAY])] += clicks

    def _joined(self, requests):
        first_key, joined = None, []
        for key, request in requests:
            if joined and not self._alike(joined[0], request):
                yield first_key, self._join(joined)
                joined = []
            first_key = first_key if joined else key
            joined.append(request)
        if joined:
            yield first_key, self._join(joined)

    def _alike(self, one, other):
        names = (*self._scalars, *self._history)
        return one.get(DAY) == other.get(DAY) and all(
            np.array_equal(one[name], other[name]) for name in names
        )

    def _join(self, requests):
        if len(requests) == 1:
            return requests[0]
        names = (schema_lib.LABEL, *self._candidates)
        lists = {name: np.concatenate([request[name] for request in requests]) for name in names}
        return {**requests[0], **lists}

    def _serialized(self, request, labels):
        # Entries in the order of their names, so that equal requests are equal bytes.
        record = tf_example_pb2.Example()
        entries = record.features.feature
        for name in self._scalars:
            entries[name].int64_list.value.append(int(request[name]))
        entries[schema_lib.LABEL].bytes_list.value.append(labels.tobytes())
        for name in self._candidates:
            _add_rows(entries, name, request[name], labels.size)
        length = len(request[self._history[0]])
        if length > self._schema.history_length:
            raise ValueError(
                f"{self._history[0]!r} must have at most {self._schema.history_length} behaviors. "
                f"Received: {length}"
            )
        for name in self._history:
            _add_rows(entries, name, request[name], length)
        return record.SerializeToString(deterministic=True)


class _Serialized:
    """What a writer of TFDS asks to serialize examples that are serialized."""

    example_specs = None

    def serialize_example(self, example):
        return example


def _add_rows(entries, name, rows, length):
    rows = np.asarray(rows, "<i4")
    if rows.shape != (length,):
        raise ValueError(f"{name!r} must have {length} entries. Received: shape {rows.shape}")
    entries[name].bytes_list.value.append(rows.tobytes())


def _split_report(counts):
    report = {name: counts[name] for name in ("requests", "candidates", "clicks", "behaviors")}
    report["label_rate"] = counts["clicks"] / counts["candidates"]
    days = sorted(key[1] for key in counts if key[0] == "candidates" and isinstance(key, tuple))
    if days:
        report["days"] = {
            str(datetime.date(1970, 1, 1) + datetime.timedelta(day)): {
                name: counts[name, day] for name in ("candidates", "clicks")
            }
            for day in days
        }
    return report


def _is_scalar(feature):
    return feature.group in ("user", "context")


def _list_of(dtype):
    return tfds.features.Tensor(shape=(None,), dtype=dtype, encoding=tfds.features.Encoding.BYTES)


@contextlib.contextmanager
def _hold(path):
    """Holds a data set's directory for this process, also while it is not there.

    Yields the path to move the old data set to. Whatever comes, even a kill (then the next holder
    sees to it), the old one returns if there is no new one, and goes if there is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"replaced_{path.name}")
    with lock(path.parent, "preparing"):
        # What a killed run left; the lock says that no living one writes it.
        for left in path.parent.glob("incomplete.*"):
            shutil.rmtree(left)
        _settle(path, aside)
        try:
            yield aside
        finally:
            _settle(path, aside)


def _settle(path, aside):
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.exists():
        aside.rename(path)
