"""DIEN: Deep Interest Evolution Network (Zhou et al., AAAI 2019)."""

import keras

from tfrec_diffusion.layers.recurrent import (
    InterestEvolution,
    InterestExtractor,
    NextBehaviorLoss,
)
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.parts import NewestBehaviors


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DIEN(RankingModel):
    """MLP([user and context, candidate, evolved interest]); figure 1 of the paper.

    A GRU extracts interests from the behaviors. In training, an auxiliary loss compares its state
    after each behavior with the behavior that follows. A second GRU, whose update gate is scaled
    by the candidate's attention, follows how the interests evolve.

    Args:
        schema: `Schema`. The features of a request.
        max_length: int. Number of newest behaviors that the model sees; both GRUs go through them
            one by one. Defaults to `100`.
        next_behavior_weight: float. Weight alpha of the auxiliary loss. Defaults to `1.0`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

    Example:

    >>> model = models.create("dien", schema=schema, max_length=100)

    Reference:
        https://arxiv.org/abs/1809.03672
    """

    def __init__(self, schema, max_length=100, next_behavior_weight=1.0, **kwargs):
        # === Layers ===
        dtype = kwargs.get("dtype")
        newest = NewestBehaviors(max_length, "dien")
        extract = InterestExtractor(dtype=dtype, name="dien.extractor")
        next_behavior_loss = NextBehaviorLoss(
            next_behavior_weight, dtype=dtype, name="dien.next_behavior_loss"
        )
        evolve = InterestEvolution(dtype=dtype, name="dien.evolution")

        # === Functional model ===
        def tower_inputs(request):
            seen = newest(request)
            behaviors, real = seen.history, seen.history_mask
            interests = next_behavior_loss(
                extract(behaviors, real), behaviors, real, seen.features[seen.history_key]
            )
            return request.tower_inputs(evolve(interests, request.target, real))

        super().__init__(schema, tower_inputs, **kwargs)

        # === Config ===
        self.max_length = max_length
        self.next_behavior_weight = next_behavior_weight
