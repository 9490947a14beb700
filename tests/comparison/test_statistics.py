import math

import numpy as np
import pytest

from tfrec_diffusion.comparison import statistics


def student_p(t, df):
    """Two-sided p: one less the area of Student's density between -t and t."""
    x = np.linspace(-t, t, 100_001)
    density = (1 + x**2 / df) ** (-(df + 1) / 2)
    constant = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    return 1 - constant * np.trapezoid(density, x)


def test_mean_and_deviation():
    # The sample variance of 0.72, 0.74 and 0.79 is 0.0013.
    assert statistics.mean_and_deviation(np.array([0.72, 0.74, 0.79])) == "0.7500 ± 0.0361"
    assert statistics.mean_and_deviation(np.array([0.72])) == "0.7200"


def test_welch():
    pytest.importorskip("scipy")
    # Variances 0.0002 and 0.00005 of means 0.73 and 0.765: t is
    # (0.765 - 0.73) / sqrt(0.0002 / 2 + 0.00005 / 2) with 25 / 17 degrees of freedom.
    p = statistics.welch(np.array([0.76, 0.77]), np.array([0.72, 0.74]))
    np.testing.assert_allclose(p, student_p(3.1304952, 25 / 17), atol=1e-6)
    assert f"{p:.3f}" == "0.129"


@pytest.mark.parametrize(("values", "base"), [([0.7], [0.7, 0.8]), ([0.7, 0.8], [0.7]), ([], [])])
def test_one_seed_is_not_enough_for_welch(values, base):
    pytest.importorskip("scipy")
    assert statistics.welch(np.array(values), np.array(base)) is None
