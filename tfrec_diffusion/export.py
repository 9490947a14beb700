"""Writes a trained model as a SavedModel, the next version for TF Serving.

python -m tfrec_diffusion.export --model_dir=runs/demo --export_dir=serving/demo
"""

from tfrec_diffusion import command, flags


def main(values):
    from tfrec_diffusion.serving.version import with_dtype, write_version
    from tfrec_diffusion.training.run_directory import RunDirectory

    directory = RunDirectory(values.model_dir)
    model = directory.load_model()
    if values.mixed_precision:
        model = with_dtype(model, "mixed_bfloat16")
    print(
        write_version(
            model,
            directory.path,
            values.export_dir,
            metrics=(directory.metrics or {}).get("splits"),
            correct_negative_sampling=values.correct_negative_sampling,
        )
    )


if __name__ == "__main__":
    command.run(main, flags.export)
