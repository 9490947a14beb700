"""Lost machines: a process that starts anew, and one that serves until its run is over."""

import json
import os
import sys
import time

import tensorflow as tf

from tfrec_diffusion.training import cluster

_DELAY_SECONDS = 5
_RESTARTS = "TFREC_DIFFUSION_RESTARTS"  # environment: how many without progress, and since when
_MAX_RESTARTS = 10
_SECONDS_FOR_A_CHIEF = 600

# What TensorFlow raises when another process of a run is gone, or back with nothing.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.FailedPreconditionError,
)


def serve(directory):
    """Works for the chief of a run until it has written the run's metrics.

    Where they are there already, it waits ten minutes for a chief that trains on.

    Args:
        directory: `RunDirectory`.
    """
    started = time.time()

    def is_over():
        ended, claimed = directory.ended_at, directory.claimed_at
        if ended is None or (claimed is not None and ended < claimed):
            return False
        return ended > started or time.time() > started + _SECONDS_FOR_A_CHIEF

    print(f"ready; ends when the chief has written {directory.metrics_file}", flush=True)
    cluster.serve(is_over)


def start_again(error, directory):
    """Starts this process anew, to go on from the last checkpoint when all machines are there.

    Args:
        error: One of `LOST`.
        directory: `RunDirectory`.

    Raises:
        tf.errors.OpError: `error`, if the process has started again ten times without a new
            checkpoint.
    """
    checkpoint = str(tf.train.latest_checkpoint(directory.checkpoints))
    restarts, since = json.loads(os.environ.get(_RESTARTS, '[0, ""]'))
    restarts = restarts + 1 if since == checkpoint else 1
    if restarts > _MAX_RESTARTS:
        raise error
    print(
        f"\nlost a machine of the run ({type(error).__name__}): starting again, to go on from the "
        "last checkpoint when all are there",
        file=sys.stderr,
    )
    time.sleep(_DELAY_SECONDS)
    os.environ[_RESTARTS] = json.dumps([restarts, checkpoint])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
