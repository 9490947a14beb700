"""DreamRec: Generate What You Prefer (Yang et al., NeurIPS 2023), as a model of clicks."""

import keras

from tfrec_diffusion.diffusion.item_generators import OracleGenerator
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.parts import NewestBehaviors, with_generated_item


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DreamRec(RankingModel):
    """MLP([user and context, candidate, generated item, generated item * candidate]).

    In the paper, the item that a user has in mind is generated from noise under the guidance of
    the history, and its nearest neighbors are recommended. Here the tower that all models share
    scores the candidate against the generated item.

    Args:
        schema: `Schema`. The features of a request.
        max_length: int. Number of newest behaviors that the model sees, at least 2. Defaults to
            `50`.
        sampling_steps: int. Number of evaluations of the denoiser. Defaults to `20`.
        guidance_weight: float. How much the guidance of the history is exaggerated, w. Defaults to
            `2.0`.
        condition_dropout: float. Share of the training rows that are denoised without the history's
            guidance. Defaults to `0.1`.
        generation_weight: float. Weight of the generator's loss. Defaults to `0.1`.
        num_heads: int. Number of heads of the Transformer. Defaults to `2`.
        num_blocks: int. Number of blocks of the Transformer. Defaults to `1`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

    Example:

    >>> model = models.create("dreamrec", schema=schema, sampling_steps=20)

    Reference:
        https://arxiv.org/abs/2310.20453
    """

    has_user_state = True

    def __init__(
        self,
        schema,
        max_length=50,
        sampling_steps=20,
        guidance_weight=2.0,
        condition_dropout=0.1,
        generation_weight=0.1,
        num_heads=2,
        num_blocks=1,
        **kwargs,
    ):
        # === Layers ===
        # Diffusion stays in float32 under mixed precision.
        newest = NewestBehaviors(max_length, "dreamrec")
        generate = OracleGenerator(
            sampling_steps,
            guidance_weight,
            condition_dropout,
            weight=generation_weight,
            length=max_length,
            num_heads=num_heads,
            num_blocks=num_blocks,
            dtype="float32",
            name="dreamrec.generator",
        )

        # === Functional model ===
        def tower_inputs(request):
            seen = newest(request)
            item = generate(seen.history, seen.history_mask)
            return with_generated_item(request, item)

        super().__init__(schema, tower_inputs, **kwargs)

        # === Config ===
        self.max_length = max_length
        self.sampling_steps = sampling_steps
        self.guidance_weight = guidance_weight
        self.condition_dropout = condition_dropout
        self.generation_weight = generation_weight
        self.num_heads = num_heads
        self.num_blocks = num_blocks
