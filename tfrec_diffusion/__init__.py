"""Diffusion models and long user histories for click-through-rate prediction.

The public names are imported when they are first asked for, because TensorFlow takes seconds.
"""

import importlib

__version__ = "0.1.0"

__all__ = [
    "LazyAdam",
    "LogLoss",
    "RequestData",
    "diffusion",
    "layers",
    "models",
]

_MODULES = {
    "LazyAdam": "optimizers",
    "LogLoss": "losses",
    "RequestData": "input_pipeline",
}


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
    return getattr(module, name) if name in _MODULES else module


def __dir__():
    return sorted({*globals(), *__all__})
