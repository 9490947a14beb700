"""Keras callbacks of a training run: checkpoints to resume from, TensorBoard, a clean stop."""

import signal

import keras
import tensorflow as tf


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint holds where it stood."""

    def __init__(self, signal_number):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class Checkpoints(keras.callbacks.Callback):
    """Saves a checkpoint every so many steps, and one before it stops on SIGINT or SIGTERM.

    Args:
        manager: `tf.train.CheckpointManager`; it writes aside and renames, so that a killed run
            leaves its last whole checkpoint.
        every: Steps between checkpoints.

    Raises:
        Interrupted: From `fit`, once the step at hand is done and saved.
    """

    def __init__(self, manager, every):
        super().__init__()
        self.manager = manager
        self.every = every

    def on_train_begin(self, logs=None):
        self._signal = None
        stops = (signal.SIGINT, signal.SIGTERM)
        self._handlers = {number: signal.signal(number, self._remember) for number in stops}

    def _remember(self, number, _):
        self._signal = number

    def on_train_batch_end(self, batch, logs=None):
        if self._signal or int(self.model.optimizer.iterations) % self.every == 0:
            self.manager.save(checkpoint_number=int(self.model.optimizer.iterations))
        if self._signal:
            self._restore_handlers()
            raise Interrupted(self._signal)

    def on_train_end(self, logs=None):
        self._restore_handlers()

    def _restore_handlers(self):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


class Scalars(keras.callbacks.Callback):
    """Writes the progress bar's numbers to TensorBoard, by the optimizer's step.

    `keras.callbacks.TensorBoard` counts its steps anew in every `fit`, so that a resumed run would
    draw over itself.

    Args:
        directory: Of the event files.
        every: Steps between two points.
    """

    def __init__(self, directory, every=100):
        super().__init__()
        self.writer = tf.summary.create_file_writer(str(directory))
        self.every = every

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.optimizer.iterations)
        if step % self.every == 0:
            self.write({f"train/{name}": value for name, value in logs.items()}, step)

    def write(self, values, step):
        """Writes a dict of named scalars."""
        with self.writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self.writer.flush()
