import functools
import gzip
import signal
import subprocess
import sys
import time

import absl.flags
import commands
import pytest

from tfrec_diffusion import flags, names
from tfrec_diffusion.datasets.preparation import Preparation, prepare
from tfrec_diffusion.prepared_directory import PreparedDirectory

RAW = "".join(
    f"{u},{u * 7 % 40 + t},{t},pv,{1511539200 + t}\n" for u in range(50) for t in range(6)
)


@pytest.fixture
def raw_dir(tmp_path):
    path = tmp_path / "raw"
    path.mkdir()
    (path / "UserBehavior.csv").write_text(RAW)
    return path


@pytest.fixture
def arguments(tmp_path, raw_dir):
    """Where the command reads and writes."""
    return [f"--raw_dir={raw_dir}", f"--data_dir={tmp_path / 'data'}"]


@pytest.fixture
def command(arguments):
    """Runs the command in this process: exit status, stdout and stderr."""
    return lambda *more: commands.run("prepare", *arguments, *more)


def test_command(command, tmp_path, digests):
    directory = tmp_path / "data" / "taobao" / "1.2.0"
    status, stdout, _ = command(
        "--dataset=taobao", "--set=history_length=3", "--set=protocol=last_behaviors"
    )
    assert status == 0
    assert "behaviors                                    300         300" in stdout
    assert f"Prepared: {directory}" in stdout
    before = digests(directory)

    status, stdout, _ = command("--dataset=taobao", "--set=history_length=3")
    assert status == 0
    assert f"Was already there: {directory}" in stdout

    status, _, stderr = command("--dataset=taobao")
    assert status == 2
    assert "was prepared with history_length=3, not 200: give --overwrite" in stderr
    assert digests(directory) == before

    status, *_ = command("--dataset=taobao", "--overwrite")
    assert status == 0
    assert digests(directory) != before


def test_flags_have_the_defaults_of_a_preparation():
    values = absl.flags.FlagValues()
    flags.prepare(values)
    # A flag that may be repeated has an empty list where `Preparation` has `None`.
    defaults = {name: values[name].default or None for name in Preparation._fields}
    assert Preparation(**defaults) == Preparation()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((), "--dataset"),
        (
            ("--dataset=tabao",),
            f"value should be one of <{'|'.join(sorted(names.DATASETS))}>",
        ),
        (("--dataset=taobao", "--set=lenght=3"), "one of: history_length=200, min_count=1"),
        (
            ("--dataset=amazon_books", "--set=x=1"),
            "one of: history_length=100, min_count=1, protocol='by_user', train_positives=1",
        ),
        (("--dataset=logs",), "`spec` must be the path of a JSON file"),
        (("--dataset=logs", "--set=spec=no.json"), "Received: no.json"),
        (("--dataset=taobao", "--raw_dir=/none"), "/none must hold UserBehavior.csv"),
        (("--dataset=taobao", "--group_by=page"), "value should be one of <impression|request>"),
        (("--dataset=taobao", "--max_bad_rows=1%"), "--max_bad_rows=1%"),
    ],
)
def test_wrong_flags_are_one_line(command, wrong, message):
    status, _, stderr = command(*wrong)
    assert status == 2
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and message in stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_command_leaves_nothing_whole_and_starts_clean(
    arguments, tmp_path, raw_dir, how
):
    line = (raw_dir / "UserBehavior.csv").read_text()
    (raw_dir / "UserBehavior.csv").write_text(
        "".join(line.replace(",pv,", f"{n},pv,") for n in range(1000))
    )
    directory = tmp_path / "data" / "taobao"
    more = ["--dataset=taobao", "--set=train_positives=5000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tfrec_diffusion.prepare", *arguments, *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell's background jobs ignore Ctrl-C, and so would this one's child.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    while not list(directory.glob("incomplete.*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait() == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert not (directory / "1.2.0").exists()
    (raw_dir / "UserBehavior.csv").write_text(RAW)
    whole = prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path / "data")
    assert list(directory.iterdir()) == [whole]


def test_same_input_same_bytes(tmp_path, raw_dir, digests):
    one = prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path / "a")
    other = prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path / "b")
    assert digests(one) == digests(other)


def test_what_is_there_is_left_alone(tmp_path, raw_dir):
    one = prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path)
    times = {path: path.stat().st_mtime_ns for path in one.rglob("*")}
    (raw_dir / "UserBehavior.csv").unlink()
    assert prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path) == one
    # Nor does a failing --overwrite destroy it.
    with pytest.raises(FileNotFoundError):
        prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path, overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in one.rglob("*")} == times


def test_options_of_what_a_killed_overwrite_moved_are_checked(tmp_path, raw_dir, digests):
    directory = prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path / "data")
    before = digests(directory)
    directory.rename(directory.with_name("replaced_1.2.0"))
    with pytest.raises(ValueError, match="was prepared with history_length=200, not 3"):
        prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path / "data", history_length=3)
    assert digests(directory) == before


def test_what_is_there_is_grouped_otherwise(tmp_path, raw_dir):
    grouped = Preparation(group_by="request")
    prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path, preparation=grouped)
    with pytest.raises(ValueError, match="was prepared with group_by='request', not 'impression'"):
        prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path)


def test_a_positive_and_its_negative_share_a_record_when_grouped(tmp_path, raw_dir):
    splits = {}
    for group_by in names.GROUPINGS:
        directory = prepare(
            "taobao",
            raw_dir=raw_dir,
            data_dir=tmp_path / group_by,
            preparation=Preparation(group_by=group_by),
        )
        splits[group_by] = PreparedDirectory(directory).report["splits"]["test"]
    assert splits["impression"] == {
        "requests": 100, "candidates": 100, "clicks": 50, "behaviors": 500, "label_rate": 0.5
    }  # fmt: skip
    assert splits["request"] == {**splits["impression"], "requests": 50, "behaviors": 250}


def test_too_many_bad_rows_leave_nothing(tmp_path, raw_dir):
    with (raw_dir / "UserBehavior.csv").open("a") as file:
        file.write("1;2;3;pv;1511539200\n" * 3 + "1,2\n")
    with pytest.raises(
        ValueError,
        match=r"behaviors: 4 of 304 rows are bad, more than `max_bad_rows`=0\.01 of them.*"
        r"too few columns \(UserBehavior\.csv:301, .*UserBehavior\.csv:304\)",
    ):
        prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path / "data")
    assert not list((tmp_path / "data" / "taobao").iterdir())
    lenient = Preparation(max_bad_rows=0.02)
    prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path / "data", preparation=lenient)


def test_a_cut_off_gzip_of_many_rows_is_read_up_to_there(tmp_path):
    whole = gzip.compress((RAW * 20).encode())
    (tmp_path / "UserBehavior.csv.gz").write_bytes(whole[:-9])
    directory = prepare("taobao", raw_dir=tmp_path, data_dir=tmp_path / "data")
    dropped = PreparedDirectory(directory).report["sources"]["behaviors"]["dropped"]
    (place,) = dropped["gzip cut off or damaged, here at the latest"]["places"]
    assert place.startswith("UserBehavior.csv.gz:")


def test_something_else_is_there(tmp_path, raw_dir):
    (tmp_path / "taobao" / "1.2.0").mkdir(parents=True)
    with pytest.raises(ValueError, match="is not a prepared data set"):
        prepare("taobao", raw_dir=raw_dir, data_dir=tmp_path)
