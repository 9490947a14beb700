"""What `TF_CONFIG` says of this process and the machines of its run."""

import json
import os
import time

import tensorflow as tf

# Jobs that a cluster must have; every one may have a chief.
_JOBS = {"multi_worker": {"worker"}, "parameter_server": {"chief", "worker", "ps"}}


def job(strategy):
    """The type of this process's task in the cluster of a strategy.

    Args:
        strategy: str. `"multi_worker"` or `"parameter_server"`.

    Returns:
        str, such as `"worker"`.

    Raises:
        ValueError: If `TF_CONFIG` does not describe such a cluster.
    """
    required = _JOBS[strategy]
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        complete = required <= cluster.keys() <= required | {"chief"}
        complete = complete and 0 <= task["index"] < len(cluster[task["type"]])
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise ValueError(
            f"--strategy={strategy} needs the environment variable TF_CONFIG with a cluster of "
            f"{sorted(required)} and this process's task, as {json.dumps(_example(required))}. "
            f"Received: TF_CONFIG={text!r}"
        )
    return task["type"]


def _example(jobs):
    cluster = {job: [f"{job}0.example.com:2222"] for job in sorted(jobs)}
    return {"cluster": cluster, "task": {"type": "worker", "index": 0}}


def is_served(strategy):
    """Whether this process is a worker or a parameter server, which does what a chief tells it.

    Args:
        strategy: str. One of `names.STRATEGIES`.

    Returns:
        bool.

    Raises:
        ValueError: As `job`.
    """
    return strategy == "parameter_server" and job(strategy) != "chief"


def serve(is_over):
    """Does what the chief says.

    Args:
        is_over: callable. Asked once a second whether to stop.
    """
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    server = tf.distribute.Server(
        resolver.cluster_spec(), resolver.task_type, resolver.task_id, protocol="grpc"
    )
    while not is_over():
        time.sleep(1)
    del server
