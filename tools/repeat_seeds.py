"""Trains the same models with several seeds; mean and standard deviation of the test metrics.

    python tools/repeat_seeds.py --models=din,avg_pooling --model_dir=runs/kuairand -- \
        --flagfile=experiments/kuairand.flags

What follows `--` goes to `tfrec_diffusion.train` as it is. Each run has its own directory,
<model_dir>/<model>_<seed>; interrupted, the same command goes on where it was. Prints a Markdown
table.
"""

import json
import pathlib
import statistics
import subprocess
import sys

from absl import app, flags

from tfrec_diffusion.metrics import rela_impr

MODELS = flags.DEFINE_list("models", ["avg_pooling", "din"], "registered models; the first is base")
SEEDS = flags.DEFINE_integer("seeds", 3, "number of seeds, from 0", 2)
MODEL_DIR = flags.DEFINE_string("model_dir", None, "directory of the runs", required=True)
METRICS = ("auc", "gauc", "log_loss")


def train(model, seed, arguments):
    """Metrics of a run, by split."""
    model_dir = pathlib.Path(MODEL_DIR.value) / f"{model}_{seed}"
    if not (model_dir / "metrics.json").exists():
        command = [sys.executable, "-m", "tfrec_diffusion.train", *arguments]
        own = [f"--model={model}", f"--seed={seed}", f"--model_dir={model_dir}"]
        subprocess.run([*command, *own], check=True, stdout=sys.stderr)
    return json.loads((model_dir / "metrics.json").read_text())["splits"]


def main(arguments):
    results = {
        model: [train(model, seed, arguments[1:]) for seed in range(SEEDS.value)]
        for model in MODELS.value
    }
    print("| split | model | AUC | GAUC | log loss | RelaImpr |\n|---|---|---|---|---|---|")
    for split in results[MODELS.value[0]][0]:
        base = None
        for model, runs in results.items():
            values = {name: [run[split][name] for run in runs] for name in METRICS}
            means = {name: statistics.mean(values[name]) for name in METRICS}
            base = base or means["auc"]
            cells = [f"{means[n]:.4f} ± {statistics.stdev(values[n]):.4f}" for n in METRICS]
            improvement = f"{rela_impr(means['auc'], base):+.2f}%"
            print(f"| {split} | {model} | {' | '.join(cells)} | {improvement} |")


if __name__ == "__main__":
    app.run(main)
