"""What finished runs leave, without training them."""

import json

import numpy as np

from tfrec_diffusion.training.run_directory import RunDirectory


def finish(run, validation_auc=0.5, **splits):
    """Leaves the `metrics.json` of a finished `Run`.

    Args:
        run: `Run`.
        validation_auc: AUC on the validation split.
        **splits: Of other splits, metrics or only their AUC.
    """
    splits = {"test": 0.5, **splits, "validation": validation_auc}
    leave_metrics(run.directory, run.flags, splits)


def leave_predictions(run, noise, split="test", users=200):
    """Leaves the predictions of a finished `Run`: the labels, in noise that is its own.

    Args:
        run: `Run`.
        noise: float. Its standard deviation; labels are 0 and 1.
        split: str.
        users: int. Each has 5 impressions.
    """
    labels = np.arange(5 * users) % 3 == 0
    generator = np.random.default_rng([run.seed, *run.run.encode()])
    scores = labels + noise * generator.normal(size=len(labels))
    RunDirectory(run.directory).write_predictions(
        split, 1 / (1 + np.exp(-scores)), labels, np.arange(5 * users) // 5
    )


def leave_metrics(directory, flags, splits, **more):
    """Leaves the `metrics.json` of a training with these flags; splits as of `finish`."""
    metrics = {
        "splits": {
            split: found
            if isinstance(found, dict)
            else {"auc": found, "gauc": found and found - 0.1, "log_loss": found and 1 - found}
            for split, found in splits.items()
        },
        "training_seconds": 7.2,
        "command": ["train.py", *flags],
        **more,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.json").write_text(json.dumps(metrics))
