import signal
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from tfrec_diffusion.training.callbacks import Checkpoints, Interrupted


def saved_at(steps, every, agree=lambda number: number):
    """Steps at which checkpoints are saved, when executions end at `steps`."""
    saved = []
    iterations = np.array(steps[0])
    checkpoints = Checkpoints(lambda: saved.append(int(iterations)), every, agree)
    checkpoints.set_model(SimpleNamespace(optimizer=SimpleNamespace(iterations=Mock())))
    checkpoints.model.optimizer.iterations.numpy = lambda: iterations
    with checkpoints:
        checkpoints.on_train_begin()
        for step in steps[1:]:
            iterations = np.array(step)
            checkpoints.on_train_batch_end(None)
    return saved


def test_a_checkpoint_every_so_many_steps():
    assert saved_at(range(13), every=4) == [4, 8, 12]


def test_executions_of_several_steps_do_not_skip_one():
    assert saved_at(range(0, 60, 7), every=20) == [21, 42]


def test_a_resumed_run_keeps_the_rhythm():
    assert saved_at(range(6, 13), every=4) == [8, 12]


def test_all_processes_stop_on_a_signal_to_one():
    handler = signal.getsignal(signal.SIGTERM)
    numbers = iter([0, 0, signal.SIGTERM])
    with pytest.raises(Interrupted, match="SIGTERM"):
        saved_at(range(10), every=100, agree=lambda own: next(numbers))
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_signal_too_late_for_a_checkpoint_is_not_forgotten():
    # A shell's background jobs ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    checkpoints = Checkpoints(save=None, every=1)
    with pytest.raises(KeyboardInterrupt), checkpoints:
        signal.raise_signal(signal.SIGINT)
