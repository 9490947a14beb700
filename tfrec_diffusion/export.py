"""Writes a trained model as a SavedModel, the next version for TF Serving.

python -m tfrec_diffusion.export --model_dir=runs/demo --export_dir=serving/demo
"""

from tfrec_diffusion import command, flags


def main(values):
    from tfrec_diffusion.serving.version import with_dtype, write_version
    from tfrec_diffusion.training import calibrated
    from tfrec_diffusion.training.run_directory import RunDirectory

    directory = RunDirectory(values.model_dir)
    model = directory.load_model()
    calibration, measured = directory.correction, None
    if values.calibrate:
        fitted, measured = calibrated.calibrate(directory, values.calibrate)
        print(calibrated.describe(fitted, measured))
        calibration = fitted.after(calibration)
    if values.mixed_precision:
        model = with_dtype(model, "mixed_bfloat16")
    if values.table_dtype != "float32":
        model.compress_tables(values.table_dtype)
    print(
        write_version(
            model,
            directory.path,
            values.export_dir,
            metrics=(directory.metrics or {}).get("splits"),
            correct_negative_sampling=values.correct_negative_sampling,
            calibration=calibration,
            calibration_metrics=measured,
            number=values.version,
        )
    )


if __name__ == "__main__":
    command.run(main, flags.export)
