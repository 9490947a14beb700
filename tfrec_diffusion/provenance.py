"""With what code something was made: what `metrics.json` and `describe.json` record of it."""

import pathlib
import platform
import subprocess

import keras
import tensorflow as tf

import tfrec_diffusion


def provenance():
    """The git revision and the versions that this process runs with.

    Returns:
        dict. `"git_revision"` is the commit of this code, with "-dirty" where it was changed, and
        `None` where git does not know the code; `"versions"` is a dict by package.
    """
    return {
        "git_revision": git_revision(),
        "versions": {
            "tfrec_diffusion": tfrec_diffusion.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "python": platform.python_version(),
        },
    }


def git_revision():
    """Commit of this code, with "-dirty" where it was changed; `None` where git does not know."""
    source = pathlib.Path(__file__)
    git = ["git", "-C", str(source.parent)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", source.name], capture_output=True, check=True
        )
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, check=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
