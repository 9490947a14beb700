"""Trains models and settings with several seeds, and compares their metrics with the first one's.

    python tools/repeat_seeds.py --model_dir=runs/kuairand \
        --run=din --run=avg_pooling --run="din dropout=0.2 --learning_rate=5e-4" -- \
        --flagfile=experiments/kuairand.flags

A run is a model, then arguments of the model (name=value) and flags of `tfrec_diffusion.train`.
What follows `--` goes to `train` for every run. Each run and seed has a directory of its own in
`--model_dir`; interrupted, the same command goes on where it was. Prints a Markdown table; p is
that of Welch's t-test on the AUCs, against the first run. Needs scipy.
"""

import subprocess
import sys

from absl import app, flags
from seeded_runs import COLUMNS, Run, cells

RUNS = flags.DEFINE_multi_string("run", ["avg_pooling", "din"], "repeat it; the first is the base")
SEEDS = flags.DEFINE_integer("seeds", 3, "number of seeds, from 0", 2)
SPLITS = flags.DEFINE_list("splits", None, "splits in the table; default: all that were evaluated")
MODEL_DIR = flags.DEFINE_string("model_dir", None, "directory of the runs", required=True)


def train(run, seed, arguments):
    """Metrics of a run with one seed, by split."""
    run = Run(run, seed, arguments, MODEL_DIR.value)
    if not run.finished():
        subprocess.run(run.command, check=True, stdout=sys.stderr)
    return run.metrics()["splits"]


def table(results, splits):
    """Lines of Markdown.

    Args:
        results: dict of run → one dict for each seed: split → metric → value.
        splits: Names of splits.
    """
    yield f"| split | run | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}"
    for split in splits:
        base = None
        for run, seeds in results.items():
            of_split = [seed[split] for seed in seeds]
            yield f"| {split} | {run} | {' | '.join(cells(of_split, base))} |"
            base = base or of_split


def main(arguments):
    results = {
        run: [train(run, seed, arguments[1:]) for seed in range(SEEDS.value)] for run in RUNS.value
    }
    print(*table(results, SPLITS.value or results[RUNS.value[0]][0]), sep="\n")


if __name__ == "__main__":
    app.run(main)
