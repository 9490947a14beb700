"""`train` as the same command on every host of a cluster: what it leaves, and lost machines."""

import json
import signal
import time

import pytest
from local_tasks import Cluster

from tfrec_diffusion.datasets.preparation import prepare
from tfrec_diffusion.training.evaluation import evaluate
from tfrec_diffusion.training.run_directory import RunDirectory

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    prepare("synthetic", data_dir=directory, users=300, items=100, categories=10, history_length=10)
    return directory


def command(data_dir, model_dir, *more):
    return (
        *("-m", "tfrec_diffusion.train"),
        *("--dataset=synthetic", f"--data_dir={data_dir}", f"--model_dir={model_dir}"),
        *("--model=avg_pooling", "--set=tower_units=16,8", "--set=embedding_stddev=0.2"),
        *("--batch_size=64", "--learning_rate=0.01", "--checkpoint_every=20", "--nojit_compile"),
        *more,
    )


def wait_for_step(model_dir, step):
    """Waits for a checkpoint of that step or a later one."""
    end = time.monotonic() + 120
    while not any(
        int(path.stem.split("-")[1]) >= step for path in model_dir.glob("checkpoints/ckpt-*.index")
    ):
        assert time.monotonic() < end, f"no checkpoint in {model_dir}"
        time.sleep(0.1)


def metrics(model_dir):
    splits = json.loads((model_dir / "metrics.json").read_text())["splits"]
    return {split: (result["auc"], result["log_loss"]) for split, result in splits.items()}


@pytest.fixture(scope="module")
def two_workers(data_dir, tmp_path_factory):
    """Directory of a run of two workers, and what they printed."""
    model_dir, logs = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("logs")
    arguments = command(data_dir, model_dir, "--strategy=multi_worker")
    with Cluster(logs, arguments, worker=2) as cluster:
        cluster.wait()
        return model_dir, [cluster.output("worker", index) for index in (0, 1)]


def test_two_workers_measure_every_impression_once(two_workers):
    model_dir, _ = two_workers
    model, data = RunDirectory(model_dir).load_run()
    found = json.loads((model_dir / "metrics.json").read_text())["splits"]
    for split in ("validation", "test"):
        expected = evaluate(model, data, split, 64)
        assert found[split]["impressions"] == expected["impressions"]
        for name in ("auc", "gauc", "log_loss"):
            assert found[split][name] == pytest.approx(expected[name], abs=1e-6), (split, name)


def test_all_workers_stop_at_the_step_where_one_diverges(data_dir, tmp_path):
    logs, model_dir = tmp_path / "logs", tmp_path / "run"
    logs.mkdir()
    how = ("--strategy=multi_worker", "--learning_rate=1e38", "--steps_per_execution=4")
    with Cluster(logs, command(data_dir, model_dir, *how), worker=2) as cluster:
        cluster.wait(status=2)
        for index in (0, 1):
            text = "in steps 1 to 4: training has diverged. Train in another --model_dir"
            assert text in cluster.output("worker", index)
    assert not list(model_dir.glob("m*")) and not list(model_dir.glob("checkpoints/*"))


def test_the_chief_of_parameter_servers_stops_when_training_diverges(data_dir, tmp_path):
    logs, model_dir = tmp_path / "logs", tmp_path / "run"
    logs.mkdir()
    how = ("--strategy=parameter_server", "--learning_rate=1e38", "--steps_per_execution=4")
    tasks = {"chief": 1, "worker": 1, "ps": 1}
    with Cluster(logs, command(data_dir, model_dir, *how), **tasks) as cluster:
        assert cluster.processes["chief", 0].wait(timeout=300) == 2
        assert "the loss is nan " in cluster.output("chief", 0)
    assert not list(model_dir.glob("m*"))


def test_only_the_chief_writes(two_workers):
    model_dir, (of_chief, of_other) = two_workers
    assert "test: auc" in of_chief and "auc" not in of_other
    assert len(list(model_dir.glob("tensorboard/events*"))) == 1
    assert not list(model_dir.rglob("*incomplete*"))


def test_a_killed_worker_comes_back_and_the_run_ends_as_if_it_had_lived(
    two_workers, data_dir, tmp_path
):
    model_dir = tmp_path / "run"
    arguments = command(data_dir, model_dir, "--strategy=multi_worker")
    with Cluster(tmp_path, arguments, worker=2) as cluster:
        wait_for_step(model_dir, 20)
        cluster.kill("worker", 1)
        cluster.start("worker", 1)
        cluster.wait()
        printed = cluster.output("worker", 0)
    assert "lost a machine of the run" in printed and "resuming epoch" in printed
    uninterrupted, _ = two_workers
    for split, expected in metrics(uninterrupted).items():
        assert metrics(model_dir)[split] == pytest.approx(expected, abs=1e-5), split


def test_a_signal_to_one_worker_stops_all_with_a_checkpoint(data_dir, tmp_path):
    model_dir = tmp_path / "run"
    arguments = command(
        data_dir, model_dir, "--strategy=multi_worker", "--epochs=100", "--checkpoint_every=10"
    )
    with Cluster(tmp_path, arguments, worker=2) as cluster:
        wait_for_step(model_dir, 10)
        cluster.signal("worker", 1, signal.SIGTERM)
        cluster.wait(status=128 + signal.SIGTERM)
        assert "the same command goes on from here" in cluster.output("worker", 0)


def test_parameter_servers_reach_the_auc_of_one_device_without_a_worker(
    two_workers, data_dir, tmp_path
):
    model_dir = tmp_path / "run"
    arguments = command(
        data_dir, model_dir, "--strategy=parameter_server", "--steps_per_execution=4"
    )
    with Cluster(tmp_path, arguments, chief=1, worker=2, ps=2) as cluster:
        wait_for_step(model_dir, 20)
        cluster.kill("worker", 1)
        cluster.wait()
    model, data = RunDirectory(model_dir).load_run()
    (auc, _), (expected, _) = metrics(model_dir)["test"], metrics(two_workers[0])["test"]
    assert auc == pytest.approx(expected, abs=0.03)
    assert auc == pytest.approx(evaluate(model, data, "test", 64)["auc"], abs=1e-4)
    assert json.loads((model_dir / "metrics.json").read_text())["steps"] == data.num_batches(
        "train", 64
    )
