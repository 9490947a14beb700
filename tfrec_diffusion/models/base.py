"""What every ranking model shares: requests in, a tower, click probabilities out, a fast `fit`."""

import copy
import functools
import inspect

import keras
import tensorflow as tf
from keras import ops

from tfrec_diffusion.layers.arguments import choose
from tfrec_diffusion.layers.embedding import TableEmbedding
from tfrec_diffusion.layers.mlp import MLP
from tfrec_diffusion.layers.search import BehaviorRows
from tfrec_diffusion.schema import PADDING, Schema


class RankingModel(keras.Model):
    """A functional model over the schema's inputs, with one tower for all models.

    A subclass makes its layers, calls `super().__init__(schema, tower_inputs, ...)`, and sets its
    own constructor arguments as attributes of the same name. What it passes on as `**kwargs` stands
    in its signature too, so that `help`, `--set` and `get_config` know every argument.

    `compile(jit_compile=True)`, the default of Keras where a model allows it, compiles the forward
    and the backward pass with XLA. The optimizer stays outside: under XLA it would copy whole
    embedding tables, and touching only the rows of a batch needs shapes that XLA does not have.

    Where replicas share a batch, the click loss is the mean over the real candidates of all,
    however they are spread. Every other loss is a mean over a replica's rows, weighted by its share
    of the real candidates.

    Args:
        schema: `Schema` (or its config).
        tower_inputs: Called with a `Request`; returns what the tower sees: a list of tensors
            (batch, candidates, dim) or (batch, dim).
        tower_units: Widths of the tower.
        activation: "dice", "prelu" or "relu".
        dropout: Rate after each layer of the tower.
        embedding_dim: Width of all embeddings; `None`: as the schema says.
        embedding_stddev: Standard deviation of the initial embeddings.
        dtype: Dtype policy.
        **kwargs: Of `keras.Model` (`name`).

    Call arguments:
        features: dict of int tensors as `Schema.keras_inputs`: user and context features (batch,),
            candidate features (batch, candidates), history features (batch, length), newest last,
            padded with 0 on the right.

    Returns:
        float32 click probabilities, (batch, candidates).

    Attributes:
        behavior_features: Names of the schema's behavior features that the model uses.
        has_user_state: Whether most of the work is done with the user alone, and what candidates
            need of it (`user_state.split`) is worth keeping for the user's next requests.
        tables: dict of the `TableEmbedding` of each of the schema's tables that is embedded.
    """

    behavior_features = ()
    has_user_state = False

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
            table.name: TableEmbedding(
                table.rows, table.dim, embedding_stddev, dtype=dtype, name=f"table.{table.name}"
            )
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
        return cls(**config)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras takes the mean of a batch over replicas, and fails where their parts are unequal.
        super()._maybe_symbolic_build(data_batch=(self.input, self.output, self.output))

    def make_train_function(self, force=False):
        jit_compile, self.jit_compile = self.jit_compile, False
        try:
            if force or self.train_function is None:
                self._gradients = tf.function(
                    self._loss_and_gradients, reduce_retracing=True, jit_compile=jit_compile
                )
            return super().make_train_function(force)
        finally:
            self.jit_compile = jit_compile

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        real = (
            tf.cast(tf.size(y), "float32")
            if sample_weight is None
            else tf.reduce_sum(sample_weight)
        )
        y_pred, gradients = self._gradients(x, y, sample_weight, real, _share(real))
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _loss_and_gradients(self, x, y, sample_weight, real, share):
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            # Keras divides it by the number of replicas, as if all had as many real candidates.
            loss = self._compute_loss(x, y, y_pred, sample_weight, training=True)
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            loss *= replicas
            self._loss_tracker.update_state(loss, sample_weight=real)
            loss *= share
        return y_pred, tape.gradient(loss, self.trainable_weights)

    @functools.cached_property
    def score(self):
        """The model at inference, compiled as `compile` says: (features) -> click probabilities."""
        return tf.function(
            lambda features: self(features, training=False),
            reduce_retracing=True,
            jit_compile=self.jit_compile,
        )


def _share(real):
    """A replica's share of all real candidates of a step."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return tf.ones_like(real)
    return real / tf.distribute.get_replica_context().all_reduce("sum", real)


class Request:
    """The symbolic tensors of a request, as a model's constructor puts its layers together.

    Embeddings are concatenated in the schema's order.

    Args:
        schema: `Schema`.
        features: dict of symbolic inputs, `Schema.keras_inputs`.
        tables: dict of the `TableEmbedding`s.

    Attributes:
        features: The inputs, rows of the tables.
        user, context: Embedded features, (batch, dim); `None` if there are none.
        candidate: All candidate features, (batch, candidates, dim).
        candidate_other: Those that no history feature is compared with; `None` if there are none.
        target: For each history feature the candidate's (or context's) value of the same table,
            (batch, candidates, d).
        history: (batch, length, d).
        candidate_mask: bool (batch, candidates), True = real.
        history_mask: bool (batch, length), True = real.
        history_key: Name of the feature that tells behaviors apart.
    """

    def __init__(self, schema, features, tables):
        embedded = {f.name: tables[f.table](features[f.name]) for f in schema.embedded_features}
        history = schema.group("history")
        compared = [schema.target_of(feature) for feature in history]
        self._schema = schema
        self._tables = tables
        self._rows_at = BehaviorRows(name="request.behaviors")
        self.features = features
        self.user, self.context, self.candidate = (
            _concatenate([embedded[f.name] for f in schema.group(name)])
            for name in ("user", "context", "candidate")
        )
        self.candidate_other = _concatenate(
            [embedded[f.name] for f in schema.group("candidate") if f not in compared]
        )
        of_each = ops.ones_like(self.candidate[..., :1])
        self.target = _concatenate(
            [
                embedded[f.name] if f.group == "candidate" else of_each * embedded[f.name][:, None]
                for f in compared
            ]
        )
        self.history = _concatenate([embedded[f.name] for f in history])
        self.candidate_mask = ops.not_equal(features[schema.candidate_key], PADDING)
        self.history_mask = ops.not_equal(features[schema.history_key], PADDING)
        self.history_key = schema.history_key

    def tower_inputs(self, *interests):
        """User and context, candidate, and what a model made of the history."""
        known = [x for x in (self.user, self.context) if x is not None]
        return [*known, self.candidate, *interests]

    def at(self, positions, real):
        """The request with some behaviors of its history only, embedded by themselves.

        The embedding's gradient then holds the rows of these alone, where a slice of the embedded
        history would send zeros to all others.

        Args:
            positions: int (batch, k) or (batch, candidates, k), as the layers of `layers.search`.
            real: bool of that shape, the new `history_mask`.

        Returns:
            `Request` with the `history` (batch, .., k, d).
        """
        history = self._schema.group("history")
        of_behaviors = self._schema.group("history", "behavior")
        rows = {feature.name: self.features[feature.name] for feature in of_behaviors}
        rows = self._rows_at(rows, positions, real)
        selected = copy.copy(self)
        selected.features = {**self.features, **rows}
        selected.history = _concatenate([self._tables[f.table](rows[f.name]) for f in history])
        selected.history_mask = real
        return selected


def _concatenate(tensors):
    """Side by side; `None` if there are none."""
    return ops.concatenate(tensors, axis=-1) if tensors else None


def as_schema(schema):
    """A `Schema`, also of its config, as a saved model has it."""
    return schema if isinstance(schema, Schema) else Schema.from_config(schema)


def behavior_rows(schema, argument, names):
    """Number of rows of the tables of some behavior features, dict by name.

    Args:
        schema: `Schema`.
        argument: Name of the constructor argument, for the error.
        names: Names of the features; `None`: all of the schema's.

    Raises:
        ValueError: If one is no behavior feature.
    """
    tables = {feature.name: feature.table for feature in schema.group("behavior")}
    chosen = tables if names is None else names
    return {name: schema.table(choose(argument, name, tables)).rows for name in chosen}
