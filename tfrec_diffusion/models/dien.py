"""DIEN: Deep Interest Evolution Network (Zhou et al., AAAI 2019)."""

import keras

from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.recurrent import (
    InterestEvolution,
    InterestExtractor,
    NextBehaviorLoss,
)
from tfrec_diffusion.layers.search import Newest
from tfrec_diffusion.models.base import RankingModel


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DIEN(RankingModel):
    """MLP([user and context, candidate, evolved interest]); figure 1 of the paper.

    A GRU extracts interests from the behaviors, supervised by the behavior that follows each; one
    whose update gate the candidate's attention scales follows how they evolve.

    Args:
        schema: `Schema`.
        max_length: Newest behaviors that the model sees: both GRUs go through them one by one.
        next_behavior_weight: Of the extractor's loss, alpha.
        **kwargs: See `RankingModel`.

    Call arguments and Returns: see `RankingModel`.

    Example:

    >>> model = models.create("dien", schema=schema, max_length=100)

    Reference:
        https://arxiv.org/abs/1809.03672
    """

    def __init__(self, schema, max_length=100, next_behavior_weight=1.0, **kwargs):
        # === Layers ===
        check_positive_integers(max_length=max_length)
        dtype = kwargs.get("dtype")
        newest = Newest(max_length, name="dien.newest")
        extract = InterestExtractor(dtype=dtype, name="dien.extractor")
        next_behavior_loss = NextBehaviorLoss(
            next_behavior_weight, dtype=dtype, name="dien.next_behavior_loss"
        )
        evolve = InterestEvolution(dtype=dtype, name="dien.evolution")

        # === Functional model ===
        def tower_inputs(request):
            request = request.at(*newest(request.history_mask))
            behaviors, real = request.history, request.history_mask
            interests = next_behavior_loss(
                extract(behaviors, real), behaviors, real, request.features[request.history_key]
            )
            return request.tower_inputs(evolve(interests, request.target, real))

        super().__init__(schema, tower_inputs, **kwargs)

        # === Config ===
        self.max_length = max_length
        self.next_behavior_weight = next_behavior_weight
