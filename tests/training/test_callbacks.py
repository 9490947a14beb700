import math
import signal
from types import SimpleNamespace
from unittest.mock import Mock

import keras
import numpy as np
import pytest

from tfrec_diffusion.training.callbacks import Checkpoints, Diverged, Interrupted


def saved_at(steps, every, agree=lambda number: number, losses=None, saved=None):
    """Steps at which checkpoints are saved, when executions end at `steps`."""
    saved = [] if saved is None else saved
    iterations = np.array(steps[0])
    checkpoints = Checkpoints(lambda: saved.append(int(iterations)), every, agree)
    optimizer = SimpleNamespace(iterations=Mock(), learning_rate=keras.Variable(0.1))
    checkpoints.set_model(SimpleNamespace(optimizer=optimizer))
    checkpoints.model.optimizer.iterations.numpy = lambda: iterations
    with checkpoints:
        checkpoints.on_train_begin()
        for step in steps[1:]:
            iterations = np.array(step)
            checkpoints.on_train_batch_end(None, {"loss": (losses or {}).get(step, 0.7)})
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


@pytest.mark.parametrize(
    ("loss", "steps", "message"),
    [
        (math.nan, range(10), "the loss is nan at step 6: training has diverged"),
        (math.inf, [0, 3, 6, 9], "the loss is inf in steps 4 to 6: training has diverged"),
    ],
)
def test_a_diverged_run_stops_without_a_checkpoint(loss, steps, message):
    saved = []
    with pytest.raises(Diverged, match=message) as error:
        saved_at(steps, every=3, losses={6: loss}, saved=saved)
    assert saved == [3]
    assert "another --model_dir with a --learning_rate below 0.1, or with --gl" in str(error.value)


def test_all_processes_stop_when_one_has_diverged():
    numbers = iter([0, 0, 1000])
    with pytest.raises(Diverged, match="the loss of another process is no number at step 3: train"):
        saved_at(range(10), every=100, agree=lambda own: max(own, next(numbers)))


def test_a_diverged_process_tells_the_others():
    told = []

    def agree(number):
        told.append(number)
        return number

    with pytest.raises(Diverged):
        saved_at(range(10), every=100, agree=agree, losses={3: math.nan})
    assert told[:2] == [0, 0] and told[2] > max(signal.valid_signals())


def test_a_signal_too_late_for_a_checkpoint_is_not_forgotten():
    # A shell's background jobs ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    checkpoints = Checkpoints(save=None, every=1)
    with pytest.raises(KeyboardInterrupt), checkpoints:
        signal.raise_signal(signal.SIGINT)
