"""Files of prepared data sets, and raw files of which several parts are made."""

import hashlib
import pathlib

import pytest

from tfrec_diffusion.datasets import tables


@pytest.fixture(scope="session")
def digests():
    """`digests(directory)`: hash of each file below a directory."""

    def of(directory):
        directory = pathlib.Path(directory)
        return {
            str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }

    return of


@pytest.fixture
def taobao_in_parts(tmp_path, monkeypatch):
    """Directory of a raw file of Taobao's that `Database.cut` makes several parts of."""
    monkeypatch.setattr(tables.Database, "part_rows", 20)
    raw_dir = tmp_path / "raw"
    raw_dir.mkdir()
    lines = [
        f"{user},{(user + 3 * time) % 11},1,pv,{1511539200 + time}\n"
        for user in range(20)
        for time in range(8)
    ]
    (raw_dir / "UserBehavior.csv").write_text("".join(lines))
    return raw_dir
