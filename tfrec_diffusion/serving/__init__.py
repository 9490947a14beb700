"""Trained models as SavedModels for TF Serving, clients of it, and a stand-in to develop against.

The client and the stand-in need no model of this package.
"""

import pathlib

OUTPUT = "click_probability"  # what every signature that scores returns
WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"  # where TF Serving looks


def numbered_versions(export_dir):
    """The versions of a model: the directories that are named by numbers.

    Args:
        export_dir: str or `pathlib.Path`. Directory of the versions.

    Returns:
        dict of `pathlib.Path` by number, in ascending order.

    Raises:
        FileNotFoundError: If there is none.
    """
    paths = [path for path in pathlib.Path(export_dir).iterdir() if path.name.isdecimal()]
    if not paths:
        raise FileNotFoundError(f"{export_dir} must hold versions, directories named by numbers")
    return dict(sorted((int(path.name), path) for path in paths))
