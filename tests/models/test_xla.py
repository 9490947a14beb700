"""Every model under XLA: it trains, and trains and scores as it does eagerly."""

import functools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tfrec_diffusion import models

NAMES = sorted(models.MODELS)
PROCESSES = 2  # one by one: each may need as much memory as all other tests of models together


@pytest.fixture(scope="module")
def trained(schema, make_requests, tmp_path_factory):
    """Name to what `xla_steps.py` found."""
    path = tmp_path_factory.mktemp("requests") / "requests.npz"
    np.savez(path, schema=json.dumps(schema.get_config()), **make_requests(batch=32, candidates=1))
    command = [sys.executable, pathlib.Path(__file__).with_name("xla_steps.py"), path]

    @functools.cache
    def run(part):
        done = subprocess.run(
            [*command, *NAMES[part::PROCESSES]],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return lambda name: run(NAMES.index(name) % PROCESSES)[name]


@pytest.mark.parametrize("name", [name for i in range(PROCESSES) for name in NAMES[i::PROCESSES]])
def test_xla_trains_and_scores_as_eager_steps_do(name, trained):
    found = trained(name)
    assert found["loss_of_xla"] == pytest.approx(found["loss"], rel=1e-5)
    assert found["difference"] < 1e-6
    assert found["later_loss"] < found["loss_of_xla"]
    assert found["difference_of_scores"] < 1e-6 < 1e-3 * found["spread_of_scores"]
