"""Keras callbacks of a training run: checkpoints to resume from, TensorBoard, a clean stop."""

import math
import signal

import keras
import tensorflow as tf


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint holds where it stood.

    Args:
        signal_number: int. The signal that asked.
    """

    def __init__(self, signal_number):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class Diverged(ValueError):
    """Training cannot go on, as the loss or the weights are no longer finite numbers.

    Args:
        seen: str. What was seen, and when.
        model: Compiled `RankingModel`.
    """

    def __init__(self, seen, model):
        rate = float(model.optimizer.learning_rate.numpy())
        super().__init__(
            f"{seen}: training has diverged. Train in another --model_dir with a --learning_rate "
            f"below {rate:.4g}, or with --global_clipnorm=1"
        )


# In the place of a signal's number when processes agree on how to stop, and above all of them.
_DIVERGED = 1000


class Checkpoints(keras.callbacks.Callback):
    """Saves a checkpoint every so many steps, and one before it stops on SIGINT or SIGTERM.

    It stops without a checkpoint when the loss is no longer a finite number. As it looks at the
    loss after each execution, it notices that by the end of the `steps_per_execution` steps.

    It holds back these signals in a `with` block around `fit`; one that came too late for a
    checkpoint takes its usual effect at the end.

    Args:
        save: callable. Called to save one; a killed run must find its last whole one.
        every: int. Steps between checkpoints.
        agree: callable. Called after each execution with a number that says why to stop, such as
            that of a signal, or 0; returns the greatest of all processes of the run. If not given,
            the number itself.

    Raises:
        Interrupted: From `fit`, once the step at hand is done and saved.
        Diverged: From `fit`, if the loss of any process is infinite or NaN.
    """

    def __init__(self, save, every, agree=lambda number: number):
        super().__init__()
        self._save = save
        self._every = every
        self._agree = agree

    def __enter__(self):
        self._signal = 0
        stops = (signal.SIGINT, signal.SIGTERM)
        self._handlers = {number: signal.signal(number, self._remember) for number in stops}
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._signal:
            signal.raise_signal(self._signal)

    def _remember(self, number, _):
        self._signal = number

    def on_train_begin(self, logs=None):
        self._saved = self._seen = steps_taken(self.model)

    def on_train_batch_end(self, batch, logs=None):
        step = steps_taken(self.model)
        loss = float((logs or {}).get("loss", 0.0))
        stop = self._agree(self._signal if math.isfinite(loss) else _DIVERGED)
        if stop == _DIVERGED:
            seen = "of another process is no number" if math.isfinite(loss) else f"is {loss:g}"
            raise Diverged(f"the loss {seen} {_steps(self._seen + 1, step)}", self.model)
        self._seen = step
        if stop or _is_due(self._saved, step, self._every):
            self._save()
            self._saved = step
        if stop:
            self._signal = 0
            raise Interrupted(stop)


class Scalars(keras.callbacks.Callback):
    """Writes the progress bar's numbers to TensorBoard, by the optimizer's step.

    `keras.callbacks.TensorBoard` counts its steps anew in every `fit`, so that a resumed run would
    draw over itself.

    Args:
        directory: str or `pathlib.Path`. Directory of the event files.
        every: int. Steps between two points. Defaults to `100`.
    """

    def __init__(self, directory, every=100):
        super().__init__()
        self.writer = tf.summary.create_file_writer(str(directory))
        self.every = every

    def on_train_begin(self, logs=None):
        self._written = steps_taken(self.model)

    def on_train_batch_end(self, batch, logs=None):
        step = steps_taken(self.model)
        if _is_due(self._written, step, self.every):
            self.write({f"train/{name}": value for name, value in logs.items()}, step)
            self._written = step

    def write(self, values, step):
        """Writes scalars.

        Args:
            values: dict of float by name.
            step: int. The optimizer's step that they belong to.
        """
        with self.writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self.writer.flush()


def steps_taken(model):
    """Steps that a model's optimizer has taken, also where its variables lie on several devices.

    Args:
        model: Compiled `RankingModel`.

    Returns:
        int.
    """
    return int(model.optimizer.iterations.numpy())


def _steps(first, last):
    return f"at step {last}" if first >= last else f"in steps {first} to {last}"


def _is_due(last, step, every):
    """Whether a multiple of `every` came after `last`: an execution may take several steps."""
    return step // every > last // every
