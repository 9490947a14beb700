"""Multi-interest extractor: scores, routing, filtering, aggregation (DiffuMIN, 3.3, eq. 5-8)."""

import keras
from keras import ops

_LAYERS = ("routing", "filtering", "aggregation", "evidence")


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class MultiInterestExtractor(keras.layers.Layer):
    """Extracts one interest per channel from the behaviors that score highest on the channel.

    All candidates of a request share its history. Scores and means are one matrix product each, and
    no tensor of shape (batch, candidates, length, channels, d) is made.

    Args:
        routing: `TopRouting`, `SoftRouting` or `StraightThroughRouting`. Layer that maps scores to
            weights.
        filtering: `TopP` or `TopK`. Layer that maps scores and `history_mask` to a bool tensor of
            the behaviors that are kept.
        aggregation: `MeanAggregation`, or another layer with its call arguments. Layer that maps
            history, scores, weights and target to interests.
        evidence: `ChannelEvidence` or `None`. Layer that makes of them what the interests do not
            tell. If `None`, only interests are returned. Defaults to `None`.

    Call arguments:
        history: float tensor of shape (batch, length, d).
        channels: float tensor of shape (batch, candidates, channels, d).
        target: float tensor of shape (batch, candidates, d).
        history_mask: bool tensor of shape (batch, length), True = real.
        known: float tensor of shape (batch, length, f), or `None`. What else is known of the
            behaviors, such as their embedded ages; only the evidence tells of it. Defaults to
            `None`.

    Returns:
        float tensor of shape (batch, candidates, channels, d), computed in float32. Zeros for a
        channel that selected nothing. With `evidence`, a list of these interests and of the
        evidence, a float tensor of shape (batch, candidates, channels, 6 + f).

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    def __init__(self, routing, filtering, aggregation, evidence=None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.routing = routing
        self.filtering = filtering
        self.aggregation = aggregation
        self.evidence = evidence

    def build(self, history_shape, channels_shape, target_shape, known_shape=None):
        scores_shape = (*channels_shape[:-1], history_shape[1])
        self.routing.build(scores_shape)
        self.filtering.build(scores_shape)
        self.aggregation.build(history_shape)
        if self.evidence is not None:
            self.evidence.build(history_shape, channels_shape)

    def call(self, history, channels, target, history_mask, known=None):
        history, channels, target = (
            ops.cast(tensor, "float32") for tensor in (history, channels, target)
        )
        scores, weights = self.select(history, channels, history_mask)
        interests = self.aggregation(history, scores, weights, target)
        if self.evidence is None:
            return ops.cast(interests, self.compute_dtype)
        if known is not None:
            known = ops.cast(known, "float32")
        found = self.evidence(history, channels, target, scores, weights, interests, known)
        return [ops.cast(output, self.compute_dtype) for output in (interests, found)]

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

    def compute_output_spec(self, history, channels, target, history_mask, known=None):
        interests = keras.KerasTensor(channels.shape, self.compute_dtype)
        if self.evidence is None:
            return interests
        found = self.evidence.compute_output_spec(
            history, channels, target, None, None, interests, known
        )
        return [interests, keras.KerasTensor(found.shape, self.compute_dtype)]

    def get_config(self):
        layers = {name: getattr(self, name) for name in _LAYERS}
        return {
            **super().get_config(),
            **{name: keras.saving.serialize_keras_object(x) for name, x in layers.items()},
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in _LAYERS:
            # Files of before there was evidence have no entry for it.
            config[name] = keras.saving.deserialize_keras_object(config.get(name))
        return cls(**config)
