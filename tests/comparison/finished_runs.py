"""What finished runs leave, without training them."""

import json


def finish(run, validation_auc=0.5, **splits):
    """Leaves the `metrics.json` of a finished `Run`.

    Args:
        run: `Run`.
        validation_auc: AUC on the validation split.
        **splits: Of other splits, metrics or only their AUC.
    """
    splits = {"test": 0.5, **splits, "validation": validation_auc}
    leave_metrics(run.directory, run.flags, splits)


def leave_metrics(directory, flags, splits):
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
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.json").write_text(json.dumps(metrics))
