"""Diffusion models and long user histories for click-through-rate prediction."""

__version__ = "0.1.0"
