"""What the tests of the diffusion room share."""

import numpy as np
import pytest


@pytest.fixture
def randomize():
    """Gives a built layer weights that are all away from their initial values."""

    def randomize(layer):
        rng = np.random.default_rng(1)
        for weight in layer.trainable_weights:
            center = float(weight.path.endswith("gamma"))
            weight.assign(center + rng.normal(size=weight.shape, scale=0.3))
        return layer

    return randomize


@pytest.fixture
def spy(monkeypatch):
    """`spy(layer, method)` records the arguments of each call of a method."""

    def spy(layer, method):
        calls, original = [], getattr(layer, method)
        monkeypatch.setattr(
            layer, method, lambda *arguments: calls.append(arguments) or original(*arguments)
        )
        return calls

    return spy
