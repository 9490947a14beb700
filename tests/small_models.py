"""Models of the shared test schema that are quick to test, and what they are made and moved by."""

import numpy as np

VOCABULARIES = {
    "item": range(100, 138),
    "category": [f"category {i}" for i in range(8)],
    "hour": range(24),
}

# What makes a model quick enough to test; all else is the default.
SMALL = {
    "diffumin": {"tower_units": (32, 16)},
    "diffurec": {"sampling_steps": 2},
    "dreamrec": {"sampling_steps": 2},
    "hierdiffuse": {"tower_units": (32, 16)},
}

# Models that draw noise in training: other numbers under XLA, and on each replica.
NOISY = {"dien", "diffumin", "diffurec", "dreamrec", "hierdiffuse"}


def write_vocabularies(directory):
    """Writes the vocabularies of the shared test schema."""
    (directory / "vocabularies").mkdir()
    for table, values in VOCABULARIES.items():
        text = "".join(f"{value}\n" for value in values)
        (directory / "vocabularies" / f"{table}.txt").write_text(text)


def perturb(model):
    """Moves weights and moving averages so little that scores stay far from 0 and 1."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.dtype == "float32":
            value = weight.numpy() + rng.normal(0, 0.05, weight.shape)
            if weight.path.endswith("embeddings"):
                value[0] = 0  # padding stays so under training
            elif weight.path.endswith(("/moving_variance", "/seen")):
                value = np.abs(value) + 0.5  # of averages that start at 0
            weight.assign(value)
