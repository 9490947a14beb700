"""Runs that differ in their seed: the command and directory of each, and how their metrics compare.

Needs scipy.
"""

import json
import pathlib
import re
import shlex
import sys

import numpy as np
from scipy import stats

from tfrec_diffusion.metrics import rela_impr

METRICS = ("auc", "gauc", "log_loss")
COLUMNS = ("AUC", "GAUC", "log loss", "RelaImpr", "p")


class Run:
    """A model trained with one seed, in a directory of its own.

    Args:
        run: The model, then arguments of it (name=value) and flags of `tfrec_diffusion.train`.
        seed: An integer.
        arguments: Flags of `tfrec_diffusion.train` that come before them.
        parent: Directory that the run's own is in.
    """

    def __init__(self, run, seed, arguments, parent):
        model, *words = shlex.split(run)
        name = file_name(" ".join(word.lstrip("-") for word in (model, *words)))
        self.directory = pathlib.Path(parent, f"{name}_{seed}")
        settings = [word if word.startswith("--") else f"--set={word}" for word in words]
        own = [f"--model={model}", *settings, f"--seed={seed}", f"--model_dir={self.directory}"]
        self.command = [sys.executable, "-m", "tfrec_diffusion.train", *arguments, *own]

    def finished(self):
        """Whether this very command has trained it to the end."""
        return self.metrics() is not None

    def metrics(self):
        """What this very command wrote to `metrics.json`; `None` if it has not finished."""
        path = self.directory / "metrics.json"
        metrics = json.loads(path.read_text()) if path.exists() else {"command": []}
        return metrics if metrics["command"][1:] == self.command[3:] else None


def file_name(text):
    """The text as the name of a file or directory."""
    return re.sub(r"[^\w.,=-]+", "_", text)


def cells(seeds, base):
    """Cells of a table under `COLUMNS`.

    Args:
        seeds: A dict of metric → value for each seed.
        base: The same of the runs to compare with, by Welch's t-test on the AUCs where there are
            two seeds of both; `None`: nothing to compare with.
    """
    values = {metric: np.array([seed[metric] for seed in seeds], float) for metric in METRICS}
    yield from (mean_and_deviation(values[metric]) for metric in METRICS)
    if base is None:
        yield from ("", "")
        return
    of_base = np.array([seed["auc"] for seed in base], float)
    yield f"{rela_impr(values['auc'].mean(), of_base.mean()):+.2f}%"
    enough = min(len(seeds), len(base)) > 1
    yield f"{welch(values['auc'], of_base):.3f}" if enough else ""


def mean_and_deviation(values):
    """Mean ± sample standard deviation; of one value the value."""
    deviation = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{deviation}"


def welch(values, base):
    """p of Welch's t-test, two-sided."""
    return stats.ttest_ind(values, base, equal_var=False).pvalue
