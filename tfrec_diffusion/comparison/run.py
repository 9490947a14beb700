"""One training of a comparison: its command, its directory, and what it has found."""

import dataclasses
import functools
import math
import pathlib
import re
import shlex
import sys

from tfrec_diffusion.training.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class Run:
    """A model trained with one seed, in a directory of its own.

    Args:
        run: str. A model, then constructor arguments of it (`name=value`) and flags of
            `tfrec_diffusion.train`, as on a command line.
        seed: int.
        common_flags: list of str. Flags of `tfrec_diffusion.train` that come before them.
        parent: str or `pathlib.Path`. Directory that the run's own is in.
    """

    run: str
    seed: int
    common_flags: list[str]
    parent: str | pathlib.Path

    def having(self, more):
        """The run with more settings, which count where it has them already.

        Args:
            more: str. Constructor arguments and flags as in `run`, or empty.

        Returns:
            `Run`.
        """
        return dataclasses.replace(self, run=f"{self.run} {more}".strip())

    @property
    def directory(self):
        """`pathlib.Path` of its own directory, which is named after it."""
        words = (word.lstrip("-") for word in _words(self.run))
        return pathlib.Path(self.parent, f"{file_name(' '.join(words))}_{self.seed}")

    @property
    def flags(self):
        """list of str. Flags of `tfrec_diffusion.train`."""
        model, *words = _words(self.run)
        settings = [word if word.startswith("--") else f"--set={word}" for word in words]
        own = [f"--seed={self.seed}", f"--model_dir={self.directory}"]
        return [*self.common_flags, f"--model={model}", *settings, *own]

    @property
    def command(self):
        """list of str. The command that trains it."""
        return [sys.executable, "-m", "tfrec_diffusion.train", *self.flags]

    @property
    def metrics(self):
        """dict of `metrics.json`, or `None` unless it was trained to the end with these flags."""
        return RunDirectory(self.directory).metrics_of(self.flags)

    @property
    def is_finished(self):
        """Whether it was trained to the end with these flags."""
        return self.metrics is not None

    @property
    def validation_auc(self):
        """float. Once it is finished; NaN if the split has one class only."""
        auc = self.metrics["splits"]["validation"]["auc"]
        return math.nan if auc is None else auc

    @property
    def result(self):
        """str. What came out, once it is finished."""
        seconds = self.metrics["training_seconds"]
        return f"validation AUC {self.validation_auc:.4f}, {seconds:.0f} s"


# A report of many tables asks for the same runs thousands of times.
_words = functools.cache(shlex.split)


def file_name(text):
    """The text as the name of a file or directory.

    Args:
        text: str.

    Returns:
        str.
    """
    return re.sub(r"[^\w.,=-]+", "_", text)
