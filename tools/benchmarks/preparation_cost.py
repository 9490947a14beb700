"""Speed, memory and disk of `prepare`, on generated raw files of growing size.

    python tools/benchmarks/preparation_cost.py
    python tools/benchmarks/preparation_cost.py --formats=ele_me \
        --prepare_flag=--set=negative_rate=0.1 --prepare_flag=--workers=2

For each format it writes raw files (`raw_files.py` says how small and large ones differ), prepares
them in a process of its own and prints what that took. Then it prints the cost of the published
data set, if everything grew on as between the two largest sizes. That is too much for memory that
has a limit (DuckDB's, and TFDS's while it shuffles). Where the start of the program, some seconds,
is most of the time, the projection is noise: take more `--rows`. The raw files have just been
written: they are read from the page cache, as far as it holds them.
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
from absl import flags

from tfrec_diffusion import command

_SPEC = pathlib.Path(__file__).parents[2] / "experiments" / "kuairand.json"


class Format(NamedTuple):
    """A raw format.

    Args:
        write: callable. Function of `raw_files`.
        rows: int. Raw rows at size 1, unless `--rows` says.
        published_rows: int or `None`. Rows of the main files of the published data set. If `None`,
            there is none.
        flags: tuple of str. Flags that `prepare` needs. Defaults to `()`.
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

_MEASURED = (
    *("format", "size", "raw rows", "raw MB", "records", "prepared MB"),
    *("seconds", "rows/s", "peak MB"),
)
_PROJECTED = (
    *("published", "raw rows", "records", "prepared GB"),
    *("hours", "rows/s", "peak GB"),
)
_POLL_SECONDS = 0.05


def define_flags(values):
    flags.DEFINE_list("formats", list(FORMATS), "raw formats", flag_values=values)
    flags.DEFINE_list("sizes", ["1", "4", "16"], "multiples of the rows", flag_values=values)
    flags.DEFINE_integer(
        "rows", None, "raw rows at size 1, of all main files; default: each format's own", 100,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("seed", 0, "seed of the raw files", 0, flag_values=values)
    flags.DEFINE_multi_string(
        "prepare_flag", [], "a flag that every `prepare` gets; repeat it", flag_values=values
    )
    flags.DEFINE_string(
        "work_dir", None, "where a temporary directory is made; default: the system's",
        flag_values=values,
    )  # fmt: skip
    flags.register_validator(
        "formats",
        lambda names: bool(names) and set(names) <= FORMATS.keys(),
        f"must be some of {','.join(FORMATS)}",
        flag_values=values,
    )
    flags.register_validator(
        "sizes",
        lambda sizes: bool(sizes) and all(size.isdecimal() and int(size) for size in sizes),
        "must be integers of at least 1",
        flag_values=values,
    )


class Cost(NamedTuple):
    """What preparing some raw rows takes, and what it gives.

    Args:
        raw_rows: float. Rows of the main files.
        raw_size: float. Bytes of the raw files.
        records: float. Records of all splits.
        prepared_size: float. Bytes of the prepared data set.
        seconds: float. Time of the command.
        memory: float. Bytes of memory at the peak.
    """

    raw_rows: float
    raw_size: float
    records: float
    prepared_size: float
    seconds: float
    memory: float


def measure(name, rows, seed, extra_flags, directory):
    """Generates raw files and prepares them.

    Args:
        name: str. Key of `FORMATS`.
        rows: int. Raw rows.
        seed: int. Seed of the raw files.
        extra_flags: list of str. Flags of `prepare`.
        directory: `pathlib.Path`. An empty directory.

    Returns:
        `Cost`.
    """
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


def run(arguments):
    """Runs a command and measures it.

    The memory of several processes is the largest sum of the peaks of those that are alive at the
    same time. That is never less than they needed together, because they share pages and peak at
    different times. The kernel's own account, rusage, would begin with the memory of this process
    and forget all but the largest process.

    Args:
        arguments: list of str. The command.

    Returns:
        Seconds, and the peak of resident memory in bytes.

    Raises:
        ChildProcessError: If the command fails, with the end of what it wrote.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            arguments, stdout=output, stderr=subprocess.STDOUT, process_group=0
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
            raise ChildProcessError(f"{' '.join(arguments)} failed:\n{end}")
    return seconds, memory


def _memory(group):
    """Sum of the peaks of resident memory, until now, of the processes of a group."""
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
    """The cost of more rows, on the line through two costs, and never less than the larger one's.

    Args:
        small: `Cost`.
        large: `Cost` of more rows.
        raw_rows: int. Rows to project to.

    Returns:
        `Cost`.
    """
    times = (raw_rows - large.raw_rows) / (large.raw_rows - small.raw_rows)
    return Cost(*(max(b, b + times * (b - a)) for a, b in zip(small, large, strict=True)))


def print_table(columns, rows=()):
    """Prints the head of a Markdown table and rows; `print_row` adds more."""
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


def main(values):
    multiples = sorted(set(map(int, values.sizes)))
    projections = []
    print_table(_MEASURED)
    for name in values.formats:
        costs = []
        for multiple in multiples:
            rows = multiple * (values.rows or FORMATS[name].rows)
            print(f"{name}: {rows:,} rows", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=values.work_dir) as directory:
                cost = measure(
                    name, rows, values.seed, values.prepare_flag, pathlib.Path(directory)
                )
            print_row(measured_row(name, multiple, cost))
            costs.append(cost)
        if FORMATS[name].published_rows and len(costs) > 1:
            projections.append(projected_row(name, *costs[-2:]))
    if projections:
        print()
        print_table(_PROJECTED, projections)


if __name__ == "__main__":
    command.run(main, define_flags)
