"""Exact metrics of a trained model on one split, and a picture of its reliability.

python -m tfrec_diffusion.evaluate --model_dir=runs/demo --split=test --picture=reliability.png
"""

import sys

from tfrec_diffusion import command, flags


def main(values):
    from tfrec_diffusion.inspection import picture_file, reliability
    from tfrec_diffusion.prepared_directory import PreparedDirectory
    from tfrec_diffusion.row_maps import unknown_values
    from tfrec_diffusion.training.evaluation import describe, evaluate
    from tfrec_diffusion.training.run_directory import RunDirectory

    if values.picture:
        picture_file.check(values.picture)
    directory = RunDirectory(values.model_dir)
    model, data = directory.load_run(values.data_dir)
    if values.write_predictions:
        directory.check_own_data(data, values.table_dtype)
    if values.table_dtype != "float32":
        model.compress_tables(values.table_dtype)
    if unknown := unknown_values(data.row_maps):
        print(f"{data.directory}: {unknown}", file=sys.stderr)
    if newer := PreparedDirectory(data.directory).newer_raw_files():
        print(f"warning: {newer}", file=sys.stderr)
    split, predicted = values.split, []
    result = evaluate(
        model, data, split, values.batch_size, keep=lambda *columns: predicted.extend(columns),
        correction=directory.correction,
    )  # fmt: skip
    if values.write_predictions:
        directory.write_predictions(*predicted)
    print(describe(split, result, data.best_reachable(split), data.oracles(split)))
    if values.picture:
        _, probabilities, labels, _, weights = predicted
        title = f"{type(model).__name__}, {data.schema.name}, {split}"
        reliability.write_picture(values.picture, title, labels, probabilities, weights)
        print(values.picture)


if __name__ == "__main__":
    command.run(main, flags.evaluate)
