"""Speed, memory and disk of `prepare`, on generated raw files of growing size.

    python tools/benchmark_prepare.py
    python tools/benchmark_prepare.py --formats=ele_me -- --set=negative_rate=0.1 --workers=2

Writes raw files of each format (`raw_files.py` says how large and small ones differ), prepares each
in a process of its own and prints what that took. What stands after `--` goes to every `prepare`.
Then the same of the published data set, should all grow on as between the two largest sizes. That
is too much for memory that has a limit (DuckDB's, and TFDS's while it shuffles), and noise where
the start of the program, some seconds, is most of the time: take more `--rows`. The raw files have
just been written: they are read from the page cache, as far as that holds them.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import raw_files
from absl import app, flags

_SPEC = pathlib.Path(__file__).parent.parent / "experiments" / "kuairand.json"


class Format(NamedTuple):
    """A raw format.

    Args:
        write: Function of `raw_files`.
        rows: Of the smallest size, if `--rows` does not say.
        published_rows: Of the main files of the published data set, if there is one.
        flags: What `prepare` must be given.
    """

    write: Callable
    rows: int
    published_rows: int | None
    flags: tuple[str, ...] = ()


FORMATS = {
    "ele_me": Format(raw_files.ele_me, 32_000, 177_000_000),
    "alibaba": Format(raw_files.alibaba, 300_000, 26_557_961 + 723_000_000),
    "amazon_books": Format(raw_files.amazon_books, 50_000, 8_898_041),
    "taobao": Format(raw_files.taobao, 400_000, 100_150_807),
    "logs": Format(raw_files.logs, 100_000, None, (f"--set=spec={_SPEC}",)),
}

CHOSEN = flags.DEFINE_list("formats", list(FORMATS), "raw formats")
SIZES = flags.DEFINE_list("sizes", ["1", "4", "16"], "multiples of the rows")
ROWS = flags.DEFINE_integer(
    "rows", None, "raw rows at size 1, of all main files; default: each format's own", 100
)
SEED = flags.DEFINE_integer("seed", 0, "of the raw files", 0)
WORK_DIR = flags.DEFINE_string(
    "work_dir", None, "where a temporary directory is made; default: the system's"
)
flags.register_validator(
    CHOSEN,
    lambda names: bool(names) and set(names) <= FORMATS.keys(),
    f"must be some of {','.join(FORMATS)}",
)
flags.register_validator(
    SIZES,
    lambda sizes: bool(sizes) and all(size.isdecimal() and int(size) for size in sizes),
    "must be integers of at least 1",
)

_MEASURED = (
    *("format", "size", "raw rows", "raw MB", "records", "prepared MB"),
    *("seconds", "rows/s", "peak MB"),
)
_PROJECTED = (
    *("published", "raw rows", "records", "prepared GB"),
    *("hours", "rows/s", "peak GB"),
)
_POLL_SECONDS = 0.05


class Cost(NamedTuple):
    """What preparing some raw rows takes and gives; sizes are in bytes."""

    raw_rows: float
    raw_size: float
    records: float
    prepared_size: float
    seconds: float
    memory: float


def measure(name, rows, seed, extra_flags, directory):
    """`Cost` of a format's raw files with `rows` rows."""
    raw_dir, data_dir = directory / "raw", directory / "data"
    raw_dir.mkdir()
    raw_rows = FORMATS[name].write(raw_dir, rows, seed)
    seconds, memory = run(
        [
            *(sys.executable, "-m", "tfrec_diffusion.prepare", f"--dataset={name}"),
            *(f"--raw_dir={raw_dir}", f"--data_dir={data_dir}", *FORMATS[name].flags),
            *extra_flags,
        ]
    )
    (report,) = data_dir.rglob("report.json")
    splits = json.loads(report.read_text(encoding="utf-8"))["splits"]
    records = sum(split["requests"] for split in splits.values())
    return Cost(raw_rows, size(raw_dir), records, size(data_dir), seconds, memory)


def run(command):
    """Runs a command: seconds, and peak of resident memory in bytes.

    Of several processes it is the largest sum of the peaks of those alive at a time: never less
    than they needed together, as they share pages and peak at different times. The kernel's own
    account, rusage, would begin with the memory of this process and forget all but the largest.

    Raises:
        RuntimeError: If the command fails, with the end of what it wrote.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )
        memory = 0
        try:
            while process.poll() is None:
                memory = max(memory, _memory(process.pid))
                time.sleep(_POLL_SECONDS)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            end = output.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command)} failed:\n{end}")
    return seconds, memory


def _memory(group):
    """Sum of the peaks of resident memory, until now, of a group's processes."""
    total = 0
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) != group:
                continue
            status = dict(
                line.split(":", 1) for line in (process / "status").read_text().splitlines()
            )
        except (ProcessLookupError, FileNotFoundError):  # ended meanwhile
            continue
        total += 1024 * int(status.get("VmHWM", "0").split()[0])
    return total


def size(directory):
    """Bytes of the files in a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def projected(small, large, raw_rows):
    """`Cost` of more rows, on the line through two; never less than the larger one's."""
    times = (raw_rows - large.raw_rows) / (large.raw_rows - small.raw_rows)
    return Cost(*(max(b, b + times * (b - a)) for a, b in zip(small, large, strict=True)))


def print_table(columns, rows=()):
    """Prints the head of a Markdown table, or all of it; `print_row` goes on."""
    print_row(columns)
    print(f"|---|{'---:|' * (len(columns) - 1)}")
    for row in rows:
        print_row(row)


def print_row(cells):
    print(f"| {' | '.join(cells)} |", flush=True)


def measured_row(name, multiple, cost):
    return (
        *(name, f"{multiple}x", f"{cost.raw_rows:,}", f"{cost.raw_size / 1e6:,.1f}"),
        *(f"{cost.records:,}", f"{cost.prepared_size / 1e6:,.1f}", f"{cost.seconds:,.1f}"),
        *(f"{cost.raw_rows / cost.seconds:,.0f}", f"{cost.memory / 1e6:,.0f}"),
    )


def projected_row(name, small, large):
    whole = projected(small, large, FORMATS[name].published_rows)
    return (
        *(name, f"{whole.raw_rows:,.0f}", f"{whole.records:,.0f}"),
        *(f"{whole.prepared_size / 1e9:,.1f}", f"{whole.seconds / 3600:,.2f}"),
        *(f"{whole.raw_rows / whole.seconds:,.0f}", f"{whole.memory / 1e9:,.1f}"),
    )


def main(argv):
    multiples = sorted(set(map(int, SIZES.value)))
    projections = []
    print_table(_MEASURED)
    for name in CHOSEN.value:
        costs = []
        for multiple in multiples:
            rows = multiple * (ROWS.value or FORMATS[name].rows)
            print(f"{name}: {rows:,} rows", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=WORK_DIR.value) as directory:
                cost = measure(name, rows, SEED.value, argv[1:], pathlib.Path(directory))
            print_row(measured_row(name, multiple, cost))
            costs.append(cost)
        if FORMATS[name].published_rows and len(costs) > 1:
            projections.append(projected_row(name, *costs[-2:]))
    if projections:
        print()
        print_table(_PROJECTED, projections)


if __name__ == "__main__":
    app.run(main)
