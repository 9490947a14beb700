import os
import shutil

import pytest
from commands import run

from tfrec_diffusion.prepared_directory import PreparedDirectory

NOON = 1_800_014_400  # of 15 January 2027, in UTC


@pytest.fixture
def raw(tmp_path):
    """`raw(name, seconds)`: writes a raw file so many seconds after noon; returns it."""

    def write(name, seconds):
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("user,item\n")
        os.utime(path, (NOON + seconds, NOON + seconds))
        return path

    return write


@pytest.fixture
def prepared(tmp_path, raw):
    """A data set whose raw files were read at noon."""
    raw("monday.csv", -5)
    directory = PreparedDirectory(tmp_path / "prepared")
    directory.path.mkdir()
    directory.remember_raw_files(tmp_path / "raw", NOON)
    return directory


def test_raw_files_that_are_newer_are_told(prepared, raw):
    assert prepared.newer_raw_files() is None
    raw("tuesday.csv", 60)
    last = raw("parts/wednesday.csv", 7200)
    assert prepared.newer_raw_files() == (
        f"{prepared.path} was prepared of the raw files of 2027-01-15 12:00 UTC, and 2 of them "
        f"are newer, such as {last} of 2027-01-15 14:00 UTC: to train on them, prepare the data "
        "set again with --overwrite"
    )


def test_files_that_are_no_data_do_not_count(prepared, raw):
    raw(".monday.csv.swp", 60)
    raw("shop/1.0.0/schema.json", 60)  # prepared beside the raw files
    raw("shop/1.0.0/vocabularies/item.txt", 60)
    raw("incomplete.shop/part.csv", 60)
    assert prepared.newer_raw_files() is None


def test_raw_files_that_the_preparation_made_do_not_count(tmp_path, raw):
    raw("clicks.csv", 5)
    directory = PreparedDirectory(tmp_path)
    directory.remember_raw_files(tmp_path / "raw", NOON)
    assert directory.newer_raw_files() is None


def test_raw_files_that_are_gone_or_were_never_known(prepared, tmp_path):
    shutil.rmtree(tmp_path / "raw")
    assert prepared.newer_raw_files() is None
    (tmp_path / "older").mkdir()
    assert PreparedDirectory(tmp_path / "older").newer_raw_files() is None


def test_prepare_says_so_until_it_prepares_again(tmp_path):
    clicks = tmp_path / "raw" / "UserBehavior.csv"
    clicks.parent.mkdir()
    clicks.write_text(
        "".join(f"{u},{t},{t},pv,{1511539200 + t}\n" for u in range(40) for t in range(6))
    )
    flags = ["--dataset=taobao", f"--raw_dir={clicks.parent}", f"--data_dir={tmp_path / 'data'}"]

    def warned(*more):
        status, _, stderr = run("prepare", *flags, *more)
        assert status == 0, stderr
        return f"1 of them is newer, such as {clicks} of 2" in stderr

    assert not warned()
    now = clicks.stat().st_mtime + 3600
    os.utime(clicks, (now, now))
    assert warned()
    now = clicks.stat().st_mtime - 7200
    os.utime(clicks, (now, now))
    assert not warned("--overwrite")
