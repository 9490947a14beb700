"""Scores the impressions of a log, which needs no labels, with a trained model.

python -m tfrec_diffusion.predict --model_dir=runs/shop --spec=shop.json --raw_dir=raw/today \
    --output=scores/today
"""

from tfrec_diffusion import command, flags


def main(values):
    from tfrec_diffusion.datasets.preparation import Preparation
    from tfrec_diffusion.prediction import predict
    from tfrec_diffusion.training.run_directory import RunDirectory

    description = predict(
        RunDirectory(values.model_dir),
        values.spec,
        raw_dir=values.raw_dir,
        output=values.output,
        preparation=Preparation(values.group_by, values.max_bad_rows, values.workers),
        batch_size=values.batch_size,
        format_=values.format,
    )
    for source, rows in description["report"]["sources"].items():
        print(f"{source:36}{rows['read']:12,} read {rows['kept']:12,} kept")
        for reason, dropped in rows["dropped"].items():
            print(f"  dropped {dropped['rows']:,}: {reason}")
    for note, value in description["report"].items():
        if "does not know" in note:
            print(f"{note}: {value}")
    print(values.output)


if __name__ == "__main__":
    command.run(main, flags.predict)
