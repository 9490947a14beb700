"""The harness of clusters, with processes that know nothing of TensorFlow."""

import json
import signal
import sys
import time

import local_cluster
import pytest

PROGRAM = f"""
import json, os, sys
sys.path.append({local_cluster.__file__.rsplit("/", 1)[0]!r})
import local_cluster

class Task:
    def task(self):
        print("asked")
        return json.loads(os.environ["TF_CONFIG"] or "null")
    def add(self, one, other):
        return one + other
    def fail(self):
        sys.exit("no disk")
    def cores(self):
        return sorted(os.sched_getaffinity(0))

local_cluster.answer(Task)
"""


@pytest.fixture
def start(tmp_path):
    """`start(tasks, ...)`: a cluster that is asked."""
    started = []

    def start(tasks, **settings):
        command = [sys.executable, "-c", PROGRAM]
        cluster = local_cluster.Cluster(tmp_path, command, tasks, answering=True, **settings)
        started.append(cluster)
        return cluster

    yield start
    for cluster in started:
        cluster.__exit__()


def test_every_task_has_its_place_and_ports_differ():
    environments = local_cluster.environments({"worker": 2, "ps": 1})
    configs = {task: json.loads(of["TF_CONFIG"]) for task, of in environments.items()}
    assert list(configs) == [("worker", 0), ("worker", 1), ("ps", 0)]
    (cluster,) = {json.dumps(config["cluster"]) for config in configs.values()}
    cluster = json.loads(cluster)
    assert len({address for addresses in cluster.values() for address in addresses}) == 3
    for (job, index), config in configs.items():
        assert config["task"] == {"type": job, "index": index}


def test_the_first_worker_answers(start, tmp_path):
    cluster = start({"worker": 2})
    assert cluster.ask("task")["task"] == {"type": "worker", "index": 0}
    assert cluster.ask("add", 1, 2) == 3
    assert "asked" in cluster.output("worker", 0) and "asked" in cluster.output("worker", 1)


def test_a_chief_answers_for_parameter_servers(start):
    cluster = start({"ps": 1, "worker": 1, "chief": 1})
    assert cluster.ask("task")["task"] == {"type": "chief", "index": 0}
    assert cluster.output("worker", 0) == cluster.output("ps", 0) == ""


def test_one_process_without_a_cluster(start):
    cluster = start(None, cores=[0])
    assert cluster.ask("task") is None
    assert cluster.ask("cores") == [0]
    ((resident, most),) = cluster.memory().values()
    assert 1e6 < resident <= most < 1e9


def test_a_process_that_ends_tells_why(start):
    cluster = start({"worker": 2})
    with pytest.raises(ChildProcessError, match=r"worker_0.log: .*no disk"):
        cluster.ask("fail")


def test_tasks_are_killed_signaled_and_started_again(tmp_path):
    program = "import time; print('started', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program]
    with local_cluster.Cluster(tmp_path, command, {"worker": 2}) as cluster:
        cluster.kill("worker", 1)
        assert list(cluster.processes) == [("worker", 0)]
        cluster.start("worker", 1)
        wait_for(lambda: cluster.output("worker", 1).endswith("started\n"))
        cluster.signal("worker", 1, signal.SIGTERM)
        assert cluster.processes["worker", 1].wait() == -signal.SIGTERM
        remaining = cluster.processes["worker", 0]
    assert remaining.returncode == -signal.SIGKILL


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
