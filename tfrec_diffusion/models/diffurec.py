"""DiffuRec: A Diffusion Model for Sequential Recommendation (Li et al., TOIS 2023), for clicks."""

import keras

from tfrec_diffusion.diffusion.item_generators import TargetReconstructor
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.parts import NewestBehaviors, with_generated_item


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DiffuRec(RankingModel):
    """MLP([user and context, candidate, generated item, generated item * candidate]).

    In the paper, a Transformer over the history reconstructs the next item from noise, and the
    items whose inner product with the result is highest are recommended. Here the tower that all
    models share scores the candidate against the generated item.

    Args:
        schema: `Schema`. The features of a request.
        max_length: int. Number of newest behaviors that the model sees, at least 2. Defaults to
            `50`.
        sampling_steps: int. Number of evaluations of the denoiser. Defaults to `8`.
        uncertainty: float. How much of the noised item is added to each behavior, delta. Defaults
            to `0.001`.
        generation_weight: float. Weight of the generator's loss. Defaults to `0.1`.
        num_heads: int. Number of heads of the Transformer. Defaults to `2`.
        num_blocks: int. Number of blocks of the Transformer. Defaults to `1`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

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
        # Diffusion stays in float32 under mixed precision.
        newest = NewestBehaviors(max_length, "diffurec")
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
            seen = newest(request)
            item = generate(seen.history, seen.history_mask, seen.features[seen.history_key])
            return with_generated_item(request, item)

        super().__init__(schema, tower_inputs, **kwargs)

        # === Config ===
        self.max_length = max_length
        self.sampling_steps = sampling_steps
        self.uncertainty = uncertainty
        self.generation_weight = generation_weight
        self.num_heads = num_heads
        self.num_blocks = num_blocks
