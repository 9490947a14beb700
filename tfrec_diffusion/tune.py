r"""Searches for the best settings of a model, by the validation split, in trials of `train`.

python -m tfrec_diffusion.tune --search=experiments/demo_search.json --tune_dir=runs/demo_tuned

python -m tfrec_diffusion.tune --search=experiments/diffumin/search.json --trials=60 \
    --tune_dir=runs/diffumin_tuned -- --flagfile=experiments/taobao_sample.flags --model=diffumin

Nothing of the test split is looked at: `train` measures it at the end of each trial, but what it
found there is neither read nor printed here.
"""

import functools

from tfrec_diffusion import command, extras, flags


def main(values, train_flags):
    extras.require("tools", "optuna", "matplotlib")
    from tfrec_diffusion.tuning import start

    return start.tune(values, train_flags, functools.partial(command.parsed, flags.train))


if __name__ == "__main__":
    command.run(main, flags.tune, takes_rest=True)
