"""The registered models: a name, as `--model` takes it, to its class."""

from tfrec_diffusion.models.avg_pooling import AvgPooling
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

MODELS = {
    "avg_pooling": AvgPooling,
    "can": CAN,
    "dien": DIEN,
    "diffumin": DiffuMIN,
    "diffurec": DiffuRec,
    "din": DIN,
    "dreamrec": DreamRec,
    "eta": ETA,
    "hierdiffuse": HierDiffuse,
    "sdim": SDIM,
    "sim_hard": SIMHard,
    "sim_soft": SIMSoft,
    "twin": TWIN,
    "twin_v2": TWINV2,
}


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
