r"""Trains models and settings with several seeds each, and compares them in one table.

python -m tfrec_diffusion.compare --model_dir=runs/comparison \
    --comparison=experiments/comparison.json

python -m tfrec_diffusion.compare --model_dir=runs/kuairand --run=avg_pooling \
    --run="din dropout=0.2 --learning_rate=5e-4" -- --flagfile=experiments/kuairand.flags
"""

import functools

from tfrec_diffusion import command, flags


def main(values, train_flags):
    from tfrec_diffusion.comparison import start

    return start.compare(values, train_flags, functools.partial(command.parsed, flags.train))


if __name__ == "__main__":
    command.run(main, flags.compare, takes_rest=True)
