"""The machines of a run, by `--strategy`."""

import tensorflow as tf

from tfrec_diffusion.training import cluster
from tfrec_diffusion.training.machines import Machines
from tfrec_diffusion.training.parameter_servers import ParameterServers
from tfrec_diffusion.training.workers import MultiWorker


def create(name):
    """The machines of a strategy, as this process sees them.

    Args:
        name: str. One of `names.STRATEGIES`.

    Returns:
        `Machines`, `MultiWorker` or `ParameterServers`.

    Raises:
        ValueError: If `TF_CONFIG` does not describe such a cluster.
    """
    if name == "one":
        return Machines(tf.distribute.get_strategy())
    if name == "mirrored":
        return Machines(tf.distribute.MirroredStrategy())
    cluster.job(name)
    if name == "multi_worker":
        return MultiWorker(tf.distribute.MultiWorkerMirroredStrategy())
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    return ParameterServers(tf.distribute.ParameterServerStrategy(resolver), resolver)
