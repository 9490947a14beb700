"""What TensorFlow would keep for ever of models that are not needed any more."""

import gc

import keras
from tensorflow.python.framework import ops


def let_go():
    """Lets go of it, between tests or models: their functions can be traced no more.

    A gradient that is written out, as Dice's is, is registered for ever, and with it the graphs
    that it was traced in.
    """
    registered = ops.gradient_registry._registry
    for name in [name for name in registered if name.startswith("CustomGradient-")]:
        del registered[name]
    keras.backend.clear_session()
    gc.collect()
