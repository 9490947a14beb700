"""Exact metrics of a trained model on one split.

python -m tfrec_diffusion.evaluate --model_dir=runs/demo --split=test
"""

from tfrec_diffusion import command, flags


def main(values):
    from tfrec_diffusion.training.evaluation import describe, evaluate
    from tfrec_diffusion.training.run_directory import RunDirectory

    model, data = RunDirectory(values.model_dir).load_run(values.data_dir)
    result = evaluate(model, data, values.split, values.batch_size)
    print(describe(values.split, result, data.best_reachable(values.split)))


if __name__ == "__main__":
    command.run(main, flags.evaluate)
