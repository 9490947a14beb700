"""What every ranking model shares: requests in, click probabilities out, a fast `fit`."""

import keras
import tensorflow as tf

from tfrec_diffusion.layers.embedding import RequestEmbedding
from tfrec_diffusion.schema import Schema


class RankingModel(keras.Model):
    """A functional model over the schema's inputs.

    A subclass calls `super().__init__(schema, score, ...)` when it has made its layers.

    `compile(jit_compile=True)`, the default of Keras where a model allows it, compiles the forward
    and the backward pass with XLA. The optimizer stays outside: under XLA it would copy whole
    embedding tables, and touching only the rows of a batch needs shapes that XLA does not have.

    Args:
        schema: `Schema` (or its config).
        score: Called with `RequestEmbedding`'s outputs and, as `"features"`, the inputs; returns
            logits (batch, candidates, 1).
        embedding_dim: Width of all embeddings; `None`: as the schema says.
        embedding_stddev: Standard deviation of the initial embeddings.
        **kwargs: Of `keras.Model` (`name`, `dtype`).

    Call arguments:
        features: dict of int tensors as `Schema.keras_inputs`: user and context features (batch,),
            candidate features (batch, candidates), history features (batch, length), newest last,
            padded with 0 on the right.

    Returns:
        float32 click probabilities, (batch, candidates).

    Attributes:
        behavior_features: Names of the schema's behavior features that the model uses.
    """

    behavior_features = ()

    def __init__(self, schema, score, embedding_dim, embedding_stddev, dtype=None, **kwargs):
        schema = as_schema(schema)
        embedding = RequestEmbedding(
            schema.with_dim(embedding_dim), embedding_stddev, name="request.embedding", dtype=dtype
        )
        inputs = schema.keras_inputs()
        logits = score({**embedding(inputs), "features": inputs})
        outputs = keras.layers.Activation("sigmoid", dtype="float32", name="click.probability")(
            keras.layers.Reshape((-1,), dtype="float32", name="click.logit")(logits)
        )
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.schema = schema
        self.embedding_dim = embedding_dim
        self.embedding_stddev = embedding_stddev
        self.embedding = embedding

    def get_config(self):
        return {
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(self.embedding.dtype_policy),
            "schema": self.schema.get_config(),
            "embedding_dim": self.embedding_dim,
            "embedding_stddev": self.embedding_stddev,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)

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
        y_pred, gradients = self._gradients(x, y, sample_weight)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _loss_and_gradients(self, x, y, sample_weight):
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self._compute_loss(x, y, y_pred, sample_weight, training=True)
        self._loss_tracker.update_state(loss, sample_weight=tf.shape(y)[0])
        return y_pred, tape.gradient(loss, self.trainable_weights)


def as_schema(schema):
    """A `Schema`, also of its config, as a saved model has it."""
    return schema if isinstance(schema, Schema) else Schema.from_config(schema)


def tower_inputs(embedded, *interests):
    """The tower's inputs: user and context, candidate, and what a model made of the history."""
    request = [embedded["request"]] if "request" in embedded else []
    return [*request, embedded["candidate"], *interests]
