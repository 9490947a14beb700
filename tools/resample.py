"""Evaluates a trained model with other constructor arguments, such as another sampler.

    python tools/resample.py --model_dir=runs/kuairand_diffumin --set=sampler=ddpm \
        --set=sampling_steps=20

    python tools/resample.py --model_dir=runs/kuairand_diffumin --guided_by_others

Nothing is trained: a model with the arguments of `--set` gets the weights of the trained one. An
argument that changes the shape of a weight, or needs a weight that was not trained, is refused.
With `--guided_by_others`, DiffuMIN's interests are denoised under the guidance (other interests and
channel) of another request of the batch: if guidance carries anything, AUC falls.
Printed are the metrics of both models, and how many of the predicted probabilities moved.
"""

import numpy as np
from absl import flags as absl_flags
from keras import ops

from tfrec_diffusion import command, flags
from tfrec_diffusion.training.evaluation import evaluate
from tfrec_diffusion.training.run_directory import RunDirectory

_MOVED = 1e-3


def define_flags(values):
    flags.trained_model(values)
    flags.model_settings(values)
    flags.batch_size(values)
    absl_flags.DEFINE_bool(
        "guided_by_others", False, "guide by another request's interests", flag_values=values
    )


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


def guide_by_others(model):
    """Has a DiffuMIN denoise each row under the guidance of the row half a batch away.

    Args:
        model: `DiffuMIN`.

    Raises:
        ValueError: If it has no generator that is guided.
    """
    generator = getattr(model, "generator", None) == "diffusion"
    if not generator or not (model.context_guidance or model.channel_guidance):
        raise ValueError("`guided_by_others` needs a DiffuMIN whose generator is guided")
    denoiser = model.get_layer("diffumin.generator").denoiser
    condition = denoiser.condition

    def of_others(*guides):
        return condition(*(ops.roll(x, ops.shape(x)[0] // 2, axis=0) for x in guides))

    denoiser.condition = of_others


def main(values):
    run = RunDirectory(values.model_dir)
    model, data = run.load_run(values.data_dir)
    arguments = command.settings(values.set, type(model))
    changed = with_other_arguments(model, run.model_file, arguments)
    what = [*values.set]
    if values.guided_by_others:
        guide_by_others(changed)
        what.append("guided by others")
    rows, probabilities = {}, []
    for name, each in (("as trained", model), (" ".join(what) or "unchanged", changed)):
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
