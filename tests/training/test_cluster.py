import json

import pytest

from tfrec_diffusion.training import cluster as clusters
from tfrec_diffusion.training import strategies

WORKERS = ["a:1", "b:1"]


@pytest.mark.parametrize(
    ("strategy", "cluster", "task"),
    [
        ("multi_worker", None, None),
        ("multi_worker", {"worker": WORKERS}, {"type": "worker", "index": 2}),
        ("multi_worker", {"worker": WORKERS}, {"type": "chief", "index": 0}),
        ("multi_worker", {"worker": WORKERS, "ps": ["c:1"]}, {"type": "worker", "index": 0}),
        ("parameter_server", {"worker": WORKERS}, {"type": "worker", "index": 0}),
        ("parameter_server", {"chief": ["c:1"], "ps": ["d:1"]}, {"type": "chief", "index": 0}),
    ],
)
def test_a_wrong_tf_config_is_shown_beside_a_right_one(strategy, cluster, task, monkeypatch):
    text = json.dumps({"cluster": cluster, "task": task}) if cluster else ""
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="needs the environment variable TF_CONFIG") as error:
        strategies.create(strategy)
    assert strategy in str(error.value) and f"Received: TF_CONFIG={text!r}" in str(error.value)


@pytest.mark.parametrize(("job", "served"), [("chief", False), ("worker", True), ("ps", True)])
def test_workers_and_parameter_servers_do_what_the_chief_says(job, served, monkeypatch):
    cluster = {"chief": ["c:1"], "worker": WORKERS, "ps": ["d:1"]}
    config = {"cluster": cluster, "task": {"type": job, "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert clusters.is_served("parameter_server") == served
    assert not clusters.is_served("one")
