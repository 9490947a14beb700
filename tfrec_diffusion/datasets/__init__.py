"""The data sets by name; each is imported when it is asked for."""

import importlib

_BUILDERS = {
    "alibaba": "alibaba.Alibaba",
    "amazon_books": "amazon_books.AmazonBooks",
    "clustered": "clustered.Clustered",
    "ele_me": "ele_me.EleMe",
    "logs": "logs.Logs",
    "synthetic": "synthetic.Synthetic",
    "taobao": "taobao.Taobao",
}


def names():
    """Names of the data sets."""
    return sorted(_BUILDERS)


def builder_class(name):
    """The `RequestBuilder` subclass of a data set.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in _BUILDERS:
        raise ValueError(f"`dataset` must be one of {names()}. Received: {name!r}")
    module, _, class_name = _BUILDERS[name].partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
