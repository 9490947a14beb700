"""The schema of a request, from which everything that parses, embeds or serves one is derived.

`schema.json` lies beside the records of a prepared data set and is copied to every trained model.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import re

import keras
import tensorflow as tf

GROUPS = ("user", "context", "candidate", "history", "behavior")
PADDING, OUT_OF_VOCABULARY, FIRST_INDEX = 0, 1, 2
LABEL, GROUP_ID = "label", "group_id"
# Entry of a record with a weight of each candidate. No feature can have the name.
WEIGHT = "impression weight"
FILE_NAME = "schema.json"

_RAW_DTYPES = {
    "vocabulary": ("int64", "string"),
    "hash": ("int64", "string"),
    "boundaries": ("float32",),
    "number": ("float32",),
    "vector": ("float32",),
}
# Kinds of tables whose values are numbers that are not looked up.
NUMERIC = ("number", "vector")
_MISSING = {"int64": -1, "string": "", "float32": math.nan}


def _check_name(name):
    # A name is a file's and a Keras layer's; layers of models have a dot in theirs.
    if not re.fullmatch(r"[A-Za-z0-9_\-]+", name):
        raise ValueError(f"`name` must be of letters, digits, '_' and '-'. Received: {name!r}")


@dataclasses.dataclass(frozen=True)
class Table:
    """An embedding table, and how a raw value becomes one of its rows.

    Tables of the kinds `"number"` and `"vector"` have no rows for values: numbers are mapped to the
    embedding as they are, see `layers.NumberEmbedding`.

    Args:
        name: str. Unique name of letters, digits, `_` and `-`.
        kind: str. How a raw value finds its row. `"vocabulary"`: the value in line i (from 0) of
            `vocabularies/<name>.txt` has row 2 + i. `"hash"`: a value has row
            2 + Fingerprint64(value as text) mod (rows - 2), and there is no file. `"boundaries"`:
            a number x has row 2 + (how many of `boundaries` are <= x). `"number"`: a number is not
            looked up. `"vector"`: neither is a list of `width` numbers, such as the embedding of an
            image or a text.
        dtype: str. Type of the raw values: `"int64"` or `"string"`, and `"float32"` for the kinds
            of numbers.
        rows: int. Number of rows, including row 0 (padding or missing) and row 1 (out of
            vocabulary); 2 for the kinds `"number"` and `"vector"`.
        dim: int. Width of an embedding. Defaults to `8`.
        boundaries: tuple of floats. Increasing numbers, for the kind `"boundaries"` only. Defaults
            to `()`.
        tiers: tuple of ints. Of a vocabulary that is sorted by popularity in training: the rows at
            which the second, third and further tiers of popularity start. Row 1, out of
            vocabulary, belongs to the last tier. Defaults to `()`, which is one tier.
        width: int. How many numbers a value of the kind `"vector"` has; 0 for other kinds. Defaults
            to `0`.
        mean: float. Of the numbers in training, for the kind `"number"`. Defaults to `0.0`.
        deviation: float. Their standard deviation; for the kind `"vector"`, the root mean square of
            its components in training. Defaults to `1.0`.

    Raises:
        ValueError: If an argument is wrong, or does not go with `kind`.
    """

    name: str
    kind: str
    dtype: str
    rows: int
    dim: int = 8
    boundaries: tuple[float, ...] = ()
    tiers: tuple[int, ...] = ()
    width: int = 0
    mean: float = 0.0
    deviation: float = 1.0

    def __post_init__(self):
        if self.kind not in _RAW_DTYPES:
            raise ValueError(f"`kind` must be one of {list(_RAW_DTYPES)}. Received: {self.kind!r}")
        if self.dtype not in _RAW_DTYPES[self.kind]:
            raise ValueError(
                f"`dtype` of a {self.kind} table must be one of {_RAW_DTYPES[self.kind]}. "
                f"Received: {self.dtype!r} (table {self.name!r})"
            )
        _check_name(self.name)
        if not FIRST_INDEX <= self.rows < 2**31:
            raise ValueError(
                f"`rows` must be in [2, 2**31). Received: {self.rows} (table {self.name!r})"
            )
        if self.is_numeric and self.rows != FIRST_INDEX:
            raise ValueError(
                f"`rows` must be {FIRST_INDEX} for the kind {self.kind!r}. Received: {self.rows} "
                f"(table {self.name!r})"
            )
        if (self.width > 0) != (self.kind == "vector"):
            raise ValueError(
                "`width` must be positive for the kind 'vector', and 0 for others. "
                f"Received: {self.width} (table {self.name!r}, kind {self.kind!r})"
            )
        if not self.deviation > 0 or not math.isfinite(self.mean):
            raise ValueError(
                "`mean` must be finite and `deviation` positive. "
                f"Received: {self.mean}, {self.deviation} (table {self.name!r})"
            )
        if not isinstance(self.dim, int) or self.dim < 1:
            raise ValueError(
                f"`dim` must be a positive integer. Received: {self.dim!r} (table {self.name!r})"
            )
        object.__setattr__(self, "boundaries", tuple(self.boundaries))
        object.__setattr__(self, "tiers", tuple(self.tiers))
        if self.tiers and self.kind != "vocabulary":
            raise ValueError(
                f"`tiers` are for a vocabulary. Received: {self.tiers} (table {self.name!r}, "
                f"kind {self.kind!r})"
            )
        # Equal ones are right: a value may be so popular that it fills more than one tier.
        if sorted((FIRST_INDEX, *self.tiers)) != [FIRST_INDEX, *self.tiers]:
            raise ValueError(
                f"`tiers` must be rows from {FIRST_INDEX} on, none below the one before it. "
                f"Received: {self.tiers} (table {self.name!r})"
            )

    @property
    def is_numeric(self):
        """bool. Whether its values are numbers that are not looked up."""
        return self.kind in NUMERIC

    @property
    def missing(self):
        """int, str or float. The raw value of row 0: it is sent for a missing value and pads raw
        tensors.
        """
        return _MISSING[self.dtype]


@dataclasses.dataclass(frozen=True)
class Feature:
    """A column of a request.

    Args:
        name: str. Unique name, which is the key in records, Keras inputs and serving requests.
        group: str. `"user"` or `"context"`: one value per request, of shape (batch,).
            `"candidate"`: of shape (batch, candidates). `"history"`: of shape (batch, length),
            oldest behavior first. `"behavior"`: of the same shape, for what is known of behaviors
            but of no candidate; it is not embedded, and models that use it look it up by name.
        table: str. Name of its table. A history feature has the table of the candidate (or context)
            feature that it is compared with.
        values: int. How many values an entry may have, such as the tags of an item. Their
            embeddings are averaged. With more than 1, the feature's shape has a last axis of up to
            so many values, padded with row 0. Defaults to `1`.

    Raises:
        ValueError: If the name is reserved, there is no such group, or `values` is not positive.
    """

    name: str
    group: str
    table: str
    values: int = 1

    def __post_init__(self):
        if self.group not in GROUPS:
            raise ValueError(f"`group` must be one of {GROUPS}. Received: {self.group!r}")
        _check_name(self.name)
        if self.name in (LABEL, GROUP_ID):
            raise ValueError(f"{self.name!r} is a reserved name, not one for a feature")
        if not isinstance(self.values, int) or self.values < 1:
            raise ValueError(
                f"`values` must be a positive integer. Received: {self.values!r} ({self.name!r})"
            )


@dataclasses.dataclass(frozen=True)
class Schema:
    """What a request holds.

    The first candidate feature and the first history feature are keys: a candidate or a behavior is
    real where its key is not 0, and padding elsewhere.

    Args:
        name: str. Name of the data set.
        features: sequence of `Feature`s. The features of a request, in the order that inputs and
            signatures have them.
        tables: sequence of `Table`s. The tables that the features name.
        history_length: int. Largest number of behaviors in a history.
        directory: str or `None`. Directory of `vocabularies/`, which export needs. It is not saved.
            Defaults to `None`.
        negative_rate: float. Share of the negatives (label 0) that the data set kept, in (0, 1],
            the same in every split. Defaults to `1.0`.
        labels: sequence of str. Names of the labels that candidates have beside the first one,
            which has no name. Defaults to `()`.
        weighted: bool. Whether each candidate has a weight in the loss and in the metrics, a
            positive number. Defaults to `False`, where each counts 1.

    Raises:
        ValueError: If the features and tables do not go together, or a number is out of its range.
    """

    name: str
    features: tuple[Feature, ...]
    tables: tuple[Table, ...]
    history_length: int
    directory: str | None = dataclasses.field(default=None, compare=False)
    negative_rate: float = 1.0
    labels: tuple[str, ...] = ()
    weighted: bool = False

    def __post_init__(self):
        for name in ("features", "tables", "labels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in self.labels:
            _check_name(name)
        for kind, names in (
            ("features", [f.name for f in self.features]),
            ("tables", [t.name for t in self.tables]),
            ("labels", self.labels),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"`{kind}` must have unique names. Received: {names}")
        if self.history_length < 1:
            raise ValueError(f"`history_length` must be positive. Received: {self.history_length}")
        if not 0 < self.negative_rate <= 1:
            raise ValueError(f"`negative_rate` must be in (0, 1]. Received: {self.negative_rate}")
        tables = {table.name for table in self.tables}
        for feature in self.features:
            if feature.table not in tables:
                raise ValueError(
                    f"feature {feature.name!r} names the table {feature.table!r}; "
                    f"there are {sorted(tables)}"
                )
        for group in ("candidate", "history"):
            if not self.group(group):
                raise ValueError(f"a schema needs at least one {group} feature")
        for feature in self.group("history"):
            self.target_of(feature)
        for feature in self.features:
            several = feature.values > 1
            if several and (feature.group == "behavior" or self.table(feature.table).is_numeric):
                raise ValueError(
                    f"feature {feature.name!r} must have one value, as it is "
                    f"{'numeric' if feature.group != 'behavior' else 'a behavior feature'}. "
                    f"Received: values={feature.values}"
                )
            is_key = feature.name in (self.candidate_key, self.history_key)
            if is_key and (several or self.table(feature.table).is_numeric):
                raise ValueError(
                    f"feature {feature.name!r}, the first of its group, must have one value that "
                    "is looked up: it tells real entries from padding"
                )
            if feature.group == "behavior" and self.table(feature.table).kind == "vector":
                raise ValueError(f"behavior feature {feature.name!r} must not be a vector")
        for feature in self.group("behavior"):
            if [f.table for f in self.features].count(feature.table) > 1:
                raise ValueError(
                    f"behavior feature {feature.name!r} must have a table of its own. "
                    f"Received: {feature.table!r}, which another feature has too"
                )

    def group(self, *groups):
        """The features of some groups, in the schema's order.

        Args:
            *groups: str. One or more of `GROUPS`.

        Returns:
            tuple of `Feature`s.
        """
        return tuple(f for f in self.features if f.group in groups)

    def table(self, name):
        """The table of a name.

        Args:
            name: str. Name of a table.

        Returns:
            `Table`.
        """
        return next(table for table in self.tables if table.name == name)

    def target_of(self, history_feature):
        """The feature that a history feature is compared with, because they share a table.

        Args:
            history_feature: `Feature`. A feature of the group `"history"`.

        Returns:
            `Feature` of the group `"candidate"`, or of `"context"` if no candidate feature has the
            table.

        Raises:
            ValueError: If there is none.
        """
        for group in ("candidate", "context"):
            for feature in self.group(group):
                if feature.table == history_feature.table:
                    return feature
        raise ValueError(
            f"history feature {history_feature.name!r} has the table {history_feature.table!r}, "
            "which no candidate or context feature shares"
        )

    def candidate_features_of_history(self):
        """Which history features can be compared with a feature of the candidates row by row.

        Returns:
            dict of the candidate feature's name by the history feature's name. Features of several
            values, numbers and vectors are left out.
        """
        looked_up = [f for f in self.group("history") if not self.table(f.table).is_numeric]
        pairs = [(f, self.target_of(f)) for f in looked_up]
        return {
            f.name: target.name
            for f, target in pairs
            if target.group == "candidate" and f.values == target.values == 1
        }

    @property
    def targets(self):
        """tuple of str. Entries of a record with a number for each candidate that is no feature:
        the labels, the first one first, and the weight if there are weights.
        """
        return targets(self.labels, self.weighted)

    @property
    def candidate_key(self):
        """str. Name of the feature that is 0 where a candidate is padding."""
        return self.group("candidate")[0].name

    @property
    def embedded_features(self):
        """tuple of `Feature`s. All features but those of the group `"behavior"`."""
        return self.group("user", "context", "candidate", "history")

    @property
    def history_key(self):
        """str. Name of the feature that is 0 where a behavior is padding."""
        return self.group("history")[0].name

    def key_of(self, feature):
        """The feature that tells the real entries of a feature's list from padding.

        Args:
            feature: `Feature`. Any feature of the schema.

        Returns:
            str, `history_key` or `candidate_key`; `None` for a user or context feature, which is no
            list.
        """
        if feature.group in ("history", "behavior"):
            return self.history_key
        return self.candidate_key if feature.group == "candidate" else None

    def with_dim(self, dim):
        """The same schema with another width of all embeddings.

        Args:
            dim: int or `None`. Width of every table. If `None`, widths stay as they are.

        Returns:
            `Schema`.
        """
        if dim is None:
            return self
        tables = tuple(dataclasses.replace(table, dim=dim) for table in self.tables)
        return dataclasses.replace(self, tables=tables)

    def digest(self):
        """Fingerprint of what the rows of the tables mean.

        Returns:
            str of hexadecimal digits. Two schemas whose digests are equal give the same raw value
            the same row.
        """
        config = self.get_config()
        meaning = hashlib.sha256(
            json.dumps([config["features"], config["tables"]], sort_keys=True).encode()
        )
        for table in self.tables:
            if table.kind == "vocabulary":
                meaning.update(pathlib.Path(self.vocabulary_path(table)).read_bytes())
        return meaning.hexdigest()

    # What is derived

    def entry_shape(self, feature):
        """Shape of one entry of a feature: of a request, a candidate or a behavior.

        Args:
            feature: `Feature`. Any feature of the schema.

        Returns:
            tuple of int: `()` for one value, `(values,)`, or `(width,)` of a vector.
        """
        if feature.values > 1:
            return (feature.values,)
        width = self.table(feature.table).width
        return (width,) if width else ()

    def input_dtype(self, feature):
        """Type of what a model takes for a feature.

        Args:
            feature: `Feature`. Any feature of the schema.

        Returns:
            str: `"int32"`, rows of its table, or `"float32"` for numbers that are not looked up.
        """
        return "float32" if self.table(feature.table).is_numeric else "int32"

    def record_spec(self):
        """Parse spec of a prepared record.

        Returns:
            dict of `tf.io.FixedLenFeature` by name. A list is a string of bytes: little-endian
            int32, or float32 for numbers and for `targets`. Entries of several numbers follow each
            other, each padded to its `entry_shape`.
        """
        spec = {name: tf.io.FixedLenFeature((), tf.string) for name in self.targets}
        spec[GROUP_ID] = tf.io.FixedLenFeature((), tf.int64)
        for feature in self.features:
            dtype = tf.int64 if self.is_scalar(feature) else tf.string
            spec[feature.name] = tf.io.FixedLenFeature((), dtype)
        return spec

    def is_scalar(self, feature):
        """Whether a record holds a feature as one integer.

        Args:
            feature: `Feature`. Any feature of the schema.

        Returns:
            bool.
        """
        one_row = self.input_dtype(feature) == "int32" and not self.entry_shape(feature)
        return one_row and feature.group in ("user", "context")

    def keras_inputs(self):
        """Symbolic inputs of a model: rows of the tables, or numbers, ready to embed.

        Returns:
            dict of int32 or float32 `keras.KerasTensor` by feature name.
        """
        return {
            f.name: keras.Input(self._shape(f), dtype=self.input_dtype(f), name=f.name)
            for f in self.features
        }

    def serving_signature(self):
        """Raw values as a serving request names them.

        Returns:
            dict of `tf.TensorSpec` by feature name.
        """
        return {
            f.name: tf.TensorSpec((None, *self._shape(f)), self.table(f.table).dtype, name=f.name)
            for f in self.features
        }

    def serving_spec(self):
        """Parse spec of a serving `tf.Example` with raw values, in which features may be absent.

        Returns:
            dict of `tf.io.RaggedFeature` (lists) or `tf.io.FixedLenFeature` by feature name. An
            absent value is a missing one. Entries of several numbers follow each other. Those of
            vectors have all their numbers; those of several values may have fewer than `values`,
            all entries of an example equally many.
        """
        spec = {}
        for feature in self.features:
            table = self.table(feature.table)
            if self._shape(feature):
                spec[feature.name] = tf.io.RaggedFeature(table.dtype)
            else:
                spec[feature.name] = tf.io.FixedLenFeature((), table.dtype, table.missing)
        return spec

    def _shape(self, feature):
        # A request may have fewer values of an entry than it can have, but all of a vector.
        entry = (None,) if feature.values > 1 else self.entry_shape(feature)
        return entry if feature.group in ("user", "context") else (None, *entry)

    # To and from JSON

    def get_config(self):
        """The schema as JSON can hold it.

        Returns:
            dict of all arguments but `directory`.
        """
        config = dataclasses.asdict(self)
        del config["directory"]
        config["labels"] = list(self.labels)
        for table in config["tables"]:
            table["boundaries"] = list(table["boundaries"])
            table["tiers"] = list(table["tiers"])
        # Files and digests of schemas without these are as they were before there were any.
        for kind, names in (("tables", ("width", "mean", "deviation")), ("features", ("values",))):
            for given, own in zip(config[kind], getattr(self, kind), strict=True):
                for name in names:
                    if getattr(own, name) == getattr(type(own), name):
                        del given[name]
        for name in ("labels", "weighted"):
            if not config[name]:
                del config[name]
        return {**config, "features": list(config["features"]), "tables": list(config["tables"])}

    @classmethod
    def from_config(cls, config, directory=None):
        """The schema of a config.

        Args:
            config: dict. As `get_config` returns it.
            directory: str or `None`. As in `Schema`. Defaults to `None`.

        Returns:
            `Schema`.
        """
        return cls(
            **{
                **config,
                "features": [Feature(**feature) for feature in config["features"]],
                "tables": [Table(**table) for table in config["tables"]],
            },
            directory=directory,
        )

    def save(self, directory):
        """Writes `schema.json`.

        Args:
            directory: str or `pathlib.Path`. Existing directory to write it to.
        """
        path = pathlib.Path(directory) / FILE_NAME
        path.write_text(json.dumps(self.get_config(), indent=1) + "\n")

    @classmethod
    def load(cls, directory):
        """Reads `schema.json` of a prepared data set or trained model.

        Args:
            directory: str or `pathlib.Path`. Directory of the data set or model.

        Returns:
            `Schema`.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is not a schema.
        """
        path = pathlib.Path(directory) / FILE_NAME
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: expected a directory written by "
                "`python -m tfrec_diffusion.prepare` or `.train`"
            )
        try:
            return cls.from_config(json.loads(path.read_text()), directory=str(directory))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a schema: {error}") from error

    def vocabulary_values(self, name):
        """All raw values of a vocabulary, which must fit into memory.

        Args:
            name: str. Name of a table of the kind `"vocabulary"`.

        Returns:
            list of str, from row 2 on.
        """
        path = pathlib.Path(self.vocabulary_path(self.table(name)))
        return path.read_bytes().decode().split("\n")[:-1]

    def vocabulary_path(self, table):
        """Path of a table's vocabulary file, with one raw value per line from row 2 on.

        Args:
            table: `Table`. A table of the kind `"vocabulary"`.

        Returns:
            str.
        """
        return vocabulary_path(self.directory, table.name)


def targets(labels, weighted):
    """See `Schema.targets`.

    Args:
        labels: iterable of str. As in `Schema`.
        weighted: bool. As in `Schema`.

    Returns:
        tuple of str.
    """
    keys = map(label_key, ("", *labels))
    return (*keys, WEIGHT) if weighted else tuple(keys)


def differing_features(one, other):
    """What two sequences of features do not have in common, whatever their order.

    Args:
        one: sequence of `Feature`s.
        other: sequence of `Feature`s.

    Returns:
        list of str, such as `"feature 'price'"`.
    """
    one, other = ({feature.name: feature for feature in features} for features in (one, other))
    return [f"feature {name!r}" for name in {**one, **other} if one.get(name) != other.get(name)]


def label_key(name):
    """Entry of a record with a label of each candidate. No feature can have the name.

    Args:
        name: str. Name of a label, one of `Schema.labels`; or `""` for the first one.

    Returns:
        str.
    """
    return f"{LABEL} {name}" if name else LABEL


def vocabulary_path(directory, table_name):
    """Path of a vocabulary file, `<directory>/vocabularies/<table_name>.txt`.

    Args:
        directory: str or `pathlib.Path`. Directory of a prepared data set or trained model.
        table_name: str. Name of a table.

    Returns:
        str.
    """
    return str(pathlib.Path(directory) / "vocabularies" / f"{table_name}.txt")
