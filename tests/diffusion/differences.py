"""Gradients against finite differences of a literal loss."""

import numpy as np
import pytest


def assert_gradients_are_differences(variables, gradients, literal_loss):
    """Along a random direction of each variable."""
    rng = np.random.default_rng(2)
    for variable, gradient in zip(variables, gradients, strict=True):
        center, direction = variable.numpy(), rng.normal(size=variable.shape)
        values, losses = [], []
        for distance in (-1e-3, 1e-3):
            variable.assign(center + distance * direction)
            values.append(variable.numpy().astype("float64"))
            losses.append(literal_loss())
        variable.assign(center)
        expected = np.sum(gradient * (values[1] - values[0]))
        assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-2, abs=1e-6)
        assert np.abs(gradient).max() > 1e-4
