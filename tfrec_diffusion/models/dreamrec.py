"""DreamRec: Generate What You Prefer (Yang et al., NeurIPS 2023), as a model of clicks."""

import keras

from tfrec_diffusion.diffusion.item_generators import OracleGenerator
from tfrec_diffusion.layers.arguments import check_positive_integers
from tfrec_diffusion.layers.normalization import unit_scale
from tfrec_diffusion.layers.search import Newest
from tfrec_diffusion.models.base import RankingModel


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DreamRec(RankingModel):
    """MLP([user and context, candidate, generated item, generated item * candidate]).

    The paper generates the item that a user has in mind from noise, guided by the history, and
    recommends its nearest neighbors; here the candidate is scored against it by the shared tower.

    Args:
        schema: `Schema`.
        max_length: Newest behaviors that the model sees.
        sampling_steps: Evaluations of the denoiser.
        guidance_weight: w: how much the history's guidance is exaggerated.
        condition_dropout: Share of the rows whose history training leaves out.
        generation_weight: Of the generator's loss.
        num_heads, num_blocks: Of the Transformer.
        **kwargs: See `RankingModel`.

    Call arguments and Returns: see `RankingModel`.

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
        check_positive_integers(max_length=max_length)
        # Diffusion stays in float32 under mixed precision.
        newest = Newest(max_length, name="dreamrec.newest")
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
            recent = request.at(*newest(request.history_mask))
            item = generate(recent.history, recent.history_mask)
            return request.tower_inputs(item, item[:, None] * unit_scale(request.target))

        super().__init__(schema, tower_inputs, **kwargs)

        # === Config ===
        self.max_length = max_length
        self.sampling_steps = sampling_steps
        self.guidance_weight = guidance_weight
        self.condition_dropout = condition_dropout
        self.generation_weight = generation_weight
        self.num_heads = num_heads
        self.num_blocks = num_blocks
