"""Multi-interest extractor: scores, routing, filtering, aggregation (DiffuMIN, 3.3, eq. 5-8)."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class MultiInterestExtractor(keras.layers.Layer):
    """Extracts one interest per channel from the behaviors that score highest on the channel.

    All candidates of a request share its history. Scores and means are one matrix product each, and
    no tensor of shape (batch, candidates, length, channels, d) is made.

    Args:
        routing: `TopRouting` or `SoftRouting`. Layer that maps scores to weights.
        filtering: `TopP` or `TopK`. Layer that maps scores and `history_mask` to a bool tensor of
            the behaviors that are kept.
        aggregation: `MeanAggregation`, or another layer with its call arguments. Layer that maps
            history, scores, weights and target to interests.

    Call arguments:
        history: float tensor of shape (batch, length, d).
        channels: float tensor of shape (batch, candidates, channels, d).
        target: float tensor of shape (batch, candidates, d).
        history_mask: bool tensor of shape (batch, length), True = real.

    Returns:
        float tensor of shape (batch, candidates, channels, d), computed in float32. Zeros for a
        channel that selected nothing.

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    def __init__(self, routing, filtering, aggregation, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.routing = routing
        self.filtering = filtering
        self.aggregation = aggregation

    def build(self, history_shape, channels_shape, target_shape):
        scores_shape = (*channels_shape[:-1], history_shape[1])
        self.routing.build(scores_shape)
        self.filtering.build(scores_shape)
        self.aggregation.build(history_shape)

    def call(self, history, channels, target, history_mask):
        history, channels, target = (
            ops.cast(tensor, "float32") for tensor in (history, channels, target)
        )
        scores, weights = self.select(history, channels, history_mask)
        interests = self.aggregation(history, scores, weights, target)
        return ops.cast(interests, self.compute_dtype)

    def select(self, history, channels, history_mask):
        """Selects behaviors for each channel.

        Args:
            history: float32 tensor of shape (batch, length, d).
            channels: float32 tensor of shape (batch, candidates, channels, d).
            history_mask: bool tensor of shape (batch, length), True = real.

        Returns:
            Scores (eq. 5), which are -inf for padding, and weights, which are routing (eq. 6) times
            filtering (eq. 7). Both are float32 tensors of shape
            (batch, candidates, channels, length).
        """
        batch, candidates = ops.shape(channels)[:2]
        rows = ops.reshape(channels, (batch, candidates * channels.shape[2], channels.shape[3]))
        scores = ops.matmul(rows, ops.transpose(history, (0, 2, 1)))
        scores = ops.reshape(scores, (batch, candidates, channels.shape[2], ops.shape(history)[1]))
        scores = ops.where(history_mask[:, None, None], scores, -float("inf"))
        kept = self.filtering(scores, history_mask)
        return scores, ops.where(kept, self.routing(scores), 0.0)

    def compute_output_spec(self, history, channels, target, history_mask):
        return keras.KerasTensor(channels.shape, self.compute_dtype)

    def get_config(self):
        layers = {name: getattr(self, name) for name in ("routing", "filtering", "aggregation")}
        return {
            **super().get_config(),
            **{name: keras.saving.serialize_keras_object(x) for name, x in layers.items()},
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("routing", "filtering", "aggregation"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)
