"""Raw values of a request to rows of the embedding tables, inside the graph."""

import math

import tensorflow as tf

from tfrec_diffusion.schema import FIRST_INDEX, OUT_OF_VOCABULARY, PADDING


class RequestLookup(tf.Module):
    """The preparation's encoding of raw values as TensorFlow operations, for a SavedModel.

    Args:
        schema: `Schema`. It has the `directory` of its vocabularies, which become assets.

    Raises:
        FileNotFoundError: If a vocabulary file is missing.
        ValueError: If one has more or fewer values than its table.
    """

    def __init__(self, schema):
        super().__init__()
        self.schema = schema
        self.vocabularies = {
            table.name: _vocabulary(schema.vocabulary_path(table), table)
            for table in schema.tables
            if table.kind == "vocabulary" and table.rows > FIRST_INDEX
        }

    def __call__(self, raw):
        """Looks a request up, or some groups of its features.

        Args:
            raw: dict of tensors as `Schema.serving_signature`; histories are padded with the
                table's `missing` value, and may be longer than the schema's.

        Returns:
            dict of int32 and float32 tensors as `Schema.keras_inputs`, with the newest behaviors of
            a history that is too long, and one padded behavior of one that has none.

        Raises:
            tf.errors.InvalidArgumentError: When run, if features differ in how many requests,
                candidates or behaviors they have.
        """
        schema = self.schema
        given = [feature for feature in schema.features if feature.name in raw]
        with tf.control_dependencies(_same_shapes(schema, raw, given)):
            rows = {f.name: self._rows(f, raw[f.name]) for f in given}
        if schema.history_key in rows:
            newest = _newest(rows[schema.history_key], schema.history_length)
            for feature in schema.group("history", "behavior"):
                value = rows[feature.name]
                padded = tf.pad(value, [[0, 0], [0, 1], *[[0, 0]] * (len(value.shape) - 2)])
                rows[feature.name] = tf.gather(padded, newest, batch_dims=1)
        return rows

    def _rows(self, feature, raw):
        table = self.schema.table(feature.table)
        raw = tf.convert_to_tensor(raw, table.dtype)
        if feature.values > 1:
            raw = raw[..., : feature.values]  # as many as training saw
        if table.is_numeric:
            return tf.where(tf.math.is_finite(raw), raw, math.nan)
        if table.rows == FIRST_INDEX:  # training saw no value; TensorFlow reads no empty file
            rows = tf.fill(tf.shape(raw), OUT_OF_VOCABULARY)
        elif table.kind == "boundaries":
            boundaries = tf.constant(table.boundaries, tf.float32)
            flat = tf.searchsorted(boundaries, tf.reshape(raw, [-1]), side="right")
            rows = FIRST_INDEX + tf.reshape(flat, tf.shape(raw))
        elif table.kind == "hash":
            text = raw if table.dtype == "string" else tf.strings.as_string(raw)
            rows = FIRST_INDEX + tf.strings.to_hash_bucket_fast(text, table.rows - FIRST_INDEX)
        else:
            rows = self.vocabularies[table.name].lookup(raw)
        missing = tf.math.is_nan(raw) if table.dtype == "float32" else tf.equal(raw, table.missing)
        rows = tf.ensure_shape(tf.cast(rows, tf.int32), raw.shape)
        return tf.where(missing, PADDING, rows)


def _same_shapes(schema, raw, features):
    """Checks that there are as many requests of all features, and lists of a group are as long.

    What broadcasts would give scores, of something else than was asked for.
    """
    checks = []
    for feature in features:
        name, key = feature.name, schema.key_of(feature)
        if key in (None, name):
            key, axes, what = features[0].name, 1, "as many requests"
        else:
            axes, what = 2, "the shape"
        shape, expected = (tf.shape(raw[x])[:axes] for x in (name, key))
        checks.append(
            tf.debugging.assert_equal(shape, expected, f"`{name}` must have {what} of `{key}`")
        )
    return checks


def _vocabulary(path, table):
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(f"{path} is missing: expected the vocabulary of {table.name!r}")
    # A text may hold the delimiter of columns; a number cannot be read as a whole line.
    whole_line = table.dtype == "string"
    initializer = tf.lookup.TextFileInitializer(
        path,
        key_dtype=table.dtype,
        key_index=tf.lookup.TextFileIndex.WHOLE_LINE if whole_line else 0,
        value_dtype=tf.int64,
        value_index=tf.lookup.TextFileIndex.LINE_NUMBER,
        value_index_offset=FIRST_INDEX,
    )
    lookup = tf.lookup.StaticHashTable(initializer, default_value=OUT_OF_VOCABULARY)
    values = int(lookup.size())
    if values != table.rows - FIRST_INDEX:
        raise ValueError(
            f"{path} must hold the {table.rows - FIRST_INDEX} values of the table {table.name!r}. "
            f"Received: {values}"
        )
    return lookup


def _newest(key_rows, limit):
    """Positions of the newest real behaviors of each history, oldest first, (batch, 1 to limit).

    Where there are fewer, those after them lie behind the end. Models expect padding on the right;
    clients may have it anywhere.
    """
    counts = tf.cumsum(tf.cast(tf.not_equal(key_rows, PADDING), tf.int32), axis=1)
    used = tf.reduce_max(tf.pad(counts, [[0, 0], [0, 1]]), axis=1, keepdims=True)
    length = tf.clip_by_value(tf.shape(key_rows)[1], 1, limit)
    wanted = tf.maximum(used - limit, 0) + tf.range(1, length + 1)
    return tf.raw_ops.LowerBound(sorted_inputs=counts, values=wanted)
