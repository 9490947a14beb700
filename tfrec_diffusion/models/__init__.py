"""The models, by class and by the name that `--model` takes."""

from tfrec_diffusion import names
from tfrec_diffusion.models.avg_pooling import AvgPooling
from tfrec_diffusion.models.base import RankingModel
from tfrec_diffusion.models.can import CAN
from tfrec_diffusion.models.dien import DIEN
from tfrec_diffusion.models.diffumin import DiffuMIN
from tfrec_diffusion.models.diffurec import DiffuRec
from tfrec_diffusion.models.din import DIN
from tfrec_diffusion.models.dreamrec import DreamRec
from tfrec_diffusion.models.eta import ETA
from tfrec_diffusion.models.hierdiffuse import HierDiffuse
from tfrec_diffusion.models.sdim import SDIM
from tfrec_diffusion.models.sim import SIMHard, SIMSoft
from tfrec_diffusion.models.twin import TWIN
from tfrec_diffusion.models.twin_v2 import TWINV2

__all__ = [
    "CAN",
    "DIEN",
    "DIN",
    "ETA",
    "MODELS",
    "SDIM",
    "TWIN",
    "TWINV2",
    "AvgPooling",
    "DiffuMIN",
    "DiffuRec",
    "DreamRec",
    "HierDiffuse",
    "RankingModel",
    "SIMHard",
    "SIMSoft",
    "create",
    "get",
]

MODELS = {name: globals()[class_name] for name, class_name in names.MODELS.items()}


def get(name):
    """Returns the class of a model.

    Args:
        name: str. A key of `MODELS`.

    Raises:
        ValueError: If there is no model of that name.
    """
    if name not in MODELS:
        raise ValueError(f"`model` must be one of {sorted(MODELS)}. Received: {name!r}")
    return MODELS[name]


def create(name, schema, **kwargs):
    """Returns a new model.

    Args:
        name: str. A key of `MODELS`.
        schema: `Schema`. The features of a request.
        **kwargs: Other arguments of the model's constructor.

    Raises:
        ValueError: If there is no model of that name.
    """
    return get(name)(schema=schema, **kwargs)
