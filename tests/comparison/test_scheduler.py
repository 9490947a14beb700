"""With tasks that are small programs, and write a file `done` when they come to their end."""

import os
import re
import signal
import sys
import threading
import time

import pytest

from tfrec_diffusion import processes
from tfrec_diffusion.comparison import scheduler
from tfrec_diffusion.comparison.entry import DataSet


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(scheduler, "_POLL_SECONDS", 0.01)


class Task:
    result = "fine"

    def __init__(self, directory, program="pass"):
        self.directory = directory
        program = f"import pathlib\nplace = pathlib.Path({str(directory)!r})\n{program}"
        program += "\n(place / 'done').touch()"
        # Without site-packages, to start at once.
        self.command = [sys.executable, "-I", "-S", "-c", program]

    @property
    def is_finished(self):
        return (self.directory / "done").exists()


class Entry:
    """A row with one task a seed."""

    def __init__(self, row, tasks, data_set="a"):
        self.row, self._tasks = row, tasks
        self.data_set = DataSet(data_set, [], None)
        self.num_seeds = self.num_runs = len(tasks)
        self.failed = False

    def tasks(self, seed):
        return self._tasks[seed : seed + 1]

    def finished(self):
        return [task for task in self._tasks if task.is_finished]


@pytest.fixture
def entry(tmp_path):
    """A row of two seeds, named after its directory."""

    def make(row, program="pass", data_set="a", num_seeds=2):
        places = (tmp_path / f"{data_set}_{row}_{seed}" for seed in range(num_seeds))
        return Entry(row, [Task(place, program) for place in places], data_set)

    return make


def work(entries, jobs=1):
    reported = []
    scheduler.work(entries, jobs, lambda: reported.append(scheduler.count(entries)))
    return reported


def started(text):
    return re.findall(r"/(\w+) \.\.\.\n", text)


def test_data_set_by_data_set_and_all_rows_with_seed_0_first(entry, capsys):
    entries = [entry("x"), entry("y"), entry("x", data_set="b")]
    assert work(entries) == [0, 1, 2, 3, 4, 5, 6]
    printed = capsys.readouterr().out
    assert started(printed) == ["a_x_0", "a_y_0", "a_x_1", "a_y_1", "b_x_0", "b_x_1"]
    assert "a_x_0: fine\n1 of 6 runs; 0:00:0" in printed
    assert "\n6 of 6 runs; 0:00:00 to go, as fast as so far\n" in printed


def test_what_is_finished_is_not_run_again(entry, capsys):
    entries = [entry("x"), entry("y")]
    work(entries)
    capsys.readouterr()
    assert work(entries) == [4]
    assert capsys.readouterr().out == ""


def test_as_many_at_a_time_as_jobs(entry):
    """Each waits for another one to run beside it; two can, three never do."""
    meet = """
import time
(place / "begun").touch()
def here(name):
    return len(list(place.parent.glob("*/" + name)))
deadline = time.monotonic() + 20
while here("begun") % 2 and time.monotonic() < deadline:
    time.sleep(0.005)
assert here("begun") % 2 == 0
assert here("begun") - here("done") <= 2, "three at a time"
time.sleep(0.1)
"""
    entries = [entry("x", meet), entry("y", meet)]
    assert work(entries, jobs=2)[-1] == 4
    assert not any(entry.failed for entry in entries)


def test_one_directory_is_never_worked_in_twice_at_a_time(entry, tmp_path):
    program = "import time\nopen(place / 'begun', 'a').write('x')\ntime.sleep(0.2)"
    x, y = entry("x", program, num_seeds=1), entry("y", num_seeds=1)
    shared = Entry("z", x.tasks(0))
    assert work([x, shared, y], jobs=3)[-1] == 3
    assert (tmp_path / "a_x_0" / "begun").read_text() == "x"


def test_a_row_that_fails_is_left_and_the_others_go_on(entry, capsys):
    words = "import sys\nfor i in range(9): print('word', i, file=sys.stderr)\nsys.exit(3)"
    broken, fine = entry("broken", words), entry("fine")
    work([broken, fine])
    printed = capsys.readouterr().out
    assert broken.failed and not fine.failed and len(fine.finished()) == 2
    assert started(printed) == ["a_broken_0", "a_fine_0", "a_fine_1"]
    failure = re.search(r"FAILED\n  (.*?)\n  (word.*?)\n\S", printed, re.DOTALL)
    assert sys.executable in failure[1] and "a_broken_0" in failure[1]
    assert failure[2].split("\n  ") == [f"word {i}" for i in range(4, 9)]


def test_a_task_that_ends_well_without_a_result_has_failed(entry):
    broken = entry("broken", "import sys\nsys.exit(0)")
    work([broken])
    assert broken.failed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_stops_its_tasks_and_waits_for_them(entry, tmp_path, number):
    slow = """
import signal, sys, time
def stop(*_):
    time.sleep(0.2)
    (place / "stopped").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
(place / "begun").touch()
time.sleep(30)
"""

    def interrupt():
        while len(list(tmp_path.glob("*/begun"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    # As a shell has it in the background.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt), processes.interruptible():
            work([entry("x", slow), entry("y", slow)], jobs=2)
        thread.join()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(path.parent.name for path in tmp_path.glob("*/stopped")) == ["a_x_0", "a_y_0"]
    assert not list(tmp_path.glob("*/done"))


def test_tasks_share_what_xla_compiles_until_the_end(entry, monkeypatch):
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_cpu_global_jit=false")
    program = """
import os
flags = os.environ["TF_XLA_FLAGS"]
(place / "flags").write_text(flags)
assert os.path.isdir(flags.split("_directory=")[1].split()[0])
"""
    row = entry("x", program)
    assert work([row]) == [0, 1, 2]
    first, second = ((task.directory / "flags").read_text() for task in row.finished())
    assert first == second
    own, directory, devices = (flag.split("=") for flag in first.split())
    assert own == ["--tf_xla_cpu_global_jit", "false"]
    assert devices == ["--tf_xla_persistent_cache_device_types", "CPU"]
    assert directory[0] == "--tf_xla_persistent_cache_directory"
    assert not os.path.exists(directory[1])
