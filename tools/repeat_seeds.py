"""Trains models and settings with several seeds, and compares their metrics with the first one's.

    python tools/repeat_seeds.py --model_dir=runs/kuairand \
        --run=din --run=avg_pooling --run="din dropout=0.2 --learning_rate=5e-4" -- \
        --flagfile=experiments/kuairand.flags

A run is a model, then arguments of the model (name=value) and flags of `tfrec_diffusion.train`.
What follows `--` goes to `train` for every run. Each run and seed has a directory of its own in
`--model_dir`; interrupted, the same command goes on where it was. Prints a Markdown table; p is
that of Welch's t-test on the AUCs, against the first run. Needs scipy.
"""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
from absl import app, flags
from scipy import stats

from tfrec_diffusion.metrics import rela_impr

RUNS = flags.DEFINE_multi_string("run", ["avg_pooling", "din"], "repeat it; the first is the base")
SEEDS = flags.DEFINE_integer("seeds", 3, "number of seeds, from 0", 2)
SPLITS = flags.DEFINE_list("splits", None, "splits in the table; default: all that were evaluated")
MODEL_DIR = flags.DEFINE_string("model_dir", None, "directory of the runs", required=True)
METRICS = ("auc", "gauc", "log_loss")


def train(run, seed, arguments):
    """Metrics of a run with one seed, by split."""
    model, *words = shlex.split(run)
    name = re.sub(r"[^\w.,=-]+", "_", " ".join(word.lstrip("-") for word in (model, *words)))
    model_dir = pathlib.Path(MODEL_DIR.value, f"{name}_{seed}")
    settings = [word if word.startswith("--") else f"--set={word}" for word in words]
    own = [f"--model={model}", *settings, f"--seed={seed}", f"--model_dir={model_dir}"]
    path = model_dir / "metrics.json"
    if not path.exists() or json.loads(path.read_text())["command"][1:] != [*arguments, *own]:
        command = [sys.executable, "-m", "tfrec_diffusion.train", *arguments, *own]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads(path.read_text())["splits"]


def table(results, splits):
    """Lines of Markdown.

    Args:
        results: dict of run → one dict for each seed: split → metric → value.
        splits: Names of splits.
    """
    yield "| split | run | AUC | GAUC | log loss | RelaImpr | p |\n|---|---|---|---|---|---|---|"
    for split in splits:
        base = None
        for run, seeds in results.items():
            values = {m: np.array([seed[split][m] for seed in seeds], float) for m in METRICS}
            cells = [f"{values[m].mean():.4f} ± {values[m].std(ddof=1):.4f}" for m in METRICS]
            if base is None:
                base = values["auc"]
                cells += ["", ""]
            else:
                cells.append(f"{rela_impr(values['auc'].mean(), base.mean()):+.2f}%")
                cells.append(f"{stats.ttest_ind(values['auc'], base, equal_var=False).pvalue:.3f}")
            yield f"| {split} | {run} | {' | '.join(cells)} |"


def main(arguments):
    results = {
        run: [train(run, seed, arguments[1:]) for seed in range(SEEDS.value)] for run in RUNS.value
    }
    print(*table(results, SPLITS.value or results[RUNS.value[0]][0]), sep="\n")


if __name__ == "__main__":
    app.run(main)
