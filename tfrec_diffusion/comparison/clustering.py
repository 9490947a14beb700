"""A data set of clusters, prepared with the model of a finished run."""

import sys

from tfrec_diffusion.comparison.run import file_name
from tfrec_diffusion.prepared_directory import find_prepared
from tfrec_diffusion.training.run_directory import RunDirectory


class Clustering:
    """A data set prepared from another one with the model of a finished run.

    Args:
        run: `Run`. It is finished.
        flags: list of str. Flags of `tfrec_diffusion.prepare`.
    """

    def __init__(self, run, flags):
        trained = RunDirectory(run.directory)
        place = file_name(" ".join(["clustered_by", run.directory.name, *flags]))
        self.directory = run.directory.with_name(place)
        self.dataset = f"clustered/{trained.schema.name}"
        self._run, self._flags, self._trained = run, flags, trained.flags

    @property
    def command(self):
        """list of str. The command that prepares it."""
        source = find_prepared(self._trained["data_dir"], self._trained["dataset"])
        return [
            *(sys.executable, "-m", "tfrec_diffusion.prepare", "--dataset=clustered"),
            *(f"--raw_dir={source}", f"--data_dir={self.directory}"),
            *(f"--set=model_dir={self._run.directory}", *self._flags),
        ]

    @property
    def train_flags(self):
        """list of str. Flags of `tfrec_diffusion.train` to train on it."""
        return [f"--dataset={self.dataset}", f"--data_dir={self.directory}"]

    @property
    def is_finished(self):
        """Whether it is prepared."""
        try:
            find_prepared(self.directory, self.dataset)
        except FileNotFoundError:
            return False
        return True

    @property
    def result(self):
        """str. What came out, once it is finished."""
        return "prepared"
