"""From TFRecord shards to `tf.data` of (features, label, weight), resumable at any batch."""

import dataclasses
import json
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tfrec_diffusion.schema import FILE_NAME, GROUP_ID, LABEL, PADDING, Schema


@dataclasses.dataclass(frozen=True)
class Shard:
    """A TFRecord file and its number of records."""

    path: str
    records: int


class Order(NamedTuple):
    """What an epoch reads one after the other: all of it that differs from epoch to epoch.

    Of tensors, so that a `tf.function` with this argument is traced once for all epochs.

    Args:
        paths: string (shards,).
        starts: int64 (shards,), positions of the files' first records, ascending. Those before 0
            are not read.
        records: int64 (), how many are read from position 0 on.
        key: int64 () by which records are permuted in windows; `None`: they are not.
    """

    paths: tf.Tensor
    starts: tf.Tensor
    records: tf.Tensor
    key: tf.Tensor | None

    def part(self, index, parts):
        """The part from record `records * index // parts` to `records * (index + 1) // parts`.

        Its windows are its own, and no other part has its key.
        """
        begin, end = (self.records * i // parts for i in (index, index + 1))
        # Windows are permuted by their key and the next, see `_records`.
        key = None if self.key is None else self.key + 2 * index
        return Order(self.paths, self.starts - begin, end - begin, key)


def find_prepared(data_dir, dataset):
    """Directory of the newest version of a prepared data set.

    Args:
        data_dir: Directory of prepared data sets.
        dataset: Name, as `taobao` or `logs/kuairand`.

    Raises:
        FileNotFoundError: If there is none.
    """
    versions = pathlib.Path(data_dir, dataset).glob(f"[0-9]*/{FILE_NAME}")
    numbered = [(tuple(map(int, path.parent.name.split("."))), path.parent) for path in versions]
    if not numbered:
        raise FileNotFoundError(
            f"no prepared data set in {pathlib.Path(data_dir, dataset)}: expected what "
            f"`python -m tfrec_diffusion.prepare --dataset={dataset.split('/')[0]} "
            f"--data_dir={data_dir}` writes"
        )
    return max(numbered)[1]


class RequestData:
    """A prepared data set.

    Args:
        directory: As `python -m tfrec_diffusion.prepare` wrote it.
        history_length: Newest behaviors to keep of each history; `None`: all.

    Attributes:
        schema: `Schema`, with that `history_length`.

    Raises:
        FileNotFoundError: If there is no prepared data set.
        ValueError: If `history_length` is longer than what was prepared.

    Example:

    >>> data = RequestData("data/synthetic/1.2.0")
    >>> model = models.create("din", schema=data.schema)
    >>> model.compile(LazyAdam(), LogLoss(), weighted_metrics=[keras.metrics.AUC(name="auc")])
    >>> model.fit(data.batches("train", shuffle_seed=0), validation_data=data.batches("validation"))
    """

    def __init__(self, directory, history_length=None):
        schema = Schema.load(directory)
        if history_length is not None:
            if not 1 <= history_length <= schema.history_length:
                raise ValueError(
                    f"`history_length` must be in [1, {schema.history_length}], what {directory} "
                    f"was prepared with. Received: history_length={history_length}"
                )
            schema = dataclasses.replace(schema, history_length=history_length)
        # Absolute, because workers elsewhere may have other working directories.
        self.directory = pathlib.Path(directory).absolute()
        self.schema = schema
        if not (self.directory / "dataset_info.json").exists():
            raise FileNotFoundError(
                f"{directory} has a schema but no records: expected a directory written by "
                "`python -m tfrec_diffusion.prepare`"
            )
        self._splits = tfds.builder_from_directory(str(directory)).info.splits
        self._report = json.loads((self.directory / "report.json").read_text())
        # Data sets of before there were groups do not say.
        self._by_request = self._report["options"].get("group_by") == "request"

    @property
    def splits(self):
        """Names of the splits."""
        return sorted(self._splits)

    def best_reachable(self, split):
        """Metrics of the true click probabilities, where a made data set knows them, else `None`.

        Returns:
            dict of `auc`, `gauc`, `log_loss`.
        """
        return self._report.get("best_reachable", {}).get(split)

    def shards(self, split):
        """The `Shard`s of a split, in order.

        Raises:
            ValueError: If there is no such split.
        """
        if split not in self._splits:
            raise ValueError(f"`split` must be one of {self.splits}. Received: {split!r}")
        info = self._splits[split]
        return [
            Shard(str(path), records)
            for path, records in zip(info.filepaths, info.shard_lengths, strict=True)
        ]

    def num_requests(self, split):
        """Records of a split."""
        return sum(shard.records for shard in self.shards(split))

    def num_batches(self, split, batch_size):
        """Steps of one epoch; the last batch may be smaller."""
        return -(-self.num_requests(split) // batch_size)

    def order(self, split, shuffle_seed=None, epoch=0):
        """The `Order` of an epoch; arguments as of `batches`.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If there is no such split.
        """
        shards = self.shards(split)
        for shard in shards:
            if not pathlib.Path(shard.path).exists():
                raise FileNotFoundError(f"{shard.path} is missing: prepare the data set again")
        key = None
        if shuffle_seed is not None:
            seed = (shuffle_seed, epoch)
            shards = [shards[i] for i in np.random.default_rng(seed).permutation(len(shards))]
            key = tf.constant(np.random.default_rng(seed).integers(2**31), tf.int64)
        ends = np.cumsum([shard.records for shard in shards])
        return Order(
            tf.constant([shard.path for shard in shards]),
            tf.constant([0, *ends[:-1]], tf.int64),
            tf.constant(ends[-1], tf.int64),
            key,
        )

    def batches(
        self,
        split,
        batch_size=256,
        *,
        shuffle_seed=None,
        epoch=0,
        first_batch=0,
        shuffle_window=16384,
        with_group_id=False,
        input_context=None,
    ):
        """One epoch.

        The order is a function of the arguments alone: batch i of a call with `first_batch=k` is
        batch k + i of the same call with 0. What lies before is skipped by whole shards.

        Args:
            split: One of `splits`.
            batch_size: Requests in a step of all replicas.
            shuffle_seed: `None`: the order of the files. Else the shards and then the records in
                windows are permuted by (`shuffle_seed`, `epoch`); preparing has shuffled the
                records among the shards already.
            epoch: Number of the epoch, from 0.
            first_batch: Steps to leave out.
            shuffle_window: Records permuted together. Of a data set prepared by request, those of
                a window with about as many candidates come into one batch, so that few are padded;
                the batches of a window are permuted, too.
            with_group_id: Adds the int64 (batch,) ids that GAUC groups by.
            input_context: `tf.distribute.InputContext` of a worker, as
                `strategy.distribute_datasets_from_function` passes it; `None`: one replica reads
                all. A worker reads the part of the epoch's order that is its own, to one record as
                many as every other, and as many steps: where its records run out, requests follow
                that are all padding, with every feature, label, weight and group id 0. A step of it
                is one batch for each of its replicas, all of the same size.

        Returns:
            `tf.data.Dataset` of (features, label, weight): a dict of int32 tensors as
            `Schema.keras_inputs`, and float32 (batch, candidates) twice; weight is 0 where
            a candidate is padding. As XLA compiles a model for each number of candidates, beyond
            8 there are only four from one power of two to the next.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If there is no such split, or `batch_size` is not a multiple of the
                number of replicas.
        """
        context = input_context or tf.distribute.InputContext()
        replicas, workers = context.num_replicas_in_sync, context.num_input_pipelines
        if batch_size % replicas:
            raise ValueError(
                f"`batch_size` must be a multiple of the number of replicas, {replicas}. "
                f"Received: batch_size={batch_size}"
            )
        part = self.order(split, shuffle_seed, epoch).part(context.input_pipeline_id, workers)
        steps = self.num_batches(split, batch_size) - first_batch
        records = self._records(part, batch_size // workers, first_batch, shuffle_window)
        if input_context is not None:
            padding = tf.data.Dataset.from_tensors(_padding(self.schema)).repeat()
            records = records.concatenate(padding).take(steps * batch_size // workers)
        return (
            # Filled up, none is dropped, and the size is static.
            records.batch(batch_size // replicas, drop_remainder=input_context is not None)
            .map(lambda batch: self._parse(batch, with_group_id), tf.data.AUTOTUNE)
            .apply(tf.data.experimental.assert_cardinality(steps * replicas // workers))
            .prefetch(tf.data.AUTOTUNE)
        )

    def read(self, order, batch_size, first_batch=0, *, shuffle_window=16384, with_group_id=False):
        """The batches of an order, wherever it is read.

        Args:
            order: `Order` of a split, whose tensors may be symbolic: in a `tf.function`.
            first_batch: Batches to leave out, an integer or a scalar tensor.
            batch_size, shuffle_window, with_group_id: As of `batches`.

        Returns:
            `tf.data.Dataset` of what `batches` gives.
        """
        records = self._records(order, batch_size, first_batch, shuffle_window)
        return records.batch(batch_size).map(
            lambda batch: self._parse(batch, with_group_id), tf.data.AUTOTUNE
        )

    def _records(self, order, step, first_step, window):
        """Serialized records from step `first_step` of `step` records on, permuted in windows."""
        start = tf.cast(first_step, tf.int64) * step
        first = start if order.key is None else start // window * window
        shard = tf.searchsorted(order.starts, [first], side="right")[0] - 1
        records = (
            tf.data.TFRecordDataset(order.paths[shard:], buffer_size=8 << 20)
            .skip(first - order.starts[shard])
            # Of a negative number `take` takes all.
            .take(tf.maximum(order.records - first, 0))
        )
        if order.key is None:
            return records

        def permuted(number, batch):
            batch = tf.random.experimental.stateless_shuffle(batch, seed=[order.key, number])
            if not self._by_request:
                return batch
            return _by_candidates(batch, step, seed=[order.key + 1, number])

        windows = records.batch(window).enumerate(first // window)
        return windows.map(permuted).prefetch(1).unbatch().skip(start - first)

    def _parse(self, records, with_group_id):
        schema = self.schema
        parsed = tf.io.parse_example(records, schema.record_spec())
        most = tf.reduce_max(tf.strings.length(parsed[LABEL])) // tf.float32.size
        candidates = _padded_candidates(tf.maximum(most, 1))
        features = {}
        for feature in schema.features:
            value = parsed[feature.name]
            if feature.group == "candidate":
                value = _decode(value, tf.int32, candidates)
            elif feature.group in ("history", "behavior"):
                length = schema.history_length
                value = _decode(_newest(value, length), tf.int32, length)
            features[feature.name] = tf.cast(value, tf.int32)
        label = _decode(parsed[LABEL], tf.float32, candidates)
        weight = tf.cast(tf.not_equal(features[schema.candidate_key], PADDING), tf.float32)
        if with_group_id:
            return features, label, weight, parsed[GROUP_ID]
        return features, label, weight


def _padding(schema):
    """A serialized record without candidates and behaviors, and 0 in all else."""
    empty = {
        tf.string: tf.train.Feature(bytes_list=tf.train.BytesList(value=[b""])),
        tf.int64: tf.train.Feature(int64_list=tf.train.Int64List(value=[0])),
    }
    features = {name: empty[spec.dtype] for name, spec in schema.record_spec().items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _by_candidates(records, size, seed):
    """Records in order of their numbers of candidates, then runs of `size` of them permuted."""
    labels = tf.io.parse_example(records, {LABEL: tf.io.FixedLenFeature((), tf.string)})[LABEL]
    order = tf.argsort(tf.strings.length(labels), stable=True)
    whole = tf.size(order) // size * size
    groups = tf.reshape(order[:whole], (-1, size))
    groups = tf.random.experimental.stateless_shuffle(groups, seed)
    return tf.gather(records, tf.concat([tf.reshape(groups, [-1]), order[whole:]], axis=0))


def _padded_candidates(most):
    """The least of the numbers that batches have which is not below `most`."""
    power = tf.math.log(tf.cast(tf.maximum(most - 1, 1), tf.float64)) / np.log(2.0)
    # A power of two may come out a rounding error below itself.
    unit = 2 ** tf.maximum(tf.cast(tf.floor(power + 1e-9), tf.int32) - 2, 0)
    return -(-most // unit) * unit


def _newest(value, length):
    """The last `length` int32 of each string of bytes."""
    size = tf.strings.length(value)
    kept = tf.minimum(size, length * tf.int32.size)
    return tf.strings.substr(value, size - kept, kept)


def _decode(value, dtype, length):
    """(batch,) strings of bytes to (batch, length), padded with 0 on the right."""
    return tf.io.decode_raw(value, dtype, fixed_length=length * dtype.size)
