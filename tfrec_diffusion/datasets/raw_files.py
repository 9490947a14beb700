"""A directory of raw files that the package makes itself, written once for the same options."""

import contextlib
import json
import pathlib
import shutil

from tfrec_diffusion.files import written_aside

_OPTIONS = "options.json"


@contextlib.contextmanager
def written_once(directory, options):
    """Has raw files written aside, unless the directory holds those of the same options.

    Files that were written with other options are replaced.

    Args:
        directory: str or `pathlib.Path`. Directory of the files. It appears when they are all
            written.
        options: dict. What the files depend on, as JSON can hold it.

    Yields:
        `pathlib.Path` of an empty directory to write to, or `None` if the files are there.

    Raises:
        ValueError: If `directory` holds files of another origin.
    """
    directory = pathlib.Path(directory)
    if (directory / _OPTIONS).exists():
        if json.loads((directory / _OPTIONS).read_text()) == options:
            yield None
            return
    elif directory.exists() and any(directory.iterdir()):
        raise ValueError(
            f"`raw_dir` must be empty, absent or written by this data set. Received: {directory}, "
            f"which has files but no {_OPTIONS}"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(directory) as aside:
        if directory.exists():
            # Renamed first, so that what a kill leaves of it is not taken for the whole.
            directory.rename(aside)
            shutil.rmtree(aside)
        aside.mkdir()
        yield aside
        (aside / _OPTIONS).write_text(json.dumps(options, indent=1) + "\n")
