"""Trains a model, resumes what was interrupted, and measures it.

python -m tfrec_diffusion.train --flagfile=experiments/demo.flags
"""

from tfrec_diffusion import command, flags


def main(values):
    from tfrec_diffusion import models
    from tfrec_diffusion.datasets.preparation import find_or_make
    from tfrec_diffusion.training import start

    arguments = command.settings(values.set, models.get(values.model))
    return start.train(values, arguments, lambda: find_or_make(values.dataset, values.data_dir))


if __name__ == "__main__":
    command.run(main, flags.train)
