"""Packages that only some commands need, which the extras of setup.cfg install."""

import importlib.util


def require(extra, *packages):
    """Checks that optional packages are installed, before any work that would be lost.

    Args:
        extra: str. Name of the extra that installs them.
        *packages: str. Names to import them by.

    Raises:
        ValueError: If one is missing.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"this command needs {' and '.join(missing)}: pip install 'tfrec_diffusion[{extra}]'"
        )
