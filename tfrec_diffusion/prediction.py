"""Scores every impression of a log with a trained model; what is interrupted goes on."""

import collections
import hashlib
import os
import pathlib
import pickle
import shutil
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow_datasets as tfds
from pyarrow import parquet

from tfrec_diffusion.datasets import (
    known_tables,
    log_builder,
    logs,
    logs_spec,
    records,
    tables,
    workers,
)
from tfrec_diffusion.files import INCOMPLETE, lock, write_json, written_aside
from tfrec_diffusion.input_pipeline import padding_record, parse
from tfrec_diffusion.schema import LABEL, Schema

DESCRIPTION = "scores.json"
_KEPT = "kept "  # before columns of the log, in the sorted impressions


class _Cut(NamedTuple):
    """A log that has been read, checked, sorted and cut into parts.

    Args:
        schema: `Schema`. What its records hold.
        split: `records.Split`. Its parts, and how they become requests.
        report: dict. What was read and dropped.
    """

    schema: Schema
    split: records.Split
    report: dict


def predict(run, spec, *, raw_dir, output, preparation, batch_size=256, format_="parquet"):
    """Writes a directory of files with the score of each impression of a log.

    A row has those columns of the log that the spec names as user, time and request and as key of
    the candidate, and `score`, the click probability. Times that are no integers in the log are in
    nanoseconds since 1970 UTC. Rows come in the order of users and times. The log needs no labels.

    The directory appears when it is whole. Until then its parts lie beside it, and the same call
    goes on with those that are missing.

    Args:
        run: `RunDirectory` of the model.
        spec: str or `pathlib.Path`. Spec file of the log, with the features of the training.
        raw_dir: str or `pathlib.Path`. Directory of the log.
        output: str or `pathlib.Path`. The directory to write.
        preparation: `preparation.Preparation`. How the log is read and encoded.
        batch_size: int. Requests in a batch. Defaults to `256`.
        format_: str. `"parquet"` or `"csv"`. Defaults to `"parquet"`.

    Returns:
        dict. What `scores.json` in the directory says: the model, the log, what was dropped.

    Raises:
        BlockingIOError: If another process is writing it.
        FileExistsError: If the directory is there.
        ValueError: If the log does not fit the model, or other scores were begun there.
    """
    output = pathlib.Path(output).absolute()
    if output.exists():
        raise FileExistsError(f"{output} is there already: remove it or give another --output")
    aside = output.with_name(f"{INCOMPLETE}{output.name}")
    aside.mkdir(parents=True, exist_ok=True)
    with lock(aside, "scoring into"):
        log = _LogToScore(run, spec, raw_dir, aside, preparation.max_bad_rows)
        description = {
            "model": str(run.path),
            "model_digest": _digest(run.model_file),
            "spec": log.spec,
            "files": log.files(),
            "group_by": preparation.group_by,
            "format": format_,
        }
        cut = _cut(log, aside, description)
        score = _Scorer(run.load_model(), run.correction, cut.schema, batch_size)
        files = [aside / f"part-{i:05}.{format_}" for i in range(len(cut.split.parts))]
        left = [i for i, path in enumerate(files) if not path.exists()]
        split = cut.split._replace(parts=[cut.split.parts[i] for i in left])
        encode = records.RecordEncoder(cut.schema, preparation.group_by)
        with workers.Workers(preparation.workers, aside) as processes:
            encoded = processes.records_of_parts("log", split, encode, collections.Counter())
            for i, part in zip(_progress(left, len(files)), encoded, strict=True):
                scores = score([record for _, record in part])
                rows = log.kept_columns(cut.split.parts[i])
                rows = rows.append_column("score", pa.array(scores, pa.float32()))
                with written_aside(files[i]) as path:
                    _write(rows, path, format_)
        for path in set(aside.iterdir()) - set(files):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        description |= {"report": cut.report}
        write_json(aside / DESCRIPTION, description)
        os.replace(aside, output)
    return description


def _cut(log, aside, description):
    """The log's parts, of which an interrupted call has left them or made now."""
    saved = aside / "log.pickle"
    if saved.exists():
        before, cut = pickle.loads(saved.read_bytes())
        changed = [name for name, value in description.items() if before[name] != value]
        if changed:
            raise ValueError(
                f"{aside} has scores that were begun with another {' and '.join(changed)}: remove "
                "it, or give another --output"
            )
        return cut
    shutil.rmtree(log.scratch)
    schema, _, splits = log.convert()
    cut = _Cut(schema, splits["log"], log.report.get_config())
    with written_aside(saved) as path:
        path.write_bytes(pickle.dumps((description, cut)))
    return cut


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _progress(left, parts):
    return tfds.core.utils.tqdm(
        left, desc="Scoring", unit=" parts", leave=False, initial=parts - len(left), total=parts
    )


def _write(rows, path, format_):
    if format_ == "csv":
        rows.to_pandas().to_csv(path, index=False)
    else:
        parquet.write_table(rows, path)


class _Scorer:
    """The scores of records, in their order.

    Args:
        model: `RankingModel`.
        correction: `Calibration` or `None`. What is made of the model's probabilities. If `None`,
            nothing.
        schema: `Schema` of the records.
        batch_size: int. Records of a batch.
    """

    def __init__(self, model, correction, schema, batch_size):
        self._model = model
        self._correction = correction
        self._schema = schema
        self._batch_size = batch_size

    def __call__(self, serialized):
        if not serialized:  # all users of the part have behaviors only
            return np.zeros(0, np.float32)
        # All batches are of one size, so that they are compiled once.
        padding = [padding_record(self._schema)] * (-len(serialized) % self._batch_size)
        batches = (
            tf.data.Dataset.from_tensor_slices(tf.constant([*serialized, *padding], tf.string))
            .batch(self._batch_size, drop_remainder=True)
            .map(lambda batch: parse(self._schema, batch), tf.data.AUTOTUNE)
            .prefetch(tf.data.AUTOTUNE)
        )
        scores = [
            self._model.inference_function(features).numpy()[real.numpy() > 0]
            for features, _, real, _ in batches
        ]
        scores = np.concatenate(scores)
        return self._correction(scores).astype(np.float32) if self._correction else scores


class _LogToScore(log_builder.LogBuilder):
    """A log, all impressions of which are encoded as a trained model knows them.

    Args:
        run: `RunDirectory`.
        spec: str or `pathlib.Path`. As in `predict`.
        raw_dir: str or `pathlib.Path`. As in `predict`.
        directory: `pathlib.Path`. Where the parts of the log are put.
        max_bad_rows: float. As in `preparation.Preparation`.
    """

    VERSION = logs.Logs.VERSION

    def __init__(self, run, spec, raw_dir, directory, max_bad_rows):
        path, spec = pathlib.Path(spec), logs_spec.Spec.load(spec).without_labels
        known = known_tables.KnownTables(run.path, known_tables.Growth())
        known.check(spec)
        self.spec = f"{path.name} ({spec.digest})"
        self._directory = directory
        super().__init__(
            raw_dir=raw_dir,
            data_dir=directory,
            spec=spec,
            spec_path=path,
            history_length=known.schema.history_length,
            known=known,
        )
        self.report.max_bad_rows = max_bad_rows

    @property
    def scratch(self):
        """See `RequestBuilder.scratch`."""
        path = self._directory / "scratch"
        path.mkdir(exist_ok=True)
        return path

    @property
    def spans(self):
        """See `LogBuilder.spans`."""
        return {"log": (0, self.seen_until)}

    @property
    def seen_until(self):
        """See `LogBuilder.seen_until`. All of the log is looked through for unknown values."""
        return logs_spec.LAST_TIME

    def files(self):
        """Size and time of each of the log's files, by path."""
        events = (self._spec.impressions, self._spec.behaviors)
        patterns = {files.files for event in events for files in (event, *event.join)}
        paths = {path for pattern in patterns for path in tables.find_files(self.raw_dir, pattern)}
        stats = {str(path): path.stat() for path in sorted(paths)}
        return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}

    def kept_columns(self, part):
        """Columns of the log that tell the impressions of a part.

        Args:
            part: dict of `pathlib.Path`. As `impressions.Encoder` takes it.

        Returns:
            `pyarrow.Table`.
        """
        names = parquet.read_schema(part["impressions"]).names
        kept = [name for name in names if name.startswith(_KEPT)]
        rows = parquet.read_table(part["impressions"], columns=kept)
        return rows.rename_columns([name.removeprefix(_KEPT) for name in kept])

    def _kept_values(self, loaded):
        events, key = self._spec.impressions, self._key("impressions")
        kept = {name: f"e.{tables.column(name)}" for name in (events.user, events.time)}
        if events.request:
            kept[events.request] = f"coalesce(e.{tables.column(events.request)}::VARCHAR, '')"
        kept[key.column] = self._value(key, loaded)
        # Records always have a label; here it means nothing.
        return {LABEL: "0::FLOAT", **{_KEPT + name: value for name, value in kept.items()}}
