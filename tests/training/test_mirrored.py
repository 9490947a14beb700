"""`MirroredStrategy` through `fit`: two replicas with half a batch each equal one device."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from mirrored import NOT_COMPARED

from tfrec_diffusion import models

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(schema, make_requests, tmp_path_factory):
    path = tmp_path_factory.mktemp("requests") / "requests.npz"
    np.savez(path, schema=json.dumps(schema.get_config()), **make_requests(batch=64))
    script = pathlib.Path(__file__).with_name("mirrored.py")
    done = subprocess.run([sys.executable, script, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_replicas_equal_one_device(found):
    assert found["models"].keys() == models.MODELS.keys()
    for name, result in found["models"].items():
        assert np.isfinite(result["loss"]), name
        if name not in NOT_COMPARED:
            assert result["loss"] == pytest.approx(result["one"], rel=1e-4), name
            assert result["difference"] < 1e-4, name


@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm"])
def test_what_is_clipped_is_the_whole_batchs_gradient(found, clipping):
    assert found[clipping]["difference"] < 1e-4


def test_settling_makes_moving_averages_their_mean(found):
    before, after = found["moving averages"]
    assert any(first != second for first, second in before)
    for (first, second), synchronized in zip(before, after, strict=True):
        expected = np.mean([first, second], axis=0)
        np.testing.assert_allclose(synchronized, [expected] * 2, rtol=1e-5)


def test_replicas_have_noise_of_their_own(found):
    first, second = found["noise"]
    assert not np.isclose(first, second).any()
