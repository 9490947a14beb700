"""A trained model's calibration: fitted on validation, measured on every split it has predicted."""

from tfrec_diffusion import metrics
from tfrec_diffusion.calibration import fit


def calibrate(directory, method):
    """Fits what makes the predictions of validation fit its labels, and measures what it does.

    Args:
        directory: `RunDirectory`, with the predictions of validation.
        method: str. As in `calibration.fit`.

    Returns:
        `Calibration`, and a dict by split, of which validation is the first and the others are
        those with predictions: dicts `before` and `after` of floats `log_loss`,
        `predicted_over_observed` and `calibration_error`.

    Raises:
        FileNotFoundError: If there are no predictions of validation by the model that is there.
        ValueError: As in `calibration.fit`.
    """
    validation = _predictions(directory, "validation")
    if validation is None:
        raise FileNotFoundError(
            f"{directory.predictions_file('validation')} is missing, or older than the model: "
            f"`python -m tfrec_diffusion.evaluate --model_dir={directory.path} --split=validation "
            "--write_predictions` writes it"
        )
    calibration = fit(method, validation.labels, validation.probabilities, validation.weights)
    measured = {}
    splits = (directory.metrics or {}).get("splits", {})
    for split in dict.fromkeys(("validation", "test", *splits)):
        if found := _predictions(directory, split):
            measured[split] = {
                "before": _measured(found, found.probabilities),
                "after": _measured(found, calibration(found.probabilities)),
            }
    return calibration, measured


def describe(calibration, measured):
    """Lines on what `calibrate` returned: the function, and what it changes in each split.

    Args:
        calibration: `Calibration`.
        measured: dict.

    Returns:
        str.
    """
    lines = [str(calibration)]
    for split, found in measured.items():
        changes = "  ".join(
            f"{name.replace('_over_', '/')} {before:.4f} -> {found['after'][name]:.4f}"
            for name, before in found["before"].items()
        )
        lines.append(f"{split}: {changes}")
    return "\n".join(lines)


def _predictions(directory, split):
    """The predictions of a split by the model that is there now, or `None`."""
    predictions = directory.predictions_file(split)
    if not predictions.exists():
        return None
    # A training that goes on replaces its model before it predicts.
    if predictions.stat().st_mtime < directory.model_file.stat().st_mtime:
        return None
    return directory.predictions(split)


def _measured(found, probabilities):
    columns = found.labels, probabilities, found.weights
    return {"log_loss": metrics.log_loss(*columns), **metrics.calibration(*columns)}
