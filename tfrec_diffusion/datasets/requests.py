"""What every data set shares: its requests are written as TFDS records beside a schema."""

import collections
import contextlib
import inspect
import json
import os
import pathlib
import shutil
import types

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import splits as tfds_splits
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.proto import tf_example_pb2

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.locking import lock

REPORT = "report.json"
# Where data sets cut a behavior's minutes since the one before it: a session begins after 30.
GAP_BOUNDARIES = (30.0,)
# And its minutes before the request: 1, 2, 4, .. to about a year.
AGE_BOUNDARIES = tuple(2.0**power for power in range(20))


class Report:
    """Counts of what was read and dropped, for `report.json`.

    A source is a raw file or table, named as its reader knows it.
    """

    _PLACES = 5

    def __init__(self):
        self._read = collections.Counter()
        self._dropped = {}
        self._notes = {}

    def read(self, source, rows=1):
        """Counts rows of a source, those dropped later included."""
        self._read[source] += rows

    def drop(self, source, reason, rows=1, places=()):
        """Counts rows of a source that are not used.

        Args:
            reason: Short; rows with the same reason are counted together.
            places: Where the first of them stand (`"clicks.csv:17"`) or what they are; five are
                kept.
        """
        if not rows:
            return
        drop = self._dropped.setdefault(source, {}).setdefault(reason, {"rows": 0, "places": []})
        drop["rows"] += int(rows)
        drop["places"] = [*drop["places"], *places][: self._PLACES]

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

        `self.resources` (a `contextlib.ExitStack`) closes what it must keep open until the last
        request is written.

        Returns:
            `schema.Schema`; dict of the tables' vocabularies by name; dict of an iterator of
            `(unique key, request)` by split, consumed in that order. A request is a dict: user and
            context features and `group_id` (one number per user) are integers, candidate and
            history features int32 arrays (histories newest last, at most `history_length`),
            `label` a float32 array.

        Raises:
            FileNotFoundError: If a raw file is missing.
            ValueError: If the raw data cannot be used.
        """
        raise NotImplementedError

    def write(self):
        """Prepares the data set unless it is there: whole under its name, or not at all.

        Raises:
            BlockingIOError: If another process is preparing it.
            OSError: If it cannot be written, for instance because the disk is full.
        """
        with _hold(pathlib.Path(self.data_dir)):
            self._write()

    @classmethod
    def overwrite(cls, **arguments):
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
            cls(**arguments)._write()

    def _write(self):
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
        with contextlib.ExitStack() as self.resources:
            schema, vocabularies, requests = self.convert()
            serializer = _Serializer(schema)
            splits = [
                self._write_split(name, serializer, requests[name], download_config)
                for name in requests
            ]
        shutil.rmtree(self.scratch)
        schema.save(self.data_dir)
        for vocabulary in vocabularies.values():
            vocabulary.save(self.data_dir)
        report = {"options": self.options, **self.report.get_config()}
        report["splits"] = {
            name: {**counts, "label_rate": counts["clicks"] / counts["candidates"]}
            for name, counts in serializer.counts.items()
        }
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        (pathlib.Path(self.data_dir) / REPORT).write_text(text, encoding="utf-8")
        return splits

    def _write_split(self, name, serializer, requests, download_config):
        template = self._get_filename_template(split_name=name)
        serializer.start(name)
        writer = tfds_writer.Writer(
            serializer=serializer,
            filename_template=template,
            hash_salt=name,
            disable_shuffling=False,
            example_writer=self._example_writer(),
            shard_config=download_config.get_shard_config(),
        )
        for key, request in tfds.core.utils.tqdm(
            requests, desc=f"Writing {name}", unit=" requests", leave=False, mininterval=1.0
        ):
            writer.write(key, request)
        if not serializer.counts[name]["requests"]:
            raise ValueError(f"split {name!r} of {self.name} got no request; {self.report}")
        lengths, size = writer.finalize()
        return tfds_splits.SplitInfo(
            name=name, shard_lengths=lengths, num_bytes=size, filename_template=template
        )


class _Serializer:
    """Requests to `tf.train.Example`s as `Schema.record_spec` parses them; counts them."""

    def __init__(self, schema):
        self._schema = schema
        self._scalars = (schema_lib.GROUP_ID, *(f.name for f in schema.group("user", "context")))
        self._candidates = tuple(f.name for f in schema.group("candidate"))
        self._history = tuple(f.name for f in schema.group("history", "behavior"))
        self.counts = {}

    def start(self, split):
        self._split = self.counts[split] = dict.fromkeys(
            ("requests", "candidates", "clicks", "behaviors"), 0
        )

    def serialize_example(self, example):
        """Bytes of a request; the entries in the order of their names."""
        record = tf_example_pb2.Example()
        entries = record.features.feature
        for name in self._scalars:
            entries[name].int64_list.value.append(int(example[name]))
        label = np.asarray(example[schema_lib.LABEL], "<f4")
        entries[schema_lib.LABEL].bytes_list.value.append(label.tobytes())
        for name in self._candidates:
            self._add_rows(entries, name, example[name], label.size)
        length = len(example[self._history[0]])
        if length > self._schema.history_length:
            raise ValueError(
                f"{self._history[0]!r} must have at most {self._schema.history_length} behaviors. "
                f"Received: {length}"
            )
        for name in self._history:
            self._add_rows(entries, name, example[name], length)
        counts = self._split
        counts["requests"] += 1
        counts["candidates"] += label.size
        counts["clicks"] += int(label.sum())
        counts["behaviors"] += length
        return record.SerializeToString(deterministic=True)

    @staticmethod
    def _add_rows(entries, name, rows, length):
        rows = np.asarray(rows, "<i4")
        if rows.shape != (length,):
            raise ValueError(f"{name!r} must have {length} entries. Received: shape {rows.shape}")
        entries[name].bytes_list.value.append(rows.tobytes())


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
