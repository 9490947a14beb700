"""Beam's workers write what this process would."""

import pytest

from tfrec_diffusion.datasets import requests, tables
from tfrec_diffusion.prepare import prepare

pytest.importorskip("apache_beam")
pytestmark = pytest.mark.slow


def test_same_bytes_and_counts(tmp_path, monkeypatch, digests):
    monkeypatch.setattr(tables.Database, "part_rows", 20)
    lines = [
        f"{user},{(user + 3 * time) % 11},1,pv,{1511539200 + time}"
        for user in range(20)
        for time in range(8)
    ]
    (tmp_path / "UserBehavior.csv").write_text("\n".join(lines) + "\n")
    here = prepare("taobao", raw_dir=tmp_path, data_dir=tmp_path / "here")
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    there = prepare(
        "taobao",
        raw_dir=tmp_path,
        data_dir=tmp_path / "there",
        preparation=requests.Preparation(beam_options=options),
    )
    assert digests(there) == digests(here)
