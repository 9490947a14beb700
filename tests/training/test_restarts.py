import os
from unittest.mock import patch

import pytest

from tfrec_diffusion.training import restarts
from tfrec_diffusion.training.run_directory import RunDirectory


@pytest.mark.parametrize(
    ("claimed", "written", "waited", "over"),
    [
        (None, None, 0, False),
        (-9, None, 9999, False),
        (-9, -5, 1, False),  # an earlier end: the chief may be on its way
        (-9, -5, 601, True),
        (2, -5, 9999, False),  # it trains on
        (2, 5, 6, True),
    ],
)
def test_a_server_waits_for_the_end_of_its_chiefs_run(claimed, written, waited, over, tmp_path):
    """Times are seconds from the server's start."""
    start = 1_800_000_000
    for name, time in (("flags.json", claimed), ("metrics.json", written)):
        if time is not None:
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (start + time, start + time))
    with (
        patch.object(restarts.cluster, "serve") as serve,
        patch.object(restarts.time, "time", return_value=start) as now,
    ):
        restarts.serve(RunDirectory(tmp_path))
        (is_over,) = serve.call_args.args
        now.return_value = start + waited
        assert is_over() == over
