"""Reads TFRecord shards as a `tf.data.Dataset` of (features, label, weight), from any batch on."""

import contextlib
import dataclasses
import math
import pathlib
import re
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfrec_diffusion.prepared_directory import PreparedDirectory
from tfrec_diffusion.row_maps import row_maps
from tfrec_diffusion.schema import GROUP_ID, LABEL, PADDING, WEIGHT, Schema, label_key


@dataclasses.dataclass(frozen=True)
class Shard:
    """A TFRecord file.

    Args:
        path: str. Path of the file.
        records: int. Number of its records.
    """

    path: str
    records: int


class Order(NamedTuple):
    """The order in which an epoch reads records: all that differs from one epoch to the next.

    It consists of tensors, so that a `tf.function` that takes it is traced once for all epochs.

    Args:
        paths: string tensor of shape (shards,). Files in the order in which they are read.
        starts: int64 tensor of shape (shards,). Position of each file's first record, ascending.
            Records at positions below 0 are not read.
        records: int64 scalar tensor. Number of records that are read, from position 0 on.
        key: int64 scalar tensor or `None`. Seed of the permutation of records within windows. If
            `None`, records are not permuted.
    """

    paths: tf.Tensor
    starts: tf.Tensor
    records: tf.Tensor
    key: tf.Tensor | None

    def part(self, index, parts):
        """One of several equal parts, such as what one worker reads.

        A part has windows and a key of its own.

        Args:
            index: int. Number of the part, from 0.
            parts: int. How many parts there are. To one record, all are equally long.

        Returns:
            `Order` of the records from `records * index // parts` to
            `records * (index + 1) // parts`.
        """
        begin, end = (self.records * i // parts for i in (index, index + 1))
        # Windows are permuted by their key and the next, see `_records`.
        key = None if self.key is None else self.key + 2 * index
        return Order(self.paths, self.starts - begin, end - begin, key)


def replica_batch_size(batch_size, replicas):
    """Requests of a step for each replica.

    Args:
        batch_size: int. Requests in a step of all replicas.
        replicas: int. Number of replicas.

    Returns:
        int.

    Raises:
        ValueError: If `batch_size` is not a multiple of `replicas`.
    """
    if batch_size % replicas:
        raise ValueError(
            f"`batch_size` must be a multiple of the number of replicas, {replicas}. "
            f"Received: batch_size={batch_size}"
        )
    return batch_size // replicas


class RequestData:
    """Reads the requests of a prepared data set.

    Args:
        directory: str or `pathlib.Path`. Directory that `python -m tfrec_diffusion.prepare` wrote.
        history_length: int or `None`. How many behaviors of each history to read, the newest ones.
            If `None`, all of them. Defaults to `None`.
        label: str. Name of the label to read, one of `Schema.labels`, or `""` for the first one.
            Defaults to `""`.
        read_as: `Schema` or `None`. The schema of a trained model, with its vocabularies. Values
            get the rows that they have there, and those that it does not know are out of
            vocabulary. If `None`, values have the rows that they were prepared with. Defaults to
            `None`.

    Attributes:
        directory: `pathlib.Path`, absolute.
        schema: `Schema` with that `history_length`.
        row_maps: dict of arrays by table, see `row_maps.row_maps`; empty unless `read_as` has other
            vocabularies.

    Raises:
        FileNotFoundError: If there is no prepared data set.
        ValueError: If `history_length` is longer than what was prepared, there is no such label, or
            `read_as` is of other data.

    Example:

    >>> data = RequestData("data/synthetic/1.2.0")
    >>> model = models.create("din", schema=data.schema)
    >>> model.compile(LazyAdam(), LogLoss(), weighted_metrics=[keras.metrics.AUC(name="auc")])
    >>> model.fit(data.batches("train", shuffle_seed=0), validation_data=data.batches("validation"))
    """

    def __init__(self, directory, history_length=None, label="", read_as=None):
        schema = Schema.load(directory)
        if label not in ("", *schema.labels):
            raise ValueError(
                f"`label` must be one of {list(schema.labels)}, or '' for the first one of "
                f"{directory}. Received: {label!r}"
            )
        if history_length is not None:
            if not 1 <= history_length <= schema.history_length:
                raise ValueError(
                    f"`history_length` must be in [1, {schema.history_length}], what {directory} "
                    f"was prepared with. Received: history_length={history_length}"
                )
            schema = dataclasses.replace(schema, history_length=history_length)
        self.row_maps = {}
        if read_as is not None:
            self.row_maps = row_maps(schema, read_as)
            schema = dataclasses.replace(
                read_as,
                history_length=schema.history_length,
                labels=schema.labels,
                weighted=schema.weighted,
            )
        prepared = PreparedDirectory(directory)
        self.directory = prepared.path
        self.schema = schema
        self._label = label_key(label)
        self._splits = prepared.splits()
        self._report = prepared.report
        # Data sets of before there were groups do not say.
        self._by_request = self._report["options"].get("group_by") == "request"

    @property
    def splits(self):
        """list of str. Names of the splits, sorted."""
        return sorted(self._splits)

    def best_reachable(self, split):
        """Metrics of the true click probabilities, which a synthetic data set knows.

        Args:
            split: str. One of `splits`.

        Returns:
            dict of floats `auc`, `gauc` and `log_loss`; `None` if they are not known.
        """
        return self._report.get("best_reachable", {}).get(split)

    def oracles(self, split):
        """Metrics of the best predictions from what can be known, which `planted` knows.

        Args:
            split: str. One of `splits`.

        Returns:
            dict by oracle of dicts of floats `auc`, `gauc` and `log_loss`; `None` if they are not
            known.
        """
        return self._report.get("oracles", {}).get(split)

    def shards(self, split):
        """The files of a split.

        Args:
            split: str. One of `splits`.

        Returns:
            list of `Shard`s, in order.

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

    @contextlib.contextmanager
    def naming_damage(self, split):
        """Makes errors of damaged files name the file, which those of TensorFlow do not.

        Args:
            split: str. What is read in the `with` block.

        Raises:
            OSError: In the place of TensorFlow's error, if a file of the split is damaged or does
                not have its records.
        """
        try:
            yield
        except (tf.errors.DataLossError, tf.errors.FailedPreconditionError) as error:
            for shard in self.shards(split):
                damage = _damage(shard)
                if damage:
                    raise OSError(f"{shard.path} {damage}: prepare the data set again") from error
            raise

    def num_requests(self, split):
        """Number of requests in a split.

        Args:
            split: str. One of `splits`.

        Returns:
            int.
        """
        return sum(shard.records for shard in self.shards(split))

    def num_batches(self, split, batch_size):
        """Number of steps in an epoch, the last of which may have fewer requests.

        Args:
            split: str. One of `splits`.
            batch_size: int. Requests in a step of all replicas.

        Returns:
            int.
        """
        return -(-self.num_requests(split) // batch_size)

    def order(self, split, shuffle_seed=None, epoch=0):
        """The order in which an epoch reads a split.

        Args:
            split: str. One of `splits`.
            shuffle_seed: int or `None`. As in `batches`. Defaults to `None`.
            epoch: int. As in `batches`. Defaults to `0`.

        Returns:
            `Order`.

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
        """The batches of one epoch.

        Their order depends on nothing but the arguments: batch i of a call with `first_batch=k` is
        batch k + i of the same call with `first_batch=0`. Whole shards before it are not opened.

        Args:
            split: str. One of `splits`.
            batch_size: int. Requests in a step of all replicas. Defaults to `256`.
            shuffle_seed: int or `None`. Seed that, with `epoch`, permutes the shards and then the
                records within windows; preparation has already shuffled the records among the
                shards. If `None`, records come in the order of the files. Defaults to `None`.
            epoch: int. Number of the epoch, from 0. Defaults to `0`.
            first_batch: int. Number of steps to leave out at the beginning. Defaults to `0`.
            shuffle_window: int. Number of records that are permuted together. If the data set was
                prepared with `group_by="request"`, the records of a window are sorted into batches
                with similar numbers of candidates, so that few candidates are padding, and then
                the batches of the window are permuted. Defaults to `16384`.
            with_group_id: bool. Whether to add the ids that GAUC groups by. Defaults to `False`.
            input_context: `tf.distribute.InputContext` or `None`. Tells a worker apart, as
                `strategy.distribute_datasets_from_function` passes it. Each worker reads its own
                part of the epoch's order, and each of its steps is one batch of the same size for
                each of its replicas. The parts differ by one record at most, and all workers take
                equally many steps: when a worker has no more records, it gets requests that are all
                padding, with 0 in every feature, label, weight and group id. If `None`, one replica
                reads everything. Defaults to `None`.

        Returns:
            `tf.data.Dataset` of (features, label, weight) or, with `with_group_id`, (features,
            label, weight, group_id). `features` is a dict of int32 and float32 tensors as in
            `Schema.keras_inputs`. `label` and `weight` are float32 tensors of shape (batch,
            candidates); the weight is 0 where a candidate is padding, and 1 elsewhere unless the
            data set has weights. `group_id` is an int64 tensor of shape (batch,). XLA compiles a
            model once for each number of candidates, so batches are padded to few numbers: beyond
            8, four from one power of two to the next.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If there is no such split, or `batch_size` is not a multiple of the
                number of replicas.
        """
        context = input_context or tf.distribute.InputContext()
        replicas, workers = context.num_replicas_in_sync, context.num_input_pipelines
        size = replica_batch_size(batch_size, replicas)
        part = self.order(split, shuffle_seed, epoch).part(context.input_pipeline_id, workers)
        steps = self.num_batches(split, batch_size) - first_batch
        records = self._records(part, batch_size // workers, first_batch, shuffle_window)
        if input_context is not None:
            padding = tf.data.Dataset.from_tensors(padding_record(self.schema)).repeat()
            records = records.concatenate(padding).take(steps * batch_size // workers)
        return (
            # Filled up, none is dropped, and the size is static.
            records.batch(size, drop_remainder=input_context is not None)
            .map(lambda batch: self._parse(batch, with_group_id), tf.data.AUTOTUNE)
            .apply(tf.data.experimental.assert_cardinality(steps * replicas // workers))
            .prefetch(tf.data.AUTOTUNE)
        )

    def read(self, order, batch_size, first_batch=0, *, shuffle_window=16384, with_group_id=False):
        """The batches of an order, which may be read inside a `tf.function`.

        Args:
            order: `Order`. The order of a split, of tensors that may be symbolic.
            batch_size: int. Requests in a batch.
            first_batch: int or integer scalar tensor. Number of batches to leave out at the
                beginning. Defaults to `0`.
            shuffle_window: int. As in `batches`. Defaults to `16384`.
            with_group_id: bool. As in `batches`. Defaults to `False`.

        Returns:
            `tf.data.Dataset` of the same elements as that of `batches`.
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
        # A file that has lost its last records looks like a whole one.
        whole = tf.data.experimental.assert_cardinality(tf.maximum(order.records - start, 0))
        if order.key is None:
            return records.apply(whole)

        def permuted(number, batch):
            batch = tf.random.experimental.stateless_shuffle(batch, seed=[order.key, number])
            if not self._by_request:
                return batch
            return _by_candidates(batch, step, seed=[order.key + 1, number])

        windows = records.batch(window).enumerate(first // window)
        return windows.map(permuted).prefetch(1).unbatch().skip(start - first).apply(whole)

    def _parse(self, records, with_group_id):
        batch = parse(self.schema, records, self._label)
        features = {}
        for feature in self.schema.features:
            value, rows = batch[0][feature.name], self.row_maps.get(feature.table)
            features[feature.name] = value if rows is None else tf.gather(rows, value)
        return (features, *batch[1:]) if with_group_id else (features, *batch[1:3])


def parse(schema, records, label=LABEL):
    """Parses prepared requests.

    Args:
        schema: `Schema`.
        records: string tensor of shape (batch,). Serialized records.
        label: str. Which of `Schema.targets` is the label. Defaults to `LABEL`.

    Returns:
        Tuple of features, label, weight and group id, as `RequestData.batches` has them.
    """
    parsed = tf.io.parse_example(records, schema.record_spec())
    most = tf.reduce_max(tf.strings.length(parsed[LABEL])) // tf.float32.size
    candidates = _padded_candidates(tf.maximum(most, 1))
    features = {}
    for feature in schema.features:
        value = parsed[feature.name]
        if schema.is_scalar(feature):
            features[feature.name] = tf.cast(value, tf.int32)
            continue
        entry, dtype = schema.entry_shape(feature), tf.as_dtype(schema.input_dtype(feature))
        if feature.group == "candidate":
            shape = (candidates, *entry)
        elif feature.group in ("history", "behavior"):
            shape = (schema.history_length, *entry)
            value = _newest(value, schema.history_length * math.prod(entry))
        else:
            shape = entry
        features[feature.name] = _decode(value, dtype, *shape)
    labels = _decode(parsed[label], tf.float32, candidates)
    weight = tf.cast(tf.not_equal(features[schema.candidate_key], PADDING), tf.float32)
    if schema.weighted:
        weight *= _decode(parsed[WEIGHT], tf.float32, candidates)
    return features, labels, weight, parsed[GROUP_ID]


def _damage(shard):
    """What is wrong with a file, or `None`; reads all of it."""
    try:
        batches = tf.data.TFRecordDataset(shard.path, buffer_size=8 << 20).batch(1024)
        records = sum(len(batch) for batch in batches)
    except tf.errors.DataLossError as error:
        where = re.search(r"\w+ record at \d+", error.message)
        return f"is damaged ({where.group() if where else error.message})"
    if records != shard.records:
        return f"has {records:,} records in the place of {shard.records:,}"
    return None


def padding_record(schema):
    """A serialized record without candidates and behaviors, with 0 for everything else.

    Args:
        schema: `Schema`.

    Returns:
        bytes.
    """
    empty = {
        tf.string: tf.train.Feature(bytes_list=tf.train.BytesList(value=[b""])),
        tf.int64: tf.train.Feature(int64_list=tf.train.Int64List(value=[0])),
    }
    features = {name: empty[spec.dtype] for name, spec in schema.record_spec().items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _by_candidates(records, size, seed):
    """Sorts records by their numbers of candidates, and permutes runs of `size` of them."""
    labels = tf.io.parse_example(records, {LABEL: tf.io.FixedLenFeature((), tf.string)})[LABEL]
    order = tf.argsort(tf.strings.length(labels), stable=True)
    whole = tf.size(order) // size * size
    groups = tf.reshape(order[:whole], (-1, size))
    groups = tf.random.experimental.stateless_shuffle(groups, seed)
    return tf.gather(records, tf.concat([tf.reshape(groups, [-1]), order[whole:]], axis=0))


def _padded_candidates(most):
    """The number of candidates to which a batch with at most `most` of them is padded."""
    power = tf.math.log(tf.cast(tf.maximum(most - 1, 1), tf.float64)) / np.log(2.0)
    # A power of two may come out a rounding error below itself.
    unit = 2 ** tf.maximum(tf.cast(tf.floor(power + 1e-9), tf.int32) - 2, 0)
    return -(-most // unit) * unit


def _newest(value, length):
    """The last `length` numbers of each string of bytes."""
    size = tf.strings.length(value)
    kept = tf.minimum(size, length * tf.int32.size)  # float32 is as long
    return tf.strings.substr(value, size - kept, kept)


def _decode(value, dtype, *shape):
    """(batch,) strings of bytes to (batch, *shape), padded with 0 on the right."""
    decoded = tf.io.decode_raw(value, dtype, fixed_length=math.prod(shape) * dtype.size)
    return tf.reshape(decoded, (-1, *shape)) if len(shape) != 1 else decoded
