"""The data sets by name; a data set's module is imported when it is asked for."""

import importlib

from tfrec_diffusion.names import DATASETS


def builder_class(name):
    """The class that prepares a data set.

    Args:
        name: str. A key of `names.DATASETS`.

    Returns:
        A subclass of `requests.RequestBuilder`.

    Raises:
        ValueError: If there is no data set of that name.
    """
    if name not in DATASETS:
        raise ValueError(f"`dataset` must be one of {sorted(DATASETS)}. Received: {name!r}")
    module, _, class_name = DATASETS[name].partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
