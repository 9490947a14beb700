"""DiffuMIN: Diffusion-driven Multi-Interest Network (Lai et al., RecSys 2025)."""

import types

import keras
from keras import ops

from tfrec_diffusion.diffusion.interest_generator import DiffusionGenerator
from tfrec_diffusion.layers.aggregation import (
    MeanAggregation,
    SelfAttentionAggregation,
    ShareAggregation,
    SimilarityAggregation,
    TargetAttentionAggregation,
)
from tfrec_diffusion.layers.arguments import choose
from tfrec_diffusion.layers.contrast import ContrastiveCalibrator
from tfrec_diffusion.layers.evidence import ChannelEvidence
from tfrec_diffusion.layers.multi_interest import MultiInterestExtractor
from tfrec_diffusion.layers.orthogonal import OrthogonalChannels, TargetChannel
from tfrec_diffusion.layers.routing import (
    SoftRouting,
    StraightThroughRouting,
    TopK,
    TopP,
    TopRouting,
)
from tfrec_diffusion.layers.transformer import TargetTransformer
from tfrec_diffusion.layers.variational import VariationalGenerator
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.parts import BehaviorFeatures, HistoryProfile
from tfrec_diffusion.models.request import as_schema

_ROUTINGS = {
    "top_1": (TopRouting, 1),
    "top_2": (TopRouting, 2),
    "soft": (SoftRouting,),
    "straight_through": (StraightThroughRouting,),
}
_AGGREGATIONS = {
    "mean": MeanAggregation,
    "share": ShareAggregation,
    "similarity": SimilarityAggregation,
    "target_attention": TargetAttentionAggregation,
    "self_attention": SelfAttentionAggregation,
}


@keras.saving.register_keras_serializable(package="tfrec_diffusion")
class DiffuMIN(RankingModel):
    """MLP([r, r*, e_other, e*_s]), eq. 22; figure 1 of the paper.

    The defaults are the best that was measured on real and planted data, and depart from the paper
    where the arguments say so. `experiments/diffumin/paper.flags` has its equations to the letter.

    Interest channels come from the orthogonal decomposition of the target (eq. 2-4). Each channel
    aggregates those behaviors that are routed to it and pass its filter; the results are r
    (eq. 5-8). A guided diffusion model generates r* from r (eq. 9-19), and a contrastive loss
    aligns both (eq. 20). A Transformer over the newest behaviors gives e*_s (eq. 21). e_other holds
    all features that the history is not compared with. What r leaves out, because it is a mean, the
    evidence of each channel tells the tower; what it leaves out, because it is of behaviors like
    the candidate, the product of the candidate with a map of the whole history's mean.

    Args:
        schema: `Schema`. The features of a request.
        channels: int. Number of interest channels c, at most the width d of a behavior. Defaults to
            `4`.
        decompose_target: bool. Whether the channels are a decomposition of the target. If `False`,
            the target itself is the one channel (variant A). Defaults to `True`.
        channel_start: str. What the channels decompose before training (W_O of eq. 2):
            `"features"`, the history features of the target, each in one channel in turn (with more
            features than channels, some share one);
            `"target"`, the target itself as the first channel and random maps of it; or
            `"random"`, random maps only. Defaults to `"features"`.
        orthogonal_channels: bool. Whether the channels are made orthogonal (eq. 3-4). If `False`,
            they are the rows of eq. 2 themselves, of length 1. Defaults to `True`.
        routing: str. Which channels a behavior goes to: `"top_1"` (eq. 6), `"top_2"`, `"soft"`, or
            `"straight_through"`, which is `"top_1"` with the gradient of `"soft"`. Defaults to
            `"top_1"`.
        top_p: float. Share of the behaviors that a channel's filter keeps (eq. 7), in (0, 1].
            Defaults to `0.2`.
        top_k: int or `None`. Number of behaviors that the filter keeps instead. If `None`, `top_p`
            decides. Defaults to `None`.
        aggregation: str. How a channel aggregates its behaviors: `"mean"` (eq. 8), `"share"`,
            `"similarity"`, `"target_attention"` or `"self_attention"`. Defaults to `"mean"`.
        evidence: bool. Whether the tower sees `ChannelEvidence`, with which the channels also learn
            from the click. Not in the paper. Defaults to `True`.
        generator: str or `None`. What generates r*: `"diffusion"`, `"vae"` (table 4) or nothing
            (`None`, variant D). Defaults to `"diffusion"`.
        diffusion_weight: float. Weight lambda_1 of the generator's loss, also of the VAE's.
            Defaults to `0.01`.
        sampling_steps: int or `None`. Number of sampling steps T' of eq. 19. If `None`, 20, or 1
            with `"tcc"`. Defaults to `None`.
        spacing: str. Spacing of the sampling steps, as in `DiffusionGenerator`: `"consecutive"` or
            `"strided"`. That of `"tcc"` is always strided. Defaults to `"consecutive"`.
        start_step: int or `None`. First of the `"strided"` steps, in [T', T], or of those of
            `"tcc"`. If `None`, 20 with `"tcc"`. Defaults to `None`.
        start: str. Where sampling starts, as in `DiffusionGenerator`: `"matched"`, `"uniform"` or
            `"gaussian"` (variant Z). Defaults to `"matched"`.
        sampler: str. `"ddpm"` (eq. 19), `"ddim"`, or `"tcc"`, HierDiffuse's Trajectory Convergence
            Constraint with one evaluation in the place of T'. Defaults to `"tcc"`.
        sigma: str. Noise of the `"ddpm"` steps: `"beta"` or `"posterior"`. Defaults to `"beta"`.
        normalize_interests: bool or str. How r is scaled for the diffusion: `True` to length 1;
            `"proportional"` to a root mean square of 1, and r* back, so that the noise is in
            proportion to r; `False` not at all. Defaults to `"proportional"`.
        train_interests: bool. Whether r and the channels learn through the generator: from the
            click's gradient in r* and from the generator's loss. They learn from the contrastive
            loss either way. Defaults to `False`.
        inference_draws: int. Number of draws of the noise whose mean r* is at inference; 0 is
            without noise. Defaults to `1`.
        context_guidance: bool. Whether an interest is denoised under the guidance of the other
            interests (not in variants W and Y). Defaults to `True`.
        channel_guidance: bool. Whether an interest is denoised under the guidance of its channel
            (not in variants X and Y). Defaults to `True`.
        contrastive_weight: float. Weight lambda_2 of the contrastive loss. With 0 there is no
            calibrator (variant C). Defaults to `0.001`.
        temperature: float. Temperature tau of the calibrator. Defaults to `0.05`.
        user_feature: str or `None`. Name of the user feature that tells users apart, so that
            requests of one user are no negatives of each other. If `None`, all requests of a batch
            are. Defaults to `None`.
        aggregated_in_tower: bool. Whether the tower sees r. If `False`, variant B. Defaults to
            `True`.
        candidate_in_tower: bool. Whether the tower sees all candidate features. If `False`, it sees
            those that the history is not compared with, which is e_other of eq. 22. Defaults to
            `True`.
        short_term_length: int or `None`. Number of newest behaviors k that the Transformer sees. If
            `None`, there is no Transformer, and the tower sees the target itself (variant E).
            Defaults to `100`.
        profile_units: Sequence of int or `None`. Widths of the hidden layers of a `TargetProduct`
            of the mean of the whole history with the target, which the tower sees. Not in the
            paper. If `None`, there is none. Defaults to `(128,)`.
        cross_features: Sequence of str or `None`. Names of behavior features, such as ages, which
            the evidence, the Transformer and the mean of the history see. Not in the paper. If
            `None`, all of the schema. Defaults to `None`.
        num_heads: int. Number of heads of every attention; a divisor of the width of a behavior.
            Defaults to `2`.
        tower_units: Sequence of int. Widths of the tower's layers. Defaults to `(1024, 512, 256)`.
        embedding_stddev: float. Standard deviation of the initial embeddings. Defaults to `0.01`.
        **kwargs: Arguments of `RankingModel`.

    Call arguments and Returns: As in `RankingModel`.

    Example:

    >>> model = models.create("diffumin", schema=schema, channels=4, aggregation="similarity")

    Reference:
        https://arxiv.org/abs/2508.15311
    """

    defaults_before = types.MappingProxyType(
        {
            "channel_start": "target",
            "evidence": False,
            "candidate_in_tower": False,
            "profile_units": None,
            "cross_features": (),
            "train_interests": True,
        }
    )

    def __init__(
        self,
        schema,
        channels=4,
        decompose_target=True,
        channel_start="features",
        orthogonal_channels=True,
        routing="top_1",
        top_p=0.2,
        top_k=None,
        aggregation="mean",
        evidence=True,
        generator="diffusion",
        diffusion_weight=0.01,
        sampling_steps=None,
        spacing="consecutive",
        start_step=None,
        start="matched",
        sampler="tcc",
        sigma="beta",
        normalize_interests="proportional",
        train_interests=False,
        inference_draws=1,
        context_guidance=True,
        channel_guidance=True,
        contrastive_weight=0.001,
        temperature=0.05,
        user_feature=None,
        aggregated_in_tower=True,
        candidate_in_tower=True,
        short_term_length=100,
        profile_units=(128,),
        cross_features=None,
        num_heads=2,
        tower_units=(1024, 512, 256),
        embedding_stddev=0.01,
        **kwargs,
    ):
        # === Layers ===
        schema = as_schema(schema)
        dtype = kwargs.get("dtype")
        # Selection, diffusion and contrast stay in float32 under mixed precision.
        if decompose_target:
            sized = schema.with_dim(kwargs.get("embedding_dim"))
            widths = tuple(sized.table(f.table).dim for f in sized.group("history"))
            starts = {"features": widths, "target": "target", "random": "random"}
            decomposition = OrthogonalChannels(
                channels,
                choose("channel_start", channel_start, starts),
                orthogonal_channels,
                dtype="float32",
                name="diffumin.channels",
            )
        else:
            decomposition = TargetChannel(dtype="float32", name="diffumin.channels")
        make_routing, *arguments = choose("routing", routing, _ROUTINGS)
        extractor = MultiInterestExtractor(
            make_routing(*arguments),
            TopP(top_p) if top_k is None else TopK(top_k),
            choose("aggregation", aggregation, _AGGREGATIONS)(),
            ChannelEvidence() if evidence else None,
            dtype="float32",
            name="diffumin.extractor",
        )
        if generator == "diffusion":
            generate = DiffusionGenerator(
                sampling_steps,
                spacing=spacing,
                start_step=start_step,
                start=start,
                sampler=sampler,
                sigma=sigma,
                normalize_interests=normalize_interests,
                inference_draws=inference_draws,
                weight=diffusion_weight,
                num_heads=num_heads,
                context_guidance=context_guidance,
                channel_guidance=channel_guidance,
                dtype="float32",
                name="diffumin.generator",
            )
        elif generator == "vae":
            generate = VariationalGenerator(
                weight=diffusion_weight, dtype="float32", name="diffumin.generator"
            )
        elif generator is not None:
            raise ValueError(
                f'`generator` must be "diffusion", "vae" or None. Received: generator={generator!r}'
            )
        calibrate = ContrastiveCalibrator(
            temperature, contrastive_weight, dtype="float32", name="diffumin.calibrator"
        )
        if short_term_length is not None:
            transformer = TargetTransformer(
                short_term_length,
                num_heads,
                dtype=dtype,
                name="diffumin.short_term",
            )
        profile = HistoryProfile(profile_units, "diffumin")
        features_of = BehaviorFeatures(
            schema, cross_features, embedding_stddev, dtype, "diffumin.cross_features"
        )

        # === Functional model ===
        def tower_inputs(request):
            history, target = request.history, request.target
            history_mask, candidate_mask = request.history_mask, request.candidate_mask
            o = decomposition(target)
            embedded = features_of(request)
            r = extractor(history, o, target, history_mask, embedded)
            shown = request.candidate if candidate_in_tower else request.candidate_other
            inputs = [x for x in (request.user, request.context, shown) if x is not None]
            if evidence:
                r, found = r
                inputs.append(of_channels(found, "evidence"))
            if aggregated_in_tower:
                inputs.append(of_channels(r, "interests"))
            if generator is not None:
                seen = (r, o) if train_interests else map(ops.stop_gradient, (r, o))
                augmented = generate(*seen, candidate_mask)
                if contrastive_weight > 0:
                    users = _users(request.features, user_feature)
                    augmented = calibrate(r, augmented, candidate_mask, users)
                inputs.append(of_channels(augmented, "augmented"))
            history = features_of.add(history, embedded)
            inputs += profile(history, history_mask, target)
            if short_term_length is not None:
                inputs.append(transformer(history, target, history_mask))
            elif not candidate_in_tower:
                inputs.append(target)
            return inputs

        def of_channels(x, name):
            return keras.layers.Reshape((-1, x.shape[2] * x.shape[3]), name=f"diffumin.{name}")(x)

        super().__init__(
            schema,
            tower_inputs,
            tower_units=tower_units,
            embedding_stddev=embedding_stddev,
            **kwargs,
        )

        # === Config ===
        self.channels = channels
        self.decompose_target = decompose_target
        self.channel_start = channel_start
        self.orthogonal_channels = orthogonal_channels
        self.routing = routing
        self.top_p = top_p
        self.top_k = top_k
        self.aggregation = aggregation
        self.evidence = evidence
        self.generator = generator
        self.diffusion_weight = diffusion_weight
        self.sampling_steps = sampling_steps
        self.spacing = spacing
        self.start_step = start_step
        self.start = start
        self.sampler = sampler
        self.sigma = sigma
        self.normalize_interests = normalize_interests
        self.train_interests = train_interests
        self.inference_draws = inference_draws
        self.context_guidance = context_guidance
        self.channel_guidance = channel_guidance
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature
        self.user_feature = user_feature
        self.aggregated_in_tower = aggregated_in_tower
        self.candidate_in_tower = candidate_in_tower
        self.short_term_length = short_term_length
        self.profile_units = profile.units
        self.cross_features = None if cross_features is None else features_of.names
        self.behavior_features = features_of.names
        self.num_heads = num_heads


def _users(features, name):
    if name is None:
        return None
    return choose("user_feature", name, {n: x for n, x in features.items() if len(x.shape) == 1})
