"""DiffuRec: A Diffusion Model for Sequential Recommendation (Li et al., TOIS 2023), for clicks."""

import keras

from tfrec_diffusion.diffusion.item_generators import TargetReconstructor
from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.normalization import unit_scale
from tfrec_diffusion.layers.search import Newest
from tfrec_diffusion.models.base import RankingModel


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DiffuRec(RankingModel):
    """MLP([user and context, candidate, generated item, generated item * candidate]).

    The paper reconstructs the next item from noise, as a distribution that a Transformer over the
    history carries, and recommends the items of the highest products with it; here the candidate
    is scored against it by the shared tower.

    Args:
        schema: `Schema`.
        max_length: Newest behaviors that the model sees.
        sampling_steps: Evaluations of the denoiser.
        uncertainty: delta: how much of the noised item each behavior gets.
        generation_weight: Of the generator's loss.
        num_heads, num_blocks: Of the Transformer.
        **kwargs: See `RankingModel`.

    Call arguments and Returns: see `RankingModel`.

    Example:

    >>> model = models.create("diffurec", schema=schema, sampling_steps=8)

    Reference:
        https://arxiv.org/abs/2304.00686
    """

    has_user_state = True

    def __init__(
        self,
        schema,
        max_length=50,
        sampling_steps=8,
        uncertainty=0.001,
        generation_weight=0.1,
        num_heads=2,
        num_blocks=1,
        **kwargs,
    ):
        # === Layers ===
        check_positive_integers(max_length=max_length)
        # Diffusion stays in float32 under mixed precision.
        newest = Newest(max_length, name="diffurec.newest")
        generate = TargetReconstructor(
            sampling_steps,
            uncertainty,
            weight=generation_weight,
            length=max_length,
            num_heads=num_heads,
            num_blocks=num_blocks,
            dtype="float32",
            name="diffurec.generator",
        )

        # === Functional model ===
        def tower_inputs(request):
            recent = request.at(*newest(request.history_mask))
            items = recent.features[recent.history_key]
            item = generate(recent.history, recent.history_mask, items)
            return request.tower_inputs(item, item[:, None] * unit_scale(request.target))

        super().__init__(schema, tower_inputs, **kwargs)

        # === Config ===
        self.max_length = max_length
        self.sampling_steps = sampling_steps
        self.uncertainty = uncertainty
        self.generation_weight = generation_weight
        self.num_heads = num_heads
        self.num_blocks = num_blocks
