"""The file of a picture: checked before the work that would be lost, written with its points."""

import pathlib

from tfrec_diffusion import extras
from tfrec_diffusion.files import written_aside


def check(path):
    """Checks that a picture can be drawn and written.

    Args:
        path: str or `pathlib.Path`. The file, as `--picture` has it.

    Raises:
        FileNotFoundError: If there is no directory for it.
        ValueError: If matplotlib is not installed.
    """
    extras.require("tools", "matplotlib")
    directory = pathlib.Path(path).parent
    if not directory.is_dir():
        raise FileNotFoundError(f"no directory {directory} for --picture={path}")


def write(path, figure, points):
    """Writes a picture, and the points that are drawn beside it as CSV.

    Args:
        path: str or `pathlib.Path`. The file, in a format that its name says; else PNG.
        figure: `matplotlib.figure.Figure`.
        points: `pandas.DataFrame`.
    """
    path = pathlib.Path(path)
    points.to_csv(path.with_suffix(".csv"), index=False)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=120, format=path.suffix[1:] or "png")
