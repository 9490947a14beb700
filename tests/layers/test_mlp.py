import numpy as np
import pytest

from tfrec_diffusion.layers.mlp import MLP


@pytest.mark.parametrize("activation", ["relu", "prelu", "dice"])
def test_equals_dense_layers_on_the_concatenated_inputs(activation):
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(4, 5)).astype("f"), rng.normal(size=(4, 3, 2)).astype("f")
    mlp = MLP((6, 3), activation)
    outputs = mlp([shared, own]).numpy()

    x = np.concatenate([np.repeat(shared[:, None], 3, axis=1), own], axis=-1)
    for kernel, bias in ((mlp.kernel, mlp.bias), (mlp.dense[0].kernel, mlp.dense[0].bias)):
        x = x @ kernel.numpy() + bias.numpy()
        # Dice before any training: moving mean 0, variance 1, alpha 0.
        x = x / (1 + np.exp(-x)) if activation == "dice" else np.maximum(x, 0)
    np.testing.assert_allclose(outputs, x, rtol=1e-5, atol=1e-6)


def test_dropout_is_for_training_only():
    mlp = MLP((50,), "relu", dropout=0.5)
    x = [np.ones((2, 1, 4), "f")]
    assert (mlp(x, training=True).numpy() == 0).sum() > (mlp(x).numpy() == 0).sum()
    np.testing.assert_array_equal(mlp(x), mlp(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": ()}, "`units` must be positive widths"),
        ({"units": (8, 0)}, "`units` must be positive widths"),
        ({"units": (8,), "dropout": 1.0}, r"`dropout` must be in \[0, 1\)"),
        ({"units": (8,), "activation": "tanh"}, "`activation` must be"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(**arguments)
