"""`MirroredStrategy` through `fit`: two replicas with half a batch each equal one device."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from mirrored import NOISY

from tfrec_diffusion import models


@pytest.mark.slow
def test_two_replicas_equal_one_device(schema, make_requests, tmp_path):
    path = tmp_path / "requests.npz"
    np.savez(path, schema=json.dumps(schema.get_config()), **make_requests(batch=64))
    script = pathlib.Path(__file__).with_name("mirrored.py")
    done = subprocess.run([sys.executable, script, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == models.MODELS.keys()
    for name, result in found.items():
        assert np.isfinite(result["loss"]), name
        if name not in NOISY:
            assert result["loss"] == pytest.approx(result["one"], rel=1e-4), name
            assert result["difference"] < 1e-4, name
