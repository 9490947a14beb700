"""Evaluates a trained model with other constructor arguments, such as another sampler.

    python tools/resample.py --model_dir=runs/kuairand_diffumin --set=sampler=ddpm \
        --set=sampling_steps=20

Nothing is trained: a model with the arguments of `--set` gets the weights of the trained one. An
argument that changes the shape of a weight, or needs a weight that was not trained, is refused.
Printed are the metrics of both models, and how many of the predicted probabilities moved.
"""

import numpy as np

from tfrec_diffusion import command, flags
from tfrec_diffusion.training.evaluation import evaluate
from tfrec_diffusion.training.run_directory import RunDirectory

_MOVED = 1e-3


def define_flags(values):
    flags.trained_model(values)
    flags.model_settings(values)
    flags.batch_size(values)


def with_other_arguments(model, weights, arguments):
    """A model with the weights of another one.

    Args:
        model: `RankingModel`. It gives all arguments that are not given.
        weights: `pathlib.Path` of its `.keras` file.
        arguments: dict of constructor arguments.

    Returns:
        `RankingModel`, not compiled.

    Raises:
        ValueError: If the weights do not fit.
    """
    changed = type(model).from_config({**model.get_config(), **arguments})
    changed.load_weights(weights)
    return changed


def main(values):
    run = RunDirectory(values.model_dir)
    model, data = run.load_run(values.data_dir)
    arguments = command.settings(values.set, type(model))
    changed = with_other_arguments(model, run.model_file, arguments)
    rows, probabilities = {}, []
    for name, each in (("as trained", model), (" ".join(values.set) or "unchanged", changed)):
        rows[name] = evaluate(
            each, data, values.split, values.batch_size,
            keep=lambda _, predicted, *__: probabilities.append(predicted),
        )  # fmt: skip
    print(f"\n| {values.split} | AUC | GAUC | log loss |\n|---|---:|---:|---:|")
    for name, found in rows.items():
        cells = " | ".join(f"{found[metric]:.4f}" for metric in ("auc", "gauc", "log_loss"))
        print(f"| {name} | {cells} |")
    moves = np.abs(np.subtract(*probabilities))
    print(
        f"\n{np.mean(moves > _MOVED):.1%} of {len(moves):,} probabilities moved by more than "
        f"{_MOVED}; the mean move is {moves.mean():.5f}, the largest {moves.max():.5f}"
    )


if __name__ == "__main__":
    command.run(main, define_flags)
