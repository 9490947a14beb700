"""Exact metrics of a trained model on one split.

python -m tfrec_diffusion.evaluate --model_dir=runs/demo --split=test
"""

import sys

from tfrec_diffusion import command, flags


def main(values):
    from tfrec_diffusion.prepared_directory import PreparedDirectory
    from tfrec_diffusion.training.evaluation import describe, evaluate
    from tfrec_diffusion.training.run_directory import RunDirectory

    directory = RunDirectory(values.model_dir)
    model, data = directory.load_run(values.data_dir)
    if newer := PreparedDirectory(data.directory).newer_raw_files():
        print(f"warning: {newer}", file=sys.stderr)
    keep = directory.write_predictions if values.write_predictions else None
    result = evaluate(model, data, values.split, values.batch_size, keep=keep)
    split = values.split
    print(describe(split, result, data.best_reachable(split), data.oracles(split)))


if __name__ == "__main__":
    command.run(main, flags.evaluate)
