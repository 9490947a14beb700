"""Noise schedules, denoisers, samplers and guidance, and the layers that diffuse with them."""

from tfrec_diffusion.diffusion import sampler
from tfrec_diffusion.diffusion.denoisers import (
    Denoiser,
    GuidedDenoiser,
    MLPDenoiser,
    TransformerDenoiser,
)
from tfrec_diffusion.diffusion.fusion import DiffusionFusion
from tfrec_diffusion.diffusion.guidance import ClassifierFreeGuidance, SemanticGuidance
from tfrec_diffusion.diffusion.interest_generator import DiffusionGenerator
from tfrec_diffusion.diffusion.item_generators import OracleGenerator, TargetReconstructor
from tfrec_diffusion.diffusion.schedule import Schedule

__all__ = [
    "ClassifierFreeGuidance",
    "Denoiser",
    "DiffusionFusion",
    "DiffusionGenerator",
    "GuidedDenoiser",
    "MLPDenoiser",
    "OracleGenerator",
    "Schedule",
    "SemanticGuidance",
    "TargetReconstructor",
    "TransformerDenoiser",
    "sampler",
]
