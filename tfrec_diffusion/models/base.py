"""What all ranking models share: the tower over a request, and a fast `fit`."""

import functools
import inspect
import types

import keras
import tensorflow as tf

from tfrec_diffusion.layers.embedding import TableEmbedding
from tfrec_diffusion.layers.mlp import MLP
from tfrec_diffusion.models.request import Request, as_schema


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
        features: dict of int tensors by feature name, as of `Schema.keras_inputs`. User and
            context features have the shape (batch,), candidate features (batch, candidates),
            history and behavior features (batch, length): oldest behavior first, padded with 0 on
            the right.

    Returns:
        float32 tensor of shape (batch, candidates). Click probabilities.

    Attributes:
        behavior_features: Tuple of str. Names of the schema's behavior features that the model
            uses.
        has_user_state: bool. Whether most of the work depends on the user alone, so that it pays
            to keep what candidates need of it for the user's next requests.
        tables: dict. The `TableEmbedding` of each of the schema's embedded tables, by name.
        defaults_before: dict. Constructor arguments that files of older versions do not have, with
            the values that make the model what it was then.
    """

    behavior_features = ()
    has_user_state = False
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
        return cls(**{**cls.defaults_before, **config})

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras takes the mean of a batch over replicas, and fails where their parts are unequal.
        super()._maybe_symbolic_build(data_batch=(self.input, self.output, self.output))

    def make_train_function(self, force=False):
        jit_compile, self.jit_compile = self.jit_compile, False
        try:
            if force or self.train_function is None:
                self._gradients = self._loss_and_gradients
                if not self.run_eagerly:
                    self._gradients = tf.function(
                        self._gradients, reduce_retracing=True, jit_compile=jit_compile
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
    def inference_function(self):
        """The model at inference as a `tf.function` of features, compiled as `compile` says."""
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
