"""What all ranking models share: the tower over a request, and Keras's `fit` and its kind."""

import contextlib
import functools
import inspect
import types

import keras
import numpy as np
import tensorflow as tf

from tfrec_diffusion.layers.cross_features import BehaviorFeatureEmbedding
from tfrec_diffusion.layers.embedding import NumberEmbedding, TableEmbedding
from tfrec_diffusion.layers.mlp import MLP
from tfrec_diffusion.models.request import Request, as_schema
from tfrec_diffusion.schema import PADDING


class RankingModel(keras.Model):
    """A functional model over the inputs of a schema, with the same tower for all models.

    A subclass makes its layers, calls `super().__init__(schema, tower_inputs, ...)`, and then sets
    its own constructor arguments as attributes of the same name, from which `get_config` reads
    them. Arguments that it only passes on, as `**kwargs`, appear in its signature all the same, so
    that `help`, `--set` and `get_config` know every argument.

    `compile(jit_compile=True)`, which is Keras's default where a model allows it, compiles the
    forward and the backward pass with XLA, and leaves the optimizer's update outside: XLA would
    copy whole embedding tables, and its static shapes do not allow an update of only those rows
    that a batch holds.

    `fit`, `evaluate` and `predict` are those of a binary classifier whose samples are the real
    candidates:

    - Padded candidates count in no loss and no metric, with or without `sample_weight`. A weight
      may be given for each request, with the shape (batch,), or for each candidate.
    - `metrics` and `weighted_metrics` see one row for each real candidate of a batch: labels and
      probabilities of shape (candidates, 1). `"accuracy"` is that of two classes.
    - Keras's own losses, such as `"binary_crossentropy"`, are computed for each candidate. Other
      losses, such as `LogLoss`, see labels and probabilities of shape (batch, candidates), and
      weights that are 0 for padding.
    - `class_weight` multiplies the weights of candidates by that of their label.
    - `predict` returns an array of shape (requests, candidates) with the most candidates of any
      request, and NaN in the place of those that a request does not have.

    Where replicas share a batch, the click loss is the mean over all real candidates of the batch,
    however they are spread over the replicas. Every other loss is a mean over a replica's rows,
    weighted by the replica's share of the real candidates.

    Args:
        schema: `Schema` or its config. The features of a request.
        tower_inputs: Callable. Called with a `Request`; returns what the tower sees, a list of
            float tensors of shape (batch, candidates, dim) or (batch, dim).
        tower_units: Sequence of int. Widths of the tower's layers. Defaults to `(200, 80)`.
        activation: str. Activation of the tower: `"dice"`, `"prelu"` or `"relu"`. Defaults to
            `"dice"`.
        dropout: float. Dropout rate after each layer of the tower. Defaults to `0.0`.
        embedding_dim: int or `None`. Width of all embeddings. If `None`, each table has the width
            that the schema gives it. Defaults to `None`.
        embedding_stddev: float. Standard deviation of the initial embeddings. Defaults to `0.01`.
        dtype: str, `keras.DTypePolicy` or `None`. Dtype policy of the layers. If `None`, Keras's
            global policy. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        features: dict of int or float tensors by feature name, as of `Schema.keras_inputs`. User
            and context features have the shape (batch,), candidate features (batch, candidates),
            history and behavior features (batch, length): oldest behavior first, padded with 0 on
            the right. Entries of several numbers have a further axis.

    Returns:
        float32 tensor of shape (batch, candidates). Click probabilities.

    Attributes:
        behavior_features: Tuple of str. Names of the schema's behavior features that the model
            uses.
        has_user_state: bool. Whether most of the work depends on the user alone, so that it pays
            to keep what candidates need of it for the user's next requests.
        tables: dict. The `TableEmbedding` or `NumberEmbedding` of each of the schema's embedded
            tables, by name.
        defaults_before: dict. Constructor arguments that files of older versions do not have, with
            the values that make the model what it was then.
    """

    behavior_features = ()
    has_user_state = False
    _class_weight = None
    defaults_before = types.MappingProxyType({})

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        own = dict(inspect.signature(cls.__init__).parameters)
        shared = dict(inspect.signature(RankingModel.__init__).parameters)
        passed_on = [
            shared[name].replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name in shared
            if name not in (*own, "tower_inputs", "kwargs")
        ]
        del own["self"], own["kwargs"]
        cls.__signature__ = inspect.Signature([*own.values(), *passed_on, shared["kwargs"]])

    def __init__(
        self,
        schema,
        tower_inputs,
        tower_units=(200, 80),
        activation="dice",
        dropout=0.0,
        embedding_dim=None,
        embedding_stddev=0.01,
        dtype=None,
        **kwargs,
    ):
        schema = as_schema(schema)
        embedded = {feature.table for feature in schema.embedded_features}
        tables = {
            table.name: _embedding(table, stddev=embedding_stddev, dtype=dtype)
            for table in schema.with_dim(embedding_dim).tables
            if table.name in embedded
        }
        tower = MLP(tower_units, activation, dropout, dtype=dtype, name="click.tower")
        logit = keras.layers.Dense(1, dtype=dtype, name="click.logit")
        inputs = schema.keras_inputs()
        request = Request(schema, inputs, tables)
        logits = logit(tower(tower_inputs(request), candidate_mask=request.candidate_mask))
        outputs = keras.layers.Activation("sigmoid", dtype="float32", name="click.probability")(
            keras.layers.Reshape((-1,), dtype="float32", name="click.logits")(logits)
        )
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.schema = schema
        self.tower_units = tower.units
        self.activation = activation
        self.dropout = dropout
        self.embedding_dim = embedding_dim
        self.embedding_stddev = embedding_stddev
        self.tables = tables

    @property
    def row_tables(self):
        """list of pairs of a name and a `TableEmbedding`: all weights that have a row for each row
        of a table of the schema, in an order that is the same for models made alike.
        """
        pairs = list(self.tables.items())
        of_feature = {feature.name: feature.table for feature in self.schema.features}
        for layer in self.layers:
            if isinstance(layer, BehaviorFeatureEmbedding):
                pairs += [(of_feature[name], table) for name, table in layer.tables.items()]
        return [(name, table) for name, table in pairs if isinstance(table, TableEmbedding)]

    @property
    def table_dtype(self):
        """str. Dtype of the tables: `"float32"`, or what they were compressed to."""
        return next((table.parts[0].dtype for _, table in self.row_tables), "float32")

    def compress_tables(self, dtype):
        """Keeps all tables in fewer bytes, for inference, see `TableEmbedding.compress`.

        Args:
            dtype: str. `"bfloat16"` or `"int8"`.

        Raises:
            ValueError: If there is no such dtype, or tables are compressed already.
        """
        for _, table in self.row_tables:
            table.compress(dtype)

    def get_config(self):
        arguments = inspect.signature(type(self)).parameters.keys()
        return {
            **{name: getattr(self, name) for name in arguments - {"kwargs"}},
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(
                self.get_layer("click.tower").dtype_policy
            ),
            "schema": self.schema.get_config(),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**{**cls.defaults_before, **config})

    # === Fit, evaluate and predict ===

    def compile(self, optimizer="rmsprop", loss=None, *args, **kwargs):
        """As `keras.Model.compile`.

        Raises:
            ValueError: If a loss or metric compares classes or candidates with each other, where
                each candidate has one probability.
        """
        given = inspect.signature(super().compile).bind(optimizer, loss, *args, **kwargs).arguments
        for name in ("loss", "metrics", "weighted_metrics"):
            for identifier in keras.tree.flatten(given.get(name)):
                _check_binary(name, identifier)
        self._loss_is_keras = all(_is_of_keras(part) for part in keras.tree.flatten(loss))
        super().compile(**given)

    def compile_from_config(self, config):
        # Keras does not call a `compile` of a subclass by itself.
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        given = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        self._set_class_weight(given.pop("class_weight", None))
        return super().fit(**given)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """As `keras.Model.train_on_batch`."""
        self._set_class_weight(class_weight)
        return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    @functools.wraps(keras.Model.predict)
    def predict(self, *args, **kwargs):
        return _in_one_array(**super().predict(*args, **kwargs))

    def predict_on_batch(self, x):
        """As `keras.Model.predict_on_batch`."""
        return _in_one_array(**super().predict_on_batch(x))

    def _set_class_weight(self, class_weight):
        if class_weight is not None:
            if not set(class_weight) <= {0, 1}:
                raise ValueError(
                    "`class_weight` must have the keys 0 and 1. "
                    f"Received: class_weight={class_weight}"
                )
            class_weight = tuple(float(class_weight.get(label, 1.0)) for label in (0, 1))
        if class_weight != self._class_weight:
            self._class_weight = class_weight
            self.train_function = None  # is traced with them

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras takes the mean of a batch over replicas, and fails where their parts are unequal.
        super()._maybe_symbolic_build(data_batch=(self.input, self.output, self.output))

    def make_train_function(self, force=False):
        if force or self.train_function is None:
            self._gradients = self._compiled(self._loss_and_gradients)
        with self._outside_xla():
            return super().make_train_function(force)

    def make_test_function(self, force=False):
        if force or self.test_function is None:
            self._evaluated = self._compiled(self._loss_and_scores)
        with self._outside_xla():
            return super().make_test_function(force)

    def _compiled(self, function):
        if self.run_eagerly:
            return function
        return tf.function(function, reduce_retracing=True, jit_compile=self.jit_compile)

    @contextlib.contextmanager
    def _outside_xla(self):
        """What is made meanwhile is not compiled as a whole."""
        jit_compile, self.jit_compile = self.jit_compile, False
        try:
            yield
        finally:
            self.jit_compile = jit_compile

    def train_step(self, data):
        x, y, weight, samples = self._unpacked(data, self._class_weight)
        y_pred, gradients = self._gradients(x, y, weight, samples, _share(samples))
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return self.compute_metrics(x, y, y_pred, sample_weight=weight)

    def test_step(self, data):
        x, y, weight, samples = self._unpacked(data)
        loss, y_pred = self._evaluated(x, y, weight)
        self._loss_tracker.update_state(loss, sample_weight=samples)
        return self.compute_metrics(x, y, y_pred, sample_weight=weight)

    def predict_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        scores = tf.where(self._real(x), self(x, training=False), np.nan)
        # Batches have different numbers of candidates, and Keras concatenates what they give.
        requests, candidates = tf.unstack(tf.shape(scores))
        return {"scores": tf.reshape(scores, (-1,)), "candidates": tf.fill((requests,), candidates)}

    def _unpacked(self, data, class_weight=None):
        """Features, labels, weights (0 for padding), and what the batch's loss counts for."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        real = self._real(x)
        y = _by_candidate(y)
        if not y.shape.is_compatible_with(real.shape):
            raise ValueError(
                "labels must have the shape of the candidates, (batch, candidates), here "
                f"{real.shape}. Received: labels of shape {y.shape}"
            )
        weight = tf.cast(real, "float32")
        samples = tf.reduce_sum(weight)
        if sample_weight is not None:
            weight *= tf.cast(_by_candidate(sample_weight), "float32")
        if class_weight is not None:
            of_negative, of_positive = class_weight
            weight *= tf.where(tf.cast(y, "float32") > 0.5, of_positive, of_negative)
        return x, y, weight, samples if self._loss_is_keras else tf.reduce_sum(weight)

    def _real(self, x):
        return tf.not_equal(x[self.schema.candidate_key], PADDING)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """As `keras.Model.compute_loss`."""
        if self._loss_is_keras:
            # They take the mean of the last axis, and of all that is not masked.
            y, y_pred = y[..., None], y_pred[..., None]
            y_pred._keras_mask = self._real(x)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """As `keras.Model.compute_metrics`."""
        real = self._real(x)
        y, y_pred = (tf.boolean_mask(column, real)[:, None] for column in (y, y_pred))
        if sample_weight is not None:
            sample_weight = tf.boolean_mask(sample_weight, real)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _loss_and_gradients(self, x, y, weight, samples, share):
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self._loss_of_replica(x, y, y_pred, weight, training=True)
            self._loss_tracker.update_state(loss, sample_weight=samples)
            loss *= share
        return y_pred, tape.gradient(loss, self.trainable_weights)

    def _loss_and_scores(self, x, y, weight):
        y_pred = self(x, training=False)
        return self._loss_of_replica(x, y, y_pred, weight, training=False), y_pred

    def _loss_of_replica(self, *args, **kwargs):
        # Keras divides it by the number of replicas, as if all had as many real candidates.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return self._compute_loss(*args, **kwargs) * replicas

    @functools.cached_property
    def inference_function(self):
        """The model at inference as a `tf.function` of features, compiled as `compile` says."""
        return tf.function(
            lambda features: self(features, training=False),
            reduce_retracing=True,
            jit_compile=self.jit_compile,
        )


def _embedding(table, **kwargs):
    kwargs["name"] = f"table.{table.name}"
    if table.is_numeric:
        return NumberEmbedding(table.dim, table.width, table.mean, table.deviation, **kwargs)
    return TableEmbedding(table.rows, table.dim, **kwargs)


def _share(samples):
    """A replica's share of all samples of a step."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return tf.ones_like(samples)
    return samples / tf.distribute.get_replica_context().all_reduce("sum", samples)


def _by_candidate(values):
    """Labels or weights (batch, candidates); those (batch,) are the same for all candidates."""
    values = tf.convert_to_tensor(values)
    return values[:, None] if values.shape.rank == 1 else values


def _in_one_array(scores, candidates):
    """The scores of requests with different numbers of candidates: (requests, candidates)."""
    array = np.full((len(candidates), candidates.max(initial=0)), np.nan, np.float32)
    array[np.arange(array.shape[1]) < candidates[:, None]] = scores
    return array


def _check_binary(argument, identifier):
    names = [str(identifier)] if isinstance(identifier, str) else _names(identifier)
    if any("categorical" in name.lower() for name in names):
        expected = "be of two classes, as `binary_accuracy` and `binary_crossentropy` are"
    elif "RankingMetric" in names:  # of keras-rs
        expected = "look at each candidate by itself, as metrics see no requests"
    else:
        return
    raise ValueError(f"`{argument}` must {expected}. Received: {identifier!r}")


def _names(identifier):
    """Names of a function, or of the classes of an object."""
    kinds = type(identifier).__mro__
    return [kind.__name__ for kind in kinds] + [getattr(identifier, "__name__", "")]


def _is_of_keras(loss):
    """Whether a loss is one of Keras's own."""
    if isinstance(loss, str):
        return True
    kind = loss if inspect.isroutine(loss) else type(loss)
    return kind.__module__.startswith("keras.")
