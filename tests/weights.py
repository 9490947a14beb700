"""Weights as after some training, for tests that a model of initial ones could pass by chance."""

import numpy as np


def perturb(model):
    """Moves weights and moving averages away from their initial values."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.dtype == "float32":
            value = weight.numpy() + rng.uniform(0, 0.2, weight.shape).astype("f")
            if weight.path.endswith("embeddings"):
                value[0] = 0  # padding stays so under training
            weight.assign(value)
