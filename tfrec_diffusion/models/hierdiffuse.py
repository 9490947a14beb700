"""HierDiffuse: progressive diffusion for robust interest fusion (Ni et al., JD 2025)."""

import types

import keras
from keras import ops

from tfrec_diffusion.diffusion.denoisers import MLPDenoiser, TransformerDenoiser
from tfrec_diffusion.diffusion.fusion import DiffusionFusion
from tfrec_diffusion.diffusion.guidance import ClassifierFreeGuidance, SemanticGuidance
from tfrec_diffusion.layers.arguments import check_choice, choose
from tfrec_diffusion.layers.attention import LocalActivationUnit
from tfrec_diffusion.layers.encoder import LongTermEncoder
from tfrec_diffusion.layers.product import TargetProduct
from tfrec_diffusion.layers.sessions import ShortTermEncoder
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.parts import BehaviorFeatures, HistoryProfile
from tfrec_diffusion.models.request import as_schema

# What is denoised, and whether the other one guides it.
_DIRECTIONS = {
    "long_to_short": ("long", True),
    "short_to_long": ("short", True),
    "long": ("long", False),
    "short": ("short", False),
}
_BACKBONES = {"mlp": MLPDenoiser, "transformer": TransformerDenoiser}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class HierDiffuse(RankingModel):
    """MLP([user and context, candidate, h^fusion]); figure 1 of the paper.

    The defaults are the best that was measured on real and planted data, and depart from the paper
    where the arguments say so. `experiments/hierdiffuse/paper.flags` has the paper's settings.

    h^fusion is the long-term interest h^L, denoised under the guidance of the short-term interests
    y_g. It depends on the user alone, so a request takes one fusion for any number of candidates.

    Args:
        schema: `Schema`. The features of a request. The `tiers` of its item table are the semantic
            categories of the guidance: the popular items that trends drive, and the niche items. If
            it has none, there is one category.
        long_length: int. Number of newest behaviors of the long-term encoder. Defaults to `200`.
        short_length: int. Number of newest behaviors of the short-term encoder. Defaults to `50`.
        max_sessions: int. Number of newest sessions K of the short-term encoder. Defaults to `10`.
        gap_feature: str or `None`. Name of the behavior feature whose one boundary separates
            sessions. If `None`, the schema's first behavior feature with one boundary; if it has
            none, sessions are equal cuts of the history. Defaults to `None`.
        num_heads: int. Number of heads of both encoders. Defaults to `2`.
        num_blocks: int. Number of Transformer blocks of both encoders. Defaults to `1`.
        fusion: str. `"diffusion"`, or `"concatenation"` of h^L and h^S. Defaults to `"diffusion"`.
        direction: str. What is denoised (table 2e): `"long_to_short"`, h^L under the guidance of
            the short-term interests; `"short_to_long"`, h^S under the guidance of h^L; `"long"` or
            `"short"`, either of them unguided. Defaults to `"long_to_short"`.
        guidance: str. `"sgd"`, semantic guidance disentanglement (eq. 6), or `"cfg"`,
            classifier-free guidance (eq. 5), whose one condition is h^S. Defaults to `"sgd"`.
        guidance_weight: float or `None`. Weight omega of `"cfg"`; what each weight of `"sgd"`
            starts at. If `None`, 1 for `"cfg"`, and weights that sum to 1 for `"sgd"`. Defaults to
            `None`.
        backbone: str. Network of the denoiser: `"mlp"` or `"transformer"` (table 2b). Defaults to
            `"mlp"`.
        sampler: str. `"tcc"`, `"ddim"` or `"ddpm"` (table 2d). Defaults to `"tcc"`.
        sampling_steps: int. Number of evaluations of the denoiser. Defaults to `1`.
        start_step: int or `None`. Step t at which sampling starts from h^L. If `None`, the last
            step, 1000, where nothing of h^L is left, as the paper prints it. Defaults to `500`.
        diffusion_weight: float. Weight of the loss of eq. 8. Defaults to `0.1`.
        reconstruction: bool. Whether this loss has its first term (table 2c). Defaults to `True`.
        trajectory: bool. Whether this loss has its second term (table 2c). Defaults to `True`.
        trajectory_state: str. How the second term finds x at t - delta, as in `DiffusionFusion`:
            `"same_noise"` or `"ddim"`. Defaults to `"same_noise"`.
        condition_dropout: float. Share of the conditions that training leaves out. Defaults to
            `0.1`.
        curriculum_steps: int. Number of steps of the whole training, over which the curriculum
            runs. The train command sets it. Defaults to `10_000`.
        target_attention: bool. Whether the tower also sees DIN's attention of the candidate to the
            history. Defaults to `False`.
        interests_in_tower: bool. Whether the tower sees h^L and h^S beside h^fusion. With
            `fusion="concatenation"` it always does. Defaults to `True`.
        interaction: bool. Whether the tower also sees a `TargetProduct` of each interest with the
            candidate. Not in the paper. Defaults to `True`.
        interaction_units: Sequence of int. Widths of the hidden layers of these products. Defaults
            to `(128,)`.
        profile_units: Sequence of int or `None`. As `interaction_units`, of a product of the whole
            history's mean with the candidate, which the tower sees. Not in the paper. If `None`,
            there is none. Defaults to `(128,)`.
        cross_features: Sequence of str or `None`. Names of behavior features, such as ages, which
            are added to the behaviors before all of this. Not in the paper. Ages change with
            time, so that a state of the user that is kept must be made anew now and then. If
            `None`, all of the schema. Defaults to `None`.
        activation: str. Activation of the tower and of DIN's attention: `"dice"`, `"prelu"` or
            `"relu"`. Defaults to `"dice"`.
        embedding_stddev: float. Standard deviation of the initial embeddings. Defaults to `0.01`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

    Example:

    >>> model = models.create("hierdiffuse", schema=schema, curriculum_steps=3 * len(batches))
    >>> model.fit(batches, epochs=3)
    """

    defaults_before = types.MappingProxyType(
        {
            "interests_in_tower": False,
            "interaction": False,
            "interaction_units": (),
            "profile_units": None,
            "cross_features": (),
        }
    )

    def __init__(
        self,
        schema,
        long_length=200,
        short_length=50,
        max_sessions=10,
        gap_feature=None,
        num_heads=2,
        num_blocks=1,
        fusion="diffusion",
        direction="long_to_short",
        guidance="sgd",
        guidance_weight=None,
        backbone="mlp",
        sampler="tcc",
        sampling_steps=1,
        start_step=500,
        diffusion_weight=0.1,
        reconstruction=True,
        trajectory=True,
        trajectory_state="same_noise",
        condition_dropout=0.1,
        curriculum_steps=10_000,
        target_attention=False,
        interests_in_tower=True,
        interaction=True,
        interaction_units=(128,),
        profile_units=(128,),
        cross_features=None,
        activation="dice",
        embedding_stddev=0.01,
        **kwargs,
    ):
        # === Layers ===
        schema = as_schema(schema)
        gap_features = [
            feature.name
            for feature in schema.group("behavior")
            if len(schema.table(feature.table).boundaries) == 1
        ]
        if gap_feature is None:
            gap_feature = next(iter(gap_features), None)
        else:
            check_choice("gap_feature", gap_feature, gap_features)
        diffused, guided = choose("direction", direction, _DIRECTIONS)
        fused = choose("fusion", fusion, {"diffusion": True, "concatenation": False})
        semantic = choose("guidance", guidance, {"sgd": True, "cfg": False})
        # Only the short-term interests as conditions come in categories.
        semantic = semantic and fused and direction == "long_to_short"
        tiers = schema.table(schema.group("history")[0].table).tiers if semantic else ()
        # Encoders and diffusion stay in float32 under mixed precision.
        encode_long = LongTermEncoder(
            long_length, num_heads, num_blocks, dtype="float32", name="hierdiffuse.long_term"
        )
        encode_short = ShortTermEncoder(
            short_length,
            max_sessions,
            tiers,
            num_heads,
            num_blocks,
            dtype="float32",
            name="hierdiffuse.short_term",
        )
        if semantic:
            guide = SemanticGuidance(guidance_weight, dtype="float32", name="hierdiffuse.guidance")
        else:
            guide = ClassifierFreeGuidance(
                1.0 if guidance_weight is None else guidance_weight,
                dtype="float32",
                name="hierdiffuse.guidance",
            )
        make_denoiser = choose("backbone", backbone, _BACKBONES)
        fuse = DiffusionFusion(
            make_denoiser(dtype="float32", name="denoiser"),
            sampler,
            sampling_steps,
            start_step,
            weight=diffusion_weight,
            reconstruction=reconstruction,
            trajectory=trajectory,
            trajectory_state=trajectory_state,
            curriculum_steps=curriculum_steps,
            condition_dropout=condition_dropout,
            dtype="float32",
            name="hierdiffuse.fusion",
        )
        attention = LocalActivationUnit(
            activation=activation, dtype=kwargs.get("dtype"), name="hierdiffuse.attention"
        )
        profile = HistoryProfile(profile_units, "hierdiffuse")
        features_of = BehaviorFeatures(
            schema, cross_features, embedding_stddev, "float32", "hierdiffuse.cross_features"
        )

        # === Functional model ===
        def tower_inputs(request):
            history, history_mask, target = request.history, request.history_mask, request.target
            candidate_mask = request.candidate_mask
            rows = request.features
            items, gaps = rows[schema.history_key], rows.get(gap_feature)
            history = features_of.add(history, features_of(request))
            long = encode_long(history, history_mask)
            short, counts, dispersions = encode_short(history, history_mask, items, gaps)
            interests = [long, short[:, 0]]
            if fused:
                interest, conditions = {
                    "long": (long, short),
                    "short": (short[:, 0], long[:, None]),
                }[diffused]
                if not guided:
                    conditions, counts, dispersions = (
                        x[:, :0] for x in (conditions, counts, dispersions)
                    )
                real = ops.any(history_mask, axis=1)
                weights = guide(conditions, counts, dispersions)
                fusion_of_both = fuse(interest, conditions, weights, real)
                interests = [fusion_of_both, *(interests if interests_in_tower else ())]
            if interaction:
                interests += [
                    TargetProduct(
                        interaction_units, dtype="float32", name=f"hierdiffuse.product_{i}"
                    )(x, target)
                    for i, x in enumerate(interests)
                ]
            interests += profile(history, history_mask, target)
            if target_attention:
                interests.append(attention(history, target, history_mask, candidate_mask))
            return request.tower_inputs(*interests)

        super().__init__(
            schema,
            tower_inputs,
            activation=activation,
            embedding_stddev=embedding_stddev,
            **kwargs,
        )

        # === Config ===
        self.long_length = long_length
        self.short_length = short_length
        self.max_sessions = max_sessions
        self.gap_feature = gap_feature
        used = ([] if gap_feature is None else [gap_feature]) + list(features_of.names)
        self.behavior_features = tuple(dict.fromkeys(used))
        self.num_heads = num_heads
        self.num_blocks = num_blocks
        self.fusion = fusion
        self.direction = direction
        self.guidance = guidance
        self.guidance_weight = guidance_weight
        self.backbone = backbone
        self.sampler = sampler
        self.sampling_steps = sampling_steps
        self.start_step = start_step
        self.diffusion_weight = diffusion_weight
        self.reconstruction = reconstruction
        self.trajectory = trajectory
        self.trajectory_state = trajectory_state
        self.condition_dropout = condition_dropout
        self.curriculum_steps = curriculum_steps
        self.target_attention = target_attention
        self.interests_in_tower = interests_in_tower
        self.interaction = interaction
        self.interaction_units = tuple(interaction_units)
        self.profile_units = profile.units
        self.cross_features = None if cross_features is None else features_of.names
        self.has_user_state = not target_attention

    @classmethod
    def from_config(cls, config, custom_objects=None):
        if "interaction" not in config and config["guidance"] == "sgd":
            config = {**config, "guidance_weight": None}  # it meant nothing then
        return super().from_config(config, custom_objects)
