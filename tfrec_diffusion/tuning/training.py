"""The training of one trial: its command, its directory, and what it has found by now."""

import dataclasses
import math
import pathlib
import shutil
import sys

from tfrec_diffusion.files import lock
from tfrec_diffusion.training.run_directory import RunDirectory

_TRAIN = (sys.executable, "-m", "tfrec_diffusion.train")


@dataclasses.dataclass(frozen=True)
class Training:
    """The training of one trial.

    Only what it found on the validation split is read.

    Args:
        directory: `pathlib.Path`. Its run directory.
        common: list of str. Flags of `tfrec_diffusion.train` that all trials have.
        varied: list of str. Flags that its parameters are given by.
        metric: str. The metric of the search.
        epochs: int. Epochs that it has at the end, unless it stops early.
    """

    directory: pathlib.Path
    common: list[str]
    varied: list[str]
    metric: str
    epochs: int

    @property
    def command(self):
        """list of str. The command that trains it, or trains it on."""
        return [*_TRAIN, *self._flags]

    @property
    def _flags(self):
        return [*self.common, *self.varied, f"--model_dir={self.directory}"]

    @property
    def values(self):
        """list of float. The metric after each epoch so far."""
        return [_number(found[self.metric]) for found in RunDirectory(self.directory).validation]

    @property
    def is_finished(self):
        """Whether it was trained to the end with these flags."""
        return self._metrics is not None

    @property
    def value(self):
        """float. The metric of the model that it keeps, once it is finished, or NaN."""
        return _number(self._metrics["splits"]["validation"][self.metric])

    @property
    def _metrics(self):
        return RunDirectory(self.directory).metrics_of(self._flags)

    @property
    def is_locked(self):
        """Whether a process is training it."""
        if not self.directory.exists():
            return False
        try:
            with lock(self.directory, "training in"):
                return False
        except BlockingIOError:
            return True

    def remove_checkpoints(self):
        """Removes its checkpoints, which take more room than all else; its model stays."""
        shutil.rmtree(RunDirectory(self.directory).checkpoints, ignore_errors=True)


def _number(metric):
    return math.nan if metric is None else metric
