"""The registered models: a name, as `--model` takes it, to its class."""

from tfrec_diffusion.models.avg_pooling import AvgPooling
from tfrec_diffusion.models.diffumin import DiffuMIN
from tfrec_diffusion.models.din import DIN
from tfrec_diffusion.models.hierdiffuse import HierDiffuse

MODELS = {"avg_pooling": AvgPooling, "diffumin": DiffuMIN, "din": DIN, "hierdiffuse": HierDiffuse}


def get(name):
    """The class of a registered model.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in MODELS:
        raise ValueError(f"`model` must be one of {sorted(MODELS)}. Received: {name!r}")
    return MODELS[name]


def create(name, schema, **kwargs):
    """A new model.

    Args:
        name: A key of `MODELS`.
        schema: `Schema` of the requests.
        **kwargs: Of the model's constructor.
    """
    return get(name)(schema=schema, **kwargs)
